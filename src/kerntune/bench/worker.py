"""`python3 -P -m kerntune.bench.worker LEG JSON`: one measured run in a fresh process, with its result as JSON.

JSON: what kerntune.run.launch takes, `fd` and `bytes` of the model's file, `wakes` of the CPU leg, and `bytes` and
`hugetlb` of the memory to touch. The module imports little, because it starts a hundred times. It times only the work
itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kerntune.bench import cold, tensors
from kerntune.kernel.huge_pages import read_pool
from kerntune.run import launch
from kerntune.units import mib

PIECE: Final = 16 << 20  # bytes of one pread(2)
STRETCH: Final = 64 << 20  # bytes whose pages are touched together
WORK_US, PERIOD_US, WAKES = 200, 3000, 400
TIMER_ABSTIME: Final = 1
MAP_HUGETLB: Final = 0x40000
MAP_HUGE_SHIFT: Final = 26
# pickle raises these too for bytes that are no pickle, beside its own error.
BROKEN: Final = (AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
MAX_ERROR: Final = 200  # characters of an error that is passed on
SHORTER: Final = "the file has become shorter while it was read"
# Fields of /proc/self/smaps_rollup (Documentation/filesystems/proc.rst).
MAPPED: Final = {
    "Private_Hugetlb": "hugetlb_bytes",
    "AnonHugePages": "anon_huge_bytes",
    "FilePmdMapped": "file_pmd_bytes",
}

Asked = Mapping[str, Any]
Figures = dict[str, float]


class Trouble(Exception):
    """The reason, as text for people, why a run is useless."""


class Time(ctypes.Structure):
    """The C structure timespec."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def library() -> ctypes.CDLL:
    """Return the C library with the functions that the legs call."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.pread.restype = ctypes.c_ssize_t
    libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
    libc.clock_nanosleep.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(Time), ctypes.c_void_p)
    return libc


LIBC: Final = library()


def timed(work: Callable[[], object]) -> tuple[float, Figures]:
    """Return the seconds of some work, and its figures; the result of the work lives until its memory was measured."""
    was, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    loaded = work()
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    figures: Figures = {
        "user_seconds": now.ru_utime - was.ru_utime,
        "system_seconds": now.ru_stime - was.ru_stime,
        "minor_faults": now.ru_minflt - was.ru_minflt,
        "major_faults": now.ru_majflt - was.ru_majflt,
        "read_bytes": (now.ru_inblock - was.ru_inblock) * 512,
    }
    figures |= mapped()
    del loaded
    return seconds, figures


def mapped() -> Figures:
    """Return the bytes of this process that lie on huge pages; none where the kernel does not say."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return {}
    return {MAPPED[row[0][:-1]]: int(row[1]) * 1024 for row in rows if row[0][:-1] in MAPPED}


def copy(asked: Asked) -> dict[str, Any]:
    """Read each tensor into memory of its own, like loaders that copy."""
    fd, size = whole_file(asked)
    parts = tensors.parts_of(fd, size)
    seconds, figures = timed(lambda: [_read(fd, part) for part in parts])
    return sample(seconds, {**figures, "loaded_bytes": sum(part.size for part in parts)})


def _read(fd: int, part: tensors.Part) -> int:
    """Return the address in memory of a part of the file."""
    place: int | None = LIBC.malloc(part.size)
    if place is None:
        raise Trouble(f"there was no memory for a buffer of {mib(part.size)} MiB")
    done = 0
    while done < part.size:
        count: int = LIBC.pread(fd, place + done, min(PIECE, part.size - done), part.offset + done)
        if count < 0:
            raise Trouble(f"the file cannot be read ({os.strerror(ctypes.get_errno())})")
        if count == 0:
            raise Trouble(SHORTER)
        done += count
    return place


def mapping(asked: Asked) -> dict[str, Any]:
    """Map the file, and touch each of its pages."""
    fd, size = whole_file(asked)
    seconds, figures = timed(lambda: _map(fd, size))
    return sample(seconds, {**figures, "loaded_bytes": size})


def _map(fd: int, size: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except ValueError as error:  # mmap checks the size of the file again
        raise Trouble(SHORTER) from error
    except OSError as error:
        raise Trouble(f"the file cannot be mapped ({error.strerror})") from error
    with memoryview(memory) as view:
        for start in range(0, size, STRETCH):
            bytes(view[start : start + STRETCH : mmap.PAGESIZE])
    return memory


def reading(asked: Asked) -> dict[str, Any]:
    """Map the file and touch its pages when none of it is in memory."""
    fd, size = whole_file(asked)
    cold.drop(fd)
    left = cold.in_memory(fd, size) if asked.get("tells", True) else None
    seconds, figures = timed(lambda: _map(fd, size))
    proof, trouble = cold.judge(size, left, int(figures["read_bytes"]), on_disk=bool(asked.get("on_disk")))
    return sample(seconds, {**figures, "loaded_bytes": size}, proof, trouble)


def torch(asked: Asked) -> dict[str, Any]:
    """Load the file with PyTorch, without the time of its import; of its pickle only weights are loaded."""
    fd, size = whole_file(asked)
    try:
        module: Any = __import__("torch")
        load = module.load
    except (ImportError, AttributeError, OSError) as error:
        raise Trouble(f"PyTorch cannot be imported ({error})") from error
    pickle = sys.modules.get("pickle")  # the module that PyTorch has imported
    broken = (pickle.PickleError,) if pickle else ()
    try:
        path = f"/proc/self/fd/{fd}"
        seconds, figures = timed(lambda: load(path, map_location="cpu", weights_only=True))
    except (*BROKEN, *broken) as error:
        raise Trouble(f"PyTorch cannot load the file ({first_line(error)})") from error
    return sample(seconds, {**figures, "loaded_bytes": size})


def waking(asked: Asked) -> dict[str, Any]:
    """Wake up again and again to work a little, and measure how late each wake-up is."""
    period, work = (int(asked.get(*each)) * 1000 for each in (("period_us", PERIOD_US), ("work_us", WORK_US)))
    late: list[int] = []
    _, figures = timed(lambda: late.extend(_wakes(int(asked.get("wakes", WAKES)), period, work)))
    late.sort()
    figures |= {f"p{rank}_seconds": percentile(late, rank) / 1e9 for rank in (50, 90, 99)}
    return sample(sum(late) / len(late) / 1e9, figures)


def _wakes(count: int, period: int, work: int) -> list[int]:
    """Return by how many nanoseconds each wake-up was late."""
    late = []
    deadline = time.monotonic_ns() + period
    for _ in range(count):
        until = Time(*divmod(deadline, 1_000_000_000))
        while LIBC.clock_nanosleep(time.CLOCK_MONOTONIC, TIMER_ABSTIME, ctypes.byref(until), None):
            pass
        late.append(time.monotonic_ns() - deadline)
        done = time.thread_time_ns() + work
        while time.thread_time_ns() < done:
            pass
        deadline = following(deadline, time.monotonic_ns(), period)
    return late


def following(deadline: int, now: int, period: int) -> int:
    """Return the deadline a period later, or a period from now when that has passed, so that delays do not pile up."""
    return deadline + period if deadline + period > now else now + period


def percentile(values: Sequence[int], rank: int) -> int:
    """Return the least of sorted values that `rank` of 100 do not exceed."""
    return values[max(0, -(-len(values) * rank // 100) - 1)]


def hog(_asked: Asked) -> dict[str, Any]:
    """Return the answer that the CPU is used from now on; `main` uses it."""
    return sample(0.0, {})


def touch(asked: Asked) -> dict[str, Any]:
    """Use memory for a moment, so that the host of a virtual machine backs it."""
    size, page = int(asked["bytes"]), int(asked.get("hugetlb", 0))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if page:
        size = min(size // page, read_pool(page).left) * page
        flags |= mmap.MAP_POPULATE | MAP_HUGETLB | (page.bit_length() - 1) << MAP_HUGE_SHIFT
    if not size:
        return sample(0.0, {"loaded_bytes": 0})
    try:
        seconds, figures = timed(lambda: _touched(size, flags))
    except OSError as error:
        raise Trouble(f"there was no memory to touch {mib(size)} MiB ({error.strerror})") from error
    return sample(seconds, {**figures, "loaded_bytes": size})


def _touched(size: int, flags: int) -> mmap.mmap:
    """Map memory and write to each page: in large pages if possible, because a load may get such blocks later."""
    memory = mmap.mmap(-1, size, flags=flags)
    if not flags & MAP_HUGETLB:
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(memory) as view:
            for start in range(0, size, STRETCH):
                part = view[start : start + STRETCH : mmap.PAGESIZE]
                part[:] = bytes(len(part))
    return memory


def whole_file(asked: Asked) -> tuple[int, int]:
    """Open the file anew, and return its descriptor and the bytes to load. Raise Trouble when it has fewer.

    An open file keeps the read-ahead that its device had when it was opened (file_ra_state_init, mm/readahead.c).
    """
    try:
        fd = os.open(f"/proc/self/fd/{int(asked['fd'])}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Trouble(f"the file cannot be opened again ({error.strerror})") from error
    size = int(asked["bytes"])
    if os.fstat(fd).st_size < size:
        raise Trouble(SHORTER)
    return fd, size


def sample(seconds: float, figures: Figures, cold: str = "", trouble: str = "") -> dict[str, Any]:
    """Return the JSON object that the worker prints."""
    return {"seconds": seconds, "figures": figures, "cold": cold, "trouble": trouble}


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's text, or its class."""
    return next(iter(str(error).splitlines()), "")[:MAX_ERROR] or type(error).__name__


def ended(status: int, leg: str = "") -> str:
    """Return why a worker gave no answer, from its exit status (below 0: the signal); "" for 0."""
    if status == -signal.SIGBUS:
        return SHORTER if leg in ("mmap", "io") else "it was killed by SIGBUS: huge pages were not to be had"
    if status == -signal.SIGKILL:
        return "it was killed by SIGKILL: memory may have been short (see the kernel's log)"
    if status < 0:
        return f"it was killed by signal {-status} ({signal.strsignal(-status) or 'of no name'})"
    return f"it ended with status {status}" if status else ""


LEGS: Final[Mapping[str, Callable[[Asked], dict[str, Any]]]] = {
    "copy": copy,
    "mmap": mapping,
    "torch": torch,
    "io": reading,
    "cpu": waking,
    "hog": hog,
    "touch": touch,
}


def main(words: Sequence[str]) -> None:
    """Run one leg, and print its result."""
    leg, asked = LEGS[words[0]], launch.asked_for(words[1])
    launch.prepare(asked)
    # When memory runs out, the kernel kills this process first, and it leaves no core dump of gigabytes.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # A library's output is not the answer, so it goes where errors go.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        said = leg(asked)
    except Trouble as trouble:
        said = sample(0.0, {}, trouble=str(trouble))
    except MemoryError:
        said = sample(0.0, {}, trouble="there was no memory")
    os.write(answers, f"{json.dumps(said)}\n".encode())
    while leg is hog:  # until killed
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
