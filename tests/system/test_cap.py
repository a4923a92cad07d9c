"""The memory guard without any pressure: with these thresholds it caps a host that is idle, and lets go again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, MEMORY, ROOT
from kerntune.daemon.app import Status
from tests.system.host import Host, listening
from tests.system.machine import Machine
from tests.system.pressure import MODE, soon

CONFIG: Final = "/etc/kerntune/kerntune.d/guard.toml"
# The floor of always:50 is 50 %; it caps below the floor and 1 TiB, and the cap never ends.
AT_ONCE: Final = "[guard]\nband = 1048576\n"
CLAIM: Final = ("overcommit", "", "always:50")
IS_CAPPED: Final = f"[ $(cat {MODE}) = 2 ]"
DROP_IN: Final = "/run/systemd/system/kerntuned.service.d/by-itself.conf"


@pytest.fixture
def at_once(host: Host) -> Iterator[Host]:
    """Give a host whose guard caps as soon as `always` is claimed; restore the shipped configuration afterwards."""
    host.vm.write(CONFIG, AT_ONCE)
    host.reload()
    yield host
    host.vm.check(f"rm {CONFIG}")
    host.reload()
    host.release()


@pytest.fixture
def capped(at_once: Host) -> Host:
    at_once.set(CLAIM)
    at_once.vm.wait_for(IS_CAPPED)
    return at_once


def reserves(vm: Machine) -> list[str]:
    """Return what the kernel keeps for root, and from each program."""
    return vm.check("cd /proc/sys/vm && cat admin_reserve_kbytes user_reserve_kbytes").split()


@pytest.mark.every_system
def test_it_caps_tells_who_has_the_memory_and_lets_go_with_the_claim(at_once: Host, vm: Machine) -> None:
    reserved = reserves(vm)
    ear = listening(vm, MEMORY)
    at_once.set(CLAIM)
    ear.wait_output('["capped",')
    ear.kill()
    line = next(line for line in ear.out.splitlines() if '["capped",' in line)
    _state, level, values = json.loads(line)["payload"]["data"]
    given = {name: value["data"] for name, value in values.items()}
    assert level == 100
    sizes = [size for _pid, _command, _uid, size in given["largest"]]
    assert 1 <= len(sizes) <= 5
    assert sizes == sorted(sizes, reverse=True)

    assert at_once.overcommit()[0] == 2
    words = ("GuardState", "WarningLevel", "Floor", "Headroom", "CommitLimit")
    state, warning, floor, headroom, limit = (at_once.get(MEMORY, word) for word in words)
    assert (state, warning) == ("capped", 100)
    assert 0 < floor < headroom
    assert limit == pytest.approx(given["limit"], rel=0.1), "it follows headroom"
    assert "memory is short: the memory guard caps" in at_once.journal()

    (outcome,) = at_once.set(("overcommit", "", "heuristic")).outcomes
    assert (outcome.state, outcome.reason) == ("overridden", "guard-limit")
    at_once.release()
    assert (at_once.overcommit(), reserves(vm)) == ((0, 50), reserved)
    assert at_once.get(MEMORY, "GuardState") == "off"


@pytest.fixture
def by_itself(capped: Host) -> Iterator[Host]:
    """Give a capped host where systemd puts nothing back when the service ends, and the next daemon does not cap."""
    capped.vm.write(DROP_IN, "[Service]\nExecStopPost=\n")
    capped.vm.write(CONFIG, "[guard]\nenabled = false\n")
    capped.vm.check("systemctl daemon-reload")
    yield capped
    capped.vm.check(f"rm {DROP_IN} && systemctl daemon-reload")


def test_killed_it_leaves_a_cap_that_its_successor_undoes(by_itself: Host, vm: Machine) -> None:
    pid = by_itself.pid
    vm.check(f"kill -KILL {pid}")
    by_itself.wait_restarted(pid)
    assert by_itself.overcommit()[0] == 1
    assert "a cap that was left behind is undone" in by_itself.journal()


def test_beside_a_running_daemon_nothing_is_undone(capped: Host, vm: Machine) -> None:
    assert vm.run("kerntuned --uncap").status == Status.TAKEN
    assert capped.overcommit()[0] == 2


def test_an_administrators_hand_ends_a_cap_for_good(at_once: Host, vm: Machine) -> None:
    reserved = reserves(vm)
    at_once.set(CLAIM)
    vm.wait_for(IS_CAPPED)
    assert reserves(vm) == reserved, "they are the kernel's own"
    vm.check(f"echo 0 > {MODE}")
    degraded = f"busctl get-property {BUS_NAME} {ROOT} {MANAGER} Degraded"
    vm.wait_for(f'[ "$({degraded})" = \'as 2 "changed-by-others" "guard-observing"\' ]')
    assert at_once.get(MEMORY, "GuardState") == "observing"
    assert (at_once.overcommit()[0], reserves(vm)) == (0, reserved)
    verified = vm.check(["busctl", "--json=short", "call", BUS_NAME, ROOT, MANAGER, "Verify"])
    ((outcome,),) = json.loads(verified)["data"]
    assert outcome[5:7] == ["contested", "changed-by-others"]


@pytest.mark.parametrize(("name", "value"), [("ratio", 1), ("kbytes", 1024)])
def test_a_limit_that_an_administrator_sets_locks_nobody_out(capped: Host, vm: Machine, name: str, value: int) -> None:
    """So low a limit is below what is committed: the guard takes the mode back, and caps again."""
    vm.check(f"echo {value} > /proc/sys/vm/overcommit_{name}")
    # Until the next look nothing can be started.
    soon(
        partial(
            vm.wait_for, "journalctl --unit=kerntuned --grep 'something else set vm.overcommit_memory to 2' --quiet"
        )
    )
    soon(partial(vm.check, "bash -c true && ps > /dev/null"))
    vm.wait_for(IS_CAPPED)
    assert capped.overcommit()[1] == 0, "the limit is the guard's again"
