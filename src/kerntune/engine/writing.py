"""Carries out the writes that were planned, one after the other or side by side, and tells how far they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from kerntune.engine.halt import Halt
from kerntune.engine.progress import Progress
from kerntune.kernel.files import Kernel, KernelError
from kerntune.model import Step, Target, Write
from kerntune.tunables.base import Tunable

PROGRESS_SECONDS: Final = 0.25
A_MOMENT: Final = 0.002  # seconds in which a kernel that is not slow has done more than FEW steps
FEW: Final = 4
WRITERS: Final = 32  # threads that write at the same time


@dataclass(slots=True)
class Writer:
    """The writes of one tunable in one pass. `errors` are the errnos of targets whose last write was refused.

    `cut` are the targets whose writes were not all made, for the pass was to be over.

    Without `threads` every write is made where it is asked for, and nobody is told how far it is.
    """

    kernel: Kernel
    tunable: Tunable
    threads: ThreadPoolExecutor | None
    progress: Progress | None
    errors: dict[Target, int] = field(default_factory=dict)
    halt: Halt = field(default_factory=Halt)
    cut: set[Target] = field(default_factory=set)
    _writing: Step | None = None
    _told: dict[Target, int] = field(default_factory=dict)

    def write(self, steps: Sequence[Step]) -> None:
        """The writes of a step in their order; steps side by side where the tunable allows it and writes are slow."""
        todo = deque(step for step in steps if step.writes)
        if self.threads is None or not (self.tunable.parallel or (self.tunable.counted and self.progress)):
            self._carry_out(todo)
            return
        all_of_them = len(todo)
        jobs = [self.threads.submit(self._carry_out, todo)]
        wait(jobs, timeout=A_MOMENT)
        # Quick writes are quicker one after the other: threads of Python get in each other's way.
        slow = all_of_them - len(todo) <= FEW
        while True:
            if slow and self.tunable.parallel and len(jobs) == 1:
                jobs += [self.threads.submit(self._carry_out, todo) for _ in range(min(len(todo), WRITERS - 1))]
            if not wait(jobs, timeout=PROGRESS_SECONDS).not_done:
                break
            slow = True
            self._tell_progress()
        for job in jobs:
            job.result()

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

    def _carry_out(self, todo: deque[Step]) -> None:
        """Take steps until there are none, as others may do at the same time."""
        while todo:
            try:
                step = todo.popleft()
            except IndexError:
                return
            self._writing = step
            if self.halt.asked:
                self.cut.add(step.wish.target)
                continue
            pieces = (piece for write in step.writes for piece in self.tunable.pieces(self.kernel, write))
            if code := next(filter(None, map(self.attempt, takewhile(self._goes_on, pieces))), 0):
                self.errors[step.wish.target] = code
            else:
                self.errors.pop(step.wish.target, None)
            if self.halt.asked:
                # The last write may have been cut short as well: what is read back tells.
                self.cut.add(step.wish.target)

    def _goes_on(self, _piece: Write) -> bool:
        return not self.halt.asked

    def _tell_progress(self) -> None:
        """How far the kernel has come with what is counted and grows; never less than was told before."""
        if not (self.progress and self.tunable.counted and self._writing):
            return
        target, wanted = self._writing.wish.target, int(self._writing.wish.value)
        value = self.tunable.read(self.kernel, target).value
        if value is not None and int(value) <= wanted:
            done = self._told[target] = max(int(value), self._told.get(target, 0))
            self.progress(target, done, wanted)
