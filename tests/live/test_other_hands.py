"""What others do to this host: put back by the clock or at an event, left alone when it is a fight, and always told."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.names import IO_SCHEDULER, MANAGER
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.users import Heard, User

WANTED, FOREIGN = "mq-deadline", "none"


@pytest.fixture
def own(daemon_with: Callable[..., Daemon], own_root: User) -> Iterator[Callable[[int], Daemon]]:
    """Give a starter of daemons with a drift interval; they have let go of everything at the end."""

    def start(interval: int) -> Daemon:
        daemon = daemon_with()
        (daemon.config / "kerntune.toml").write_text(f"[drift]\ninterval = {interval}\n")
        return daemon.started()

    yield start
    own_root.release()


def schedule(device: str, scheduler: str) -> None:
    Path(f"/sys/block/{device}/queue/scheduler").write_text(scheduler)


def rows(heard: Sequence[Heard]) -> list[tuple[str, tuple[str, ...]]]:
    """Return cause, and before, actual, state and reason, of everything that Changed has told."""
    told = [signal.args for signal in heard if signal.signal == "Changed"]
    return [(cause, tuple(row[3:7])) for _generation, cause, outcomes in told for row in outcomes]


def test_it_is_put_back_within_the_interval_and_after_three_times_left_alone(
    own: Callable[[int], Daemon], own_root: User, loops: Sequence[str]
) -> None:
    own(1)
    own_root.set_scheduler("loop0", WANTED)
    ear = own_root.listen()
    for number in range(1, 5):
        schedule("loop0", FOREIGN)
        expected = number
        heard = own_root.heard(ear, lambda so_far: len(rows(so_far)) >= expected)  # noqa: B023  (called at once)
    repaired = ("drift", (FOREIGN, WANTED, "satisfied", "ok"))
    assert rows(heard) == [repaired] * 3 + [("drift", (FOREIGN, FOREIGN, "contested", "changed-by-others"))]
    assert own_root.get(MANAGER, "Degraded") == ["changed-by-others"]
    assert host.scheduler("loop0") == FOREIGN

    own_root.set_scheduler("loop0", WANTED)
    assert host.scheduler("loop0") == WANTED, "who names it has it written again"
    assert own_root.get(MANAGER, "Degraded") == []


@pytest.mark.parametrize("action", ["change", "add"])
def test_an_event_of_a_known_device_is_enough(
    own: Callable[[int], Daemon], own_root: User, loops: Sequence[str], action: str
) -> None:
    own(0)
    own_root.set_scheduler("loop0", WANTED)
    schedule("loop0", FOREIGN)
    ear = own_root.listen()
    Path("/sys/class/block/loop0/uevent").write_text(f"{action}\n")
    heard = own_root.heard(ear, lambda so_far: bool(rows(so_far)))
    assert rows(heard) == [(f"{action} loop0", (FOREIGN, WANTED, "satisfied", "ok"))]


def test_overcommit_is_reported_and_not_fought_over(own: Callable[[int], Daemon], own_root: User) -> None:
    own(1)
    own_root.set_overcommit("always", 95)
    ear = own_root.listen()
    Path("/proc/sys/vm/overcommit_memory").write_text("0")
    heard = own_root.heard(ear, lambda so_far: bool(rows(so_far)))
    ((cause, (_before, actual, state, reason)),) = rows(heard)
    assert (cause, actual.partition(":")[0], state, reason) == ("drift", "heuristic", "contested", "changed-by-others")
    assert host.overcommit()[0] == "heuristic"


# What is there is what is answered, also where nothing is managed and no clock runs


KIB_AHEAD: Final = "256"
# An answer may be a tenth of a second old, so what was asked just before the write may be told again for so long.
SOON: Final = 2.0  # seconds


def file(name: str) -> Path:
    return host.HOST / f"sys/block/loop0/queue/{name}"


@pytest.fixture
def by_hand(daemon: Daemon, loops: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Give a writer of another scheduler and read-ahead; what was there is written again in the end."""
    own = {name: host.value(file(name)) for name in ("scheduler", "read_ahead_kb")}
    assert own["scheduler"] != WANTED
    assert own["read_ahead_kb"] != KIB_AHEAD

    def write() -> None:
        file("scheduler").write_text(WANTED)
        file("read_ahead_kb").write_text(KIB_AHEAD)

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
    soon(lambda: other.get(IO_SCHEDULER, "Devices")["loop0"][0], WANTED)


def test_the_description_is_of_the_kernel(by_hand: Callable[[], None], other: User) -> None:
    by_hand()
    soon(lambda: described(other, "read-ahead"), KIB_AHEAD)
    assert described(other, "io-scheduler") == WANTED


def test_who_listens_is_told_what_a_look_has_found(by_hand: Callable[[], None], other: User, member: User) -> None:
    # What is told is a difference, so what was there has to be known first.
    soon(lambda: other.get(IO_SCHEDULER, "Devices")["loop0"][0], host.scheduler("loop0"))
    ear = other.listen()
    by_hand()
    soon(lambda: member.get(IO_SCHEDULER, "Devices")["loop0"][0], WANTED)
    heard = other.heard(ear, lambda so_far: any(devices(signal) for signal in so_far))
    told = next(found for signal in heard if (found := devices(signal)))
    assert told["loop0"][0] == WANTED


def devices(signal: Heard) -> dict[str, Any]:
    """Return what a signal tells of Devices, if it does."""
    if signal.signal != "PropertiesChanged" or signal.args[0] != IO_SCHEDULER:
        return {}
    found: dict[str, Any] = signal.args[1].get("Devices", {})
    return found


# Another medium in the drive


DRIVE = "loop3"
QUEUE = Path(f"/sys/block/{DRIVE}/queue")
READ_AHEAD = QUEUE / "read_ahead_kb"
DISKSEQ = QUEUE.parent / "diskseq"


@pytest.fixture
def drive(loops: Sequence[str]) -> Iterator[None]:
    assert DRIVE in loops
    before = READ_AHEAD.read_text()
    yield
    READ_AHEAD.write_text(before)


def losetup(*words: str) -> None:
    subprocess.run(["losetup", *words], timeout=20, check=True)


def test_another_medium_leaves_the_drive_its_own_value(daemon: Daemon, root: User, drive: None, tmp_path: Path) -> None:
    READ_AHEAD.write_text("128")
    root.set(("read-ahead", DRIVE, "1024"))
    assert READ_AHEAD.read_text() == "1024\n"
    before, inode = DISKSEQ.read_text(), QUEUE.stat().st_ino
    medium = tmp_path / "medium"
    medium.write_bytes(bytes(1 << 20))
    losetup(f"/dev/{DRIVE}", str(medium))
    losetup("--detach", f"/dev/{DRIVE}")
    assert DISKSEQ.read_text() != before, "the kernel counts media"
    assert QUEUE.stat().st_ino == inode, "and the queue is the same"
    root.unset(("read-ahead", DRIVE))
    assert READ_AHEAD.read_text() == "128\n"
    assert not [row for row in root.describe()["targets"] if row["instance"] == DRIVE and row["baseline"]]
