"""The memory guard: it caps a host that is idle where the thresholds say so, and one where a program takes all it gets.

The program is refused and lives, and the host goes on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, MEMORY, ROOT
from kerntune.daemon.app import Status
from kerntune.errors import Exit
from kerntune.guard.alerts import MESSAGE_ID
from tests.system import pressure
from tests.system.host import Host, listening
from tests.system.machine import Machine
from tests.system.pressure import MODE, ROOM, soon
from tests.system.shell import Job

pytestmark = pytest.mark.own_machine

CONFIG: Final = "/etc/kerntune/kerntune.d/guard.toml"
# The floor of always:50 is 50 %; it caps below the floor and 1 TiB, and the cap never ends.
AT_ONCE: Final = "[guard]\nband = 1048576\n"
CLAIM: Final = ("overcommit", "", "always:50")
IS_CAPPED: Final = f"[ $(cat {MODE}) = 2 ]"
DROP_IN: Final = "/run/systemd/system/kerntuned.service.d/by-itself.conf"

# Without pressure; these come first, for under it another program holds most of the memory from then on.


@pytest.fixture
def at_once(host: Host) -> Iterator[Host]:
    """Give a host whose guard caps as soon as `always` is claimed; restore the shipped configuration afterwards."""
    before = host.snapshot()
    host.vm.write(CONFIG, AT_ONCE)
    host.reload()
    yield host
    host.vm.check(f"rm {CONFIG}")
    host.reload()
    host.release()
    assert host.snapshot() == before


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


# Under pressure


CALM: Final = 1  # second
# Back soon, for the next test.
SOON: Final = f"[guard]\ncalm = {CALM}\n"
OFF: Final = "[guard]\nenabled = false\n"
RESERVES: Final = "/proc/sys/vm/admin_reserve_kbytes", "/proc/sys/vm/user_reserve_kbytes"
LEFT: Final = 1400 << 20  # bytes that the ballast leaves, so that no run takes long
AT_REST: Final = 0.14  # of RAM, that a host at rest has left
MINUTE: Final = 60
SITS: Final = 3  # seconds that a program that was refused has done nothing, before others ask
SECOND: Final = 1.0  # in which a bystander gets what it asks for
ASKS: Final = 10.0  # seconds for which `take large` and `take again` go on asking
# The soaks' figures; KERNTUNE_SOAK=0.3 makes them shorter.
PART: Final = float(os.environ.get("KERNTUNE_SOAK", "1"))
HOGS, CAPS = int(48 * PART), int(100 * PART)
LONG: Final = 600 * PART  # seconds for which two of the soak's programs do
SEEN_LATE: Final = 0.05  # seconds by which the guest's own watch may see a cap begin later than it sees it end
GIANT: Final = ("late", "8192")  # MiB: more than the guest has
TO_THE_END: Final = 180.0  # seconds until all there is has been used, under emulation
NAMED: Final = re.compile(
    r"^model\.service: \S*python3 \S+ late 8192 \(pid (?P<pid>\d+), alice\), \d+ MiB, \d+ MiB of it in the last \d+ s$"
)
LOOK: Final = "bash -c true && ps > /dev/null && python3 -c pass && cat /proc/loadavg"
SIZES: Final = "cd /proc/{pid} && ls fd | wc -l; grep -c . maps; ls task | wc -l; awk '/^VmRSS/ {{print $2}}' status"
# So small that it is in use when the guard caps, and soon read back: emulated, a page takes 0.1 ms.
SWAP, SWAP_KIB = "/dev/vdb", 384 << 10
RUNS: Final = (("alice", False, "all"), ("root", False, "all"), ("alice", True, "all"), ("root", True, "all"),
               ("alice", False, "large"), ("root", False, "large"),
               ("alice", False, "again"), ("root", False, "again"))  # fmt: skip
# The first is a scene of its own, with bystanders. What is left here of the rest is one that does not stop, on every
# system, and one that does, of root and with swap; the soak has all of them.
AGAIN: Final = ("alice", False, "large")
ONCE: Final = ("root", True, "all")
SMALL: Final = "again"  # while one so small asks, it takes what there is; root's takes root's reserve as well


def marks(run: tuple[str, bool, str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.every_system] if run == AGAIN else [] if run == ONCE else [pytest.mark.soak]


@pytest.fixture(scope="module")
def guarded(vm: Machine) -> Iterator[Host]:
    """Give a host without huge pages, on which another program holds most of the memory."""
    host = Host(vm)
    pressure.install(vm)
    vm.write(CONFIG, SOON)
    host.reload()
    vm.check("for each in /sys/kernel/mm/hugepages/*/nr_hugepages; do echo 0 > $each; done")
    ballast = hold(host, LEFT)
    yield host
    ballast.kill(9)
    ballast.wait()
    host.release()


def hold(host: Host, left: int) -> Job:
    """Start a program that takes all memory but `left` bytes, and holds it."""
    job = pressure.take(host.vm, str((host.meminfo()["MemAvailable"] - left) >> 20))
    job.wait_output("held")
    return job


@pytest.fixture
def full(guarded: Host) -> Iterator[Host]:
    """Give the host with a claim of `always`; withdraw every claim afterwards, and see that its own mode is back."""
    guarded.set(("overcommit", "", "always:95"))
    yield guarded
    guarded.release()
    assert guarded.vm.read(MODE) == "0"


def say(figures: str) -> None:
    """Print figures for the report of a run (pytest -rP)."""
    sys.stdout.write(f"{figures}\n")


def let_go(host: Host) -> None:
    host.vm.wait_for(f"[ $(cat {MODE}) = 1 ]")


def least(host: Host, how: str) -> int:
    """Return the least that a program may leave: the floor less 2 % of RAM, half of the floor, or a quarter of it."""
    floor = int(host.get(MEMORY, "Floor"))
    return {"all": floor - host.meminfo()["MemTotal"] * 2 // 100, "large": floor // 2, SMALL: floor // 4}[how]


def work_goes_on(vm: Machine) -> None:
    """Log in and look around as an administrator would; through su, for the agent is too large to fork itself."""
    soon(lambda: vm.check(LOOK))
    soon(lambda: vm.check(["su", "--login", "alice", "--command", LOOK]))
    soon(lambda: vm.check(LOOK, user="alice", session=True))


@pytest.mark.timeout(240)
def test_a_host_that_is_merely_full_is_left_alone(full: Host) -> None:
    vm, jobs = full.vm, list[Job]()
    try:
        jobs.append(parent := pressure.parent(vm))
        jobs.append(hold(full, int(full.meminfo()["MemTotal"] * AT_REST)))
        watch = pressure.watch_mode(vm)
        vm.wait_for(f"[ $SECONDS -ge {MINUTE} ]", 2 * MINUTE)
        assert full.get(MEMORY, "GuardState") == "relaxed"
        watch.kill(9)
        assert pressure.modes(watch) == []
        pressure.go(vm, "parent")
        parent.wait_output("forked")
        vm.check("head -c 150M /dev/zero > /dev/shm/full && rm /dev/shm/full")
    finally:
        for job in jobs:
            job.kill(9)
            job.wait()
    let_go(full)


@pytest.mark.every_system
@pytest.mark.timeout(240)
def test_beside_a_program_that_was_refused_others_go_on(full: Host) -> None:
    beside(full)


def beside(host: Host) -> None:
    vm = host.vm
    others = {want: pressure.bystander(vm, want) for want in ("cuda", "fork", "shm")}
    lowest = least(host, "all")
    hog = pressure.take(vm, "all", user="alice")
    try:
        hog.wait_output("refused 12")
        seen = pressure.lowest(hog)
        vm.wait_for(f"[ $SECONDS -ge {SITS} ]")
        took = {}
        for want, job in others.items():
            pressure.go(vm, want)
            took[want] = pressure.took(job)
        work_goes_on(vm)
        say(f"lowest {seen >> 20} MiB, floor less 2 % is {lowest >> 20} MiB; {took}")
        assert seen >= lowest
        assert took["cuda"] <= SECOND
        assert took["fork"] <= SECOND
        assert took["shm"] <= ROOM, "it writes 32 MiB, emulated"
        vm.check("pgrep -f 'take all'")
    finally:
        hog.kill(9)
        hog.wait()
        for job in others.values():
            job.kill(9)
        let_go(host)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("user", "swap", "how"),
    [pytest.param(*each, marks=marks(each)) for each in RUNS],
)
def test_a_program_that_takes_all_it_gets_is_refused_and_lives(full: Host, user: str, swap: bool, how: str) -> None:
    run(full, user, how, swap=swap)


def run(host: Host, user: str, how: str, *, swap: bool, asks: float = ASKS) -> None:
    vm = host.vm
    if swap:
        vm.check(f"mkswap -q {SWAP} {SWAP_KIB} && swapon {SWAP}")
    lowest, reserves = least(host, how), [vm.read(path) for path in RESERVES]
    hog = pressure.take(vm, how, *([] if how == "all" else [str(int(asks))]), user=user)
    try:
        hog.wait_output("refused 12")
        if asks > ASKS:
            hog.wait_output("lowest ", asks + ROOM)
        if how == SMALL:
            soon(lambda: vm.check(["su", "--login", "root", "--command", LOOK]), ASKS + ROOM)
        else:
            work_goes_on(vm)
        seen = pressure.lowest(hog)
        say(f"{user}, {how}, swap {swap}: lowest {seen >> 20} MiB, at least {lowest >> 20} MiB")
        assert seen >= lowest
        assert not swap or host.meminfo()["SwapFree"] < host.meminfo()["SwapTotal"]
        assert host.get(MEMORY, "GuardState") in ("capped", "exhausted")
        assert [vm.read(path) for path in RESERVES] == reserves
        vm.check("pgrep -f 'take (all|again|large)'")
    finally:
        hog.kill(9)
        hog.wait()
        let_go(host)
        if swap:
            vm.check(f"swapoff {SWAP}")


@pytest.fixture
def unguarded(full: Host) -> Iterator[Host]:
    """Give the host with the same claim of `always`, and the guard switched off."""
    full.vm.write(CONFIG, OFF)
    full.reload()
    assert full.get(MEMORY, "GuardState") == "off"
    yield full
    full.vm.write(CONFIG, SOON)
    full.reload()


@pytest.mark.parametrize("user", ["alice", "root"])
def test_without_the_guard_the_oom_killer_strikes(unguarded: Host, user: str) -> None:
    # In large steps: between small ones it would wait for pages of its own program.
    hog = pressure.take(unguarded.vm, "all", "256", user=user)
    assert hog.wait().status == -9
    unguarded.vm.wait_for(f"journalctl --dmesg --grep 'Out of memory: Killed process {hog.pid} .*take' --quiet")


def test_what_was_mapped_before_is_reported_with_its_owner(full: Host) -> None:
    vm = full.vm
    floor = int(full.get(MEMORY, "Floor")) >> 20
    giant = pressure.take(vm, "late", "1500", user="alice", data=f"{floor - 60}\n")
    try:
        giant.wait_output("used ")
        vm.wait_for("busctl get-property org.kerntune.Tuner1 /org/kerntune/Tuner1 "
                    "org.kerntune.Tuner1.Memory GuardState | grep -q exhausted")  # fmt: skip
        assert full.get(MEMORY, "WarningLevel") == 255
        # What else has most is of the same name: it is told by its number, and by whose it is.
        vm.wait_for(f"journalctl --unit=kerntuned --grep 'below the floor.*{culprit(giant)}' --quiet", 20)
        work_goes_on(vm)
    finally:
        giant.kill(9)
    giant.wait()
    let_go(full)


@pytest.mark.every_system
@pytest.mark.timeout(300)
def test_one_mapping_used_to_the_end_is_named_before_the_oom_killer_comes(full: Host) -> None:
    vm = full.vm
    unit = ["systemd-run", "--quiet", "--wait", "--collect", "--unit=model", "--uid=alice"]
    model = vm.spawn([*unit, pressure.PLACE, *GIANT])
    assert model.wait(TO_THE_END).status, "the OOM killer ends it"
    let_go(full)
    named = [(entry, found) for entry in entries(vm, f"MESSAGE_ID={MESSAGE_ID}")
             if (found := NAMED.search(entry["KERNTUNE_CULPRIT"]))]  # fmt: skip
    assert named, "it is in no entry of the journal"
    first, who = named[0]
    killed = next(entry for entry in entries(vm, "--dmesg")
                  if f"Out of memory: Killed process {who['pid']} (take)" in entry["MESSAGE"])  # fmt: skip
    # When the journal had the one, and when the kernel did the other.
    told, came = int(first["__MONOTONIC_TIMESTAMP"]), int(killed["_SOURCE_MONOTONIC_TIMESTAMP"])
    say(f"named {(came - told) / 1e6:.1f} s before the OOM killer came, {len(named)} times: {who[0]}")
    assert told < came
    assert f"; most to do with it: {who[0]}; largest: " in first["MESSAGE"]


def entries(vm: Machine, *which: str) -> list[dict[str, str]]:
    """Return entries of the guest's journal, the oldest first."""
    return [json.loads(line) for line in vm.check(["journalctl", "--output=json", *which]).splitlines()]


def culprit(job: Job) -> str:
    """Return the pattern of a report that names alice's program in both of its lists."""
    named = f"take \\(pid {job.pid}, uid 1000\\)"
    return f"largest: [^;]*{named}[^;]*; grown lately: [^;]*{named}"


def test_killed_while_capped_it_comes_back_and_nothing_is_left_capped(full: Host) -> None:
    vm = full.vm
    vm.write(CONFIG, OFF)  # what comes back shall not cap again at once
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    pid = full.pid
    vm.check(f"kill -9 {pid}")
    full.wait_restarted(pid)
    assert full.overcommit() == (1, 95)
    hog.kill(9)
    vm.write(CONFIG, SOON)
    full.reload()


def test_stopped_while_capped_it_puts_everything_back(full: Host) -> None:
    vm = full.vm
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    vm.check("systemctl stop kerntuned")
    assert full.overcommit() == (1, 95)
    hog.kill(9)
    vm.check("systemctl start kerntuned")


def test_what_is_asked_meanwhile_waits(full: Host) -> None:
    vm = full.vm
    hog = pressure.take(vm, "all", user="alice")
    hog.wait_output("refused")
    (outcome,) = full.set(("overcommit", "", "heuristic")).outcomes
    assert (outcome.state, outcome.reason) == ("overridden", "guard-limit")
    said = vm.run("kerntune status")
    assert said.status == Exit.FAILED
    assert re.search("memory guard: (capped|exhausted), .* is refused", said.out)
    assert re.search("Not well: .*; the memory guard caps", said.out)
    hog.kill(9)
    vm.wait_for(f"[ $(cat {MODE}) = 0 ]")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_runs(full: Host) -> None:
    """Play each scene in turn; then two programs ask again and again for ten minutes each."""
    for number in range(HOGS):
        if number % (len(RUNS) + 1) == len(RUNS):
            beside(full)
        else:
            user, swap, how = RUNS[number % (len(RUNS) + 1)]
            run(full, user, how, swap=swap)
    for user in ("alice", "root"):
        run(full, user, "large", swap=False, asks=LONG)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_capped_and_released_a_hundred_times(full: Host) -> None:
    vm, pid = full.vm, full.pid
    watch = pressure.watch_mode(vm)
    sizes = []
    for _ in range(CAPS):
        hog = pressure.take(vm, "all", user="alice")
        hog.wait_output("refused")
        hog.kill(9)
        let_go(full)
        assert full.overcommit() == (1, 95)
        sizes.append([int(word) for word in vm.check(SIZES.format(pid=pid)).split()])
    watch.kill(9)
    caps = [seconds for mode, seconds in pressure.modes(watch) if mode == 2]
    say(f"{len(caps)} caps of {min(caps)} to {max(caps)} s; descriptors, maps, threads, kB: {sizes[0]}, {sizes[-1]}")
    assert full.pid == pid
    assert len(caps) >= CAPS
    assert min(caps) > CALM - SEEN_LATE, "none ends before there was enough for a second"
    # A moment's use goes away again: what is lost with each cap would not.
    descriptors, maps, threads, kb = ((figures[:5], figures[-5:]) for figures in zip(*sizes, strict=True))
    for first, last in (descriptors, maps, threads):
        assert min(last) <= max(first)
    assert min(kb[1]) < max(kb[0]) + 4096
