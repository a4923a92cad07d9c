"""What others write to this host is what the daemon answers next, also where nothing is managed and no clock runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.names import IO_SCHEDULER
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.users import Heard, User

OTHER: Final = "mq-deadline"
READ_AHEAD: Final = "256"
# An answer may be a tenth of a second old, so what was asked just before the write may be told again for so long.
SOON: Final = 2.0  # seconds


def file(name: str) -> Path:
    return host.HOST / f"sys/block/loop0/queue/{name}"


@pytest.fixture
def by_hand(daemon: Daemon, loops: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Writes another scheduler and read-ahead; what was there is written again in the end."""
    own = {name: host.value(file(name)) for name in ("scheduler", "read_ahead_kb")}
    assert own["scheduler"] != OTHER
    assert own["read_ahead_kb"] != READ_AHEAD

    def write() -> None:
        file("scheduler").write_text(OTHER)
        file("read_ahead_kb").write_text(READ_AHEAD)

    yield write
    for name, text in own.items():
        file(name).write_text(text)


def soon(ask: Callable[[], Any], expected: Any) -> None:
    """Ask until the answer is so; AssertionError when it does not become so."""
    deadline = time.monotonic() + SOON
    while (answer := ask()) != expected:
        assert time.monotonic() < deadline, f"{answer} is told, {expected} is there"


def described(user: User, tunable: str) -> str:
    rows = user.describe()["targets"]
    return next(str(row["value"]) for row in rows if (row["tunable"], row["instance"]) == (tunable, "loop0"))


def test_devices_are_those_of_the_kernel(by_hand: Callable[[], None], other: User) -> None:
    by_hand()
    soon(lambda: other.get(IO_SCHEDULER, "Devices")["loop0"][0], OTHER)


def test_the_description_is_of_the_kernel(by_hand: Callable[[], None], other: User) -> None:
    by_hand()
    soon(lambda: described(other, "read-ahead"), READ_AHEAD)
    assert described(other, "io-scheduler") == OTHER


def test_who_listens_is_told_what_a_look_has_found(by_hand: Callable[[], None], other: User, member: User) -> None:
    # What is told is a difference, so what was there has to be known first.
    soon(lambda: other.get(IO_SCHEDULER, "Devices")["loop0"][0], host.scheduler("loop0"))
    ear = other.listen()
    by_hand()
    soon(lambda: member.get(IO_SCHEDULER, "Devices")["loop0"][0], OTHER)
    heard = other.heard(ear, lambda so_far: any(devices(signal) for signal in so_far))
    told = next(found for signal in heard if (found := devices(signal)))
    assert told["loop0"][0] == OTHER


def devices(signal: Heard) -> dict[str, Any]:
    """Return what a signal tells of Devices, if it does."""
    if signal.signal != "PropertiesChanged" or signal.args[0] != IO_SCHEDULER:
        return {}
    found: dict[str, Any] = signal.args[1].get("Devices", {})
    return found
