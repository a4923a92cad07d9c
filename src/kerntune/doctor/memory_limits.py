"""Findings on the bounds of memory: overcommit and its watchers, and the limits of the session (cgroups, memlock)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from kerntune.doctor.files import whole
from kerntune.doctor.types import Finding, Severity
from kerntune.kernel.files import KernelView, read_or_none
from kerntune.kernel.memory import ARC, read_memory
from kerntune.tunables.overcommit import needed_limit

VM: Final = "proc/sys/vm"
ALWAYS, NEVER = 1, 2
# States of the memory guard (kerntuned(8)).
CAPPING: Final = frozenset({"capped", "exhausted"})
WATCHING: Final = frozenset({"relaxed"})
KUBELET: Final = "var/lib/kubelet/config.yaml"
VM_DATA: Final = re.compile(r"^VmData:\s*([0-9]+) kB", re.MULTILINE)
CGROUPS: Final = "sys/fs/cgroup"
LIMITS: Final = ("memory.max", "memory.high", "memory.swap.max")
LOCKED: Final = re.compile(r"Max locked memory +([0-9]+|unlimited) ")
UNLIMITED: Final = 1 << 62  # cgroup v1 has a number for it


def overcommit(kernel: KernelView, guards: Sequence[str], guard: str) -> Iterator[Finding]:
    """Yield how much memory the kernel commits (promises), and which program watches it, if any.

    `guard` is the state of our own guard; `guards` are other programs.
    """
    if guard in CAPPING:
        what = f"memory is short: the memory guard is {guard} and holds back what the kernel commits"
        yield Finding(
            Severity.WARNING, "overcommit", what, ("kerntune status shows the guard",), "end what is not needed"
        )
        return
    guards = ["kerntuned's memory guard", *guards] if guard in WATCHING else guards
    memory = read_memory(kernel)
    mode, ratio = memory.overcommit_mode, memory.overcommit_ratio
    reads = f"/{VM}/overcommit_memory reads {mode}"
    if mode == ALWAYS and not guards:
        yield Finding(
            Severity.PROBLEM,
            "overcommit",
            "memory is committed without limit (overcommit always), and nobody watches it: a model that does not fit "
            "is not refused, and later the kernel kills some program",
            (
                reads,
                f"/{VM}/overcommit_ratio reads {ratio}, which limits nothing in this mode",
                f"the memory guard of kerntuned {f'is {guard}' if guard else 'is not running'}, "
                "and neither earlyoom nor systemd-oomd is",
            ),
            "kerntune set overcommit=always --persist has the memory guard of kerntuned watch; "
            "kerntune set overcommit=heuristic --persist has the kernel refuse what cannot fit",
        )
    elif mode == ALWAYS:
        what = f"memory is committed without limit (overcommit always), and {guards[0]} watches it"
        yield Finding(Severity.OK, "overcommit", what, (reads,))
    elif mode == NEVER and memory.commit_limit < needed_limit(memory):
        committed, limit = memory.committed >> 20, memory.commit_limit >> 20
        yield Finding(
            Severity.PROBLEM,
            "overcommit",
            f"the kernel commits {limit} MiB at most (overcommit never), and {committed} MiB are committed: soon no "
            "program can start",
            (reads, f"/proc/meminfo: CommitLimit {limit} MiB, Committed_AS {committed} MiB"),
            "kerntune set overcommit=heuristic --persist, or a higher ratio",
        )
    elif mode is not None:
        words = {0: "refuses only what is plainly too much (overcommit heuristic)", NEVER: "keeps to its limit (never)"}
        what = f"the kernel {words.get(mode, f'is in the overcommit mode {mode}')}"
        yield Finding(Severity.OK, "overcommit", what, (reads,))


def beside_always(kernel: KernelView, guard: str) -> Iterator[Finding]:
    """Yield findings on a host whose overcommit mode is always, or would be always without a cap of the guard.

    `guard` is the state of our own guard.
    """
    memory = read_memory(kernel)
    if memory.overcommit_mode != ALWAYS and guard not in CAPPING:
        return
    most = memory.total + memory.swap_total
    if memory.total and largest_data(kernel) <= most:
        yield Finding(
            Severity.NOTE,
            "always",
            "nothing that runs here needs overcommit always: no program has more private memory than RAM and swap",
            (f"/proc/*/status: VmData is {most >> 20} MiB at most",),
            "kerntune set overcommit=heuristic --persist, and the kernel refuses one request that cannot fit",
        )
    if evidence := strict_kubelet(kernel):
        yield Finding(
            Severity.WARNING,
            "always",
            "kubelet does not start while the memory guard caps: it insists on overcommit mode 1",
            (evidence,),
            "leave out protect-kernel-defaults, or start kubelet when the cap has ended",
        )
    if memory.arc > memory.total // 10:
        yield Finding(
            Severity.NOTE,
            "always",
            f"ZFS gives back {memory.arc >> 20} MiB when memory is short: the memory guard counts that as free, and "
            "earlyoom does not",
            (f"/{ARC}: size less c_min",),
            "zfs_arc_max keeps the ARC small",
        )
    if len(nodes := kernel.glob("sys/devices/system/node/node[0-9]*")) > 1:
        yield Finding(
            Severity.NOTE,
            "always",
            "nobody watches a single NUMA node: a program that is bound to a full one ends while others have memory",
            (f"{len(nodes)} nodes in /sys/devices/system/node",),
            "numactl --preferred in place of --membind",
        )


def largest_data(kernel: KernelView) -> int:
    """Return the most private writable memory, used or not, that one process has: bytes (VmData, proc(5))."""
    texts = (read_or_none(kernel, path) or "" for path in kernel.glob("proc/[0-9]*/status"))
    return max((int(found[1]) << 10 for text in texts if (found := VM_DATA.search(text))), default=0)


def strict_kubelet(kernel: KernelView) -> str:
    """Return the place that tells kubelet to insist on the kernel's settings, or "" if no place does."""
    for path in kernel.glob("proc/[0-9]*/comm"):
        if read_or_none(kernel, path) == "kubelet":
            words = (read_or_none(kernel, path.replace("/comm", "/cmdline")) or "").split("\0")
            if any(re.fullmatch("--protect-kernel-defaults(=(true|True|TRUE|t|T|1))?", word) for word in words):
                return f"/{path.replace('/comm', '/cmdline')} has --protect-kernel-defaults"
            if re.search("^protectKernelDefaults: *true", read_or_none(kernel, KUBELET) or "", re.MULTILINE):
                return f"/{KUBELET} has protectKernelDefaults"
    return ""


def session(kernel: KernelView) -> Iterator[Finding]:
    """Yield the limits of this session: programs that it starts cannot have more, whatever the host has."""
    limits = [*unified(kernel), *legacy(kernel)]
    if limits:
        what = "this session has memory limits; what is started from it cannot have more"
        fix = "systemctl set-property UNIT MemoryMax=infinity, or the limits of the container"
        yield Finding(Severity.NOTE, "limits", what, tuple(limits), fix)
    else:
        yield Finding(Severity.OK, "limits", "no memory limit on this session was found", (groups(kernel),))
    locked = LOCKED.search(read_or_none(kernel, "proc/self/limits") or "")
    size = whole(locked[1]) if locked else None
    if size is not None and size < read_memory(kernel).total:
        yield Finding(
            Severity.NOTE,
            "limits",
            f"programs of this session may lock {size >> 20} MiB of memory: a model larger than that cannot be locked "
            "(llama.cpp --mlock, pinned memory)",
            (f"/proc/self/limits: Max locked memory {size}",),
            "LimitMEMLOCK=infinity in the unit, or a memlock line in /etc/security/limits.d",
        )


def groups(kernel: KernelView) -> str:
    """Return what /proc/self/cgroup says of memory, in one line."""
    found = [line for line in (read_or_none(kernel, "proc/self/cgroup") or "").splitlines() if is_memory(line)]
    return f"/proc/self/cgroup: {' '.join(found) or 'nothing'}"


def is_memory(line: str) -> bool:
    _, controllers, _ = [*line.split(":", 2), "", ""][:3]
    return controllers == "" or "memory" in controllers.split(",")


def folders(kernel: KernelView, *, unified: bool) -> Iterator[str]:
    """Yield the cgroups of this session, the innermost first, as paths below the mount (cgroups(7))."""
    for line in (read_or_none(kernel, "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (controllers == "") is unified and path.startswith("/") and path.isprintable() and is_memory(line):
            parts = [part for part in path.split("/") if part and part != ".."]
            yield from ("/".join(parts[:end]) for end in range(len(parts), -1, -1))


def unified(kernel: KernelView) -> Iterator[str]:
    """Yield the limits of cgroup v2, as evidence."""
    for folder in folders(kernel, unified=True):
        place = "/".join(filter(None, (CGROUPS, folder)))
        hugetlb = [path.rpartition("/")[2] for path in kernel.glob(f"{place}/hugetlb.*.max") if "rsvd" not in path]
        for name in (*LIMITS, *hugetlb):
            value = read_or_none(kernel, f"{place}/{name}")
            if value and value != "max":
                yield f"/{place}/{name} reads {value}"


def legacy(kernel: KernelView) -> Iterator[str]:
    """Yield the memory limit of cgroup v1, as evidence."""
    for folder in folders(kernel, unified=False):
        path = "/".join(filter(None, (CGROUPS, "memory", folder, "memory.limit_in_bytes")))
        value = read_or_none(kernel, path)
        if (whole(value or "") or UNLIMITED) < UNLIMITED:
            yield f"/{path} reads {value}"
