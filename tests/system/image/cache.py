"""Where what is expensive to make is kept: outside the checkout, one directory for each key of its inputs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

KEPT: Final = 2  # of each kind, the one in use included


def folder() -> Path:
    """$XDG_CACHE_HOME/kerntune-vm, made when it is not there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) / "kerntune-vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key_of(*inputs: str | bytes | Path) -> str:
    """A short hash of texts and of what files hold."""
    digest = hashlib.sha256()
    for part in inputs:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


@contextmanager
def kept(kind: str, key: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The directory KIND-KEY, filled by `make` when there is none yet; nobody removes it meanwhile.

    `make` gets an empty directory, which takes its place only when it is complete. Others who want the same wait.
    """
    where = folder() / f"{kind}-{key}"
    with open(folder() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not where.exists():
            _fill(where, make)
        os.utime(where)
        mine = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(mine, fcntl.LOCK_SH)
        _prune(kind)
    try:
        yield where
    finally:
        os.close(mine)


def _fill(where: Path, make: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=f"making-{where.name}-", dir=where.parent) as name:
        made = Path(name) / "made"
        made.mkdir()
        make(made)
        made.rename(where)


def _prune(kind: str) -> None:
    """Remove what was used longest ago, and what an interrupted run left, unless another run has it."""
    newest = sorted(folder().glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in [*newest[KEPT:], *folder().glob(f"making-{kind}-*")]:
        held = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)
