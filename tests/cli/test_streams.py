"""The standard streams: closed, full, without a reader or without the characters; the exit code stays the call's.

Every line is run as a process beside a daemon on the simulated host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.scripted import Script, document, serving, target
from tests.conftest import needs_root
from tests.harness.command import COMMAND, LIMIT, NO_BUS, Shell, demo
from tests.harness.command import run as run_program
from tests.harness.privatebus import PrivateBus

FULL = "No space left on device"
STATES = (
    ">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full",
)  # fmt: skip
LINES = (
    "", "status --json", "list", "explain overcommit", "get hugepages@2M", "set hugepages@2M=8",
    "set hugepages@2M=8 --json", "unset thp@enabled", "profile show balanced", "verify", "config check", "doctor",
    "metrics", "release 9", "release 9 --json", "bench", "complete tunables h", "--help", "--version", "set --json",
)  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("programs")) as running, pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONUNBUFFERED", raising=False)  # what is kept back fails late, as at a user's
        running.daemon.env.pop("PYTHONUNBUFFERED", None)
        running.check("kerntune set hugepages@2M=8")
        yield running


@pytest.fixture(scope="module")
def usual(shell: Shell) -> dict[str, subprocess.CompletedProcess[str]]:
    """Return how each line ends where nothing is wrong with the streams."""
    return {line: shell.run(f"kerntune {line}") for line in LINES}


def is_clean(text: str) -> bool:
    return "Traceback" not in text and "Exception ignored" not in text and "Error:" not in text


@needs_root
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("line", LINES)
def test_the_exit_code_is_that_of_the_call(
    shell: Shell, usual: dict[str, subprocess.CompletedProcess[str]], line: str, state: str
) -> None:
    done = shell.run(f"kerntune {line} {state}")
    unwritten = ">/dev/full" in state.split() and usual[line].stdout != ""
    assert done.returncode == (usual[line].returncode or int(unwritten)), done.stderr
    assert is_clean(done.stderr)
    if "2>" not in state:
        assert (f"the answer could not be written: {FULL}" in done.stderr) == unwritten
        assert usual[line].stderr in done.stderr
    if state in {"2>&-", "<&-", "2>/dev/full"} and not line.startswith("doctor"):
        assert len(done.stdout.splitlines()) == len(usual[line].stdout.splitlines())


@pytest.mark.parametrize("state", [">&-", "2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full", "| true"])
@pytest.mark.parametrize(
    ("words", "code"),
    [("--check .", 0), ("--check nowhere", 1), ("--help", 0), ("--version", 0), ("--no-such-option", 2)],
)
def test_the_texts_of_the_daemon(words: str, code: int, state: str) -> None:
    line = f"{sys.executable} -m kerntune.daemon {words}"
    done = run_program(["bash", "-c", f"set -o pipefail; cd packaging; {line} {state}"])
    unwritten = ">/dev/full" in state.split() and code < 2
    assert done.returncode == (code or int(unwritten)), done.stderr
    said = f"kerntuned: the answer could not be written: {FULL}\n" if unwritten else ""
    if code == 2:
        assert done.stderr.endswith("unrecognized arguments: --no-such-option\n") == ("2>" not in state)
    else:
        assert done.stderr == ("" if "2>" in state else said)


@needs_root
@pytest.mark.parametrize("words", [">/dev/full", "--json >/dev/full"])
def test_what_is_done_is_not_reported_as_failed(shell: Shell, words: str) -> None:
    shell.check("kerntune set hugepages@2M=1")
    done = shell.run(f"kerntune set hugepages@2M=11 {words}")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1, f"kerntune: done, but the answer could not be written: {FULL}",
    )  # fmt: skip
    assert shell.check("kerntune get hugepages@2M") == "11"
    done = shell.run(f"kerntune plan hugepages@2M=12 {words}")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1, f"kerntune: the answer could not be written: {FULL}",
    )  # fmt: skip
    assert shell.check("kerntune get hugepages@2M") == "11"


@needs_root
def test_the_exit_code_of_what_has_failed_says_more_than_that_of_a_full_disk(shell: Shell) -> None:
    done = shell.run("kerntune release 9 --json >/dev/full")
    assert done.returncode == 3
    what, _, unwritten = done.stderr.splitlines()
    assert what == "kerntune: there is no hold 9"
    assert unwritten == f"kerntune: the answer could not be written: {FULL}"


@needs_root
def test_a_hold_that_cannot_be_told_of_ends(shell: Shell) -> None:
    done = shell.run("kerntune hold hugepages@2M=1 >/dev/full")
    assert (done.returncode, done.stderr.splitlines()) == (
        1, [f"kerntune: the answer could not be written: {FULL}", "  The hold has ended"],
    )  # fmt: skip
    assert shell.check("kerntune holds") == "Nobody holds anything."
    assert shell.run("kerntune hold hugepages@2M=1 --ttl 1 >&-").returncode == 0


@needs_root
@pytest.mark.parametrize("words", ["", "--json"])
def test_a_monitor_on_a_full_disk_ends(shell: Shell, words: str) -> None:
    done = shell.run(f"kerntune monitor {words} >/dev/full")
    assert (done.returncode, is_clean(done.stderr)) == (1, True)
    assert done.stderr.startswith(f"kerntune: the answer could not be written: {FULL}")


@needs_root
@pytest.mark.parametrize("state", ["2>&-", "<&-", "2>/dev/full"])
def test_a_monitor_goes_on_without_a_stream(shell: Shell, state: str) -> None:
    """It is interrupted when it has asked the daemon: the bus then has its match rule."""
    line = f'exec kerntune monitor {state}; echo "never"'
    with subprocess.Popen(
        ["bash", "-c", line], env=shell.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline().startswith("Watching kerntuned")
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert complaint == ""


MANY = [target(f"io-scheduler@nvme{number}n1", "none", choices=["none", "kyber"]) for number in range(800)]


@pytest.mark.parametrize("words", [["list"], ["list", "--json"]])
@pytest.mark.parametrize("taken", [0, 10])
def test_a_reader_that_goes_away_in_the_middle(script_bus: PrivateBus, words: list[str], taken: int) -> None:
    """The answer is longer than a pipe: the reader goes while it is written."""
    with (
        serving(script_bus, Script(document(MANY))),
        subprocess.Popen(
            [*COMMAND, *words], env=script_bus.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        ) as process,
    ):
        assert process.stdout
        assert select.select([process.stdout], [], [], LIMIT)[0]
        assert len(process.stdout.read(taken)) == taken
        process.stdout.close()
        assert process.wait(LIMIT) == 0
        assert process.stderr
        assert process.stderr.read() == b""


@needs_root
@pytest.mark.parametrize(
    "line", ["", "list", "list --json", "metrics", "--help", "doctor", "explain", "get '*' --json"]
)
def test_head_is_no_error(shell: Shell, line: str) -> None:
    done = shell.run(f"kerntune {line} | head -1; echo ${{PIPESTATUS[0]}}")
    code = shell.run(f"kerntune {line}").returncode
    assert done.stdout.splitlines()[-1] == str(code)
    assert is_clean(done.stderr)


@needs_root
@pytest.mark.parametrize("line", ["--help", "list", "set", "--version", "complete tunables h"])
def test_streams_that_keep_nothing_back(shell: Shell, line: str) -> None:
    """As containers have it: each piece is written at once, and fails at once."""
    plain = shell.run(f"kerntune {line}")
    done = shell.run(f"PYTHONUNBUFFERED=1 kerntune {line} >/dev/full")
    assert done.returncode == (plain.returncode or 1)
    assert is_clean(done.stderr)
    done = shell.run(f"PYTHONUNBUFFERED=1 kerntune {line} 2>/dev/full")
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)


def on_a_small_disk(shell: Shell, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line where the disk at `folder` has 4 KiB left; nobody else sees this disk, and it ends with the line."""
    script = f"""
mount -t tmpfs -o size=8k none {folder} && echo old > {folder}/old
{line}; echo $?; cat {folder}/old; ls {folder}
"""
    return run_program(["unshare", "--mount", "bash", "-c", script], env=shell.environment)


@needs_root
def test_metrics_on_a_full_disk_leave_the_old_file(shell: Shell, tmp_path: Path) -> None:
    done = on_a_small_disk(shell, tmp_path, f"kerntune metrics --output {tmp_path}/old")
    assert done.stdout.splitlines() == ["1", "old", "old"]
    assert done.stderr.splitlines() == [
        f"kerntune: {tmp_path}/old cannot be written: {FULL}", "  Make room there, or name a file elsewhere",
    ]  # fmt: skip


@needs_root
@pytest.mark.parametrize("line", ["list --json", "metrics"])
def test_an_answer_of_which_a_part_has_room(shell: Shell, tmp_path: Path, line: str) -> None:
    done = on_a_small_disk(shell, tmp_path, f"kerntune {line} > {tmp_path}/new")
    assert done.stdout.splitlines() == ["1", "old", "new", "old"]
    assert done.stderr.splitlines() == [f"kerntune: the answer could not be written: {FULL}"]


ASCII = (
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
)


@needs_root
@pytest.mark.parametrize("environment", ASCII)
@pytest.mark.parametrize("line", ["", "set 'h\xfcge'", r"get $'\xff'", "doctor"])
def test_a_locale_that_lacks_a_character(shell: Shell, line: str, environment: dict[str, str]) -> None:
    usual = shell.run(f"kerntune {line}")
    names = " ".join(f"{name}={value}" for name, value in environment.items())
    done = subprocess.run(
        ["bash", "-c", f"{names} kerntune {line}".encode()],
        env={**os.environ, **NO_BUS, **shell.environment}, capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == usual.returncode
    assert is_clean((done.stdout + done.stderr).decode(errors="replace"))


@needs_root
def test_json_is_whole_in_any_locale(shell: Shell) -> None:
    done = shell.run("PYTHONIOENCODING=ascii kerntune hold hugepages@2M=1 --who 'g\xfcnther' --ttl 1 --json")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["held", "ended"]
