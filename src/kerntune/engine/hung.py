"""Devices that hang: the thread inside a read or write of one is left behind, and the device is left out meanwhile."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

from kerntune.engine.retry import LONGEST_WAIT, SOON
from kerntune.kernel.files import KernelError, KernelView
from kerntune.model import Reading, Reason, State, Target, Verdict
from kerntune.tunables.base import Tunable

Found = TypeVar("Found")
Given = TypeVarTuple("Given")
AGAIN: Final = 60.0  # seconds after a try in which a device that has hung counts as one that hangs again
NO_ROOM: Final = (RuntimeError, MemoryError)  # what Python raises where it can start no thread


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that the kernel may take before its device counts as one that hangs.

    A change of the scheduler waits for the I/O of its queue (elevator_switch in block/elevator.c): it takes 24 ms at
    rest, some hundreds under load, and seconds where a slow drive has much to write. A read takes microseconds, but
    waits for such a change; who asks for a look waits a second, and should learn of it. A bound that is too short costs
    little: the device is set as soon as the kernel returns.

    Reads are one after the other. Where several devices hang, each next one has half the time, down to `least`: a lost
    path may have hundreds of drives.
    """

    read: float = 0.75
    write: float = 5.0
    least: float = 0.1


class Crew:
    """The threads for one lane's devices. One that hangs does not use them up: `renew` puts another in its place."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name, self._lock = count, name, threading.Lock()
        self._pool = ThreadPoolExecutor(count, name)

    def submit(self, work: Callable[[*Given], Found], *given: *Given) -> Future[Found]:
        """Run it in one of the threads."""
        with self._lock:
            return self._pool.submit(work, *given)

    def renew(self) -> None:
        """Begin with new threads. The old ones end with what they do: only those that hang stay."""
        with self._lock:
            self._pool.shutdown(wait=False)
            self._pool = ThreadPoolExecutor(self._count, self._name)

    def close(self) -> None:
        """Let go of the threads."""
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)


def over(jobs: Collection[Future[Found]], seconds: float) -> bool:
    """Wait for so long, and return whether all jobs are over.

    `wait` does not count those that were cancelled with their pool.
    """
    wait(jobs, timeout=seconds)
    return all(job.done() for job in jobs)


@dataclass(slots=True)
class _Mark:
    """A device that hangs: what is said of it, the files whose reads, and those whose writes, have not returned."""

    why: str
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The devices that hang at one moment, with what is said of each; in these folders no file is read."""

    why: Mapping[str, str]
    folders: frozenset[str]


class Hung:
    """The devices of a lane that hang, by the names of their instances. Thread-safe.

    A name is enough: the kernel removes no device while a thread is inside one of its files, so no other gets the name.
    `ended` is called when one hangs no more, with the seconds to wait before the next try: longer and longer where the
    last one made it hang again.
    """

    def __init__(
        self,
        ended: Callable[[float], None] = lambda _: None,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.ended, self._lock, self._clock = ended, threading.Lock(), clock
        self._marks: dict[str, _Mark] = {}
        self.returned: dict[str, tuple[float, float]] = {}  # when each returned last, and the wait from then on

    def now(self) -> LeftOut:
        """Return which devices are left out at this moment."""
        with self._lock:
            return LeftOut(
                {device: mark.why for device, mark in self._marks.items()},
                frozenset(folder_of(path) for mark in self._marks.values() for path in (*mark.reads, *mark.writes)),
            )

    @property
    def writes(self) -> list[str]:
        """The files that threads left behind still write."""
        with self._lock:
            return sorted(path for mark in self._marks.values() for path in mark.writes)

    def mark(self, device: str, path: str, *, write: bool) -> None:
        """Count the device as one that hangs, until `end` is called with the same."""
        with self._lock:
            mark = self._marks.setdefault(device, _Mark(said(device, path, write=write)))
            (mark.writes if write else mark.reads).append(path)

    def end(self, device: str, path: str, *, write: bool) -> None:
        """Note that the kernel has returned."""
        with self._lock:
            mark = self._marks[device]
            (mark.writes if write else mark.reads).remove(path)
            if mark.reads or mark.writes:
                return
            del self._marks[device]
            wait = self._wait(device)
        self.ended(wait)

    def _wait(self, device: str) -> float:
        now = self._clock()
        self.returned = {name: last for name, last in self.returned.items() if now - sum(last) < AGAIN}
        wait = min(max(SOON, 2 * self.returned[device][1]), LONGEST_WAIT) if device in self.returned else 0.0
        self.returned[device] = now, wait
        return wait


def said(device: str, path: str, *, write: bool) -> str:
    """Return what is said of a device that hangs, from now on."""
    doing = f"a {'write to' if write else 'read of'} /{path}"
    return (
        f"{device} hangs: the kernel has not returned from {doing} since {time.strftime('%Y-%m-%d %H:%M:%S')}. Likely: "
        "it does not answer its I/O, or the path to it is lost. See the kernel's log (dmesg), and mend or remove the "
        "device; kerntuned leaves it out until the kernel returns, then sets what is wanted by itself"
    )


def hangs(reading: Reading) -> bool:
    """Return whether the reading is the last one before the device began to hang."""
    return reading.reason is Reason.DEVICE_HANGS


def not_answering(reading: Reading) -> Verdict:
    """Return the verdict on a device that hangs, whatever it held before."""
    return Verdict(State.FAILED, Reason.DEVICE_HANGS, reading.detail)


@dataclass(slots=True)
class View:
    """The kernel as one look sees it: notes the file that is being read and since when, and reads none that hangs.

    `devices` are the names that may hang: those of the targets, and what the look has found by a pattern.
    """

    kernel: KernelView
    out: LeftOut
    devices: set[str] = field(default_factory=set)
    at: tuple[str, float] | None = None
    left: tuple[str, str] | None = None  # the device and the file where this look was left behind
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, path: str) -> str:
        if self.left or (self.out.folders and folder_of(path) in self.out.folders):
            raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        self.at = path, time.monotonic()
        try:
            return self.kernel.read(path)
        finally:
            self.at = None

    def glob(self, pattern: str) -> Sequence[str]:
        found = self.kernel.glob(pattern)
        place = next((place for place, part in enumerate(pattern.split("/")) if "*" in part), 0)
        self.devices.update(path.split("/")[place] for path in found)
        return found

    def links(self, device: str) -> Sequence[str]:
        return self.kernel.links(device)

    def identity(self, path: str) -> str:
        return self.kernel.identity(path)

    def device(self, path: str) -> str:
        """Return the device that a file is of, or ""."""
        return next((part for part in path.split("/") if part in self.devices), "")


class Seen(NamedTuple):
    """The targets of a tunable, what they hold, and why there are none."""

    targets: Sequence[Target]
    readings: dict[Target, Reading]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the targets of a lane; where they are devices, in a thread that can be left behind.

    `known` is what was last read of each tunable: it serves while a device hangs.
    """

    kernel: KernelView
    threads: Crew
    hung: Hung
    known: dict[str, Mapping[Target, Reading]] = field(default_factory=dict)

    def all(self, tunable: Tunable) -> Seen:
        """Return what there is of a tunable."""
        seen = self._read(tunable, None)
        if tunable.parallel:
            self.known[tunable.name] = seen.readings
        return seen

    def some(self, tunable: Tunable, targets: Sequence[Target]) -> dict[Target, Reading]:
        """Return what these targets hold."""
        found = self._read(tunable, targets).readings
        if tunable.parallel:
            self.known[tunable.name] = {**self.known.get(tunable.name, {}), **found}
        return found

    def _read(self, tunable: Tunable, targets: Sequence[Target] | None) -> Seen:
        if not tunable.parallel:
            return look(tunable, targets, self.kernel)
        known, bounds = self.known.get(tunable.name, {}), self.hung.bounds
        view, patience = View(self.kernel, self.hung.now()), bounds.read
        while (seen := self._once(tunable, targets, view, patience)) is None:
            view, patience = View(self.kernel, self.hung.now()), max(patience / 2, min(bounds.least, bounds.read))
        found, why = seen.readings, view.out.why
        if len(found) == len(seen.targets):
            return seen
        every = {t: found[t] if t in found else last_known(t, known.get(t), why[t.instance]) for t in seen.targets}
        return seen._replace(readings=every)

    def _once(self, tunable: Tunable, targets: Sequence[Target] | None, view: View, patience: float) -> Seen | None:
        """Return what was read, or nothing when one of the devices hangs, which is marked then."""
        try:
            job = self.threads.submit(self._look, tunable, targets, view)
        except NO_ROOM:
            # The pool may have kept the job. What cannot be bounded is better than nothing.
            view.over = True
            return self._look(tunable, targets, View(self.kernel, view.out))
        while True:
            at = view.at
            left = at[1] + patience - time.monotonic() if at else patience
            if at and left <= 0 and self._leave_behind(view, at):
                return None
            # A look that is over its time, and was not left behind, is at no device.
            if over([job], left if left > 0 else patience):
                return job.result()

    def _look(self, tunable: Tunable, targets: Sequence[Target] | None, view: View) -> Seen:
        if view.over:
            return Seen((), {})
        try:
            view.devices.update(target.instance for target in targets or ())
            return look(tunable, targets, view, view.out.why)
        finally:
            with view.lock:
                view.over = True
            if view.left:
                self.hung.end(*view.left, write=False)

    def _leave_behind(self, view: View, at: tuple[str, float]) -> bool:
        """Leave a look behind that is still at the same file, if that is a device's; return whether it was."""
        path, _ = at
        with view.lock:
            device = view.device(path)
            if not device or view.over or view.at is not at:
                return False
            view.left = device, path
            self.hung.mark(device, path, write=False)
        self.threads.renew()
        return True


def look(tunable: Tunable, targets: Sequence[Target] | None, kernel: KernelView, out: Collection[str] = ()) -> Seen:
    """Return what there is of a tunable, or of these targets, without the readings of devices that are left out."""
    there = tunable.targets(kernel) if targets is None else targets
    found = tunable.read_all(kernel, [t for t in there if t.instance not in out] if out else there)
    return Seen(there, found, "" if there else tunable.missing(kernel))


def folder_of(path: str) -> str:
    """Return the folder of a file: what hangs in one of its files may hang in the others."""
    return path.rpartition("/")[0]


def last_known(target: Target, last: Reading | None, why: str) -> Reading:
    """Return the reading of a device that hangs."""
    return replace(last or Reading(target, None), target=target, reason=Reason.DEVICE_HANGS, detail=why)
