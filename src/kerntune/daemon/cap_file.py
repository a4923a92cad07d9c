"""The settings before a cap, kept in the runtime directory, so that whoever comes after a crash can put them back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Final

from kerntune.kernel.files import Kernel, KernelError
from kerntune.kernel.pressure import MemoryFiles, Originals

log = logging.getLogger(__name__)
NAME: Final = "cap.json"
SIZE: Final = 256  # bytes; no number in it is longer than 20
NOTHING: Final = b" " * SIZE
CAPPED: Final = 2  # vm.overcommit_memory


class CapFile:
    """Open and as large as it gets from the start: in mode never tmpfs gives no new page. Raises OSError."""

    def __init__(self, runtime: Path) -> None:
        self._fd = os.open(runtime / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.clear()

    def keep(self, originals: Originals) -> None:
        """These are to be put back."""
        os.pwrite(self._fd, json.dumps(originals).encode().ljust(SIZE), 0)

    def clear(self) -> None:
        """There is nothing to put back."""
        os.pwrite(self._fd, NOTHING, 0)

    def close(self) -> None:
        os.close(self._fd)


def undo_cap(kernel: Kernel, runtime: Path) -> bool:
    """Put back what a guard that was killed has left; whether there was anything. Raises KernelError.

    Where the mode is neither the guard's nor the host's own, somebody else has set it since, and all is left alone.
    """
    originals = left_behind(runtime)
    if originals is None:
        return False
    files = MemoryFiles(kernel)
    try:
        if files.originals().mode in (CAPPED, originals.mode):
            files.restore(originals)
            log.warning("a cap that was left behind is undone: vm.overcommit_memory is %d again", originals.mode)
    finally:
        files.close()
    with contextlib.suppress(FileNotFoundError):
        (runtime / NAME).unlink()
    return True


def left_behind(runtime: Path) -> Originals | None:
    """What is to be put back, None when there is nothing or it cannot be read."""
    try:
        text = (runtime / NAME).read_bytes()
    except OSError:
        return None
    try:
        found = Originals(*json.loads(text)) if text.strip() else None
    except (ValueError, TypeError, RecursionError):
        log.error("%s cannot be read: a cap may be left in force; `sysctl vm.overcommit_memory` shows it", NAME)
        return None
    return found if found and all(type(value) is int for value in found) else None


def undo_cap_alone(kernel: Kernel, runtime: Path) -> int:
    """The same for ExecStopPost=, which runs when no daemon does; an exit status."""
    try:
        undo_cap(kernel, runtime)
    except KernelError as error:
        log.error("a cap that was left behind cannot be undone: %s: %s", error.filename, error.strerror)
        return 1
    return 0
