"""kerntuned as somebody tries it out: `make run` as root and as anybody, and the daemon without root.

`make run` says which host it works on, shows lines to paste and cleans up. Without root the daemon demonstrates itself,
tunes a tree of one's own, and no more than that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import socket
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
from tests.harness.daemon import READY
from tests.harness.host import make_tree
from tests.harness.polkitd import ACTIONS, MARK, OTHER, RULES
from tests.harness.privatebus import package_bus
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
    assert re.search(rf"^files:  ({folder}/\S+) stands for /etc/kerntune \(kerntune config check \1\)$", said, re.M)
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


# kerntuned without root


@pytest.fixture
def home(other: User) -> Iterator[Path]:
    """Give a folder of the user's own."""
    with tempfile.TemporaryDirectory(prefix="kerntune-live-") as name:
        give(other, Path(name))
        yield Path(name)


@pytest.fixture
def user(other: User, public: Path) -> Iterator[User]:
    """Give somebody outside the group, on a bus where he may own the daemon's name."""
    with package_bus(owner=other.name) as bus, User(OTHER, bus, public) as somebody:
        yield somebody


def give(user: User, path: Path) -> None:
    subprocess.run(["chown", "-R", user.name, str(path)], check=True, timeout=LIMIT)


@contextmanager
def kerntuned(user: User, folder: Path, *options: str, **directories: Path) -> Iterator[None]:
    """Run the daemon as that user, until it is told to stop; temporary files go to `folder`/tmp."""
    (folder / "tmp").mkdir()
    own = {name: str(path) for name, path in directories.items()}
    environment = user.environment | own | {"TMPDIR": str(folder / "tmp"), "NOTIFY_SOCKET": str(folder / "notify")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(LIMIT)
        give(user, folder)
        with subprocess.Popen(user.python("kerntune.daemon", *options), env=environment, cwd="/") as process:
            try:
                while READY not in notify.recv(1 << 12).decode().splitlines():
                    pass
                yield
            finally:
                process.terminate()
                assert process.wait(LIMIT) == 0


def test_the_demonstration_needs_nothing(user: User, home: Path) -> None:
    """It leaves this host alone, and nothing behind."""
    before = host.snapshot()
    with kerntuned(user, home, "--demo"):
        document = user.describe()
        assert (document["host"]["simulated"], document["host"]["root"]) == (True, "(simulated)")
        assert user.set_count(5000) == 5000
        assert user.set_scheduler("nvme*", "mq-deadline")[0][5] == "satisfied"
    assert list((home / "tmp").iterdir()) == []
    assert host.snapshot() == before


def test_a_tree_of_one_s_own_can_be_tuned(user: User, home: Path) -> None:
    tree = make_tree(home / "tree")
    with kerntuned(user, home, "--root", str(tree), RUNTIME_DIRECTORY=home / "run", STATE_DIRECTORY=home / "lib"):
        assert user.set_count(64) == 64 == host.pages(root=tree)
    saved = json.loads((home / "run/runtime.json").read_text())["runtime"]
    assert [claim["value"] for claim in saved] == ["64"]


def test_a_tree_of_somebody_else_s_is_refused(other: User, public: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kerntune-live-") as name:
        Path(name).chmod(0o755)
        tree = make_tree(Path(name) / "tree")
        refused = other.run(other.python("kerntune.daemon", "--root", str(tree)))
    assert refused.returncode == 1
    assert re.search(rf"{tree}/\S+ may not be written: .*--demo", refused.stderr)


def test_the_host_is_refused(other: User) -> None:
    refused = other.run(other.python("kerntune.daemon"))
    assert refused.returncode == 1
    assert "may not be written: run kerntuned as root, or try it with --demo" in refused.stderr
