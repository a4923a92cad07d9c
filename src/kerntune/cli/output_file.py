"""Files that a verb writes for others, each replacing the last one in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kerntune.errors import Failed
from kerntune.plain_files import FULL

MODE: Final = 0o644  # the reader may be another user, such as a collector of metrics
PRIVATE: Final = 0o600
FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


def replace_file(path: Path, content: str | bytes, mode: int = MODE) -> None:
    """Replace a file by a text or bytes, so that no reader finds half of it. Raise Failed."""
    new = _beside(path)
    with _typed_errors(path):
        _check_plain(path)
        try:
            with open(os.open(new, FLAGS, 0o600), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                os.fchmod(file.fileno(), mode)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def check_writable(path: Path, begins: bytes) -> None:
    """Raise Failed where `replace_file` would, so that a caller knows it before its long work.

    Raise it also for a file that does not begin like this: somebody else wrote it, and may need it.
    """
    with _typed_errors(path):
        _check_plain(path)
        if path.exists():
            with open(path, "rb") as file:
                if file.read(len(begins)) not in (begins, b""):
                    raise Failed(f"{path} is there, and not of this kind", "Name a file that may be written over")
        os.close(os.open(new := _beside(path), FLAGS, 0o600))
        new.unlink()


def _beside(path: Path) -> Path:
    # A collector reads *.prom, and this name does not end so.
    return path.with_name(f".{path.name}.{os.getpid()}")


def _check_plain(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise Failed(f"{path} is not a plain file, and would be replaced by one", "Name a file, or use a pipe")


@contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system for a path into Failed."""
    try:
        yield
    except ValueError as error:
        raise Failed(f"{path} cannot be written: {error}", "Name a file") from error
    except OSError as error:
        full = "Make room there, or name a file elsewhere" if error.errno in FULL else ""
        hint = full or "Is the folder there, and yours to write?"
        raise Failed(f"{path} cannot be written: {error.strerror}", hint) from error
