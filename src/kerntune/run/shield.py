"""The CPUs and the scheduler slice that a process gives itself: kept over fork(2) and exec(2), without privilege."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import Final

from kerntune.errors import AccessDenied, InvalidValue, KernelRejected, NoSuchTarget, NotSupported
from kerntune.units import parse_cpus, spell_cpus

# The kernel sets a slice outside of this range to the nearer bound (kernel/sched/syscalls.c, __setparam_fair).
LEAST_US: Final = 100
MOST_US: Final = 100_000
# The numbers of sched_setattr(2) and sched_getattr(2); the C library has the functions from glibc 2.41 only.
CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
POLICIES: Final = {
    os.SCHED_OTHER: "SCHED_OTHER",
    os.SCHED_FIFO: "SCHED_FIFO",
    os.SCHED_RR: "SCHED_RR",
    os.SCHED_BATCH: "SCHED_BATCH",
    os.SCHED_IDLE: "SCHED_IDLE",
    6: "SCHED_DEADLINE",
}
SLICED: Final = frozenset({os.SCHED_OTHER, os.SCHED_BATCH})
CPUS: Final = "/sys/devices/system/cpu"


@dataclass(frozen=True, slots=True)
class Shield:
    """The CPUs to stay on (none: all that are allowed now), and the slice in microseconds (0: the kernel's own)."""

    cpus: frozenset[int] = frozenset()
    slice_us: int = 0

    def __bool__(self) -> bool:
        return bool(self.cpus or self.slice_us)

    def apply(self) -> None:
        """Put the calling thread, and what it starts from now on, behind the shield, and check that by reading it back.

        Raise InvalidValue for a slice out of range, and NotSupported where the kernel keeps none. Raise NoSuchTarget
        for CPUs that are not there or offline, and AccessDenied for CPUs that the process may not use. The CPUs stay as
        they were when the slice is refused.
        """
        if self.slice_us:
            _set_slice(self.slice_us)
        if self.cpus:
            _set_cpus(self.cpus)


def in_force() -> Shield:
    """Return the CPUs of the calling thread, and its slice: 0 where it is the kernel's own."""
    cpus = frozenset(os.sched_getaffinity(0))
    try:
        attributes = _attributes()
    except NotSupported:
        return Shield(cpus)
    slice_ns = attributes.runtime if attributes.policy in SLICED else 0
    if not slice_ns or slice_ns == _default_slice():
        return Shield(cpus)
    return Shield(cpus, slice_ns // 1000)


class Attributes(ctypes.Structure):
    """struct sched_attr of sched_setattr(2), in its first version; for SCHED_OTHER `runtime` is the slice in ns."""

    size: int
    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def _set_slice(slice_us: int) -> None:
    if not LEAST_US <= slice_us <= MOST_US:
        raise InvalidValue(
            f"a slice of {slice_us} us is out of range", f"The kernel takes {LEAST_US} us to {MOST_US // 1000} ms"
        )
    # The call sets nice and flags too, so they are read first and written back unchanged.
    attributes = _attributes()
    if attributes.policy not in SLICED:
        policy = POLICIES.get(attributes.policy, f"policy {attributes.policy}")
        raise NotSupported(
            f"the process runs under {policy}, which has no slice",
            "Start it under SCHED_OTHER, which is the usual policy, or leave out the slice",
        )
    attributes.runtime = slice_us * 1000
    _call(0, attributes)
    if _attributes().runtime != slice_us * 1000:
        raise NotSupported(
            f"the kernel keeps no slice of {slice_us} us (it takes Linux 6.12)", "Leave out the slice on this kernel"
        )


def _attributes() -> Attributes:
    attributes = Attributes()
    _call(1, attributes, ctypes.sizeof(Attributes))
    return attributes


def _call(which: int, attributes: Attributes, *size: int) -> None:
    """Call sched_setattr (0) or sched_getattr (1) for the calling thread."""
    machine = os.uname().machine
    if machine not in CALLS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotSupported(f"kerntune cannot set the slice of a process on {machine}", "Leave out the slice")
    attributes.size = ctypes.sizeof(Attributes)
    words = [ctypes.c_long(word) for word in (*size, 0)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(CALLS[machine][which]), ctypes.c_long(0), ctypes.byref(attributes), *words) == 0:
        return
    why = os.strerror(ctypes.get_errno())
    if which:
        raise NotSupported(f"the slice of a process cannot be read here ({why})", "A filter of system calls forbids it")
    raise KernelRejected(f"the kernel refuses the slice ({why})", "A filter of system calls may forbid it")


def _default_slice() -> int:
    """Return the kernel's own slice in ns, which a thread gets if it asks for 0; 0 where it cannot be read."""
    found = []

    def ask() -> None:
        try:
            attributes = _attributes()
            attributes.runtime = 0
            _call(0, attributes)
            found.append(_attributes().runtime)
        except (NotSupported, KernelRejected):
            return

    # The calls are for one thread, so the other threads keep their slice.
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0] if found else 0


def _set_cpus(cpus: frozenset[int]) -> None:
    if why := unusable(cpus, cpus_in("present"), cpus_in("online")):
        raise NoSuchTarget(why, f"Online are {spell_cpus(cpus_in('online'))}")
    before = os.sched_getaffinity(0)
    hint = "The cpuset of its cgroup leaves them out: look at cpuset.cpus.effective there"
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise AccessDenied(f"the process may not run on CPU {spell_cpus(cpus)} ({error.strerror})", hint) from error
    # The kernel leaves out CPUs that are not allowed, and says so only when none remains.
    if lost := cpus - os.sched_getaffinity(0):
        os.sched_setaffinity(0, before)
        raise AccessDenied(f"the process may not run on CPU {spell_cpus(lost)}", hint)


def unusable(cpus: frozenset[int], present: frozenset[int], online: frozenset[int]) -> str:
    """Return the words for CPUs that are not there, or offline; "" when all are usable."""
    if absent := cpus - present:
        return f"there is no CPU {spell_cpus(absent)}"
    return f"CPU {spell_cpus(offline)} is offline" if (offline := cpus - online) else ""


def cpus_in(file: str, folder: str = CPUS) -> frozenset[int]:
    """Return the CPUs in a list of sysfs: `present`, `online` or `possible` (Documentation/admin-guide/cputopology)."""
    with open(f"{folder}/{file}", encoding="ascii") as text:
        return parse_cpus(text.read())
