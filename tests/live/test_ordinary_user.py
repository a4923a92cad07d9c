"""kerntuned without root: it demonstrates itself, tunes a tree of one's own, and no more than that."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import host
from tests.harness.daemon import READY
from tests.harness.host import make_tree
from tests.harness.polkitd import OTHER
from tests.harness.privatebus import package_bus
from tests.live.users import LIMIT, User


@pytest.fixture
def folder(other: User) -> Iterator[Path]:
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


def test_the_demonstration_needs_nothing(user: User, folder: Path) -> None:
    """It leaves this host alone, and nothing behind."""
    before = host.snapshot()
    with kerntuned(user, folder, "--demo"):
        document = user.describe()
        assert (document["host"]["simulated"], document["host"]["root"]) == (True, "(simulated)")
        assert user.set_count(5000) == 5000
        assert user.set_scheduler("nvme*", "mq-deadline")[0][5] == "satisfied"
    assert list((folder / "tmp").iterdir()) == []
    assert host.snapshot() == before


def test_a_tree_of_one_s_own_can_be_tuned(user: User, folder: Path) -> None:
    tree = make_tree(folder / "tree")
    with kerntuned(user, folder, "--root", str(tree), RUNTIME_DIRECTORY=folder / "run", STATE_DIRECTORY=folder / "lib"):
        assert user.set_count(64) == 64 == host.pages(root=tree)
    saved = json.loads((folder / "run/runtime.json").read_text())["runtime"]
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
