"""The model's file: opened so that nothing but a file is accepted, or made up where the user names none."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kerntune.errors import Failed, Usage
from kerntune.kernel.disk import Disk, disk_of
from kerntune.kernel.processes import printable
from kerntune.plain_files import FULL

WHOLE: Final = 0.99  # part of the bytes
TENSORS: Final = 32
PIECE: Final = 16 << 20
SEED: Final = 1
ALIGNMENT: Final = 8  # of the header's length, as in safetensors
LEAST: Final = 1 << 16  # bytes of a made-up file, of which the header is the smaller part
SYNTHETIC: Final = "synthetic"
MAX_PATH: Final = 100  # characters of a path in a message
KINDS: Final = (
    (stat.S_ISDIR, "a folder", "Name one file of the model in it, such as model-00001-of-00004.safetensors"),
    (stat.S_ISFIFO, "a pipe", "Name a plain file"),
    (stat.S_ISSOCK, "a socket", "Name a plain file"),
    (stat.S_ISCHR, "a device", "Name a plain file"),
    (stat.S_ISBLK, "a device", "Name a plain file"),
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An open file of `size` bytes; `allocated` are the bytes on the disk: fewer if the file has holes.

    `name` is its path for people, cut if it is long. Workers inherit `fd` (`pass_fds`), and need no path. `close`
    closes the file; a made-up file is gone then.
    """

    fd: int
    size: int
    name: str
    allocated: int
    disk: Disk
    made_up: bool = False

    @property
    def is_on_disk(self) -> bool:
        """True if all of the file lies on a drive: not with holes, and not compressed."""
        return bool(self.disk.drives) and self.is_whole

    @property
    def is_whole(self) -> bool:
        """True if the file has as many allocated bytes as its size."""
        return self.allocated >= WHOLE * self.size

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_model(path: str) -> ModelFile:
    """Open a model's file for reading. Raise Usage if it is no file, and Failed if it cannot be read."""
    name = _short(path)
    try:
        # To open a device can have an effect (watchdog, tape), so the path is checked first, and again when it is open.
        _check(name, os.stat(path))
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _not_opened(name, error) from error
    try:
        found = os.fstat(fd)
        _check(name, found)
        os.pread(fd, 1, 0)
    except OSError as error:
        os.close(fd)
        raise Failed(f"{name} cannot be read ({error.strerror})", "See the kernel's log for its disk") from error
    except Usage:
        os.close(fd)
        raise
    return ModelFile(fd, found.st_size, name, found.st_blocks * 512, disk_of(fd))


def _check(name: str, found: os.stat_result) -> None:
    for is_kind, what, hint in KINDS:
        if is_kind(found.st_mode):
            raise Usage(f"{name} is {what}, not a file", hint)
    if not found.st_size:
        raise Usage(f"{name} is empty", "Name a file with the weights of a model")


def _not_opened(name: str, error: OSError | ValueError) -> Usage | Failed:
    if not isinstance(error, OSError):
        return Usage(f"{name} is no path", "Name the file of a model")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Usage(
            f"there is no file {name}", "Name the file of a model, or leave it out to measure with a made-up one"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Failed(f"{name} cannot be read ({error.strerror})", "Ask its owner, or run it as a user who may read it")
    return Failed(f"{name} cannot be opened ({error.strerror})", "Look at the path, and at the disk it is on")


def synthetic(folder: str, size: int, tell: Callable[[int], object] = lambda _: None) -> ModelFile:
    """Make a safetensors file of `size` bytes: 32 tensors of random data. It has no name, so it leaves nothing behind.

    The function calls `tell` repeatedly with the number of bytes on the disk; `tell` may stop it by raising. Raise
    Usage when `size` is too small for the header, and Failed when the file cannot be written.
    """
    if size < LEAST:
        raise Usage(f"a model of {size} bytes is too small", f"Take {LEAST >> 10} KiB or more")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="kerntune-bench-", buffering=0) as file:
            _fill(file.fileno(), size, tell)
            fd = os.dup(file.fileno())
    except OSError as error:
        if not os.path.isdir(folder):
            raise Usage(f"there is no folder {_short(folder)}", "Name one on the disk where models lie") from error
        raise _not_made(_short(folder), size, error) from error
    return ModelFile(fd, size, SYNTHETIC, os.fstat(fd).st_blocks * 512, disk_of(fd), made_up=True)


def _fill(fd: int, size: int, tell: Callable[[int], object]) -> None:
    # Report a full file system before the long work; some file systems do not give their size.
    room = os.fstatvfs(fd)
    free = room.f_bavail if os.geteuid() else room.f_bfree
    if room.f_blocks and free * room.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    head = header(size)
    _write(fd, head, 0)
    chance = random.Random(SEED)
    for start in range(len(head), size, PIECE):
        tell(start)
        _write(fd, chance.randbytes(min(PIECE, size - start)), start)
        os.fdatasync(fd)  # else the last sync would take minutes, without any progress to report
    os.fsync(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def header(size: int) -> bytes:
    """Return the header of a safetensors file of `size` bytes with 32 equal tensors; the last takes the remainder."""
    room = 4096  # bytes for the header, whatever the digits of the offsets
    each = (size - room) // TENSORS
    ends = [*(each * (number + 1) for number in range(TENSORS - 1)), size - room]
    tensors = {
        f"layers.{number}.weight": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
    }
    text = json.dumps(tensors, separators=(",", ":")).encode().ljust(room - ALIGNMENT)
    return len(text).to_bytes(ALIGNMENT, "little") + text


def _not_made(folder: str, size: int, error: OSError) -> Failed:
    what = f"a made-up model of {size >> 20} MiB cannot be written to {folder} ({error.strerror})"
    if error.errno in FULL:
        return Failed(what, "Make room there, name another folder, or take a smaller size")
    return Failed(what, "Name another folder, on the disk where models lie")


def _short(path: str | Path) -> str:
    plain = printable(str(path))
    return plain if len(plain) <= MAX_PATH else f"{plain[:MAX_PATH]}..."
