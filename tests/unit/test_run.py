"""A command that is run: its shield, its start, its end with all that it has started, and what malloc(3) is told.

Each test of the shield puts it on in a thread that ends with the test.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from kerntune.errors import InvalidValue, KerntuneError, NoSuchTarget, NotSupported
from kerntune.run.allocator import environment
from kerntune.run.launch import REFUSED, command
from kerntune.run.shield import Shield, cpus_in, in_force, unusable
from kerntune.units import parse_cpus, spell_cpus
from tests.harness.workers import LIMIT, ends_with_its_parent, gone

LAUNCH = [sys.executable, "-P", "-m", "kerntune.run.launch"]
SAY_PID = "import os, sys, time; print(os.getpid(), flush=True); sys.stdin.read()"


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_the_command_is_this_very_process() -> None:
    with subprocess.Popen(command(Shield(), ["sh", "-c", "echo $$; exit 7"]), stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert int(said) == process.pid
    assert process.returncode == 7


def test_it_is_behind_the_shield() -> None:
    cpu = max(os.sched_getaffinity(0))
    done = run(command(Shield(frozenset({cpu})), ["grep", "Cpus_allowed_list", "/proc/self/status"]))
    assert done.stdout.split() == ["Cpus_allowed_list:", str(cpu)]


@pytest.mark.parametrize("group", [False, True])
def test_it_leads_a_group_when_asked(group: bool) -> None:
    said = "import os; print(os.getpgrp() == os.getpid())"
    assert run(command(Shield(), [sys.executable, "-c", said], group=group)).stdout == f"{group}\n"


def test_it_ignores_no_signal_that_python_ignores() -> None:
    told = run(command(Shield(), ["grep", "SigIgn", "/proc/self/status"])).stdout.split()[1]
    ignored = int(told, 16)
    assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1] == []


def not_executable(folder: Path) -> str:
    path = folder / "script"
    path.write_text("#!/bin/sh\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("no-such-program", 127, "no-such-program cannot be found (No such file or directory)"),
        ("/etc/passwd/x", 127, "/etc/passwd/x cannot be found (Not a directory)"),
        ("", 127, "kerntune:  cannot be found (No such file or directory)"),
        ("/", 126, "/ cannot be run (Permission denied)"),
        ("not-executable", 126, "script cannot be run (Permission denied)"),
        ("x" * 10_000, 126, f"{'x' * 200}... cannot be run (File name too long)"),
        ("a\nb\x1b[31m", 127, "a?b?[31m cannot be found (No such file or directory)"),
    ],
)
def test_a_command_that_cannot_be_started(name: str, status: int, why: str, tmp_path: Path) -> None:
    done = run(command(Shield(), [not_executable(tmp_path) if name == "not-executable" else name]))
    assert done.returncode == status
    assert done.stderr.startswith("kerntune: ")
    assert done.stderr.endswith(f"{why}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "takes JSON and a command"),
        (["no JSON", "true"], "takes JSON and a command"),
        (["[]", "true"], "takes JSON and a command"),
        (["{}"], "there is no command to run"),
        (['{"cpus": [9999]}', "true"], "there is no CPU 9999. Online are "),
        (['{"slice_us": 7}', "true"], "a slice of 7 us is out of range"),
    ],
)
def test_what_is_refused_before(words: list[str], why: str) -> None:
    done = run([*LAUNCH, *words])
    assert done.returncode == 125
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_is_killed_with_its_parent() -> None:
    starter = (
        "import subprocess, sys; from kerntune.run.launch import command; from kerntune.run.shield import Shield;"
        f"subprocess.run(command(Shield(), [sys.executable, '-c', {SAY_PID!r}]))"
    )
    assert ends_with_its_parent(starter)


def test_it_does_not_start_when_its_parent_has_ended_before() -> None:
    done = run([*LAUNCH, json.dumps({"parent": os.getppid()}), "echo", "started"])
    assert (done.returncode, done.stdout) == (125, "")
    assert f"process {os.getppid()}, which started this one, has ended" in done.stderr


# The shield, on the kernel that runs


T = TypeVar("T")
ONE = frozenset({min(os.sched_getaffinity(0))})
SLICES = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
needs_slices = pytest.mark.skipif(not SLICES, reason="slices of processes came with Linux 6.12")
SAY = """\
import json, os
from kerntune.run.shield import in_force
found = in_force()
print(json.dumps([sorted(found.cpus), found.slice_us, os.getpriority(os.PRIO_PROCESS, 0)]))
"""


def aside(work: Callable[[], T]) -> T:
    """Do something in a thread of its own: what it changes of the scheduler ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def of_a_child() -> list[object]:
    """What is in force in a new program."""
    done = subprocess.run([sys.executable, "-c", SAY], stdout=subprocess.PIPE, check=True, timeout=20)
    said: list[object] = json.loads(done.stdout)
    return said


def test_without_one_all_is_as_it_was() -> None:
    def put_on() -> Shield:
        Shield().apply()
        return in_force()

    assert not Shield()
    assert aside(put_on) == in_force() == Shield(frozenset(os.sched_getaffinity(0)))


def test_the_cpus_are_kept_by_a_new_program() -> None:
    def put_on() -> tuple[Shield, list[object]]:
        Shield(ONE).apply()
        return in_force(), of_a_child()

    assert aside(put_on) == (Shield(ONE), [sorted(ONE), 0, os.getpriority(os.PRIO_PROCESS, 0)])


@pytest.mark.parametrize("slice_us", [100, 2_345, 100_000])
def test_the_slice_is_kept_by_a_new_program(slice_us: int) -> None:
    def put_on() -> tuple[Shield, list[object]]:
        Shield(slice_us=slice_us).apply()
        return in_force(), of_a_child()

    if not SLICES:
        with pytest.raises(NotSupported, match=r"keeps no slice of .* \(it takes Linux 6\.12\)"):
            aside(put_on)
        return
    mine, childs = aside(put_on)
    assert mine == Shield(frozenset(os.sched_getaffinity(0)), slice_us)
    assert childs[1] == slice_us


@needs_slices
def test_nice_stays_as_it_was() -> None:
    def put_on() -> list[object]:
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 3)
        Shield(slice_us=100).apply()
        return of_a_child()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert aside(put_on)[1:] == [100, before + 3]


@needs_slices
def test_to_be_put_behind_fewer_processes_is_kept() -> None:
    def put_on() -> tuple[int, Shield]:
        os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        Shield(slice_us=100).apply()
        return os.sched_getscheduler(0), in_force()

    policy, shield = aside(put_on)
    assert (policy, shield.slice_us) == (os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, 100)


def test_another_policy_has_no_slice() -> None:
    def put_on() -> Shield:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            Shield(ONE, 100).apply()
        finally:
            found.append(in_force())
        return found[0]

    found: list[Shield] = []
    with pytest.raises(NotSupported, match=r"runs under SCHED_IDLE, which has no slice\. Start it under SCHED_OTHER"):
        aside(put_on)
    assert found == [Shield(frozenset(os.sched_getaffinity(0)))], "the CPUs are as before"


@pytest.mark.parametrize("slice_us", [-1, 1, 99, 100_001])
def test_a_slice_that_the_kernel_would_change_is_refused(slice_us: int) -> None:
    with pytest.raises(
        InvalidValue, match=f"a slice of {slice_us} us is out of range. The kernel takes 100 us to 100 ms"
    ):
        aside(Shield(slice_us=slice_us).apply)


@pytest.mark.parametrize("cpus", [{9_999}, {0, 9_999}, {-1}, {1 << 40}])
def test_cpus_that_are_not_there_are_named(cpus: set[int]) -> None:
    def put_on() -> tuple[KerntuneError, Shield]:
        with pytest.raises(NoSuchTarget) as caught:
            Shield(frozenset(cpus)).apply()
        return caught.value, in_force()

    error, shield = aside(put_on)
    assert error.what == f"there is no CPU {spell_cpus(cpus - {0})}"
    assert error.hint == f"Online are {spell_cpus(cpus_in('online'))}"
    assert shield == in_force(), "nothing has been changed"


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


# A command that is kept: what is told of it, and that nothing of what it has started is left, however it ends


# It leaves its session and its parent, as daemons do, and says its process id.
LEAVES = "setsid sh -c 'echo $$; exec sleep 600' & "
LEAVES_AND_ENDS = """
trap 'exit 0' USR1
setsid sh -c "echo \\$\\$; read go <$GO; kill -USR1 $$; exec sleep 600" &
while :; do sleep 0.05; done
"""


class OpenFile:
    """A keeper with its command, and what it has reported."""

    def __init__(self, process: subprocess.Popen[str], reports: IO[bytes], leash: IO[bytes]) -> None:
        self.process, self.leash, self._reports = process, leash, reports

    def says(self) -> int:
        """Return the next number that the command prints, as a descriptor of that process."""
        assert self.process.stdout is not None
        return os.pidfd_open(int(self.process.stdout.readline()))

    def report(self) -> dict[str, Any]:
        assert self.process.wait(LIMIT) == 0
        found: dict[str, Any] = json.loads(self._reports.read())
        return found

    def asked_to_end(self) -> dict[str, Any]:
        self.leash.write(b"\n")
        return self.report()

    def let_go(self) -> dict[str, Any]:
        self.leash.close()
        return self.report()


@contextmanager
def kept(script: str, *, patience: float = 60.0, before: Sequence[str] = (), **more: object) -> Iterator[OpenFile]:
    (source, report), (end, leash) = os.pipe(), os.pipe()
    asked = {"report": report, "leash": end, "patience": patience, **more}
    words = [*before, sys.executable, "-P", "-m", "kerntune.run.keep", json.dumps(asked), "sh", "-c", script]
    with (
        open(source, "rb") as reports,
        open(leash, "wb", buffering=0) as held,
        subprocess.Popen(words, pass_fds=[report, end], stdout=subprocess.PIPE, text=True) as process,
    ):
        for ours in (report, end):
            os.close(ours)
        try:
            yield OpenFile(process, reports, held)
        finally:
            process.kill()


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("true", 0), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
def test_how_a_command_ended(script: str, status: int) -> None:
    with kept(script) as keeper:
        assert keeper.report()["status"] == status


def test_who_ignores_the_end_of_children_is_no_hindrance() -> None:
    with kept("exit 7", before=["bash", "-c", "trap '' CHLD; exec \"$@\"", "bash"]) as keeper:
        assert keeper.report()["status"] == 7


def test_when_it_began_and_ended_is_told_whatever_it_leaves_behind() -> None:
    with kept(f"{LEAVES} sleep 0.2; exit 3") as keeper:
        report = keeper.report()
    assert report["status"] == 3
    assert 0.2 <= (report["ended"] - report["began"]) / 1e9 < LIMIT
    assert report["began"] < report["ended"] < time.monotonic_ns()


def test_a_command_that_is_refused_has_never_begun() -> None:
    with kept("true", cpus=[9999]) as keeper:
        report = keeper.report()
    assert (report["status"], report["began"]) == (REFUSED, 0)


def test_the_usage_is_that_of_all_that_it_has_started() -> None:
    spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    with kept(f"setsid sh -c '{spin}; echo $$; exec sleep 600' & wait") as keeper:
        os.close(keeper.says())
        used = resource.struct_rusage(keeper.let_go()["usage"])
    assert used.ru_utime > 0.01


def test_how_much_memory_is_too_little_to_be_told() -> None:
    with kept("true") as keeper:
        little = keeper.report()
    with kept(f"{sys.executable} -c 'bytearray(64 << 20)'") as keeper:
        much = keeper.report()
    assert resource.struct_rusage(little["usage"]).ru_maxrss <= little["least"]
    assert resource.struct_rusage(much["usage"]).ru_maxrss > max(64 << 10, much["least"])


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    os.mkfifo(go := tmp_path / "go")
    with kept(LEAVES_AND_ENDS, environment={"GO": str(go)}) as keeper:
        left = keeper.says()
        try:
            go.write_text("now\n")
            assert keeper.report()["status"] == 0
            assert gone(left)
        finally:
            end(left)


@pytest.mark.parametrize("script", [f"{LEAVES} wait", f"({LEAVES}) & sleep 600"])
@pytest.mark.parametrize("how", [OpenFile.asked_to_end, OpenFile.let_go])
def test_what_a_command_has_left_ends_with_it(script: str, how: Callable[[OpenFile], object]) -> None:
    with kept(script) as keeper:
        left = keeper.says()
        try:
            how(keeper)
            assert gone(left)
        finally:
            end(left)


def end(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_what_is_started_while_others_are_killed_is_ended_too() -> None:
    """The output is closed when nobody has it any more."""
    with kept("setsid sh -c 'while :; do sleep 600 & sleep 0.01; done' & echo $$; wait") as keeper:
        os.close(keeper.says())
        time.sleep(0.1)  # for some to be there; any time will do
        keeper.leash.close()
        assert keeper.process.communicate(timeout=LIMIT)[0] == ""
        assert keeper.report()["status"] == -signal.SIGKILL


def test_who_is_asked_to_end_may_take_his_time() -> None:
    with kept("trap 'exit 5' TERM; echo $$; while :; do sleep 0.05; done") as keeper:
        os.close(keeper.says())
        assert keeper.asked_to_end()["status"] == 5


def test_who_has_left_the_group_is_asked_too() -> None:
    script = (
        "import os, signal, sys; os.setpgid(0, os.getppid()); signal.signal(signal.SIGTERM, lambda *_: sys.exit(5));"
        "print(os.getpid(), flush=True); signal.pause()"
    )
    with kept(f'exec {sys.executable} -c "{script}"', before=["setsid"]) as keeper:
        os.close(keeper.says())
        assert keeper.asked_to_end()["status"] == 5


def test_who_does_not_end_when_he_is_asked_is_killed() -> None:
    with kept("trap '' TERM; echo $$; while :; do sleep 0.05; done", patience=0.1) as keeper:
        command = keeper.says()
        assert keeper.asked_to_end()["status"] == -signal.SIGKILL
        assert gone(command)
        os.close(command)


def test_a_command_dies_with_its_keeper() -> None:
    with kept("echo $$; exec sleep 600") as keeper:
        command = keeper.says()
        keeper.process.kill()
        try:
            assert gone(command)
        finally:
            end(command)


def test_the_command_alone_gets_the_variables() -> None:
    script = "tr '\\0' '\\n' </proc/$PPID/environ | grep -c ONLY; echo $ONLY"
    with kept(script, environment={"ONLY": "7"}) as keeper:
        said = keeper.process.communicate(timeout=LIMIT)[0]
    assert said.split() == ["0", "7"]


# What malloc(3) is told for which settings


GIB = 1 << 30
NAME = "GLIBC_TUNABLES"


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ([], ""),
        (["cpu-governor=performance", "read-ahead=4096"], ""),
        (["hugepages=640"], "2"),
        (["hugepages=2G"], "2"),
        (["hugepages=+64"], "2"),
        (["hugepages@2M=64"], "2"),
        (["hugepages@2MiB/node0=64"], "2"),
        (["hugepages-overcommit=64"], "2"),
        (["hugepages@1G=4"], str(GIB)),
        (["hugepages@1g/node1=4"], str(GIB)),
        (["hugepages@1G=4", "hugepages@2M=64"], "2"),
        (["hugepages@64K=4", "hugepages@1G=4"], str(64 << 10)),
        (["hugepages=0"], ""),
        (["hugepages=0G"], ""),
        (["hugepages="], ""),
        (["hugepages"], ""),
        (["hugepages@nonsense=4"], "2"),
        (["thp=madvise"], "1"),
        (["thp=always"], "1"),
        (["thp@enabled=madvise"], "1"),
        (["thp@enabled=never"], ""),
        (["thp@defrag=madvise"], ""),
        (["thp@enabled=madvise", "hugepages=64"], "2"),
        (["hugepages=0", "thp@enabled=madvise"], "1"),
        (["hugepages-of-another=64"], ""),
    ],
)
def test_which_settings_tell_malloc_what(settings: list[str], value: str) -> None:
    asked = environment({"PATH": "/bin"}, settings)
    assert asked == {"PATH": "/bin"} | ({NAME: f"glibc.malloc.hugetlb={value}"} if value else {})


def test_the_default_size_is_the_hosts() -> None:
    assert environment({}, ["hugepages@1G=4"], default_page_size=GIB) == {NAME: "glibc.malloc.hugetlb=2"}
    assert environment({}, ["hugepages@2M=4"], default_page_size=GIB) == {NAME: f"glibc.malloc.hugetlb={2 << 20}"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "glibc.malloc.hugetlb=2"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=2"),
        ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3:glibc.malloc.hugetlb=0", "glibc.malloc.check=3:glibc.malloc.hugetlb=0"),
        ("glibc.malloc.hugetlb_other=0", "glibc.malloc.hugetlb_other=0:glibc.malloc.hugetlb=2"),
    ],
)
def test_what_the_user_says_is_kept(given: str, said: str) -> None:
    before = {NAME: given}
    assert environment(before, ["hugepages=640"]) == {NAME: said}
    assert before == {NAME: given}
