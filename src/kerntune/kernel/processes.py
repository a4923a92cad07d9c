"""The names, the memory and the end of processes; the only module that imports psutil."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING

from kerntune.model import Consumer

LEAST = 1.0  # seconds
MAX_LINE = 200  # characters of a line that names a process
UNIT, CONTAINED, USER = 48, 24, 32  # the most characters of a unit, of a container's name and of a user in that line
SHORTEST = 12  # characters of a command line
LITTLE = 64 << 20  # bytes: a process that has grown less has not made memory short
MANY = 256  # processes that `culprit` looks at together
SHARED = "shared memory and /dev/shm"
NOBODY = "nobody of late; the largest is "
MIB = 1 << 20
CONTAINER = re.compile(r"^(.*?)-?([0-9a-f]{12})[0-9a-f]{20,}(?:\.scope)?$")

if TYPE_CHECKING:
    import psutil
    from psutil import Process


def describe(pid: int, uid: int) -> str:
    """Return the names of the user and the program (`alice (busctl)`), or `uid N` if it cannot find them.

    It reads no command line: the kernel locks the memory of the process for that, and a process could make it wait.
    Never authorise by this text.
    """
    try:
        import psutil  # noqa: PLC0415  (its import costs more than the start of the daemon may cost)
    except ImportError:  # an upgrade is just replacing it
        return f"uid {uid}"
    try:
        user = psutil.Process(pid).username()
    except (psutil.Error, OSError):  # it has ended, or no memory or no descriptor is left to look
        return f"uid {uid}"
    command = program(pid)
    return f"{printable(user)} ({command})" if command else f"uid {uid}"


def program(pid: int) -> str:
    """Return the first 15 characters of the name of a process (proc_pid_comm(5)), or "" if it cannot be read."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as file:
            return printable(file.read().rstrip("\n"))
    except OSError:
        return ""


def printable(name: str) -> str:
    """Return a name that somebody else chose, with ? for what would break a log line, a terminal or a text file."""
    return "".join(char if char.isprintable() else "?" for char in name)


def swapped(pid: int) -> int:
    """Return the bytes of a process that are in swap, or 0 if they cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmSwap:")), 0)
    except OSError:
        return 0


def kill_descendants() -> None:
    """Kill all descendants of this process; pass over those that it may not kill."""
    import psutil  # noqa: PLC0415

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def unit_of(cgroups: str) -> str:
    """Return the systemd unit or the container that /proc/PID/cgroup names (cgroups(7)), or "" if it names neither."""
    # Users that may make a cgroup choose its name.
    paths = [line.split(":", 2)[2] for line in map(printable, cgroups.split("\n")) if line.count(":") >= 2]
    for part in (part for path in paths for part in reversed(path.split("/"))):
        if found := CONTAINER.match(part):
            return f"container {found[2]}" + (f" ({found[1][:CONTAINED]})" if found[1] else "")
        if part.endswith((".service", ".scope")):
            return part if len(part) <= UNIT else f"{part[: UNIT - 3]}..."
    return ""


def user_name(uid: int) -> str:
    """Return the name in /etc/passwd, or the number: other sources of names may not answer while memory is short."""
    with contextlib.suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="replace") as file:
        for fields in (line.split(":") for line in file):
            if len(fields) > 2 and fields[2] == str(uid):
                return printable(fields[0][:USER])
    return f"uid {uid}"


class Consumers:
    """The processes that hold memory, and those that have taken more since the look before. It keeps no process alive.

    The size of a process is its own resident memory: in /proc/PID/statm the second figure less the third. Where the
    host has swap, the swapped-out memory of the process (VmSwap in /proc/PID/status) is part of its size. Memory that
    processes share, with /dev/shm, counts once and for none of them. Pages of hugetlbfs do not count; the guard does
    not count them either.
    """

    def __init__(self) -> None:
        """Raise ImportError while an upgrade replaces psutil."""
        import psutil  # noqa: PLC0415  (see describe)

        self._psutil = psutil
        self._now: dict[psutil.Process, int] = {}
        self._before: dict[psutil.Process, int] = {}
        self._looked = self._looked_before = -LEAST
        self._shared = self._shared_before = 0

    def look(self, now: float) -> None:
        """Read every process; this takes some 10 us for each.

        `now` is in seconds of a clock that never goes back. Leave out a process that cannot be read. Raise OSError if
        nothing can be read.
        """
        # Looks may follow each other at once: growth is the growth of LEAST seconds or more.
        if now - self._looked >= LEAST:
            self._before, self._shared_before, self._looked_before = self._now, self._shared, self._looked
        self._now, self._looked = {}, now
        self._shared = self._psutil.virtual_memory().shared
        swaps = self._psutil.swap_memory().total > 0
        for process in self._psutil.process_iter():
            with contextlib.suppress(self._psutil.Error, OSError):
                sizes = process.memory_info()
                self._now[process] = sizes.rss - sizes.shared + (swapped(process.pid) if swaps else 0)

    def largest(self, count: int) -> list[Consumer]:
        """Return the processes that have most memory; read their names."""
        return self._named(nlargest(count, self._now.items(), key=itemgetter(1)))

    def growing(self, count: int) -> list[Consumer]:
        """Return the processes that have grown most lately; none after only one look."""
        most = nlargest(count, self._growth().items(), key=itemgetter(1))
        return self._named([(process, size) for process, size in most if size > 0])

    def culprit(self) -> str:
        """Return one line on the process that has grown most lately, or on the largest one if none has grown.

        The line is "" if it can name none. The processes of a unit or a container grow and shrink together. The line
        has the unit, the command line and the user of the process that has grown most. It also has the memory of that
        process, and the growth of it or of all processes of the unit.
        """
        grown = self._growth()
        units: dict[str | Process, list[Process]] = {}
        for who in nlargest(MANY, grown, key=lambda who: abs(grown[who])):
            units.setdefault(self._unit(who) or who, []).append(who)
        growth, together = max(
            ((sum(map(grown.__getitem__, own)), own) for own in units.values()), key=itemgetter(0), default=(0, [])
        )
        shared = self._shared - self._shared_before if self._before else 0
        seconds = f"in the last {self._looked - self._looked_before:.0f} s"
        if max(growth, shared) < LITTLE:
            return self._largest()
        if shared > growth:
            return f"{SHARED}, {self._shared // MIB} MiB, {shared // MIB} MiB of it {seconds}"
        who = max(together, key=grown.__getitem__)
        new = f"{growth // MIB} MiB of it {seconds}"
        if len(together) > 1:
            new = f"with {len(together) - 1} more of the unit {growth // MIB} MiB {seconds}"
        return self._described(who, f", {self._now[who] // MIB} MiB, {new}")

    def _growth(self) -> dict[Process, int]:
        """Return by how much each process has grown lately (below 0: shrunk); none after only one look."""
        if not self._before:
            return {}
        return {who: more for who, size in self._now.items() if (more := size - self._before.get(who, 0))}

    def _largest(self) -> str:
        """Return one line on the process that has most memory, for a time when none has grown by much."""
        sizes: dict[Process | None, int] = {None: self._shared, **self._now}
        who = max(sizes, key=sizes.__getitem__)
        figures = f", {sizes[who] // MIB} MiB"
        return self._described(who, figures, NOBODY) if who else f"{NOBODY}{SHARED}{figures}"

    def _unit(self, process: Process) -> str:
        """Return the unit or the container of a process, or "" if it is in neither."""
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{process.pid}/cgroup", encoding="utf-8", errors="replace") as file,
        ):
            return unit_of(file.read())
        return ""

    def _described(self, process: Process, figures: str, head: str = "") -> str:
        """Return one line on a process; cut the command line so that the rest of the line fits."""
        with contextlib.suppress(self._psutil.Error, OSError):
            words = printable(" ".join(process.cmdline()) or process.name())
            owner = f" (pid {process.pid}, {user_name(process.uids().real)})"
            unit = self._unit(process)
            head += f"{unit}: " if unit else ""
            room = max(SHORTEST, MAX_LINE - len(head + owner + figures))
            return f"{head}{words if len(words) <= room else f'{words[: room - 3]}...'}{owner}{figures}"
        return ""

    def _named(self, rows: Iterable[tuple[Process, int]]) -> list[Consumer]:
        found = []
        for process, size in rows:
            with contextlib.suppress(self._psutil.Error, OSError):
                found.append(Consumer(process.pid, printable(process.name()), process.uids().real, size))
        return found
