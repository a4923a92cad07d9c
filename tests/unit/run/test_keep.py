"""A command that is kept: what is told of it, and that nothing of what it has started is left, however it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import pytest

from kerntune.run.launch import REFUSED
from tests.harness.workers import LIMIT, gone

# It leaves its session and its parent, as daemons do, and says its process id.
LEAVES = "setsid sh -c 'echo $$; exec sleep 600' & "
LEAVES_AND_ENDS = """
trap 'exit 0' USR1
setsid sh -c "echo \\$\\$; kill -USR1 $$; exec sleep 600" &
while :; do sleep 0.05; done
"""
STARTER = """
import json, os, subprocess, sys
report = os.dup(1)
words = json.dumps({{"parent": os.getpid(), "report": report, "patience": 60}})
subprocess.run([sys.executable, "-P", "-m", "kerntune.run.keep", words, "sh", "-c", {script!r}], pass_fds=[report])
"""


class Kept:
    """A keeper with its command, and what it has reported."""

    def __init__(self, process: subprocess.Popen[str], reports: IO[bytes]) -> None:
        self.process, self._reports = process, reports

    def says(self) -> int:
        """Return the next number that the command prints, as a descriptor of that process."""
        assert self.process.stdout is not None
        return os.pidfd_open(int(self.process.stdout.readline()))

    def report(self) -> dict[str, Any]:
        assert self.process.wait(LIMIT) == 0
        found: dict[str, Any] = json.loads(self._reports.read())
        return found


@contextmanager
def kept(script: str, *, patience: float = 60.0, before: Sequence[str] = (), **more: object) -> Iterator[Kept]:
    source, report = os.pipe()
    asked = {"report": report, "patience": patience, "parent": os.getpid(), **more}
    words = [*before, sys.executable, "-P", "-m", "kerntune.run.keep", json.dumps(asked), "sh", "-c", script]
    with (
        open(source, "rb") as reports,
        subprocess.Popen(words, pass_fds=[report], stdout=subprocess.PIPE, text=True) as process,
    ):
        os.close(report)
        try:
            yield Kept(process, reports)
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
    with kept(
        "setsid sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $$; exec sleep 600' & wait"
    ) as keeper:
        os.close(keeper.says())
        keeper.process.send_signal(signal.SIGHUP)
        used = resource.struct_rusage(keeper.report()["usage"])
    assert used.ru_utime > 0.01


@pytest.mark.parametrize("script", [LEAVES_AND_ENDS, f"{LEAVES} wait", f"({LEAVES}) & wait"])
def test_what_a_command_leaves_behind_is_ended(script: str) -> None:
    with kept(script) as keeper:
        left = keeper.says()
        if script != LEAVES_AND_ENDS:
            keeper.process.send_signal(signal.SIGTERM)
        try:
            keeper.report()
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
        time.sleep(0.1)
        keeper.process.send_signal(signal.SIGHUP)
        assert keeper.process.communicate(timeout=LIMIT)[0] == ""
        assert keeper.report()["status"] == -signal.SIGKILL


def test_who_is_asked_to_end_may_take_his_time() -> None:
    with kept("trap 'exit 5' TERM; echo $$; while :; do sleep 0.05; done") as keeper:
        os.close(keeper.says())
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.report()["status"] == 5


def test_who_does_not_end_when_he_is_asked_is_killed() -> None:
    with kept("trap '' TERM; echo $$; while :; do sleep 0.05; done", patience=0.1) as keeper:
        command = keeper.says()
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.report()["status"] == -signal.SIGKILL
        assert gone(command)
        os.close(command)


def test_all_ends_with_the_parent() -> None:
    script = f"{LEAVES} wait"
    with subprocess.Popen(
        [sys.executable, "-c", STARTER.format(script=script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            left = os.pidfd_open(int(parent.stdout.readline()))
        finally:
            parent.kill()
        try:
            assert gone(left)
        finally:
            end(left)


def test_the_command_alone_gets_the_variables() -> None:
    with kept(
        "cat /proc/$PPID/environ | tr '\\0' '\\n' | grep -c ONLY; echo $ONLY", environment={"ONLY": "7"}
    ) as keeper:
        said = keeper.process.communicate(timeout=LIMIT)[0]
    assert said.split() == ["0", "7"]
