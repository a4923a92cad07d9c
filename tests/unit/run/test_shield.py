"""What a process gives itself before it becomes a command, on the kernel that runs.

Each test puts the shield on in a thread that ends with the test, or in a process of its own.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerntune.errors import InvalidValue, KerntuneError, NoSuchTarget, NotSupported, OverLimit
from kerntune.run import numa, scheduling
from kerntune.run.launch import command
from kerntune.run.scheduling import RealTime, aside, keeps_slices, spinning_share
from kerntune.run.shield import InForce, Shield, cpus_in, in_force, try_out, unusable
from kerntune.units import parse_cpus, spell_cpus
from tests.harness.workers import LIMIT

ALLOWED = frozenset(os.sched_getaffinity(0))
ONE = frozenset({min(ALLOWED)})
NICE = os.getpriority(os.PRIO_PROCESS, 0)
NOBODY = 65534
NAME = pwd.getpwuid(NOBODY).pw_name
CAP_SYS_RESOURCE = 24
SLICES = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
needs_slices = pytest.mark.skipif(not SLICES, reason="slices of processes came with Linux 6.12")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user, or gives itself more rights")
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
# CPUs, slice, nice value and policy: the last two by other calls than those of kerntune.
SAY = """\
import json, os
from kerntune.run.shield import in_force
found = in_force()
nice = os.getpriority(os.PRIO_PROCESS, 0)
print(json.dumps([sorted(found.cpus), found.scheduling.slice_us, nice, os.sched_getscheduler(0)]))
"""
# What is asked for as another user: it prints the error, or nothing.
AS_NOBODY = f"""\
import json, os, resource, sys
from kerntune.errors import KerntuneError
from kerntune.run.shield import Shield, try_out
shield, limits = json.loads(sys.argv[1])
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
try:
    try_out(Shield.from_json(shield))
except KerntuneError as error:
    print(type(error).__name__, error.what, error.hint, sep="|")
assert before == (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0))
"""


def of_a_child() -> list[Any]:
    """What is in force in a new program."""
    done = subprocess.run([sys.executable, "-c", SAY], stdout=subprocess.PIPE, check=True, timeout=LIMIT)
    said: list[Any] = json.loads(done.stdout)
    return said


def behind(shield: Shield, script: str) -> str:
    """Run a Python script behind a shield, as a command gets it; return what it printed."""
    words = command(shield, [sys.executable, "-c", script])
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def as_nobody(shield: Shield, **limits: int) -> list[str]:
    """Try a shield out as another user with these limits; return the error's class, what happened, and its hint."""
    words = [sys.executable, "-c", AS_NOBODY, json.dumps([shield.as_json(), limits])]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True).stdout.strip()
    return said.split("|") if said else []


def possible(name: str, limit: int) -> int:
    """The limit, or the hard limit where this process may not raise that."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    hard = resource.getrlimit(getattr(resource, name))[1]
    if capabilities >> CAP_SYS_RESOURCE & 1 or hard == resource.RLIM_INFINITY:
        return limit
    return hard if limit == resource.RLIM_INFINITY else min(limit, hard)


def may_run_in_real_time() -> bool:
    try:
        aside(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    except PermissionError:
        return False
    return True


needs_real_time = pytest.mark.skipif(not may_run_in_real_time(), reason="the process has no right to real time")


def test_without_one_all_is_as_it_was() -> None:
    def put_on() -> InForce:
        Shield().apply()
        return in_force()

    assert not Shield()
    assert aside(put_on) == in_force()
    assert in_force().cpus == ALLOWED
    assert (in_force().scheduling.slice_us, in_force().scheduling.nice) == (0, NICE)


@pytest.mark.parametrize(
    "shield",
    [
        Shield(),
        Shield(ONE, 100, 5),
        Shield(real_time=RealTime.MAIN, memlock=True),
        Shield(nice=0, numa=numa.Policy(numa.Kind.INTERLEAVE, frozenset({0, 3}))),
    ],
    ids=["nothing", "fair", "real-time", "numa"],
)
def test_another_process_is_told_all_of_it(shield: Shield) -> None:
    assert Shield.from_json(json.loads(json.dumps(shield.as_json()))) == shield


# CPUs


def test_the_cpus_are_kept_by_a_new_program() -> None:
    def put_on() -> tuple[frozenset[int], list[object]]:
        Shield(ONE).apply()
        return in_force().cpus, of_a_child()

    assert aside(put_on) == (ONE, [sorted(ONE), 0, NICE, os.sched_getscheduler(0)])


@pytest.mark.parametrize("cpus", [{9_999}, {0, 9_999}, {-1}, {1 << 40}])
def test_cpus_that_are_not_there_are_named(cpus: set[int]) -> None:
    def put_on() -> tuple[KerntuneError, InForce]:
        with pytest.raises(NoSuchTarget) as caught:
            Shield(frozenset(cpus)).apply()
        return caught.value, in_force()

    error, found = aside(put_on)
    assert error.what == f"there is no CPU {spell_cpus(cpus - {0})}"
    assert error.hint == f"Online are {spell_cpus(cpus_in('online'))}"
    assert found == in_force(), "nothing has been changed"


@pytest.mark.parametrize(
    ("cpus", "why"),
    [
        ({0, 1}, ""),
        ({0, 2, 3}, "CPU 2-3 is offline"),
        ({3, 4, 6}, "there is no CPU 4,6"),
    ],
)
def test_which_cpus_cannot_be_used(cpus: set[int], why: str) -> None:
    assert unusable(frozenset(cpus), present=frozenset(range(4)), online=frozenset({0, 1})) == why


@pytest.mark.parametrize(("text", "cpus"), [("", set()), ("0", {0}), ("0-2,5,7-8", {0, 1, 2, 5, 7, 8})])
def test_how_the_kernel_writes_cpus(text: str, cpus: set[int], tmp_path: Path) -> None:
    (tmp_path / "online").write_text(f"{text}\n")
    assert cpus_in("online", str(tmp_path)) == parse_cpus(text) == cpus
    assert spell_cpus(cpus) == text


# Slice and nice value


@pytest.mark.parametrize("slice_us", [100, 2_345, 100_000])
def test_the_slice_is_kept_by_a_new_program(slice_us: int) -> None:
    def put_on() -> tuple[InForce, list[object]]:
        Shield(slice_us=slice_us).apply()
        return in_force(), of_a_child()

    if not SLICES:
        with pytest.raises(NotSupported, match=r"keeps no slice of .* \(it takes Linux 6\.12\)"):
            aside(put_on)
        return
    mine, childs = aside(put_on)
    assert (mine.cpus, mine.scheduling.slice_us) == (ALLOWED, slice_us)
    assert childs[1] == slice_us


def test_whether_slices_are_kept_is_found_out_without_a_change() -> None:
    before = in_force()
    assert keeps_slices() == SLICES
    assert in_force() == before


def test_whether_slices_are_kept_cannot_be_found_out_under_another_policy() -> None:
    def ask() -> bool:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return keeps_slices()

    with pytest.raises(NotSupported, match="runs under SCHED_IDLE, which has no slice"):
        aside(ask)


@needs_slices
def test_nice_stays_as_it_was() -> None:
    def put_on() -> list[object]:
        os.setpriority(os.PRIO_PROCESS, 0, NICE + 3)
        Shield(slice_us=100).apply()
        return of_a_child()

    assert aside(put_on)[1:3] == [100, NICE + 3]


@needs_slices
def test_slice_and_nice_are_kept_together() -> None:
    def put_on() -> list[object]:
        Shield(slice_us=300, nice=NICE + 2).apply()
        return of_a_child()

    assert aside(put_on)[1:3] == [300, NICE + 2]


@needs_slices
def test_nice_alone_leaves_the_slice() -> None:
    def put_on() -> list[object]:
        Shield(slice_us=300).apply()
        Shield(nice=NICE + 1).apply()
        return of_a_child()

    assert aside(put_on)[1:3] == [300, NICE + 1]


@needs_root
def test_nice_goes_below_zero_with_the_right_to_it() -> None:
    said = json.loads(behind(Shield(nice=-7), SAY))
    assert said[2] == -7


@needs_slices
def test_to_be_put_behind_fewer_processes_is_kept() -> None:
    def put_on() -> tuple[int, InForce]:
        os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        Shield(slice_us=100).apply()
        return os.sched_getscheduler(0), in_force()

    policy, found = aside(put_on)
    assert policy == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
    assert found.scheduling == scheduling.Scheduling("SCHED_BATCH", NICE, 100, reset_on_fork=True)


@pytest.mark.parametrize(
    ("shield", "lacks"),
    [(Shield(ONE, 100), "no slice"), (Shield(ONE, nice=5), "no use for a nice value")],
    ids=["slice", "nice"],
)
def test_another_policy_has_none(shield: Shield, lacks: str) -> None:
    def put_on() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            shield.apply()
        finally:
            found.append(in_force())

    found: list[InForce] = []
    with pytest.raises(NotSupported, match=rf"runs under SCHED_IDLE, which has {lacks}\. Start it under SCHED_OTHER"):
        aside(put_on)
    assert [one.cpus for one in found] == [ALLOWED], "the CPUs are as before"


@pytest.mark.parametrize("slice_us", [-1, 1, 99, 100_001])
def test_a_slice_that_the_kernel_would_change_is_refused(slice_us: int) -> None:
    with pytest.raises(
        InvalidValue, match=f"a slice of {slice_us} us is out of range. The kernel takes 100 us to 100 ms"
    ):
        aside(Shield(slice_us=slice_us).apply)


@pytest.mark.parametrize("nice", [-21, 20])
def test_a_nice_value_that_the_kernel_would_change_is_refused(nice: int) -> None:
    with pytest.raises(InvalidValue, match=f"a nice value of {nice} is out of range. The kernel takes -20 to 19"):
        aside(Shield(nice=nice).apply)


@needs_root
@pytest.mark.parametrize("slice_us", [0, 100] if SLICES else [0])
@pytest.mark.parametrize(("nice", "limit"), [(-10, 0), (-10, 20), (-10, 29), (-10, 30), (-9, 30), (-11, 30)])
def test_a_lower_nice_value_goes_by_the_limit(nice: int, limit: int, slice_us: int) -> None:
    limit = possible("RLIMIT_NICE", limit)
    found = as_nobody(Shield(nice=nice, slice_us=slice_us), RLIMIT_NICE=limit)
    if limit >= 20 - nice:
        assert found == []
        return
    kind, what, hint = found
    assert (kind, what) == ("AccessDenied", f"the process may not lower its nice value from {NICE} to {nice}")
    assert hint == (
        f"Put the line `{NAME} - nice {nice}` into /etc/security/limits.d/kerntune.conf and log in again, "
        f"or `LimitNICE={nice}` into the systemd unit"
    )


@needs_root
def test_a_unit_takes_a_sign_for_a_nice_value_above_zero() -> None:
    def ask() -> list[str]:
        os.setpriority(os.PRIO_PROCESS, 0, 15)
        return as_nobody(Shield(nice=5), RLIMIT_NICE=0)

    assert aside(ask)[2].endswith("or `LimitNICE=+5` into the systemd unit")


@needs_root
def test_a_higher_nice_value_takes_no_right() -> None:
    assert as_nobody(Shield(nice=19), RLIMIT_NICE=0) == []


# Real time


@needs_real_time
@pytest.mark.parametrize(("real_time", "others"), [(RealTime.MAIN, "SCHED_OTHER"), (RealTime.ALL, "SCHED_FIFO")])
def test_which_threads_run_in_real_time(real_time: RealTime, others: str) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from kerntune.run import scheduling as s\n"
        "mine, thread = s.in_force(), s.aside(s.in_force)\n"
        "child = subprocess.check_output([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0))'])\n"
        "print(mine.policy, mine.priority, mine.reset_on_fork, thread.policy, s.POLICIES[int(child)])\n"
    )
    flag = str(real_time is RealTime.MAIN)
    assert behind(Shield(real_time=real_time), script).split() == ["SCHED_FIFO", "1", flag, others, others]


@needs_root
@needs_real_time
@pytest.mark.parametrize("limit", [0, 1, resource.RLIM_INFINITY], ids=["none", "one", "any"])
def test_real_time_goes_by_the_limit(limit: int) -> None:
    limit = possible("RLIMIT_RTPRIO", limit)
    found = as_nobody(Shield(real_time=RealTime.MAIN), RLIMIT_RTPRIO=limit)
    if limit:
        assert found == []
        return
    kind, what, hint = found
    assert (kind, what) == ("AccessDenied", "the process may not run in real time")
    assert hint == (
        f"Put the line `{NAME} - rtprio 1` into /etc/security/limits.d/kerntune.conf and log in again, "
        "or `LimitRTPRIO=1` into the systemd unit"
    )


@pytest.fixture
def group_without_budget() -> Iterator[Path]:
    """A cgroup that has no time for real-time processes, which is what a new one of version 1 has."""
    if not os.access(CPU_GROUPS / "cpu.rt_runtime_us", os.W_OK):
        pytest.skip("there is no cgroup of version 1 with CONFIG_RT_GROUP_SCHED")
    folder = CPU_GROUPS / f"kerntune-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


def test_a_cgroup_without_real_time_budget_is_named(group_without_budget: Path) -> None:
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from kerntune.errors import KernelRejected\n"
        "from kerntune.run.shield import RealTime, Shield, try_out\n"
        "try:\n    try_out(Shield(real_time=RealTime.MAIN))\n"
        "except KernelRejected as error:\n    print(error)"
    )
    words = [sys.executable, "-c", script, str(group_without_budget / "cgroup.procs")]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True).stdout
    assert said.startswith("the kernel refuses real time, although the process has the right to it. ")
    assert "its cgroup has no real-time budget (cpu.rt_runtime_us is 0" in said


def sysctls(root: Path, runtime: int, period: int = 1_000_000) -> Path:
    folder = root / "proc/sys/kernel"
    folder.mkdir(parents=True)
    (folder / "sched_rt_runtime_us").write_text(f"{runtime}\n")
    (folder / "sched_rt_period_us").write_text(f"{period}\n")
    return root


@pytest.mark.parametrize(
    ("release", "runtime", "period", "share"),
    [
        ("6.1.0-42-amd64", 950_000, 1_000_000, 95.0),
        ("6.1.0-42-amd64", 1_000_000, 1_000_000, 100.0),
        ("6.1.0-42-amd64", 500_000, 2_000_000, 25.0),
        ("6.12.48", 1_000_000, 1_000_000, 95.0),
        ("7.2.1-rc3", 1_000_000, 1_000_000, 95.0),
        ("7.2.1-rc3", 500_000, 2_000_000, 25.0),
        ("6.12.48", 0, 1_000_000, 0.0),
        ("6.12.48", -1, 1_000_000, None),
    ],
)
def test_how_much_of_a_cpu_a_spinning_process_gets(
    release: str, runtime: int, period: int, share: float | None, tmp_path: Path
) -> None:
    root = sysctls(tmp_path, runtime, period)
    (root / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
    assert spinning_share(root) == share


@pytest.mark.parametrize(
    ("runtime", "error", "why"),
    [
        (-1, OverLimit, r"have a CPU for ever: .*\. Set kernel\.sched_rt_runtime_us, which is -1, to 950000"),
        (0, NotSupported, r"kernel\.sched_rt_runtime_us is 0: real-time processes get no time"),
    ],
)
def test_where_real_time_is_no_good_it_is_refused(
    runtime: int, error: type[KerntuneError], why: str, tmp_path: Path
) -> None:
    def put_on() -> None:
        try:
            scheduling.set_real_time(RealTime.MAIN, sysctls(tmp_path, runtime))
        finally:
            found.append(os.sched_getscheduler(0))

    found: list[int] = []
    with pytest.raises(error, match=why):
        aside(put_on)
    assert found == [os.sched_getscheduler(0)]


@pytest.mark.parametrize(
    "shield",
    [Shield(slice_us=100, real_time=RealTime.MAIN), Shield(nice=0, real_time=RealTime.ALL)],
    ids=["slice", "nice"],
)
def test_real_time_goes_with_neither_slice_nor_nice(shield: Shield) -> None:
    with pytest.raises(InvalidValue, match="a real-time process goes by no slice and by no nice value"):
        try_out(shield)


# Locked memory, a shield that is tried out, and what another process has


def test_memory_is_locked_up_to_the_hard_limit() -> None:
    script = (
        "import resource as r, sys\nfrom kerntune.run.shield import Shield, try_out\n"
        "r.setrlimit(r.RLIMIT_MEMLOCK, (4096, 65536))\n"
        "try_out(Shield(memlock=True)); print(r.getrlimit(r.RLIMIT_MEMLOCK)[0])\n"
        "Shield(memlock=True).apply(); print(*r.getrlimit(r.RLIMIT_MEMLOCK))\n"
    )
    assert behind(Shield(), script).split() == ["4096", "65536", "65536"]


def test_what_is_tried_out_changes_nothing() -> None:
    before = in_force(), numa.in_force()
    try_out(Shield(ONE, 100 if SLICES else 0, NICE + 1, memlock=True))
    assert (in_force(), numa.in_force()) == before


@pytest.mark.parametrize("pinned", [False, True])
def test_what_is_tried_out_is_refused_as_a_whole(pinned: bool) -> None:
    before = in_force()
    with pytest.raises(NoSuchTarget, match="there is no CPU 9999"):
        try_out(Shield(frozenset({9_999}) | (ONE if pinned else frozenset()), nice=NICE + 1))
    assert in_force() == before


def test_what_another_process_has_is_read_back() -> None:
    shield = Shield(ONE, 100 if SLICES else 0, NICE + 4, memlock=True)
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    words = command(shield, ["sh", "-c", "echo; read line"])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        found = in_force(child.pid)
        child.stdin.close()
        child.wait(LIMIT)
    assert found.cpus == ONE
    assert found.scheduling == scheduling.Scheduling("SCHED_OTHER", NICE + 4, shield.slice_us)
    assert found.lockable_bytes == (None if hard == resource.RLIM_INFINITY else hard)
    with pytest.raises(ProcessLookupError):
        in_force(child.pid)


def test_the_kernels_own_slice_is_none_also_for_a_process_that_others_go_before() -> None:
    leave = f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})" if not os.geteuid() else ""
    script = f"import os\nfrom kerntune.run.shield import in_force\nos.nice(1); {leave}\n"
    script += "print(in_force().scheduling.slice_us)"
    words = [sys.executable, "-c", script]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True).stdout == "0\n"


def test_what_somebody_elses_process_may_lock_is_not_known() -> None:
    leave = f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})"
    of = "1" if os.geteuid() else "os.getppid()"
    script = (
        "import os\nfrom kerntune.run.shield import lockable_bytes\n"
        f"{'' if os.geteuid() else leave}\nprint(lockable_bytes({of}))"
    )
    words = [sys.executable, "-c", script]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True).stdout == "None\n"
