"""Real drives: a loop device that gets another file is the same drive, and keeps the value it had by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.live.users import User

DRIVE = "loop3"
QUEUE = Path(f"/sys/block/{DRIVE}/queue")
READ_AHEAD = QUEUE / "read_ahead_kb"
DISKSEQ = QUEUE.parent / "diskseq"


@pytest.fixture
def drive(loops: Sequence[str]) -> Iterator[None]:
    assert DRIVE in loops
    before = READ_AHEAD.read_text()
    yield
    READ_AHEAD.write_text(before)


def losetup(*words: str) -> None:
    subprocess.run(["losetup", *words], timeout=20, check=True)


def test_another_medium_leaves_the_drive_its_own_value(daemon: Daemon, root: User, drive: None, tmp_path: Path) -> None:
    READ_AHEAD.write_text("128")
    root.set(("read-ahead", DRIVE, "1024"))
    assert READ_AHEAD.read_text() == "1024\n"
    before, inode = DISKSEQ.read_text(), QUEUE.stat().st_ino
    medium = tmp_path / "medium"
    medium.write_bytes(bytes(1 << 20))
    losetup(f"/dev/{DRIVE}", str(medium))
    losetup("--detach", f"/dev/{DRIVE}")
    assert DISKSEQ.read_text() != before, "the kernel counts media"
    assert QUEUE.stat().st_ino == inode, "and the queue is the same"
    root.unset(("read-ahead", DRIVE))
    assert READ_AHEAD.read_text() == "128\n"
    assert not [row for row in root.describe()["targets"] if row["instance"] == DRIVE and row["baseline"]]
