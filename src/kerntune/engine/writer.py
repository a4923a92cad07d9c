"""Carries out the writes that were planned, one after the other or side by side, and tells how far they are."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from kerntune.engine.halt import Halt
from kerntune.engine.hung import Crew, Hung, over
from kerntune.engine.progress import Progress
from kerntune.kernel.files import Kernel, KernelError
from kerntune.model import Step, Target, Write
from kerntune.tunables.base import Tunable

PROGRESS_SECONDS: Final = 0.25
A_MOMENT: Final = 0.002  # seconds in which a kernel that is not slow has done more than FEW steps
FEW: Final = 4
WRITERS: Final = 32  # threads that write at the same time


@dataclass(slots=True)
class _Job:
    """What one of the threads is at; `left`: nobody waits for it any more."""

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

    Without `threads` every write is made where it is asked for, and nobody is told how far it is. With them, a write
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
    _told: dict[Target, int] = field(default_factory=dict)

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
            self._tell_progress()
            if self.tunable.parallel and (left := [job for job in jobs if self._leave(jobs[job])]):
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

    def _leave(self, job: _Job) -> bool:
        """Leave a thread behind that has been inside a step for too long; return whether it was so."""
        with self._lock:
            if job.step is None or time.monotonic() - job.since < self.hung.bounds.write:
                return False
            job.left = True
            target = job.step.desired.target
            self.hung.mark(target.instance, job.path, write=True)
            self.errors.pop(target, None)
            return True

    def attempt(self, write: Write) -> int:
        """0, or the errno of the kernel's refusal; nothing is written any more when the pass is to be over."""
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
                # The last write may have been cut short as well: what is read back tells.
                self.cut.add(step.desired.target)
        return False

    def _tell_progress(self) -> None:
        """Return the progress of a count that grows, never less than the one reported before."""
        if not (self.progress and self.tunable.has_progress and self._writing):
            return
        target, wanted = self._writing.desired.target, int(self._writing.desired.value)
        value = self.tunable.read(self.kernel, target).value
        if value is not None and int(value) <= wanted:
            done = self._told[target] = max(int(value), self._told.get(target, 0))
            self.progress(target, done, wanted)
