"""The settings before a cap, saved in the runtime directory, so that the guard can restore them after a crash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from enum import IntEnum
from pathlib import Path
from typing import Final

from kerntune.guard.policy import MODE_NEVER
from kerntune.guard.sysctls import Originals, Sysctls
from kerntune.kernel.files import Kernel
from kerntune.plain_files import NoPlainFile, patiently, put_aside

log = logging.getLogger(__name__)
CAP_FILE: Final = "cap.json"
SIZE: Final = 256  # bytes; no number in it has more than 20 digits
NOTHING: Final = b" " * SIZE


class Undone(IntEnum):
    """The result for a cap that was left behind; also the exit status of `kerntuned --uncap`."""

    WELL = 0
    FAILED = 1  # the cap may still be in force, and its file is kept for another try
    SET_ASIDE = 3  # there is a file, but its contents cannot be used


class Unreadable(ValueError):
    """The file does not hold what the guard wrote to it."""


class SavedOriginals:
    """The file, open and at its full size from the start: in mode never tmpfs gives no new page.

    Restore what an earlier daemon has left in the file before you create this object: it overwrites the file.
    """

    def __init__(self, runtime: Path) -> None:
        """Open and clear the file. Raise OSError where there is no room."""
        self.originals: Originals | None = None
        self._fd = os.open(runtime / CAP_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.clear()

    def save(self, originals: Originals) -> None:
        """Save the values to restore."""
        os.pwrite(self._fd, json.dumps(originals).encode().ljust(SIZE), 0)
        self.originals = originals

    def clear(self) -> None:
        """Save that there is nothing to restore."""
        os.pwrite(self._fd, NOTHING, 0)
        self.originals = None

    def close(self) -> None:
        os.close(self._fd)


def undo_cap(kernel: Kernel, runtime: Path) -> bool:
    """Restore what a killed guard has left, and return whether there was anything. Raise OSError or Unreadable.

    Where the mode is neither the guard's nor the host's own, something else has set it since, and nothing is written.
    """
    originals = left_behind(runtime)
    if originals is None:
        return False
    files = Sysctls(kernel)
    try:
        if files.originals().mode in (MODE_NEVER, originals.mode):
            files.restore(originals)
            log.warning("a cap that was left behind is undone: vm.overcommit_memory is %d again", originals.mode)
    finally:
        files.close()
    (runtime / CAP_FILE).write_bytes(NOTHING)
    return True


def left_behind(runtime: Path) -> Originals | None:
    """Return the values to restore, None for none. Raise Unreadable, or OSError when they cannot be read now."""
    try:
        text = patiently(runtime / CAP_FILE, SIZE)
    except FileNotFoundError:
        return None
    except NoPlainFile as error:
        raise Unreadable(CAP_FILE) from error
    if not text.strip():
        return None
    try:
        found = Originals(*json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(CAP_FILE) from error
    # We would never set a ratio below 0, but the kernel accepts one from others.
    if not all(type(value) is int for value in found) or min(found._replace(ratio=0)) < 0 or found.mode > MODE_NEVER:
        raise Unreadable(CAP_FILE)
    return found


def undo_cap_alone(kernel: Kernel, runtime: Path) -> Undone:
    """Call undo_cap at a start, and in ExecStopPost=, where no daemon runs; log a failure."""
    try:
        undo_cap(kernel, runtime)
    except OSError as error:
        log.error("a cap that was left behind cannot be undone: %s: %s", error.filename, error.strerror)
        return Undone.FAILED
    except Unreadable:
        path = runtime / CAP_FILE
        aside = path
        with contextlib.suppress(OSError):
            aside = put_aside(path, "bad")
        log.error(
            "%s cannot be used and is now %s: a cap may be left in force; `sysctl vm.overcommit_memory` shows it, and "
            "2 is a cap unless it was asked for", path, aside.name,
        )  # fmt: skip
        return Undone.SET_ASIDE
    return Undone.WELL
