"""Reads the files in which people and packages keep settings, below one root; it never follows a link out of it."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

MOST: Final = 1 << 20  # bytes of one file; nobody writes longer ones by hand
LINKS: Final = 40  # that are followed one after another, as by the kernel
NOWHERE: Final = "dev/null"  # a link to it masks what a package ships


def whole(text: str) -> int | None:
    """A whole number as the kernel takes it, None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


class Line(NamedTuple):
    """A line of a file, its number counted from 1."""

    number: int
    text: str


class Files:
    """The files below a root, as the host would see them if the root were its `/`.

    Paths have no leading slash. `unreadable` gathers the files that are there and cannot be read, and why.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = str(root.resolve()).rstrip("/")
        self.unreadable: dict[str, str] = {}

    def resolve(self, path: str) -> str:
        """Where a path leads once every symbolic link is followed, be it there or not; OSError in a loop of links."""
        todo, done, links = deque(path.split("/")), list[str](), 0
        while todo:
            part = todo.popleft()
            if part == "..":
                done = done[:-1]
            if part in ("", ".", ".."):
                continue
            try:
                link = os.readlink("/".join((self._root, *done, part)))
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if link.startswith("/"):
                done = []
            todo.extendleft(reversed(link.split("/")))
        return "/".join(done)

    def leads_to(self, path: str) -> str:
        """As `resolve`, but "" where that cannot be found."""
        try:
            return self.resolve(path)
        except (OSError, ValueError):
            return ""

    def text(self, path: str) -> str | None:
        """The text of a regular file, None where there is none to read."""
        try:
            fd = os.open(f"{self._root}/{self.resolve(path)}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                data = b"".join(iter(lambda: os.read(fd, MOST), b"")) if path.startswith("proc/") else os.read(fd, MOST)
                # No path may hold a NUL, and what is read here may become one.
                return data.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self.unreadable[f"/{path}"] = getattr(error, "strerror", None) or str(error)
            return None

    def lines(self, path: str) -> Iterator[Line]:
        """The lines of a file, none where there is no file."""
        for number, text in enumerate((self.text(path) or "").split("\n"), 1):
            yield Line(number, text.rstrip("\r"))

    def names(self, folder: str, suffix: str = "") -> Sequence[str]:
        """What a folder holds with that ending, sorted by bytes as systemd sorts."""
        try:
            found = os.listdir(f"{self._root}/{self.resolve(folder)}")
        except (OSError, ValueError):
            return []
        return sorted((name for name in found if name.endswith(suffix)), key=os.fsencode)

    def there(self, path: str) -> bool:
        """Whether there is something of that name, and be it a link that leads nowhere."""
        return os.path.lexists(f"{self._root}/{path}")

    def runs(self, path: str) -> bool:
        """Whether it is a file that may be executed by somebody."""
        try:
            mode = os.stat(f"{self._root}/{self.resolve(path)}").st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(mode) and bool(mode & 0o111)


class DropIn(NamedTuple):
    """A file of several folders of drop-ins; `masked_by` is the file of the same name that takes its place."""

    path: str
    masked_by: str = ""


def drop_ins(files: Files, folders: Sequence[str], suffix: str) -> Sequence[DropIn]:
    """The files of drop-in folders in the order they are read, those that are masked right before their mask.

    sysctl.d(5), udev(7): sorted by name whatever the folder; of one name only that in the earliest folder counts.
    """
    chosen: dict[str, str] = {}
    masked: dict[str, list[str]] = {}
    seen: set[str] = set()
    for folder in folders:
        # Where /lib is a link to /usr/lib it is one folder under two names.
        if (real := files.leads_to(folder)) in seen:
            continue
        seen.add(real)
        for name in files.names(folder, suffix):
            path = f"{folder}/{name}"
            if chosen.setdefault(name, path) != path:
                masked.setdefault(name, []).append(path)
    found = []
    for name in sorted(chosen, key=os.fsencode):
        found += [DropIn(path, chosen[name]) for path in masked.get(name, ())]
        if files.leads_to(chosen[name]) != NOWHERE:
            found.append(DropIn(chosen[name]))
    return found
