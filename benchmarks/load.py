"""Drives the load generator: what to call, how often and as whom, and the figures that come back."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kerntune.dbus.messages import Message

CHECKOUT: Final = Path(__file__).parents[1]
START: Final = 20.0  # seconds for a process of the generator to be ready, and to end
NS: Final = 1e-6  # milliseconds in a nanosecond
ENOUGH: Final = 10_000_000  # calls: more than any run makes


class LoadError(RuntimeError):
    """The generator failed, or a call was refused that should not have been."""


@dataclass(frozen=True, slots=True)
class Call:
    """One method call, as it is sent over and over."""

    destination: str
    path: str
    interface: str
    member: str
    signature: str = ""
    args: tuple[Any, ...] = ()

    def marshalled(self, serial: int = 1) -> bytes:
        """The message; the generator puts a serial of its own in place of this."""
        message = Message(
            self.destination,
            self.path,
            self.interface,
            self.member,
            signature=self.signature,
            body=list(self.args),
            serial=serial,
        )
        return bytes(message._marshall())  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


@dataclass(frozen=True, slots=True)
class Load:
    """Clients of one user that make the calls in turn, for so many seconds or calls, whichever ends first.

    A single client gives up when a call takes longer than `patience` seconds.
    """

    calls: tuple[Call, ...]
    user: str = "root"
    clients: int = 1
    seconds: float = 2.0
    most: int = ENOUGH
    patience: float = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a load saw: times in milliseconds, sorted; `cpu` is the generator's own time in seconds."""

    times: tuple[float, ...]
    seconds: float
    cpu: float
    unanswered: int = 0
    refusals: tuple[str, ...] = field(default=())

    @property
    def rate(self) -> float:
        """Calls answered in a second."""
        return len(self.times) / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.times) if self.times else float("inf")

    @property
    def p99(self) -> float:
        return self.times[min(len(self.times) - 1, len(self.times) * 99 // 100)] if self.times else float("inf")


def apply(address: str, load: Load, *, processes: int = 1, allow_refusals: bool = False) -> Sample:
    """Put the load on the bus and wait for its end; LoadError when it fails."""
    with ExitStack() as stack:
        return finish(start(stack, address, load, processes), load, allow_refusals=allow_refusals)


def start(stack: ExitStack, address: str, load: Load, processes: int = 1) -> list[subprocess.Popen[bytes]]:
    """Processes that share the clients, all connected before any begins; they end with `stack` at the latest."""
    started = []
    for number in range(processes):
        share = load.clients // processes + (number < load.clients % processes)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generator"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stack.callback(_end, process)
        _tell(process, plan_of(address, load, share, -(-load.most // processes)))
        started.append(process)
    for process in started:
        _await_ready(process)
    for process in started:
        _tell(process, "go")
    return started


def finish(processes: Sequence[subprocess.Popen[bytes]], load: Load, *, allow_refusals: bool = False) -> Sample:
    """Collect what the processes print at their end."""
    parts = []
    for process in processes:
        out, err = process.communicate(timeout=load.seconds + load.patience + START)
        if process.returncode:
            raise LoadError(f"the load generator failed: {err.decode(errors='replace')}")
        parts.append(json.loads(out))
    sample = joined(parts)
    if sample.refusals and not allow_refusals:
        call = load.calls[0]
        raise LoadError(f"{call.destination} refused {call.member} to {load.user}: {sample.refusals[0]}")
    return sample


def joined(parts: Sequence[dict[str, Any]]) -> Sample:
    """The samples of several processes as one."""
    return Sample(
        times=tuple(sorted(took * NS for part in parts for took in part["times"])),
        seconds=max(part["seconds"] for part in parts),
        cpu=sum(part["cpu"] for part in parts),
        unanswered=sum(part["unanswered"] for part in parts),
        refusals=tuple(refusal for part in parts for refusal in part["refusals"]),
    )


def plan_of(address: str, load: Load, clients: int, most: int) -> str:
    """What the generator reads."""
    return json.dumps(
        {
            "address": address,
            "user": load.user,
            "calls": [call.marshalled().hex() for call in load.calls],
            "clients": clients,
            "seconds": load.seconds,
            "most": most,
            "patience": load.patience,
        }
    )


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START)[0] or process.stdout.readline() != b"ready\n":
        process.kill()
        _, err = process.communicate(timeout=START)
        raise LoadError(f"the load generator is not ready: {err.decode(errors='replace')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=START)
