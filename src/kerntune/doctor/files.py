"""A reader of the files below one root that hold settings of people and packages; no link leads it out of the root."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAX_BYTES: Final = 1 << 20  # bytes of one file; nobody writes longer ones by hand
LINKS: Final = 40  # the most links that `resolve` follows one after another, as the kernel does
NOWHERE: Final = "dev/null"  # a link to it masks a file that a package ships


def whole(text: str) -> int | None:
    """Return a whole number as the kernel takes it, or None for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


class Line(NamedTuple):
    """A line of a file, its number counted from 1."""

    number: int
    text: str


class Files:
    """The files below a root, as the host would see them if the root were its `/`.

    Paths have no leading slash. `unreadable` gathers the files and folders that exist and cannot be read, each
    with the reason.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = str(root.resolve()).rstrip("/")
        self.unreadable: dict[str, str] = {}

    def resolve(self, path: str) -> str:
        """Return where a path leads after all symbolic links, even if nothing is there.

        Raise OSError in a loop of links.
        """
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
        """Return the same path as `resolve`, or "" if `resolve` cannot find it."""
        try:
            return self.resolve(path)
        except (OSError, ValueError):
            return ""

    def text(self, path: str) -> str | None:
        """Return the text of a regular file, or None if none can be read."""
        try:
            fd = os.open(f"{self._root}/{self.resolve(path)}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                data = (
                    b"".join(iter(lambda: os.read(fd, MAX_BYTES), b""))
                    if path.startswith("proc/")
                    else os.read(fd, MAX_BYTES)
                )
                # No path may hold a NUL, and text from here may become a path.
                return data.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self.unreadable[f"/{path}"] = getattr(error, "strerror", None) or str(error)
            return None

    def lines(self, path: str) -> Iterator[Line]:
        """Yield the lines of a file, or one empty line if the file is missing."""
        for number, text in enumerate((self.text(path) or "").split("\n"), 1):
            yield Line(number, text.rstrip("\r"))

    def names(self, folder: str, suffix: str = "") -> Sequence[str]:
        """Return the names in a folder that end with `suffix`, sorted by bytes as systemd sorts."""
        try:
            found = os.listdir(f"{self._root}/{self.resolve(folder)}")
        except PermissionError as error:
            self.unreadable[f"/{folder}"] = str(error.strerror)
            return []
        except (OSError, ValueError):
            return []
        return sorted((name for name in found if name.endswith(suffix)), key=os.fsencode)

    def there(self, path: str) -> bool:
        """Return whether the path exists, even as a link that leads nowhere."""
        return os.path.lexists(f"{self._root}/{path}")

    def runs(self, path: str) -> bool:
        """Return whether the path is a file that somebody may execute."""
        try:
            mode = os.stat(f"{self._root}/{self.resolve(path)}").st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(mode) and bool(mode & 0o111)


class DropIn(NamedTuple):
    """A file in one of several drop-in folders; `masked_by` is the file of the same name that takes its place."""

    path: str
    masked_by: str = ""


def drop_ins(files: Files, folders: Sequence[str], suffix: str) -> Sequence[DropIn]:
    """Return the files of drop-in folders in the order of reading; a masked file comes right before its mask.

    sysctl.d(5), udev(7): the names alone decide the order; of files with the same name, only the one in the earliest
    folder counts.
    """
    chosen: dict[str, str] = {}
    masked: dict[str, list[str]] = {}
    seen: set[str] = set()
    for folder in folders:
        # Where /lib is a link to /usr/lib, one folder has two names.
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
