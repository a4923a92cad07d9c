"""How the kernel schedules a thread: its slice, its nice value and real time (sched_setattr(2)), set and read back."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from kerntune.errors import AccessDenied, InvalidValue, KernelRejected, NotSupported, OverLimit
from kerntune.kernel.files import HostKernel, read_int, read_or_none

HOST: Final = Path("/")
# The kernel sets a slice outside of this range to the nearer bound (kernel/sched/syscalls.c, __setparam_fair).
LEAST_US: Final = 100
MOST_US: Final = 100_000
LEAST_NICE: Final = -20
MOST_NICE: Final = 19
# The lowest real-time priority comes before every thread without one, and after the kernel's own threads.
PRIORITY: Final = 1
# The numbers of sched_setattr(2) and sched_getattr(2); the C library has the functions from glibc 2.41 only.
CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
RESET_ON_FORK: Final = 0x01  # SCHED_FLAG_RESET_ON_FORK
CAP_SYS_NICE: Final = 23
POLICIES: Final = {
    os.SCHED_OTHER: "SCHED_OTHER",
    os.SCHED_FIFO: "SCHED_FIFO",
    os.SCHED_RR: "SCHED_RR",
    os.SCHED_BATCH: "SCHED_BATCH",
    os.SCHED_IDLE: "SCHED_IDLE",
    6: "SCHED_DEADLINE",
}
# The policies that go by slice and nice value (fair_policy of kernel/sched/sched.h).
FAIR: Final = frozenset({os.SCHED_OTHER, os.SCHED_BATCH})
RELEASE: Final = re.compile(r"([0-9]+)\.([0-9]+)", re.ASCII)
FAIR_SERVER: Final = 95.0  # percent of a CPU that it leaves to real time
LIMITS: Final = "/etc/security/limits.d/kerntune.conf"

T = TypeVar("T")


class RealTime(StrEnum):
    """Which threads run under SCHED_FIFO: none, the main thread of the command, or all that the command starts too."""

    NO = ""
    MAIN = "main"
    ALL = "all"


class NoSlices(NotSupported):
    """The kernel keeps no slice, as before Linux 6.12."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The scheduling of a thread as the kernel tells it; `slice_us` is 0 for the kernel's own slice."""

    policy: str
    nice: int
    slice_us: int = 0
    priority: int = 0
    reset_on_fork: bool = False


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


def check(slice_us: int, nice: int | None, real_time: RealTime) -> None:
    """Raise InvalidValue for numbers out of range, and for a slice or a nice value beside real time."""
    if slice_us and not LEAST_US <= slice_us <= MOST_US:
        raise InvalidValue(
            f"a slice of {slice_us} us is out of range", f"The kernel takes {LEAST_US} us to {MOST_US // 1000} ms"
        )
    if nice is not None and not LEAST_NICE <= nice <= MOST_NICE:
        raise InvalidValue(f"a nice value of {nice} is out of range", f"The kernel takes {LEAST_NICE} to {MOST_NICE}")
    if real_time and (slice_us or nice is not None):
        raise InvalidValue(
            "a real-time process goes by no slice and by no nice value", "Give real time, or slice and nice value"
        )


def set_fair(slice_us: int, nice: int | None) -> None:
    """Give the calling thread a slice (0: as it is), a nice value (None: as it is), or both in one call.

    Raise AccessDenied for a nice value that is too low for the process, and NoSlices where the kernel keeps no slice.
    """
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    if policy not in FAIR:
        lacks = "slice" if slice_us else "use for a nice value"
        raise NotSupported(
            f"the process runs under {policy_name(policy)}, which has no {lacks}",
            "Start it under SCHED_OTHER, which is the usual policy, or leave out the "
            + ("slice" if slice_us else "nice value"),
        )
    if slice_us:
        _set_slice(slice_us, nice)
    elif nice is not None:
        _set_nice(nice)


def _set_slice(slice_us: int, nice: int | None) -> None:
    # The call sets nice value and flags too, so they are read first and written back.
    attributes = _attributes()
    before = attributes.nice
    attributes.runtime, attributes.nice = slice_us * 1000, before if nice is None else nice
    if error := _call(0, attributes):
        if error == errno.EPERM and attributes.nice < before:
            raise _no_right_to_nice(attributes.nice, before)
        raise _refused("slice", error)
    found = _attributes()
    if found.runtime != attributes.runtime:
        raise NoSlices(
            f"the kernel keeps no slice of {slice_us} us (it takes Linux 6.12)", "Leave out the slice on this kernel"
        )
    _check_nice(attributes.nice)


def _set_nice(nice: int) -> None:
    # A sched_setattr(2) for the nice value alone would put the slice back to the kernel's own; setpriority(2) keeps it.
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and nice < before:
            raise _no_right_to_nice(nice, before) from error
        raise _refused("nice value", error.errno or 0) from error
    _check_nice(nice)


def _check_nice(nice: int) -> None:
    if (found := os.getpriority(os.PRIO_PROCESS, 0)) != nice:
        raise KernelRejected(f"the kernel made a nice value of {nice} into {found}")


def set_real_time(real_time: RealTime, root: Path = HOST) -> None:
    """Put the calling thread under SCHED_FIFO; with MAIN, threads and processes that it starts are as usual again.

    Raise OverLimit where a real-time process could keep a CPU for ever, and NotSupported where it gets no time at all.
    """
    if (share := spinning_share(root)) is None:
        raise OverLimit(
            "the kernel lets real-time processes have a CPU for ever: a server that spins would block all else there",
            "Set kernel.sched_rt_runtime_us, which is -1, to 950000, the kernel's default",
        )
    if share == 0:
        raise NotSupported("kernel.sched_rt_runtime_us is 0: real-time processes get no time", "The default is 950000")
    flag = os.SCHED_RESET_ON_FORK if real_time is RealTime.MAIN else 0
    try:
        # RestrictRealtime= of systemd.exec(5) filters this call, and lets sched_setattr(2) through.
        os.sched_setscheduler(0, os.SCHED_FIFO | flag, os.sched_param(PRIORITY))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise _no_right_to_real_time() from error
        raise _refused("real-time policy", error.errno or 0) from error
    found = _attributes()
    if (found.policy, found.priority, bool(found.flags & RESET_ON_FORK)) != (os.SCHED_FIFO, PRIORITY, bool(flag)):
        raise KernelRejected(
            f"the kernel put the process under {policy_name(found.policy)} {found.priority}, not SCHED_FIFO {PRIORITY}"
        )


def spinning_share(root: Path = HOST) -> float | None:
    """Return the percentage of a CPU for a real-time process that spins beside others; None where nothing bounds it.

    From Linux 6.12 on a server keeps 50 ms of each second for the others (fair_server, kernel/sched/deadline.c). Later
    kernels have a default of the sysctl that alone would leave them nothing.
    """
    kernel, folder = HostKernel(root), "proc/sys/kernel/sched_rt"
    runtime = read_int(kernel, f"{folder}_runtime_us", 950_000)
    if runtime < 0:
        return None
    share = 100 * runtime / read_int(kernel, f"{folder}_period_us", 1_000_000)
    release = RELEASE.match(read_or_none(kernel, "proc/sys/kernel/osrelease") or "")
    has_server = release is not None and (int(release[1]), int(release[2])) >= (6, 12)
    return min(share, FAIR_SERVER) if has_server else share


def keeps_slices() -> bool:
    """Return False where the kernel keeps no slice, as before Linux 6.12; a thread of its own tries one.

    Raise NotSupported where the process cannot have one for another reason: its policy, or a filter of system calls.
    """
    try:
        aside(lambda: set_fair(LEAST_US, None))
    except NoSlices:
        return False
    return True


def in_force(pid: int = 0) -> Scheduling:
    """Return the scheduling of a process's main thread, or of the calling thread for 0.

    Raise ProcessLookupError when the process has ended.
    """
    try:
        found = _attributes(pid)
    except NotSupported:
        policy = os.sched_getscheduler(pid)
        nice, priority = os.getpriority(os.PRIO_PROCESS, pid), os.sched_getparam(pid).sched_priority
        reset = bool(policy & os.SCHED_RESET_ON_FORK)
        return Scheduling(policy_name(policy & ~os.SCHED_RESET_ON_FORK), nice, 0, priority, reset)
    has_slice = found.policy in FAIR and found.runtime not in (0, _default_slice())
    return Scheduling(
        policy_name(found.policy),
        # For a real-time thread the call tells no nice value.
        found.nice if found.policy in FAIR else os.getpriority(os.PRIO_PROCESS, pid),
        found.runtime // 1000 if has_slice else 0,
        found.priority,
        bool(found.flags & RESET_ON_FORK),
    )


def aside(work: Callable[[], T]) -> T:
    """Do something in a thread that ends then: what it changes of its own scheduling and memory ends with it."""
    done: list[T] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            failed.append(error)

    thread = threading.Thread(target=do)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def policy_name(policy: int) -> str:
    """Return the kernel's name of a scheduling policy."""
    return POLICIES.get(policy, f"policy {policy}")


def limits_line(item: str, unit: str) -> str:
    """Return the hint with the line for limits.conf(5) and the one for a systemd unit: `nice -10`, `LimitNICE=-10`."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f":{uid}"  # limits.conf(5) has this form for the user with this number alone
    return f"Put the line `{user} - {item}` into {LIMITS} and log in again, or `{unit}` into the systemd unit"


def _attributes(pid: int = 0) -> Attributes:
    attributes = Attributes()
    if error := _call(1, attributes, pid, ctypes.sizeof(Attributes)):
        if error == errno.ESRCH:
            raise ProcessLookupError(error, os.strerror(error))
        raise NotSupported(
            f"the scheduling of a process cannot be read here ({os.strerror(error)})",
            "A filter of system calls forbids it",
        )
    return attributes


def _call(which: int, attributes: Attributes, pid: int = 0, *size: int) -> int:
    """Call sched_setattr (0) or sched_getattr (1) for a thread; return the errno, 0 when that went well."""
    machine = os.uname().machine
    if machine not in CALLS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotSupported(f"kerntune cannot set the slice of a process on {machine}", "Leave out the slice")
    attributes.size = ctypes.sizeof(Attributes)
    words = [ctypes.c_long(word) for word in (*size, 0)]
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(ctypes.c_long(CALLS[machine][which]), ctypes.c_long(pid), ctypes.byref(attributes), *words)
    return 0 if done == 0 else ctypes.get_errno()


def _default_slice() -> int:
    """Return the kernel's own slice in ns, which a thread gets if it asks for 0; 0 where it cannot be read."""

    def ask() -> int:
        # The call sets policy and nice value too, and a process may not improve its own.
        attributes = _attributes()
        if attributes.policy not in FAIR:
            attributes = Attributes(policy=os.SCHED_OTHER)
        attributes.runtime = 0
        return 0 if _call(0, attributes) else _attributes().runtime

    return aside(ask)


def _refused(what: str, error: int) -> KernelRejected:
    return KernelRejected(
        f"the kernel refuses the {what} ({os.strerror(error)})", "A filter of system calls may forbid it"
    )


def _no_right_to_nice(nice: int, before: int) -> AccessDenied:
    what = f"the process may not lower its nice value from {before} to {nice}"
    if _has_capability():
        return AccessDenied(what, "A container or a filter of system calls forbids it, although CAP_SYS_NICE is there")
    # A number without a sign would be a raw limit to systemd (systemd.exec(5)).
    return AccessDenied(what, limits_line(f"nice {nice}", f"LimitNICE={nice:+d}"))


def _no_right_to_real_time() -> AccessDenied | KernelRejected:
    # RLIM_INFINITY is -1 here.
    if not _has_capability() and 0 <= resource.getrlimit(resource.RLIMIT_RTPRIO)[0] < PRIORITY:
        line = limits_line(f"rtprio {PRIORITY}", f"LimitRTPRIO={PRIORITY}")
        return AccessDenied("the process may not run in real time", line)
    return KernelRejected(
        "the kernel refuses real time, although the process has the right to it",
        "Its unit has RestrictRealtime=yes, a container forbids it, or its cgroup has no real-time budget "
        "(cpu.rt_runtime_us is 0 there, or it is one of cgroup 2 on a kernel with CONFIG_RT_GROUP_SCHED)",
    )


def _has_capability() -> bool:
    """Return whether the process says that it has CAP_SYS_NICE; in a user namespace the kernel does not heed it."""
    status = read_or_none(HostKernel(), "proc/thread-self/status") or ""
    row = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(row.split()[1], 16) >> CAP_SYS_NICE & 1)
