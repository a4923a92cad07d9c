"""The kernel's files as the tests see them, without the daemon's help; puts values back, and tunes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from kerntune.units import spell_size
from tests.harness.tuned import PAIR, TUNED, chosen, in_order

HOST: Final = Path("/")
MODES: Final = ("heuristic", "always", "never")


def snapshot(root: Path = HOST) -> dict[str, str]:
    """Return every file that the daemon may write and that can be read now, and what it holds."""
    found = {}
    for path in (path for pattern in TUNED for path in sorted(root.glob(pattern))):
        with suppress(OSError):  # the policy of a CPU that is offline is busy
            found[str(path.relative_to(root))] = value(path)
    return found


def value(path: Path) -> str:
    """Return what a file holds."""
    return chosen(path.read_text())


def restore(values: Mapping[str, str], root: Path = HOST) -> None:
    """Write what differs; what cannot be written is left to who looks afterwards."""
    for path in in_order(values):
        # Writing the other one of the pair makes it 0.
        if path in PAIR and values[path] == "0":
            continue
        with suppress(OSError):
            if value(root / path) != values[path]:
                (root / path).write_text(values[path])


def meminfo(root: Path = HOST) -> dict[str, int]:
    """/proc/meminfo: bytes, or counts where it has no unit."""
    rows = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * (1024 if row[2:] else 1) for row in rows}


def page_size(root: Path = HOST) -> int:
    """The default size of huge pages in bytes."""
    return meminfo(root)["Hugepagesize"]


def pool() -> str:
    """The instance of the default pool, such as 2M."""
    return spell_size(page_size())


def pages(node: int | None = None, root: Path = HOST) -> int:
    """Huge pages of the default size: of the host, or of one node."""
    where = "sys/kernel/mm" if node is None else f"sys/devices/system/node/node{node}"
    return int((root / where / f"hugepages/hugepages-{page_size(root) >> 10}kB/nr_hugepages").read_text())


def scheduler(device: str, root: Path = HOST) -> str:
    return value(root / f"sys/block/{device}/queue/scheduler")


def overcommit(root: Path = HOST) -> tuple[str, int]:
    """Mode and ratio."""
    mode, ratio = (int((root / f"proc/sys/vm/overcommit_{name}").read_text()) for name in ("memory", "ratio"))
    return MODES[mode], ratio


def choices(device: str) -> list[str]:
    """The schedulers that a device offers."""
    path = HOST / f"sys/block/{device}/queue/scheduler"
    return [word.strip("[]") for word in path.read_text().split()] if path.exists() else []
