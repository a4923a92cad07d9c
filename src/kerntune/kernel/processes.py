"""What a process is called, how much memory each has, and their end; the only module that imports psutil."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING

from kerntune.model import Consumer

LEAST = 1.0  # seconds
LONGEST = 200  # characters of a line that names a process
UNIT, CONTAINED, USER = 48, 24, 32  # characters of a unit, of a container's name and of a user in it, at most
SHORTEST = 12  # characters of a command line
LITTLE = 64 << 20  # bytes: who has grown less has not made memory short
MANY = 256  # processes that are looked at together
SHARED = "shared memory and /dev/shm"
NOBODY = "nobody of late; the largest is "
MIB = 1 << 20
CONTAINER = re.compile(r"^(.*?)-?([0-9a-f]{12})[0-9a-f]{20,}(?:\.scope)?$")

if TYPE_CHECKING:
    import psutil
    from psutil import Process


def describe(pid: int, uid: int) -> str:
    """`alice (busctl)`: the user's name and the program's, as far as they can be found. Never used to authorise."""
    try:
        import psutil  # noqa: PLC0415  (its import costs more than the start of the daemon may)
    except ImportError:  # it is just being replaced by an upgrade
        return f"uid {uid}"
    try:
        user = psutil.Process(pid).username()
        command = psutil.Process(pid).name()
    except (psutil.Error, OSError):  # it is gone, or there is no memory or no descriptor to look
        return f"uid {uid}"
    return f"{user} ({printable(command)})"


def printable(name: str) -> str:
    """A name that its process chose, without what would break a log line, a terminal or a file of text."""
    return "".join(char if char.isprintable() else "?" for char in name)


def swapped(pid: int) -> int:
    """Bytes of a process that are in swap; 0 when that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmSwap:")), 0)
    except OSError:
        return 0


def kill_descendants() -> None:
    """Kill what this process has started, and what that has started; what may not be killed is passed over."""
    import psutil  # noqa: PLC0415

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def unit_of(cgroups: str) -> str:
    """Return the systemd unit or the container that /proc/PID/cgroup names (cgroups(7)), "" for neither."""
    # Whoever may make a cgroup names it.
    paths = [line.split(":", 2)[2] for line in map(printable, cgroups.split("\n")) if line.count(":") >= 2]
    for part in (part for path in paths for part in reversed(path.split("/"))):
        if found := CONTAINER.match(part):
            return f"container {found[2]}" + (f" ({found[1][:CONTAINED]})" if found[1] else "")
        if part.endswith((".service", ".scope")):
            return part if len(part) <= UNIT else f"{part[: UNIT - 3]}..."
    return ""


def user_name(uid: int) -> str:
    """Return the name in /etc/passwd, else the number: other sources of names may not answer while memory is short."""
    with contextlib.suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="replace") as file:
        for fields in (line.split(":") for line in file):
            if len(fields) > 2 and fields[2] == str(uid):
                return printable(fields[0][:USER])
    return f"uid {uid}"


class Consumers:
    """Who holds memory, and who has taken more of it since the look before. Keeps no process alive.

    Sizes are a process's own resident memory (in /proc/PID/statm the second figure less the third), and where the host
    has swap, what is swapped out of it (VmSwap in /proc/PID/status). What processes share, /dev/shm with it, is counted
    once and for none of them. Pages of hugetlbfs are not in it, and are not in what the guard counts either.
    """

    def __init__(self) -> None:
        """Raises ImportError while psutil is being replaced."""
        import psutil  # noqa: PLC0415  (see describe)

        self._psutil = psutil
        self._now: dict[psutil.Process, int] = {}
        self._before: dict[psutil.Process, int] = {}
        self._looked = self._looked_before = -LEAST
        self._shared = self._shared_before = 0

    def look(self, now: float) -> None:
        """Read every process, at so many seconds of a clock that never goes back; takes some 10 us each.

        What cannot be read is left out. Raises OSError when nothing can be.
        """
        # Looks may follow each other at once: growth is that of LEAST seconds or more.
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
        """By what they have; reads their names."""
        return self._named(nlargest(count, self._now.items(), key=itemgetter(1)))

    def growing(self, count: int) -> list[Consumer]:
        """By what they have got lately; nobody when there was only one look."""
        most = nlargest(count, self._growth().items(), key=itemgetter(1))
        return self._named([(process, size) for process, size in most if size > 0])

    def culprit(self) -> str:
        """Return in a line who has grown most lately, or who is largest where nobody has; "" where none can be named.

        The processes of a unit or a container grow and shrink together. It has the unit, command line and user of the
        one that has grown most, what it has, and what is new of it, or of all of them.
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
        """Return by how much each has grown lately, below 0 shrunk; nobody when there was only one look."""
        if not self._before:
            return {}
        return {who: more for who, size in self._now.items() if (more := size - self._before.get(who, 0))}

    def _largest(self) -> str:
        """Return in a line who has most, where nobody has grown by much."""
        sizes: dict[Process | None, int] = {None: self._shared, **self._now}
        who = max(sizes, key=sizes.__getitem__)
        figures = f", {sizes[who] // MIB} MiB"
        return self._described(who, figures, NOBODY) if who else f"{NOBODY}{SHARED}{figures}"

    def _unit(self, process: Process) -> str:
        """Return the unit or the container of a process, "" for neither."""
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{process.pid}/cgroup", encoding="utf-8", errors="replace") as file,
        ):
            return unit_of(file.read())
        return ""

    def _described(self, process: Process, figures: str, head: str = "") -> str:
        """Return a process in a line; the command line is cut so that the rest of it fits."""
        with contextlib.suppress(self._psutil.Error, OSError):
            words = printable(" ".join(process.cmdline()) or process.name())
            owner = f" (pid {process.pid}, {user_name(process.uids().real)})"
            unit = self._unit(process)
            head += f"{unit}: " if unit else ""
            room = max(SHORTEST, LONGEST - len(head + owner + figures))
            return f"{head}{words if len(words) <= room else f'{words[: room - 3]}...'}{owner}{figures}"
        return ""

    def _named(self, rows: Iterable[tuple[Process, int]]) -> list[Consumer]:
        found = []
        for process, size in rows:
            with contextlib.suppress(self._psutil.Error, OSError):
                found.append(Consumer(process.pid, printable(process.name()), process.uids().real, size))
        return found
