"""Reading and writing the kernel's files below one root; the only place of the project that writes them."""

from __future__ import annotations

import errno
import glob
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kerntune.globs import natural_sort_key
from kerntune.kernel import devices

# What may be written, as patterns of paths below the root; `*` never crosses a slash.
WRITABLE: Final = (
    "proc/sys/vm/compact_memory",
    "proc/sys/vm/overcommit_memory",
    "proc/sys/vm/overcommit_ratio",
    "proc/sys/vm/overcommit_kbytes",
    "proc/sys/vm/swappiness",
    "proc/sys/vm/zone_reclaim_mode",
    "proc/sys/vm/watermark_scale_factor",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/kernel/mm/transparent_hugepage/defrag",
    "sys/kernel/mm/hugepages/hugepages-*kB/nr_hugepages",
    "sys/kernel/mm/hugepages/hugepages-*kB/nr_overcommit_hugepages",
    "sys/devices/system/node/node*/hugepages/hugepages-*kB/nr_hugepages",
    "sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
    "sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference",
    "sys/block/*/queue/scheduler",
    "sys/block/*/queue/read_ahead_kb",
)
WRITABLE_PATH: Final = re.compile("|".join(re.escape(pattern).replace(r"\*", "[^/]*") for pattern in WRITABLE))
NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.EPERM})

CHUNK: Final = 1 << 15  # of the heap; what is larger is mapped, and unmapped again
GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's word for the format; the module gzip is a quarter MiB more


class KernelError(OSError):
    """A read or write that the kernel refused: `errno`, `strerror` and `filename` as in OSError."""


class KernelView(Protocol):
    """What a tunable may do: look. Paths have no leading slash and never leave the root."""

    def read(self, path: str) -> str:
        """Return the text of a file, stripped. Raise KernelError when it cannot be read."""

    def glob(self, pattern: str) -> Sequence[str]:
        """Return the paths that match, sorted so that node2 comes before node10."""

    def links(self, device: str) -> Sequence[str]:
        """Other names of a block device, below /dev/disk: `by-id/nvme-...`."""

    def identity(self, path: str) -> str:
        """Return what tells the object at `path` from any other that has, or had, this path; "" when there is none.

        Links are followed, so two paths of one object have the same identity. Raise KernelError when it cannot be known
        now.
        """


class OpenFile(Protocol):
    """A file that stays open: it is read and written again without a path being looked up. KernelError as elsewhere."""

    def read(self) -> str: ...

    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


class Kernel(KernelView, Protocol):
    """A view that also writes: what the engine has and a tunable has not."""

    simulated: bool

    def write(self, path: str, text: str) -> None:
        """Write the text with one write(2); KernelError when the kernel refuses."""

    def open(self, path: str, *, writable: bool = False) -> OpenFile:
        """Open a file that stays open. Raise KernelError when that is not possible."""


def read_or_none(kernel: KernelView, path: str) -> str | None:
    """Return the text of a file, or None where it cannot be read (missing, busy, not permitted)."""
    try:
        return kernel.read(path)
    except KernelError:
        return None


def read_int(kernel: KernelView, path: str, default: int = 0) -> int:
    """Return the whole number of a file, or `default` where there is none."""
    text = read_or_none(kernel, path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else default


def is_writable(path: str) -> bool:
    """Return whether WRITABLE names the path."""
    return ".." not in path and WRITABLE_PATH.fullmatch(path) is not None


def unpacked(data: bytes) -> bytes:
    """Return the text of /proc/config.gz, the one packed file. Raise OSError when it is broken."""
    try:
        return zlib.decompress(data, GZIP)
    except zlib.error as error:
        raise OSError(errno.EILSEQ, f"cannot be unpacked: {error}") from error


class HostKernel:
    """The files below `root`: `/` for the host itself, or a tree of the same shape."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root.resolve()
        self.simulated = self.root != Path("/")
        self._inside = f"{self.root}/" if self.simulated else "/"

    def read(self, path: str) -> str:
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                # One read(2) is all of a file in sysfs; /proc gives its longer ones in pieces.
                data = os.read(fd, CHUNK)
                if not path.startswith("sys/"):
                    data += b"".join(iter(lambda: os.read(fd, CHUNK), b""))
                return (unpacked(data) if path.endswith(".gz") else data).decode(errors="replace").strip()
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(error.errno, error.strerror, path) from error

    def glob(self, pattern: str) -> Sequence[str]:
        if ".." in pattern.split("/") or pattern.startswith("/"):
            return ()
        return sorted(glob.glob(pattern, root_dir=self.root), key=natural_sort_key)

    def links(self, device: str) -> Sequence[str]:
        return devices.links(self.root, device)

    def identity(self, path: str) -> str:
        """Return the inode number: in sysfs each object has its own, and the next object has another (fs/kernfs/dir.c).

        A plain file system may use a number again after the object was removed.
        """
        try:
            fd = self._open(path, os.O_PATH)
            try:
                return str(os.fstat(fd).st_ino)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in NOT_THERE:
                return ""
            raise KernelError(error.errno, error.strerror, path) from error

    def write(self, path: str, text: str) -> None:
        if not is_writable(path):
            raise KernelError(errno.EPERM, "not a file that kerntune tunes", path)
        try:
            fd = self._open(path, os.O_WRONLY)
            try:
                self._put(fd, text)
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(error.errno, error.strerror, path) from error

    def open(self, path: str, *, writable: bool = False) -> HostFile:
        if writable and not is_writable(path):
            raise KernelError(errno.EPERM, "not a file that kerntune tunes", path)
        try:
            fd = self._open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise KernelError(error.errno, error.strerror, path) from error
        return HostFile(path, fd, self._put)

    def _put(self, fd: int, text: str) -> None:
        data = f"{text}\n".encode()
        if self.simulated:
            # A plain file keeps the tail of a longer value: blanks first, for a kill may come in between.
            os.pwrite(fd, data.ljust(os.fstat(fd).st_size), 0)
            os.ftruncate(fd, len(data))
        else:
            os.pwrite(fd, data, 0)

    def _open(self, path: str, flags: int) -> int:
        """Return a descriptor of the file. Symbolic links are followed, but not out of the root."""
        if ".." in path.split("/"):
            raise OSError(errno.EPERM, "outside the kernel's root")
        fd = os.open(f"{self._inside}{path.lstrip('/')}", flags | os.O_CLOEXEC)
        # Nothing is outside /. In a tree the kernel tells where the descriptor really is.
        if self.simulated and not os.readlink(f"/proc/self/fd/{fd}").startswith(self._inside):
            os.close(fd)
            raise OSError(errno.EPERM, "outside the kernel's root")
        return fd


@dataclass(frozen=True, slots=True)
class HostFile:
    """An open file of the kernel."""

    path: str
    fd: int
    put: Callable[[int, str], None]

    def read(self) -> str:
        try:
            return os.pread(self.fd, CHUNK, 0).decode(errors="replace").strip()
        except OSError as error:
            raise KernelError(error.errno, error.strerror, self.path) from error

    def write(self, text: str) -> None:
        try:
            self.put(self.fd, text)
        except OSError as error:
            raise KernelError(error.errno, error.strerror, self.path) from error

    def close(self) -> None:
        os.close(self.fd)
