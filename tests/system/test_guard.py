"""The memory guard under real pressure: a program that takes all it gets is refused and lives, and the host goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from kerntune.bus.names import MEMORY
from tests.system import pressure
from tests.system.host import Host
from tests.system.machine import Machine
from tests.system.qmp import MachineError

CONFIG: Final = "/etc/kerntune/kerntune.d/guard.toml"
# Back soon, for the next test.
SOON: Final = "[guard]\ncalm = 1\ndwell = 1\ndoubling = false\n"
OFF: Final = "[guard]\nenabled = false\n"
LEFT: Final = 900 << 20  # bytes that the ballast leaves, so that no run takes long
ROOM: Final = 5.0  # seconds until there is room again, under emulation
SWAP: Final = "/dev/vdb"
MODE: Final = "/proc/sys/vm/overcommit_memory"
RUNS: Final = (("alice", False, "all"), ("root", False, "all"), ("alice", True, "all"), ("root", True, "all"),
               ("alice", False, "again"))  # fmt: skip


@pytest.fixture(scope="module")
def guarded(vm: Machine) -> Iterator[Host]:
    """A host of which something else has most of the memory."""
    host = Host(vm)
    pressure.install(vm)
    vm.write(CONFIG, SOON)
    host.vm.check("kerntune reload")
    info = host.meminfo()
    ballast = pressure.take(vm, str((info["MemAvailable"] - LEFT) >> 20))
    ballast.wait_output("held")
    yield host
    ballast.kill(9)
    host.release()


@pytest.fixture
def host(guarded: Host) -> Iterator[Host]:
    """Every claim is withdrawn afterwards, whatever holds memory is gone, and the host's own values are back."""
    guarded.set(("overcommit", "", "always:95"))
    yield guarded
    guarded.release()
    assert guarded.vm.read(MODE) == "0"
    assert "Traceback" not in guarded.journal()


def say(figures: str) -> None:
    """For the report of a run (pytest -rP)."""
    sys.stdout.write(f"{figures}\n")


def let_go(host: Host) -> None:
    host.vm.wait_for(f"[ $(cat {MODE}) = 1 ]")


def floor(host: Host) -> int:
    """What a program that takes all it gets may leave at least: the floor, less 2 % of RAM."""
    return int(host.get(MEMORY, "Floor")) - host.meminfo()["MemTotal"] * 2 // 100


def work_goes_on(vm: Machine) -> None:
    """What somebody does who logs in to look; by way of su, for the shell's agent is too large to fork itself."""
    look = "bash -c true && ps > /dev/null && python3 -c pass && cat /proc/loadavg"
    soon(lambda: vm.check(look))
    soon(lambda: vm.check(["su", "--login", "alice", "--command", look]))
    soon(lambda: vm.check(look, user="alice", session=True))


def soon(work: Callable[[], object]) -> None:
    """Of what a program takes at once nothing is left until the guard has made room; root's takes root's reserve too.

    For a user whose own program asks again and again the kernel keeps 1/32 of that program's size, up to 128 MiB
    (vm.user_reserve_kbytes): 10 MiB here, which is hardly a login.
    """
    deadline = time.monotonic() + ROOM
    while True:
        try:
            work()
        except (MachineError, AssertionError):
            if time.monotonic() > deadline:
                raise
        else:
            return


@pytest.mark.parametrize(
    ("user", "swap", "how"),
    # Under emulation a host that swaps is too slow to keep to the second.
    [pytest.param(*each, marks=[pytest.mark.soak] if each[1] else []) for each in RUNS],
)
def test_a_program_that_takes_all_it_gets_is_refused_and_lives(host: Host, user: str, swap: bool, how: str) -> None:
    run(host, user, how, swap=swap)


def run(host: Host, user: str, how: str, *, swap: bool) -> None:
    vm = host.vm
    if swap:
        vm.check(f"mkswap -q {SWAP} && swapon {SWAP}")
    least = floor(host)
    hog = pressure.take(vm, how, user=user)
    try:
        hog.wait_output("refused 12")
        work_goes_on(vm)
        seen = pressure.lowest(hog)
        say(f"{user}, {how}, swap {swap}: lowest {seen >> 20} MiB, floor less 2 % is {least >> 20} MiB")
        assert seen >= least
        assert host.get(MEMORY, "GuardState") in ("capped", "exhausted")
        vm.check("pgrep -f 'take (all|again)'")
    finally:
        hog.kill(9)
        let_go(host)
        if swap:
            vm.check(f"swapoff {SWAP}")
    vm.wait_for("journalctl --unit=kerntuned --grep 'refused memory to .*take' --quiet")


def test_without_the_guard_the_oom_killer_strikes(host: Host) -> None:
    vm = host.vm
    vm.write(CONFIG, OFF)
    vm.check("kerntune reload")
    try:
        assert host.get(MEMORY, "GuardState") == "off"
        # In large steps: between small ones it would wait for pages of its own program.
        hog = pressure.take(vm, "all", "256", user="alice")
        assert hog.wait().status == -9
        vm.wait_for("journalctl --dmesg --grep 'Out of memory: Killed process .*take' --quiet")
    finally:
        vm.write(CONFIG, SOON)
        vm.check("kerntune reload")


def test_what_was_mapped_before_is_reported_with_its_owner(host: Host) -> None:
    vm = host.vm
    least = int(host.get(MEMORY, "Floor")) >> 20
    giant = pressure.take(vm, "late", "1500", user="alice", data=f"{least - 60}\n")
    giant.wait_output("used ")
    vm.wait_for("busctl get-property org.kerntune.Tuner1 /org/kerntune/Tuner1 "
                "org.kerntune.Tuner1.Memory GuardState | grep -q exhausted")  # fmt: skip
    assert host.get(MEMORY, "WarningLevel") == 255
    vm.wait_for("journalctl --unit=kerntuned --grep 'below the floor.*grown lately: take' --quiet")
    work_goes_on(vm)
    giant.kill(9)
    giant.wait()
    let_go(host)


def test_killed_while_capped_it_comes_back_and_nothing_is_left_capped(host: Host) -> None:
    vm = host.vm
    vm.write(CONFIG, OFF)  # what comes back shall not cap again at once
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    pid = host.pid
    vm.check(f"kill -9 {pid}")
    host.wait_restarted(pid)
    assert host.overcommit() == (1, 95)
    assert vm.read("/proc/sys/vm/admin_reserve_kbytes") == "8192"
    hog.kill(9)
    vm.write(CONFIG, SOON)
    vm.check("kerntune reload")


def test_stopped_while_capped_it_puts_everything_back(host: Host) -> None:
    vm = host.vm
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    vm.check("systemctl stop kerntuned")
    assert host.overcommit() == (1, 95)
    hog.kill(9)
    vm.check("systemctl start kerntuned")


def test_what_is_asked_meanwhile_waits(host: Host) -> None:
    vm = host.vm
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    (outcome,) = host.set(("overcommit", "", "heuristic")).outcomes
    assert (outcome.state, outcome.reason) == ("overridden", "guard-limit")
    assert "memory guard: capped" in vm.check("kerntune status")
    hog.kill(9)
    vm.wait_for(f"[ $(cat {MODE}) = 0 ]")


LOCKED_OUT: Final = """
import json, mmap, subprocess
from pathlib import Path
VM = Path("/proc/sys/vm")

def write(name, value):
    (VM / name).write_text(str(value))

def can_work():
    try:
        return subprocess.run(["/bin/bash", "-c", "/bin/true"], capture_output=True).returncode == 0
    except OSError as error:
        return error.strerror

promised = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
said = {"before": can_work()}
try:
    write("overcommit_ratio", 95)
    write("overcommit_memory", 2)
    said["never, ratio 95"] = can_work()
    write("overcommit_memory", 1)
    rows = dict(line.split()[:2] for line in open("/proc/meminfo"))
    write("overcommit_kbytes", int(rows["Committed_AS:"]) + 100 * 1024)
    write("overcommit_memory", 2)
    said["never, what is promised and 100 MiB"] = can_work()
finally:
    write("overcommit_memory", 0)
    write("overcommit_ratio", 50)
print(json.dumps(said))
"""


def test_mode_never_with_a_ratio_alone_locks_everybody_out(guarded: Host) -> None:
    """The contrast: what many hosts are set to by hand, once more is promised than that."""
    guarded.vm.check(f"echo 1 > {MODE}")
    said = json.loads(guarded.vm.check(["python3", "-c", LOCKED_OUT]))
    say(str(said))
    assert said == {
        "before": True,
        "never, ratio 95": "Cannot allocate memory",
        "never, what is promised and 100 MiB": True,
    }


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_runs_of_fifty(host: Host) -> None:
    for number in range(50):
        user, swap, how = RUNS[number % len(RUNS)]
        run(host, user, how, swap=swap)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_capped_and_released_a_hundred_times(host: Host) -> None:
    vm = host.vm
    pid, changes = host.pid, []
    before = vm.check(f"ls /proc/{pid}/fd | wc -l; grep -c . /proc/{pid}/maps; grep VmRSS /proc/{pid}/status")
    for _ in range(100):
        hog = pressure.take(vm, "all", user="alice")
        hog.wait_output("refused")
        began = time.monotonic()
        hog.kill(9)
        let_go(host)
        changes.append(time.monotonic() - began)
        assert host.overcommit() == (1, 95)
        assert vm.read("/proc/sys/vm/admin_reserve_kbytes") == "8192"
    after = vm.check(f"ls /proc/{pid}/fd | wc -l; grep -c . /proc/{pid}/maps; grep VmRSS /proc/{pid}/status")
    say(f"before {before.split()}, after {after.split()}")
    assert host.pid == pid
    assert before.split()[0] == after.split()[0], "descriptors"
    assert int(after.split()[-2]) < int(before.split()[-2]) + 4096, "kB"
