"""`make run`: says which host it works on, shows the status and lines to paste, and cleans up at the end."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.harness import CHECKOUT, host
from tests.harness.polkitd import ACTIONS, MARK, RULES
from tests.live.users import LIMIT, User

ONCE: Final = {"KERNTUNE_RUN_ONCE": "1"}
RUN: Final = "tests.harness.run"
# What no line can be shown to do without a program that need not be there, or without end.
NOT_PASTED: Final = ("busctl monitor", "/kerntune ", "kerntune monitor", " | jq ")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give where all temporary files of a run go; nothing is left in it."""
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        Path(name).chmod(0o755)  # polkitd, which is another user, looks for the bus in it
        yield Path(name)


def nothing_is_left(folder: Path) -> None:
    """Check that no file is left, and no process that was told to put its files there."""
    assert list(folder.iterdir()) == []
    mark = f"TMPDIR={folder}".encode()
    assert [path for path in Path("/proc").glob("[0-9]*/environ") if mark in environ(path)] == []


def environ(path: Path) -> Sequence[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return ()


def environment(base: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a run: no system bus but its own."""
    left_out = ("DBUS_SYSTEM_BUS_ADDRESS", "BUS", "SUDO_USER")
    return {name: text for name, text in base.items() if name not in left_out} | {"TMPDIR": str(folder)}


@contextmanager
def in_the_foreground(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run it in the foreground; it is killed if it does not end in time."""
    with subprocess.Popen(
        argv, env=env, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        limit = threading.Timer(2 * LIMIT, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            if process.poll() is None:
                process.terminate()
                process.wait(LIMIT)


def run_once(folder: Path) -> str:
    """Run it as root, to end after it has shown everything; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", RUN],
        env=environment(os.environ, folder) | ONCE,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_as_root_it_works_on_this_machine(machine: None, folder: Path) -> None:
    said = run_once(folder)
    assert "host:   this machine: values that are set here are really set" in said
    assert f"bus:    private, unix:path={folder}/" in said
    assert "polkit: a polkitd of its own" in said
    status = said.partition("$ kerntune status")[2]
    assert "Nothing is managed" in status
    assert "kerntune status ended with" not in status
    assert 'SetCount "tta{sv}" 0 128 0' in status
    nothing_is_left(folder)
    polkit_files_are_gone()


def polkit_files_are_gone() -> None:
    """Check that they are gone, unless somebody uses them now, as other tests of this run may."""
    users = os.open(ACTIONS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        found = [path for place in (ACTIONS, RULES) for path in place.glob("*kerntune*") if MARK in path.read_text()]
        assert found == []
    finally:
        os.close(users)


def test_as_an_ordinary_user_it_simulates(other: User, folder: Path) -> None:
    subprocess.run(["chown", other.name, str(folder)], check=True, timeout=LIMIT)
    done = other.run(other.python(RUN), env=environment(other.environment, folder) | ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host:   simulated (--demo)" in done.stdout
    assert "polkit: none" in done.stdout
    assert "kerntune status ended with" not in done.stdout
    nothing_is_left(folder)


def test_its_lines_can_be_pasted_and_ctrl_c_ends_it(machine: None, folder: Path) -> None:
    env = environment(os.environ, folder)
    with in_the_foreground([sys.executable, "-u", "-m", RUN], env) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line.strip())
            if "Ctrl-C ends it" in line:
                break
        pasted = [line for line in shown if line.startswith("DBUS_SYSTEM_BUS_ADDRESS=")]
        assert len(pasted) > 8
        setting = [paste(line) for line in pasted if "SetCount" in line]
        assert setting == ["t 128"]
        assert host.pages() == 128
        for line in pasted:
            if not any(words in line for words in (*NOT_PASTED, "SetGovernor", "SetCount")):
                paste(line)
        assert (host.pages(), host.overcommit()) == (0, ("always", 95))
        address = pasted[0].split(maxsplit=1)[0]
        what = '2 overcommit "*" io-scheduler "*" 0'
        name = "org.kerntune.Tuner1"
        paste(f'{address} busctl call {name} /org/kerntune/Tuner1 {name}.Manager Unset "a(ss)a{{sv}}" {what}')
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(LIMIT) == 0
    nothing_is_left(folder)


def paste(line: str) -> str:
    """Return what a line prints, which has to work."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"{shlex.quote(line)}: {done.stderr}"
    return done.stdout.strip()
