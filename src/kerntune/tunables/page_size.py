"""How a page size is spelt (`2M`), and which pool an instance of hugepages means (`2M/node0`)."""

from __future__ import annotations

import re
from typing import NamedTuple

from kerntune.errors import InvalidValue

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# In a path of the kernel.
IN_PATH = r"hugepages-(?P<kb>[0-9]{1,12})kB"
INSTANCE = re.compile(r"([0-9]{1,9})([KMGT])(?:i?B)?(?:/(node[0-9]{1,4}|\*))?", re.IGNORECASE)


class Pool(NamedTuple):
    """A page size in bytes, and a node: "" for the whole host, `nodeN`, or `*` for each node."""

    size: int
    node: str

    def __str__(self) -> str:
        return spell(self.size) + (f"/{self.node}" if self.node else "")


def spell(size: int) -> str:
    """Bytes in the largest binary unit that divides them: 2097152 -> 2M."""
    for unit, factor in reversed(UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def size(text: str) -> int | None:
    """The bytes of a size with a binary unit (64G), or None when it is none."""
    found = INSTANCE.fullmatch(text)
    return int(found[1]) * UNITS[found[2].upper()] if found and not found[3] else None


def parse(instance: str) -> Pool:
    """The pool an instance means; InvalidValue when it means none."""
    found = INSTANCE.fullmatch(instance)
    if not found or not int(found[1]):
        raise InvalidValue(
            f"{instance!r} is not a pool of huge pages",
            "Give a page size (2M, 1G), one node of it (2M/node0) or each node (2M/*)",
        )
    return Pool(int(found[1]) * UNITS[found[2].upper()], (found[3] or "").lower())
