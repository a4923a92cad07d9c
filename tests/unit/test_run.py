"""A command that is kept: what is told of it, and that nothing of what it has started is left, however it ends."""

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

from kerntune.run.launch import REFUSED
from tests.harness.workers import LIMIT, gone

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
