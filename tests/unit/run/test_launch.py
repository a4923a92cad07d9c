"""What stands between kerntune and a command that it starts: the shield, the end of its parent, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kerntune.run.launch import command
from kerntune.run.shield import Shield
from tests.harness.workers import LIMIT, ends_with_its_parent

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
