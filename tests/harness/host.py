"""The kernel's files of a host, this one or a tree, without the daemon's help: made, read, watched and put back."""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from kerntune.kernel.files import WRITABLE
from kerntune.units import spell_size

HOST: Final = Path("/")
MODES: Final = ("heuristic", "always", "never")

# It has no value to put back: a write to it is an order to the kernel, and nobody can read it
# (Documentation/admin-guide/sysctl/vm.rst).
WITHOUT_VALUE: Final = frozenset({"proc/sys/vm/compact_memory"})
TUNED: Final = tuple(pattern for pattern in WRITABLE if pattern not in WITHOUT_VALUE)

# The kernel sets one of these to 0 when the other is written (Documentation/admin-guide/sysctl/vm.rst).
PAIR: Final = frozenset({"proc/sys/vm/overcommit_ratio", "proc/sys/vm/overcommit_kbytes"})
# What an earlier write may change or refuse comes later: a governor moves the preference, and a mode goes by its limit.
LAST: Final = (
    "scaling_governor",
    "energy_performance_preference",
    "overcommit_ratio",
    "overcommit_kbytes",
    "overcommit_memory",
)
TOTALS, NODES, COUNT = "sys/kernel/mm/hugepages/", "sys/devices/system/node/", "nr_hugepages"

IN_MODIFY: Final = 0x2  # inotify(7); the kernel tells of writes below /proc as of others
MAX_EVENT: Final = 1 << 12  # bytes, more than one event has
MAX_VALUE: Final = 32  # characters

GIB_IN_KB: Final = 1 << 20
POOL: Final = "hugepages-2048kB"
MEMINFO: Final = f"""\
MemTotal:       {64 * GIB_IN_KB} kB
MemFree:        {60 * GIB_IN_KB} kB
MemAvailable:   {60 * GIB_IN_KB} kB
SwapTotal:      0 kB
CommitLimit:    {32 * GIB_IN_KB} kB
Committed_AS:   {2 * GIB_IN_KB} kB
HugePages_Total: 0
Hugepagesize:   2048 kB
Hugetlb:        0 kB
"""
# Never `none`: in a plain file it would look like a device without a choice.
DISKS: Final = {"nvme0n1": "mq-deadline", "nvme1n1": "kyber", "sda": "bfq"}


# What a host holds


def snapshot(root: Path = HOST) -> dict[str, str]:
    """Return the text of every file that the daemon may write and that can be read now."""
    found = {}
    for path in (path for pattern in TUNED for path in sorted(root.glob(pattern))):
        with suppress(OSError):  # the policy of a CPU that is offline is busy
            found[str(path.relative_to(root))] = value(path)
    return found


def value(path: Path) -> str:
    """Return what a file holds."""
    return chosen(path.read_text())


def restore(values: Mapping[str, str], root: Path = HOST) -> None:
    """Write what differs; a test that looks afterwards finds what cannot be written."""
    for path in in_order(values):
        # Writing the other one of the pair makes it 0.
        if path in PAIR and values[path] == "0":
            continue
        with suppress(OSError):
            if value(root / path) != values[path]:
                (root / path).write_text(values[path])


def meminfo(root: Path = HOST) -> dict[str, int]:
    """Return /proc/meminfo: bytes, or counts where it has no unit."""
    rows = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * (1024 if row[2:] else 1) for row in rows}


def page_size(root: Path = HOST) -> int:
    """Return the default size of huge pages in bytes."""
    return meminfo(root)["Hugepagesize"]


def pool() -> str:
    """Return the instance of the default pool, such as 2M."""
    return spell_size(page_size())


def pages(node: int | None = None, root: Path = HOST) -> int:
    """Return the number of huge pages of the default size: of the host, or of one node."""
    where = "sys/kernel/mm" if node is None else f"sys/devices/system/node/node{node}"
    return int((root / where / f"hugepages/hugepages-{page_size(root) >> 10}kB/nr_hugepages").read_text())


def scheduler(device: str, root: Path = HOST) -> str:
    """Return the scheduler of a drive."""
    return value(root / f"sys/block/{device}/queue/scheduler")


def overcommit(root: Path = HOST) -> tuple[str, int]:
    """Return mode and ratio."""
    mode, ratio = (int((root / f"proc/sys/vm/overcommit_{name}").read_text()) for name in ("memory", "ratio"))
    return MODES[mode], ratio


def choices(device: str) -> list[str]:
    """Return the schedulers that a drive offers."""
    path = HOST / f"sys/block/{device}/queue/scheduler"
    return [word.strip("[]") for word in path.read_text().split()] if path.exists() else []


# What is put back, and in which order


def chosen(text: str) -> str:
    """Return what a file holds; of a list of choices the chosen one, for loading a module makes the list longer."""
    words = text.split()
    return next((word.strip("[]") for word in words if word.startswith("[")), " ".join(words))


def in_order(paths: Iterable[str]) -> list[str]:
    """Return the paths to write, in the order in which their values go back.

    Where nodes have pools of a size, the total of that size is their sum. Writing it would spread the pages anew.
    """
    everything = sorted(paths)
    on_nodes = {size_of(path) for path in everything if path.startswith(NODES)}
    written = (path for path in everything if not (is_total(path) and size_of(path) in on_nodes))
    return sorted(written, key=lambda path: LAST.index(name) if (name := path.rpartition("/")[2]) in LAST else -1)


def is_total(path: str) -> bool:
    """Return whether it is the number of huge pages of the whole host."""
    return path.startswith(TOTALS) and path.endswith(f"/{COUNT}")


def size_of(path: str) -> str:
    """Return the directory of a pool, which has the size of its pages in its name."""
    return path.split("/")[-2]


# What nobody may write


@contextmanager
def kept_from(path: Path, forbidden: str) -> Iterator[list[str]]:
    """Watch a file; the list gets each forbidden value that a program wrote, and the watch writes the old one again.

    Where the file has that value already it is the host's own, and there is no watch.
    """
    seen: list[str] = []
    with ExitStack() as stack:
        file = _opened(stack, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        own = os.pread(file, MAX_VALUE, 0)
        if own.decode().strip() == forbidden:
            yield seen
            return
        events = _opened(stack, _watch(path))
        end = _opened(stack, os.eventfd(0, os.EFD_CLOEXEC))

        def undo() -> None:
            if (found := os.pread(file, MAX_VALUE, 0).decode().strip()) == forbidden:
                os.pwrite(file, own, 0)
                seen.append(found)

        watching = threading.Thread(target=_wait, args=(events, end, undo), name=f"keeps {path}", daemon=True)
        watching.start()
        try:
            yield seen
        finally:
            os.eventfd_write(end, 1)
            watching.join()


def _opened(stack: ExitStack, fd: int) -> int:
    """Return the descriptor, which is closed with the stack."""
    stack.callback(os.close, fd)
    return fd


def _watch(path: Path) -> int:
    """Return a descriptor that can be read after each write to the file; the standard library has no inotify."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), IN_MODIFY) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return fd


def _wait(events: int, end: int, undo: Callable[[], None]) -> None:
    """Look after each write, until the end is told; once more then, for a write that came just before it."""
    ready: list[int] = []
    while end not in ready:
        ready = select.select([events, end], [], [])[0]
        if events in ready:
            os.read(events, MAX_EVENT)
        undo()


# A host that is made up


def make_tree(root: Path, *, boot: str = "first boot") -> Path:
    """Make a host of one node, a pool of 2 MiB pages, three disks and overcommit; also what a reboot makes of one."""
    pool = f"sys/kernel/mm/hugepages/{POOL}"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/sys/kernel/osrelease": "6.1.0-tree",
        "proc/sys/kernel/random/boot_id": boot,
        "proc/sys/vm/compact_memory": "0",
        "proc/sys/vm/overcommit_memory": "0",
        "proc/sys/vm/overcommit_ratio": "50",
        "proc/sys/vm/overcommit_kbytes": "0",
        **{f"{pool}/{name}_hugepages": "0" for name in ("nr", "free", "resv", "surplus", "nr_overcommit")},
        "sys/devices/system/node/node0/meminfo": f"Node 0 MemFree: {60 * GIB_IN_KB} kB",
        **{f"sys/block/{name}/queue/scheduler": scheduler for name, scheduler in DISKS.items()},
        **{f"sys/block/{name}/diskseq": str(number) for number, name in enumerate(DISKS, start=1)},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text.strip()}\n")
    # One pool under two names, as on a host with one node.
    node = root / "sys/devices/system/node/node0/hugepages"
    node.mkdir(exist_ok=True)
    if not (node / POOL).is_symlink():
        (node / POOL).symlink_to(Path("../../../../..") / pool.removeprefix("sys/"))
    return root
