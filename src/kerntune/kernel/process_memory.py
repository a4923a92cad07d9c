"""A process, its descendants, and where their memory lies, read from /proc; the module imports little.

A process that ends meanwhile is passed over; one that may not be read is said to be so.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

MOST: Final = 4096  # processes of a tree
FORKED: Final = 0x40  # PF_FORKNOEXEC (include/linux/sched.h): forked, and not executed since
# Fields of /proc/PID/stat after the name (proc_pid_stat(5)).
STATE, PARENT, FLAGS, STARTED = 0, 1, 6, 19

_Children = Callable[[int], Iterable[int]]


class Unreadable(Exception):
    """A process whose memory this user may not see: another user's, or that of a setuid program."""


class NoChildrenFiles(Exception):
    """The kernel lists no children in /proc: it is built without CONFIG_PROC_CHILDREN."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, with what costs little to read: bytes of memory that it has mapped."""

    pid: int
    started: int  # ticks since boot: with `pid` it tells a process from all others
    parent: int
    forked: bool  # it runs the program of its parent: it was forked, and has executed nothing since
    name: str
    resident: int = 0  # all but huge pages of a pool
    anonymous: int = 0
    hugetlb: int = 0
    own: bool = True  # it runs with the identity that started it: no setuid program


@dataclass(frozen=True, slots=True)
class Rollup:
    """Bytes of /proc/PID/smaps_rollup (Documentation/filesystems/proc.rst)."""

    anonymous: int = 0
    proportional: int = 0  # of `anonymous`: pages that several processes have count in parts
    anon_huge: int = 0
    private_hugetlb: int = 0
    shared_hugetlb: int = 0


class Processes:
    """The processes below one root."""

    def __init__(self, root: str = "/") -> None:
        self._proc = os.path.join(root, "proc")

    def tree(self, pid: int, seen: Mapping[int, int] | None = None, most: int = MOST) -> dict[int, Process]:
        """Return a process with its descendants, by their pids.

        `seen` (pid -> start) has processes that were in the tree before: they stay when their parents have ended.
        """
        found: dict[int, Process] = {}
        try:
            self._collect(pid, found, self._children, most)
            self._collect_seen(seen or {}, found, self._children, most)
        except NoChildrenFiles:
            children = self._by_parent()
            found.clear()
            self._collect(pid, found, lambda each: children.get(each, ()), most)
            self._collect_seen(seen or {}, found, lambda each: children.get(each, ()), most)
        return found

    def _collect_seen(self, seen: Mapping[int, int], found: dict[int, Process], children: _Children, most: int) -> None:
        for pid, started in seen.items():
            if pid not in found and (process := self.read(pid)) is not None and process.started == started:
                self._collect(pid, found, children, most)

    def _collect(self, pid: int, found: dict[int, Process], children: _Children, most: int) -> None:
        waiting = [pid]
        while waiting and len(found) < most:
            each = waiting.pop()
            if each not in found and (process := self.read(each)) is not None:
                found[each] = process
                waiting.extend(children(each))

    def _children(self, pid: int) -> Iterable[int]:
        """Return the children of all threads of a process. Raise NoChildrenFiles."""
        found: list[int] = []
        folder = f"{self._proc}/{pid}/task"
        threads, absent = [], 0
        with suppress(OSError):
            threads = os.listdir(folder)
        for thread in threads:
            try:
                found.extend(map(int, self._text(f"{folder}/{thread}/children").split()))
            except OSError:
                absent += os.path.exists(f"{folder}/{thread}")
        if threads and absent == len(threads):
            raise NoChildrenFiles
        return found

    def _by_parent(self) -> Mapping[int, list[int]]:
        """Return all processes by their parents."""
        found = defaultdict(list)
        for pid in map(int, filter(str.isdigit, os.listdir(self._proc))):
            with suppress(OSError, IndexError, ValueError):
                found[int(self._stat(pid)[1][PARENT])].append(pid)
        return found

    def _stat(self, pid: int) -> tuple[str, list[str]]:
        head, _, rest = self._text(f"{self._proc}/{pid}/stat").rpartition(")")
        return head.partition("(")[2], rest.split()

    def read(self, pid: int) -> Process | None:
        """Return a process; None when it has ended."""
        try:
            name, fields = self._stat(pid)
            status = dict(_rows(self._text(f"{self._proc}/{pid}/status")))
            state, parent, flags, started = (fields[column] for column in (STATE, PARENT, FLAGS, STARTED))
            if state in "ZX":
                return None
            ids = (status.get(kind, "").split()[:2] for kind in ("Uid", "Gid"))
            return Process(
                pid,
                int(started),
                int(parent),
                bool(int(flags) & FORKED),
                "".join(char if char.isprintable() else "?" for char in name),
                _bytes(status.get("VmRSS", "")),
                _bytes(status.get("RssAnon", "")),
                _bytes(status.get("HugetlbPages", "")),
                own=all(len(set(pair)) < 2 for pair in ids),
            )
        except (OSError, IndexError, ValueError):
            return None

    def may_read(self, pid: int) -> bool:
        """Return False if this user may not see the memory of a process; that is asked when the file is opened."""
        try:
            os.close(os.open(f"{self._proc}/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return False
        except OSError:
            pass
        return True

    def rollup(self, pid: int) -> Rollup | None:
        """Return where the memory of a process lies, or None when it has ended; the kernel walks its page tables.

        Raise Unreadable where this user may not see it.
        """
        try:
            rows = dict(_rows(self._text(f"{self._proc}/{pid}/smaps_rollup")))
        except PermissionError as error:
            raise Unreadable from error
        except OSError:
            return None
        anonymous = _bytes(rows.get("Anonymous", ""))
        return Rollup(
            anonymous,
            min(anonymous, _bytes(rows["Pss_Anon"])) if "Pss_Anon" in rows else anonymous,  # from Linux 5.3
            *(_bytes(rows.get(field, "")) for field in ("AnonHugePages", "Private_Hugetlb", "Shared_Hugetlb")),
        )

    def copied_on_write(self, pid: int) -> int:
        """Return the bytes of huge pages that a process shares only until one of them writes; 0 if it cannot be read.

        Pages of mappings that are shared for good (MAP_SHARED) do not count.
        """
        total, private = 0, False
        with suppress(OSError, IndexError):
            for line in self._text(f"{self._proc}/{pid}/smaps").splitlines():
                name, _, value = line.partition(":")
                if " " in name:  # the first line of a mapping: 7f00-7f01 rw-p ...
                    private = line.split()[1].endswith("p")
                elif private and name == "Shared_Hugetlb":
                    total += _bytes(value)
        return total

    def environment(self, pid: int) -> Mapping[str, str] | None:
        """Return the environment with which a program was executed; None where it cannot be known.

        Programs that write a title for ps(1) there leave NULs behind, where a variable was.
        """
        try:
            text = self._text(f"{self._proc}/{pid}/environ")
        except OSError:
            return None
        words = text.removesuffix("\0").split("\0") if text else []
        return dict(word.partition("=")[::2] for word in words) if all("=" in word for word in words) else None

    @staticmethod
    def _text(path: str) -> str:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


def _rows(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        yield name, value


def _bytes(value: str) -> int:
    """Return the bytes of a value such as `12 kB`; 0 for any other."""
    word = value.split()[:1]
    return int(word[0]) << 10 if word and word[0].isdigit() else 0
