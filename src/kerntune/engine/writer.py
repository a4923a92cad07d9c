"""Carries out planned writes, one by one or in parallel, reports progress, and stops when a halt is requested."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from kerntune.engine.claims import Edit
from kerntune.engine.hung import Crew, Hung, over
from kerntune.kernel.files import Kernel, KernelError
from kerntune.model import Step, Target, Write
from kerntune.tunables.base import Tunable

PROGRESS_SECONDS: Final = 0.25
A_MOMENT: Final = 0.002  # seconds in which a kernel that is not slow has done more than FEW steps
FEW: Final = 4
WRITERS: Final = 32  # threads that write at the same time
# set_max_huge_pages() in mm/hugetlb.c leaves off, without an error, when its thread has any signal to handle.
SIGNAL: Final = signal.SIGUSR2
STOPPING: Final = "kerntuned was told to stop"

# Called with a target, and how many there are now of how many wanted.
Progress = Callable[[Target, int, int], None]


def only_for(edit: Edit, tunables: Mapping[str, Tunable], progress: Progress) -> Progress:
    """Return a callback that hears only of the targets of the edit: a pass may serve other callers too."""
    named = [Target(claim.tunable, claim.instances) for claim in (*edit.named, *edit.released)]
    groups = {(target.tunable, tunables[target.tunable].group(target)) for target in named}

    def report(target: Target, done: int, wanted: int) -> None:
        if (target.tunable, tunables[target.tunable].group(target)) in groups:
            progress(target, done, wanted)

    return report


def make_endable() -> None:
    """Take the signal and do nothing about it, so that it ends no process; call it in the main thread."""
    signal.signal(SIGNAL, lambda _number, _frame: None)


class Halt:
    """The state of one pass: whether it is to be over, and which threads of it are inside a write. Thread-safe."""

    def __init__(self) -> None:
        self.asked = False
        self.why = STOPPING
        self._lock = threading.Lock()
        self._inside: dict[int, str] = {}

    def ask(self, why: str = STOPPING) -> None:
        """Let no write begin from now on; outcomes have the first reason."""
        if not self.asked:
            self.why = why
            self.asked = True

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Mark the thread as being inside a write, for as long as the context lasts."""
        thread = threading.get_ident()
        with self._lock:
            self._inside[thread] = path
        try:
            yield
        finally:
            # A signal is sent with the lock held, so to no thread that has gone on or ended.
            with self._lock:
                del self._inside[thread]

    def interrupt(self) -> list[str]:
        """Signal each thread that is inside a write, and return the paths.

        The signal may come just before the system call: repeat it until nothing is left.
        """
        with self._lock:
            # Without a handler it would end the process.
            if callable(signal.getsignal(SIGNAL)):
                for thread in self._inside:
                    signal.pthread_kill(thread, SIGNAL)
            return sorted(self._inside.values())


@dataclass(slots=True)
class _Job:
    """The step that one of the threads carries out; `left`: nobody waits for it any more."""

    step: Step | None = None
    since: float = 0.0
    left: bool = False

    @property
    def path(self) -> str:
        """The file that the step writes."""
        return self.step.writes[0].path if self.step else ""


@dataclass(slots=True)
class Writer:
    """The writes of one tunable in one pass. `errors` are the errnos of targets whose last write was refused.

    `cut` are the targets whose writes were not all made, for the pass was to be over.

    Without `threads` every write is made where it is asked for, and reports no progress. With them, a write
    to a device that does not return in time is left behind, and the device is marked in `hung`.
    """

    kernel: Kernel
    tunable: Tunable
    threads: Crew | None
    progress: Progress | None
    errors: dict[Target, int] = field(default_factory=dict)
    halt: Halt = field(default_factory=Halt)
    cut: set[Target] = field(default_factory=set)
    hung: Hung = field(default_factory=Hung)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: Step | None = None
    _reported: dict[Target, int] = field(default_factory=dict)

    def write(self, steps: Sequence[Step]) -> None:
        """Write each step in its order, and steps in parallel where the tunable allows it and writes are slow."""
        todo = deque(step for step in steps if step.writes)
        if self.threads is None or not (self.tunable.parallel or (self.tunable.has_progress and self.progress)):
            self._carry_out(todo, _Job())
            return
        all_of_them = len(todo)
        jobs = self._start(todo, 1)
        over(jobs, A_MOMENT)
        # Quick writes are quicker one after the other: threads of Python get in each other's way.
        slow = all_of_them - len(todo) <= FEW
        pause = min(PROGRESS_SECONDS, self.hung.bounds.write) if self.tunable.parallel else PROGRESS_SECONDS
        while True:
            if slow and self.tunable.parallel and todo:
                jobs |= self._start(todo, WRITERS - sum(not job.done() for job in jobs))
            if over(jobs, pause):
                break
            slow = True
            self._report_progress()
            if self.tunable.parallel and (left := [job for job in jobs if self._leave_behind(jobs[job])]):
                self.threads.renew()
                # Those that have not begun would wait for the threads that hang.
                jobs = {job: at for job, at in jobs.items() if job not in left and not job.cancel()}
                jobs |= self._start(todo, WRITERS - len(jobs))
        for job in jobs:
            job.result()

    def _start(self, todo: deque[Step], most: int) -> dict[Future[None], _Job]:
        """Have so many threads take steps, and no more than there are steps."""
        assert self.threads
        started = [_Job() for _ in range(min(len(todo), most))]
        return {self.threads.submit(self._carry_out, todo, job): job for job in started}

    def _leave_behind(self, job: _Job) -> bool:
        """Leave a thread behind that has been inside a step for too long; return whether it has."""
        with self._lock:
            if job.step is None or time.monotonic() - job.since < self.hung.bounds.write:
                return False
            job.left = True
            target = job.step.desired.target
            self.hung.mark(target.instance, job.path, write=True)
            self.errors.pop(target, None)
            return True

    def attempt(self, write: Write) -> int:
        """Return 0, or the errno of the kernel's refusal; write nothing any more when the pass is to be over."""
        if self.halt.asked:
            return 0
        try:
            with self.halt.writing(write.path):
                self.kernel.write(write.path, write.text)
        except KernelError as error:
            return error.errno or -1
        return 0

    def _carry_out(self, todo: deque[Step], job: _Job) -> None:
        """Take steps until there are none, as others may do at the same time."""
        while todo:
            try:
                step = todo.popleft()
            except IndexError:
                return
            self._writing = step
            if self.halt.asked:
                self.cut.add(step.desired.target)
                continue
            with self._lock:
                job.step, job.since = step, time.monotonic()
            code = 0
            try:
                pieces = (piece for write in step.writes for piece in self.tunable.chunks(self.kernel, write))
                goes_on = takewhile(lambda _: not (self.halt.asked or job.left), pieces)
                code = next(filter(None, map(self.attempt, goes_on)), 0)
            finally:
                if self._returned(job, step, code):
                    self.hung.end(step.desired.target.instance, step.writes[0].path, write=True)
                    todo = deque()

    def _returned(self, job: _Job, step: Step, code: int) -> bool:
        """Note what became of a step, unless its thread was left behind; return whether it was."""
        with self._lock:
            job.step = None
            if job.left:
                return True
            if code:
                self.errors[step.desired.target] = code
            else:
                self.errors.pop(step.desired.target, None)
            if self.halt.asked:
                # The last write may have been cut short as well: what is read back shows it.
                self.cut.add(step.desired.target)
        return False

    def _report_progress(self) -> None:
        """Report the progress of a count that grows, never less than before."""
        if not (self.progress and self.tunable.has_progress and self._writing):
            return
        target, wanted = self._writing.desired.target, int(self._writing.desired.value)
        value = self.tunable.read(self.kernel, target).value
        if value is not None and int(value) <= wanted:
            done = self._reported[target] = max(int(value), self._reported.get(target, 0))
            self.progress(target, done, wanted)
