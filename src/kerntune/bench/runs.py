"""One process of a measurement: how it is started, ended and read; nothing that it started here outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from kerntune.bench.model import Sample
from kerntune.bench.worker import ended as ended_by
from kerntune.errors import Failed
from kerntune.run import launch
from kerntune.run.shield import Shield

RUN_SECONDS: Final = 3600.0  # the longest that one run may take
END_SECONDS: Final = 10.0  # for a command that is asked to end
KEEPER_SECONDS: Final = 10.0  # for its keeper to end what it has started: twice what that takes at most
PIPE: Final = 1 << 16  # bytes (pipe(7))
TAIL: Final = 2000  # bytes of a command's output that are kept

# Goes on beside a command; it is given what tells the last that the command has printed.
Meanwhile = Callable[[Callable[[], str]], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Arm:
    """How the processes of one side are started: their CPUs and slice, and their environment."""

    shield: Shield
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended: its status as in subprocess, its last output, and the moment (ns, CLOCK_MONOTONIC).

    `found` tells whether the text that was waited for has come; the moment is then that of its coming. `seconds` are
    those since a command was executed, and `usage` is its own and that of all that it has started.
    """

    status: int
    output: str
    moment: int
    found: bool = False
    seconds: float = 0.0
    usage: resource.struct_rusage | None = None


async def worker(
    arm: Arm, leg: str, how: Mapping[str, Any], *, fds: Sequence[int] = (), is_endless: bool = False
) -> Sample:
    """Run a leg of the worker in a fresh process and return what it measured; raises Failed for what it cannot be."""
    asked = json.dumps({**launch.behind(arm.shield), **how})
    argv = [sys.executable, "-P", "-m", "kerntune.bench.worker", leg, asked]
    ended = await _run(argv, arm.environment, fds, is_endless=is_endless)
    if ended.status:
        told = (
            ended_by(ended.status, leg)
            if ended.status < 0
            else ended.output.strip().rpartition("\n")[2].removeprefix("kerntune: ") or f"it ended with {ended.status}"
        )
        return Sample(0.0, trouble=told)
    try:
        return Sample(**json.loads(ended.output.splitlines()[-1]))
    except (ValueError, TypeError, IndexError) as error:
        raise Failed(f"the {leg} run printed no result", ended.output[-200:]) from error


async def command(arm: Arm, argv: Sequence[str], *, until: str = "", meanwhile: Meanwhile | None = None) -> Ended:
    """Run a command to its end, or until it prints `until`: then it is asked to end.

    `meanwhile` runs beside it and is cancelled at its end. Nothing that the command has started outlives it, also when
    this is cancelled, or this process killed.
    """
    # The keeper takes nothing of what is compared: what its command alone is told stands in JSON.
    told = {name: value for name, value in arm.environment.items() if os.environ.get(name) != value}
    source, report = os.pipe()
    try:
        try:
            kept = {**launch.behind(arm.shield), "environment": told, "report": report, "patience": END_SECONDS}
            words = [sys.executable, "-P", "-m", "kerntune.run.keep", json.dumps(kept), *argv]
            ended = await _run(words, os.environ, [report], until, meanwhile, at_once=signal.SIGHUP)
        finally:
            os.close(report)
        said = json.loads(os.read(source, PIPE) or "{}")
    finally:
        os.close(source)
    if not said:  # the keeper itself was killed
        return ended
    moment = ended.moment if ended.found else said["ended"]
    seconds = (moment - (said["began"] or moment)) / 1e9
    return replace(ended, status=said["status"], seconds=seconds, usage=resource.struct_rusage(said["usage"]))


async def _run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    until: str = "",
    meanwhile: Meanwhile | None = None,
    *,
    is_endless: bool = False,
    at_once: signal.Signals = signal.SIGKILL,
) -> Ended:
    with _Output(until.encode()) as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.sink,
            stderr=output.sink,
            pass_fds=fds,
            start_new_session=True,  # a command that asks its terminal must not be stopped by it for ever
        )
        output.begin()
        ends = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(output.found.wait())]
        beside = [asyncio.ensure_future(meanwhile(lambda: output.text))] if meanwhile else []
        try:
            await asyncio.wait(ends, timeout=None if is_endless else RUN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            moment = time.monotonic_ns()
            if process.returncode is None and not output.found.is_set():
                return Ended(-signal.SIGKILL, f"it ran for more than {RUN_SECONDS / 60:.0f} minutes", moment)
            if process.returncode is None:
                await _end(process, signal.SIGTERM, END_SECONDS + KEEPER_SECONDS)
            output.read()  # what was written before the end
            return Ended(process.returncode or 0, output.text, moment, output.found.is_set())
        finally:
            for task in (*beside, *ends):
                task.cancel()
            await _end(process, at_once, KEEPER_SECONDS)


async def _end(process: asyncio.subprocess.Process, number: signal.Signals, seconds: float) -> None:
    """Send a signal to a process that has not ended yet, and wait for its end; kill it when it takes too long."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class _Output:
    """What a command prints: the last of it is kept, and `found` is set when a text has come.

    It is a pipe of our own, which a child that the command leaves behind may keep open.
    """

    def __init__(self, until: bytes) -> None:
        self._until, self._kept = until, b""
        self.found = asyncio.Event()
        self._source, self.sink = os.pipe()
        os.set_blocking(self._source, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._source)
        os.close(self._source)
        if self.sink >= 0:
            os.close(self.sink)

    def begin(self) -> None:
        """Read from now on, so that a full pipe stops nobody."""
        os.close(self.sink)
        self.sink = -1
        asyncio.get_running_loop().add_reader(self._source, self.read)

    def read(self) -> None:
        """Read what there is: a pipe holds no more than this."""
        with suppress(BlockingIOError):
            piece = os.read(self._source, PIPE)
            if not piece:
                asyncio.get_running_loop().remove_reader(self._source)
            self._kept += piece
            if self._until and self._until in self._kept:
                self.found.set()
            self._kept = self._kept[-max(TAIL, len(self._until)) :]

    @property
    def text(self) -> str:
        """Return the last of it."""
        return self._kept.decode(errors="replace")
