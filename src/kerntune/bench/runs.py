"""One process of a measurement: the module starts, ends and reads it; nothing that it started here outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from typing import Any, Final, Self

from kerntune.bench.model import Sample
from kerntune.bench.worker import ended as ended_by
from kerntune.errors import Failed
from kerntune.run import launch
from kerntune.run.shield import Shield

RUN_SECONDS: Final = 3600.0  # the longest time for one run
END_SECONDS: Final = 10.0  # for a command to end when it is asked
KEEPER_SECONDS: Final = 10.0  # for its keeper to end what it has started: twice the longest time for that
PIPE: Final = 1 << 16  # bytes (pipe(7))
TAIL: Final = 2000  # bytes of a command's output to keep

# A coroutine that runs beside a command; its argument is a function that returns the command's last output.
Meanwhile = Callable[[Callable[[], str]], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side's way to start processes: their CPUs and slice, and their environment."""

    shield: Shield
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended: its status as in subprocess, its last output, and the moment (ns, CLOCK_MONOTONIC).

    `found` says whether the text that was waited for has come; the moment is then when it came. `seconds` count from
    the execution of a command. `usage` is its own and that of what it has started, None where it is not known. Below
    `least` KiB `usage` says nothing about memory.
    """

    status: int
    output: str
    moment: int
    found: bool = False
    seconds: float = 0.0
    usage: resource.struct_rusage | None = None
    least: int = 0


async def worker(
    arm: Arm, leg: str, how: Mapping[str, Any], *, fds: Sequence[int] = (), is_endless: bool = False
) -> Sample:
    """Run a leg of the worker in a fresh process and return its measurement. Raise Failed if it printed no result."""
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
    """Run a command to its end, or until it prints `until`; then ask it to end.

    `meanwhile` runs beside it until then. Nothing that the command has started outlives it, even when this is
    cancelled, or this process killed: a keeper stays beside the command (kerntune.run.keep). When the keeper is killed
    there is no `usage`, and nothing is known of the command.
    """
    # The keeper gets nothing of what is compared: variables for its command alone stand in JSON.
    told = {name: value for name, value in arm.environment.items() if os.environ.get(name) != value}
    with _pipe() as (reports, report), _pipe() as (end, leash):
        pipes = {"report": report.fileno(), "leash": end.fileno()}
        words = launch.command(arm.shield, argv, by="keep", environment=told, patience=END_SECONDS, **pipes)
        fds = list(pipes.values())
        ended = await _run(words, os.environ, fds, until=until, meanwhile=meanwhile, leash=leash)
        report.close()
        said = json.loads(reports.read() or "{}")
    if not said:
        return ended
    found = ended.found and said["began"] > 0  # the process that refuses a command could print the text too
    moment = ended.moment if found else said["ended"]
    seconds = (moment - (said["began"] or moment)) / 1e9
    usage = resource.struct_rusage(said["usage"])
    return replace(ended, status=said["status"], found=found, seconds=seconds, usage=usage, least=said["least"])


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    source, sink = os.pipe()
    with FileIO(source, "r") as reader, FileIO(sink, "w") as writer:
        yield reader, writer


async def _run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    *,
    until: str = "",
    meanwhile: Meanwhile | None = None,
    leash: FileIO | None = None,
    is_endless: bool = False,
) -> Ended:
    with _Output(until.encode()) as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.sink,
            stderr=output.sink,
            pass_fds=fds,
            start_new_session=True,  # else a command that reads its terminal could be stopped for ever
        )
        output.begin()
        ends = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(output.found.wait())]
        beside = [asyncio.ensure_future(meanwhile(lambda: output.text))] if meanwhile else []
        try:
            await asyncio.wait(ends, timeout=None if is_endless else RUN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            moment = time.monotonic_ns()
            for going_on in beside:
                going_on.cancel()
            if process.returncode is None and not output.found.is_set():
                return Ended(-signal.SIGKILL, f"it ran for more than {RUN_SECONDS / 60:.0f} minutes", moment)
            if leash and process.returncode is None:
                with suppress(BrokenPipeError):
                    leash.write(b"\n")
                await _wait(process, END_SECONDS + KEEPER_SECONDS)
            output.read()  # what the process wrote before its end
            return Ended(process.returncode or 0, output.text, moment, output.found.is_set())
        finally:
            for task in (*beside, *ends):
                task.cancel()
            if leash:
                leash.close()
                await _wait(process, KEEPER_SECONDS)
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)  # Process.kill could wait for the process, and lose its status
                await process.wait()


async def _wait(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Wait at most so long for the end of a process; a cancellation that came before does not matter."""
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()


class _Output:
    """The reader of a command's output: it keeps the end, and sets `found` when a text has come.

    It reads a pipe of our own, which a child that the command leaves behind may keep open.
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
        """Read from now on, so that a full pipe stops no process."""
        os.close(self.sink)
        self.sink = -1
        asyncio.get_running_loop().add_reader(self._source, self.read)

    def read(self) -> None:
        """Read the available output: a pipe holds no more than this."""
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
        """The end of the output."""
        return self._kept.decode(errors="replace")
