"""The memory guard under real pressure: a program that takes all it gets is refused and lives, and the host goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from kerntune.bus.names import MEMORY
from kerntune.daemon.alarm import WORDS
from kerntune.engine.guard import GuardState
from tests.system import pressure
from tests.system.host import Host
from tests.system.image import base
from tests.system.machine import Machine
from tests.system.pressure import MODE
from tests.system.qmp import MachineError
from tests.system.shell import Job

pytestmark = pytest.mark.own_machine

CONFIG: Final = "/etc/kerntune/kerntune.d/guard.toml"
DWELL: Final = 1  # second
# Back soon, for the next test.
SOON: Final = f"[guard]\ncalm = 1\ndwell = {DWELL}\ndoubling = false\n"
OFF: Final = "[guard]\nenabled = false\n"
LEFT: Final = 900 << 20  # bytes that the ballast leaves, so that no run takes long
ROOM: Final = 5.0  # seconds until there is room again, under emulation
PAUSE: Final = 1.0  # seconds between two tries: the guard makes room once nobody has asked for more for half of one
ASKS: Final = 10.0  # seconds for which `take large` and `take again` go on asking
SEEN_LATE: Final = 0.05  # seconds by which the guest's own watch may see a cap begin later than it sees it end
# The soaks' figures; KERNTUNE_SOAK=0.3 makes them shorter.
PART: Final = float(os.environ.get("KERNTUNE_SOAK", "1"))
HOGS, CAPS = int(50 * PART), int(100 * PART)
LOOK: Final = "bash -c true && ps > /dev/null && python3 -c pass && cat /proc/loadavg"
SIZES: Final = "cd /proc/{pid} && ls fd | wc -l; grep -c . maps; ls task | wc -l; awk '/^VmRSS/ {{print $2}}' status"
# So small that it is in use when the guard caps, and soon read back: emulated, a page takes 0.1 ms.
SWAP, SWAP_KIB = "/dev/vdb", 384 << 10
RUNS: Final = (("alice", False, "all"), ("root", False, "all"), ("alice", True, "all"), ("root", True, "all"),
               ("alice", False, "large"), ("root", False, "large"),
               ("alice", False, "again"), ("root", False, "again"))  # fmt: skip
# The soak has these too. From a program as small as here, which asks again and again, the kernel keeps for others no
# more than 1/32 of its size, 20 MiB: hardly a login. One of root takes root's reserve as well.
SMALL: Final = "again"
LONG: Final = (("root", False, "large"), ("alice", False, SMALL), ("root", False, SMALL))
# Newer kernels have so much on its way to the swap at once, memory that counts as in use twice, that the guard may cap
# too early and let go again.
SWAPS: Final = base.SUITE == "bookworm"
ONLY_THERE: Final = pytest.mark.skipif(not SWAPS, reason="with swap the guard may cap for a moment only")


def marks(run: tuple[str, bool, str]) -> list[pytest.MarkDecorator]:
    """The soak has the long ones; those with swap run on Debian 12."""
    _, swap, _ = run
    return [pytest.mark.soak] if run in LONG else [pytest.mark.every_system, ONLY_THERE] if swap else []


@pytest.fixture(scope="module")
def guarded(vm: Machine) -> Iterator[Host]:
    """A host of which something else has most of the memory."""
    host = Host(vm)
    pressure.install(vm)
    vm.write(CONFIG, SOON)
    host.reload()
    info = host.meminfo()
    ballast = pressure.take(vm, str((info["MemAvailable"] - LEFT) >> 20))
    ballast.wait_output("held")
    yield host
    ballast.kill(9)
    host.release()


@pytest.fixture
def host(guarded: Host) -> Iterator[Host]:
    """Every claim is withdrawn afterwards, whatever holds memory is gone, and the host's own values are back."""
    # systemd ends the manager of a user's services 10 s after the last logout. Refused memory then, it hangs, and the
    # user's next login waits for it.
    guarded.vm.check("systemctl stop user@1000.service")
    guarded.set(("overcommit", "", "always:95"))
    yield guarded
    guarded.release()
    assert guarded.vm.read(MODE) == "0"


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
    soon(lambda: vm.check(LOOK))
    soon(lambda: vm.check(["su", "--login", "alice", "--command", LOOK]))
    soon(lambda: vm.check(LOOK, user="alice", session=True))


def soon(work: Callable[[], object], limit: float = ROOM) -> None:
    """Of what a small program takes at once nothing is left until the guard has made room; root's takes root's reserve
    too."""
    deadline = time.monotonic() + limit
    while True:
        try:
            work()
        except MachineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("user", "swap", "how"),
    [pytest.param(*each, marks=marks(each)) for each in RUNS],
)
def test_a_program_that_takes_all_it_gets_is_refused_and_lives(host: Host, user: str, swap: bool, how: str) -> None:
    run(host, user, how, swap=swap)


def run(host: Host, user: str, how: str, *, swap: bool) -> None:
    vm, begin = host.vm, host.journal_end()
    refused: MachineError | None = None
    if swap:
        vm.check(f"mkswap -q {SWAP} {SWAP_KIB} && swapon {SWAP}")
    least = floor(host)
    hog = pressure.take(vm, how, user=user)
    try:
        hog.wait_output("refused 12")
        if how == SMALL:
            soon(lambda: vm.check(["su", "--login", "root", "--command", LOOK]), ASKS + ROOM)
        else:
            try:
                work_goes_on(vm)
            except MachineError as error:
                refused = error
        seen = pressure.lowest(hog)
        say(f"{user}, {how}, swap {swap}: lowest {seen >> 20} MiB, floor less 2 % is {least >> 20} MiB")
        assert seen >= least
        assert not swap or host.meminfo()["SwapFree"] < host.meminfo()["SwapTotal"]
        assert host.get(MEMORY, "GuardState") in ("capped", "exhausted")
        vm.check("pgrep -f 'take (all|again|large)'")
    finally:
        hog.kill(9)
        hog.wait()
        let_go(host)
        if swap:
            vm.check(f"swapoff {SWAP}")
    if how != "all":  # which asks no more once it is refused, and the kernel logs ten refusals in 5 s, whoever asks
        vm.wait_for(f"journalctl --unit=kerntuned --after-cursor='{begin}' --grep 'refused memory to .*take' --quiet")
    # A program of root's takes root's reserve too, and so it may end below the floor, where nothing more is promised.
    if refused and not (user == "root" and WORDS[GuardState.EXHAUSTED] in host.journal(begin)):
        raise refused


@pytest.fixture
def unguarded(host: Host) -> Iterator[Host]:
    """The same claim of `always`, and nobody who makes its ratio real."""
    host.vm.write(CONFIG, OFF)
    host.reload()
    assert host.get(MEMORY, "GuardState") == "off"
    yield host
    host.vm.write(CONFIG, SOON)
    host.reload()


@pytest.mark.parametrize("user", ["alice", "root"])
def test_without_the_guard_the_oom_killer_strikes(unguarded: Host, user: str) -> None:
    # In large steps: between small ones it would wait for pages of its own program.
    hog = pressure.take(unguarded.vm, "all", "256", user=user)
    assert hog.wait().status == -9
    unguarded.vm.wait_for(f"journalctl --dmesg --grep 'Out of memory: Killed process {hog.pid} .*take' --quiet")


def test_what_was_mapped_before_is_reported_with_its_owner(host: Host) -> None:
    vm = host.vm
    least = int(host.get(MEMORY, "Floor")) >> 20
    giant = pressure.take(vm, "late", "1500", user="alice", data=f"{least - 60}\n")
    try:
        giant.wait_output("used ")
        vm.wait_for("busctl get-property org.kerntune.Tuner1 /org/kerntune/Tuner1 "
                    "org.kerntune.Tuner1.Memory GuardState | grep -q exhausted")  # fmt: skip
        assert host.get(MEMORY, "WarningLevel") == 255
        # What else has most is of the same name: it is told by its number, and by whose it is.
        vm.wait_for(f"journalctl --unit=kerntuned --grep 'below the floor.*{culprit(giant)}' --quiet", 20)
        work_goes_on(vm)
    finally:
        giant.kill(9)
    giant.wait()
    let_go(host)


def culprit(job: Job) -> str:
    """The pattern of a report that has the program of alice's in both of its lists."""
    named = f"take \\(pid {job.pid}, uid 1000\\)"
    return f"largest: [^;]*{named}[^;]*; grown lately: [^;]*{named}"


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
    host.reload()


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


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_runs_of_fifty(host: Host) -> None:
    runs = [(user, swap, how) for user, swap, how in RUNS if SWAPS or not swap]
    for number in range(HOGS):
        user, swap, how = runs[number % len(runs)]
        run(host, user, how, swap=swap)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_capped_and_released_a_hundred_times(host: Host) -> None:
    vm, pid = host.vm, host.pid
    watch = pressure.watch_mode(vm)
    sizes = []
    for _ in range(CAPS):
        hog = pressure.take(vm, "all", user="alice")
        hog.wait_output("refused")
        hog.kill(9)
        let_go(host)
        assert host.overcommit() == (1, 95)
        assert vm.read("/proc/sys/vm/admin_reserve_kbytes") == "8192"
        sizes.append([int(word) for word in vm.check(SIZES.format(pid=pid)).split()])
    watch.kill(9)
    caps = [seconds for mode, seconds in pressure.modes(watch) if mode == 2]
    say(f"{len(caps)} caps of {min(caps)} to {max(caps)} s; descriptors, maps, threads, kB: {sizes[0]}, {sizes[-1]}")
    assert host.pid == pid
    assert len(caps) >= CAPS
    assert min(caps) > DWELL - SEEN_LATE, "none ends before the dwell, counted from the cap"
    # A moment's use goes away again: what is lost with each cap would not.
    descriptors, maps, threads, kb = ((figures[:5], figures[-5:]) for figures in zip(*sizes, strict=True))
    for first, last in (descriptors, maps, threads):
        assert min(last) <= max(first)
    assert min(kb[1]) < max(kb[0]) + 4096
