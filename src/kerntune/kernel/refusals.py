"""Who was refused memory: the kernel's own lines, read from the journal; it writes nothing.

__vm_enough_memory in mm/util.c logs them since Linux 6.1, some of many: it limits how often.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from kerntune.kernel.processes import printable

LINE: Final = re.compile(
    r"pid: (?P<pid>\d+), comm: (?P<command>.*), (bytes: \d+ )?(no|not) enough memory for the allocation"
)
MOST: Final = 10_000  # lines that are looked at


class Refused(NamedTuple):
    """A process that was not given memory, and how often the kernel said so."""

    command: str
    pid: int
    times: int


def refused_since(begin: float) -> list[Refused]:
    """Those since `begin`, in seconds since 1970, the most often refused first; none where there is no journal."""
    from systemd import journal  # noqa: PLC0415  (only where there is one)

    with contextlib.suppress(OSError), journal.Reader() as reader:
        reader.add_match(_TRANSPORT="kernel")
        reader.seek_realtime(float(begin))
        return counted(str(entry.get("MESSAGE", "")) for entry, _ in zip(reader, range(MOST), strict=False))
    return []


def counted(lines: Iterable[str]) -> list[Refused]:
    """The processes that lines of the kernel name."""
    found = Counter((match["command"], int(match["pid"])) for match in map(LINE.search, lines) if match)
    return [Refused(printable(command), pid, times) for (command, pid), times in found.most_common()]
