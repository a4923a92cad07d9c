"""Reads, writes and renames of files that may be anything: none waits, and none leaves a descriptor open."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Final

MAX_FILE_BYTES: Final = 1 << 20  # bytes of a file of the configuration
NULL: Final = os.makedev(1, 3)  # /dev/null: an empty file to users who mask a file with it
# The errnos of open(2) for a socket, a loop of links, and a device that nothing drives.
NEVER: Final = frozenset({errno.ENXIO, errno.ELOOP, errno.ENODEV, errno.EISDIR, errno.ENOTDIR})
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # of write(2): the file has no room
PAUSES: Final = (0.02, 0.1, 0.5)  # seconds before another try
ASIDE: Final = 10  # files of one name to keep


class NoPlainFile(OSError):
    """The path is no file that could ever be read: a folder, a pipe, a device, or a file that is too long."""


def contents_of(path: Path, longest: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a regular file. Raise OSError; NoPlainFile for anything else, or if it is too long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NEVER:
            raise NoPlainFile(error.errno, error.strerror, str(path)) from error
        raise
    try:
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL:
            return b""
        if stat.S_ISDIR(found.st_mode):
            raise NoPlainFile(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise NoPlainFile(errno.EINVAL, "it is no regular file", str(path))
        data = bytearray()
        while len(data) <= longest and (more := os.read(fd, min(longest + 1 - len(data), MAX_FILE_BYTES))):
            data += more
    finally:
        os.close(fd)
    if len(data) > longest:
        raise NoPlainFile(errno.EFBIG, f"it is longer than {longest} bytes", str(path))
    return bytes(data)


def patiently(path: Path, longest: int) -> bytes:
    """Return the bytes of a regular file as contents_of does, but try again after an error that may pass.

    The call blocks for less than a second.
    """
    for pause in PAUSES:
        try:
            return contents_of(path, longest)
        except (FileNotFoundError, NoPlainFile):
            raise
        except OSError:
            time.sleep(pause)
    return contents_of(path, longest)


def put_aside(path: Path, ending: str, *, keep_oldest: bool = False) -> Path:
    """Rename a file to a name with this ending, and return the new path.

    While there are fewer than ASIDE such files, it replaces none of them; then the oldest. With `keep_oldest` it
    replaces the newest, because the oldest says most.
    """
    names = [f"{path.name}.{ending}", *(f"{path.name}.{number}.{ending}" for number in range(1, ASIDE))]
    places = [path.with_name(name) for name in names]
    free = next((place for place in places if not os.path.lexists(place)), None)
    replaced = max if keep_oldest else min
    return path.replace(free or replaced(places, key=lambda place: place.lstat().st_mtime))


def replace_file(path: Path, document: Any, *, durable: bool) -> None:
    """Write JSON to a new file and rename it over the old one; `durable` also waits for the disk."""
    fd, beside = new_file(path)
    try:
        # json reads half a surrogate pair, so it has to be able to write one.
        with open(fd, "w", encoding="utf-8", errors="surrogatepass") as file:
            json.dump(document, file, ensure_ascii=False)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()  # on a full disk the file would take space
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def new_file(path: Path) -> tuple[int, Path]:
    """Return the descriptor and the path of an empty file beside this one, whatever else is in the folder."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    beside = path.with_name(f".{path.name}.new")
    with contextlib.suppress(OSError):
        beside.unlink()
    try:
        return os.open(beside, flags, 0o666), beside
    except FileExistsError:  # a folder has the name
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        beside.unlink(missing_ok=True)
        return os.open(beside, flags, 0o666), beside
