"""The memory guard on the real kernel, without any pressure: with these thresholds it caps a host that is idle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.bus.names import MANAGER, MEMORY
from kerntune.daemon.app import Status
from tests.harness.daemon import READY, Daemon
from tests.live import host
from tests.live.users import Heard, User

# always:50 leaves a floor of 50 %; it caps at 100 % and lets go at 110 %, which never comes. 6 GiB of 24 are promised.
AT_ONCE: Final = "[guard]\ncap = 50\nrelease = 60\n[drift]\ninterval = 0\n"
CAPPED: Final = "capped"


@pytest.fixture
def guarded(daemon_with: Callable[..., Daemon], own_root: User) -> Iterator[Daemon]:
    daemon = daemon_with()
    (daemon.config / "kerntune.toml").write_text(AT_ONCE)
    daemon.start()
    daemon.wait_for(READY)
    yield daemon
    if daemon.process.poll() is not None:
        daemon.start()
        daemon.wait_for(READY)
    own_root.release()


def alerts(heard: Sequence[Heard]) -> list[tuple[str, int, dict[str, Any]]]:
    return [tuple(signal.args) for signal in heard if signal.signal == "GuardChanged"]


def capped(user: User, ear: int) -> dict[str, Any]:
    """Wait until it caps; the details."""
    heard = user.heard(ear, lambda so_far: any(state == CAPPED for state, _, _ in alerts(so_far)))
    return next(details for state, _, details in alerts(heard) if state == CAPPED)


def reserve() -> list[str]:
    """What the kernel keeps for root, and from each program."""
    return [Path(f"/proc/sys/vm/{whose}_reserve_kbytes").read_text().strip() for whose in ("admin", "user")]


def uncap(guarded: Daemon) -> int:
    """What systemd does when the daemon has ended; the exit status."""
    words = [sys.executable, "-m", "kerntune.daemon", "--uncap"]
    return subprocess.run(words, env=guarded.env, timeout=20, check=False).returncode


def test_it_caps_tells_who_has_the_memory_and_lets_go_with_the_claim(guarded: Daemon, own_root: User) -> None:
    before, reserved = host.overcommit(), reserve()
    ear = own_root.listen()
    own_root.set_overcommit("always", 50)
    details = capped(own_root, ear)
    assert host.overcommit()[0] == "never"
    assert own_root.get(MEMORY, "GuardState") == CAPPED
    assert own_root.get(MEMORY, "WarningLevel") == 100
    floor, headroom = own_root.get(MEMORY, "Floor"), own_root.get(MEMORY, "Headroom")
    assert 0 < floor < headroom
    assert own_root.get(MEMORY, "CommitLimit") == pytest.approx(details["limit"], abs=64 << 10)
    assert 1 <= len(details["largest"]) <= 5
    sizes = [size for _pid, _command, _uid, size in details["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert "memory is short: the memory guard caps" in guarded.journal()
    outcome = own_root.set_overcommit("heuristic", 0)[0]
    assert outcome[5:7] == ["overridden", "guard-limit"]
    own_root.release()
    assert (host.overcommit(), reserve()) == (before, reserved)
    assert own_root.get(MEMORY, "GuardState") == "off"


def test_stopped_it_puts_back_what_it_capped(guarded: Daemon, own_root: User) -> None:
    ear = own_root.listen()
    own_root.set_overcommit("always", 50)
    capped(own_root, ear)
    assert guarded.terminate() == 0
    assert host.overcommit()[0] == "always"


def test_killed_it_leaves_a_cap_that_its_successor_undoes(guarded: Daemon, own_root: User) -> None:
    ear = own_root.listen()
    own_root.set_overcommit("always", 50)
    capped(own_root, ear)
    guarded.kill()
    assert host.overcommit()[0] == "never"
    (guarded.config / "kerntune.toml").write_text("[guard]\nenabled = false\n")
    guarded.start()
    guarded.wait_for(READY)
    assert host.overcommit()[0] == "always"
    assert "a cap that was left behind is undone" in guarded.journal()


def test_killed_it_leaves_a_cap_that_systemd_undoes(guarded: Daemon, own_root: User) -> None:
    ear = own_root.listen()
    own_root.set_overcommit("always", 50)
    capped(own_root, ear)
    guarded.kill()
    assert uncap(guarded) == 0
    assert host.overcommit()[0] == "always"


def test_beside_a_running_daemon_nothing_is_undone(guarded: Daemon, own_root: User) -> None:
    ear = own_root.listen()
    own_root.set_overcommit("always", 50)
    capped(own_root, ear)
    assert uncap(guarded) == Status.TAKEN
    assert host.overcommit()[0] == "never"


def test_an_administrators_hand_ends_a_cap_for_good(guarded: Daemon, own_root: User) -> None:
    reserved, ear = reserve(), own_root.listen()
    own_root.set_overcommit("always", 50)
    capped(own_root, ear)
    assert reserve() != reserved
    Path("/proc/sys/vm/overcommit_memory").write_text("0\n")
    own_root.heard(ear, lambda so_far: any(state == "observing" for state, _, _ in alerts(so_far)))
    assert own_root.get(MANAGER, "Degraded") == ["changed-by-others", "guard-observing"]
    assert (host.overcommit()[0], reserve()) == ("heuristic", reserved)
    (outcome,) = own_root.call(MANAGER, "Verify")[0]
    assert outcome[5:7] == ["contested", "changed-by-others"]
