"""The kernel's files as the tests see them, without the daemon's help; puts values back, and tunes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kerntune.tunables.page_size import spell

HOST: Final = Path("/")
TUNED: Final = (
    "proc/sys/vm/overcommit_memory",
    "proc/sys/vm/overcommit_ratio",
    "proc/sys/vm/overcommit_kbytes",
    "proc/sys/vm/admin_reserve_kbytes",
    "sys/kernel/mm/hugepages/*/nr_hugepages",
    "sys/kernel/mm/hugepages/*/nr_overcommit_hugepages",
    "sys/devices/system/node/node*/hugepages/*/nr_hugepages",
    "sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
    "sys/block/*/queue/scheduler",
)
# The kernel sets one of these to 0 when the other is written.
LIMITS: Final = frozenset({"proc/sys/vm/overcommit_ratio", "proc/sys/vm/overcommit_kbytes"})
MODES: Final = ("heuristic", "always", "never")


def snapshot(root: Path = HOST) -> dict[str, str]:
    """Every file that the daemon may write, and what it holds."""
    return {str(path.relative_to(root)): value(path) for pattern in TUNED for path in sorted(root.glob(pattern))}


def value(path: Path) -> str:
    """What a file holds; of a list of choices the chosen one, for loading a module makes the list longer."""
    words = path.read_text().split()
    return next((word.strip("[]") for word in words if word.startswith("[")), " ".join(words))


def restore(values: Mapping[str, str]) -> None:
    """Write what differs, the overcommit mode last."""
    differing = {path for path, was in values.items() if value(HOST / path) != was}
    limits = {path for path in LIMITS if differing & LIMITS and values[path] != "0"}
    for path in sorted((differing - LIMITS) | limits, reverse=True):
        (HOST / path).write_text(values[path])


def meminfo(root: Path = HOST) -> dict[str, int]:
    """/proc/meminfo: bytes, or counts where it has no unit."""
    rows = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * (1024 if row[2:] else 1) for row in rows}


def page_size(root: Path = HOST) -> int:
    """The default size of huge pages in bytes."""
    return meminfo(root)["Hugepagesize"]


def pool() -> str:
    """The instance of the default pool, such as 2M."""
    return spell(page_size())


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
