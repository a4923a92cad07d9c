"""Somebody else's hands on the real kernel: put back by the clock or at an event, and left alone when it is a fight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kerntune.api.names import MANAGER
from tests.harness import host
from tests.harness.daemon import READY, Daemon
from tests.live.users import Heard, User

WANTED, FOREIGN = "mq-deadline", "none"


@pytest.fixture
def own(daemon_with: Callable[..., Daemon], own_root: User) -> Iterator[Callable[[int], Daemon]]:
    """Starts a daemon with a drift interval; it has let go of everything at the end."""

    def start(interval: int) -> Daemon:
        daemon = daemon_with()
        (daemon.config / "kerntune.toml").write_text(f"[drift]\ninterval = {interval}\n")
        daemon.start()
        daemon.wait_for(READY)
        return daemon

    yield start
    own_root.release()


def by_hand(device: str, scheduler: str) -> None:
    Path(f"/sys/block/{device}/queue/scheduler").write_text(scheduler)


def rows(heard: Sequence[Heard]) -> list[tuple[str, tuple[str, ...]]]:
    """Cause, and before, actual, state and reason, of everything that Changed has told."""
    told = [signal.args for signal in heard if signal.signal == "Changed"]
    return [(cause, tuple(row[3:7])) for _generation, cause, outcomes in told for row in outcomes]


def test_it_is_put_back_within_the_interval_and_after_three_times_left_alone(
    own: Callable[[int], Daemon], own_root: User, loops: Sequence[str]
) -> None:
    own(1)
    own_root.set_scheduler("loop0", WANTED)
    ear = own_root.listen()
    for number in range(1, 5):
        by_hand("loop0", FOREIGN)
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
    by_hand("loop0", FOREIGN)
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
