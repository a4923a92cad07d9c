"""A command that is run: its start, its end with all that it has started, and what malloc(3) is told."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from kerntune.run.allocator import environment
from kerntune.run.launch import REFUSED, command
from kerntune.run.shield import Shield
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
