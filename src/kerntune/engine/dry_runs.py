"""Dry runs: passes that stop before they write, for those who only look.

Callers share work that has not begun when they ask for it, and what it reads of the host. Each caller gets an answer
that was true after the call came, as if there were no other caller.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

from kerntune.engine.claims import Edit, PassInput
from kerntune.engine.edits import Edits
from kerntune.engine.passes import PassRunner
from kerntune.engine.results import Result, merge
from kerntune.engine.workers import LaneQueue, Run, Threads
from kerntune.kernel.files import Kernel, KernelError, OpenFile
from kerntune.model import Lane, Limits

Found = TypeVar("Found")


class Shared(Generic[Found]):
    """Work that runs again and again, once at a time: all callers that come before it begins share its result."""

    def __init__(self, work: Callable[[], Awaitable[Found]]) -> None:
        self._work = work
        self._running: asyncio.Task[Found] | None = None
        self._next: asyncio.Task[Found] | None = None

    async def __call__(self) -> Found:
        """Return what work that begins after now returns, or raise what it raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
            self._next.add_done_callback(seen)
        # Others wait for the same, and this caller may go.
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[Found] | None) -> Found:
        if before:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._work()


def seen(task: asyncio.Task[Found]) -> None:
    """Take note of an error that nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()


@dataclass(slots=True)
class Snapshot:
    """A kernel that reads each file once, in one thread at a time, and writes nothing.

    `number` is that of the last dry run that had been asked for when it began, `state` how far the passes were then.
    """

    kernel: Kernel
    number: int
    state: object
    simulated: bool = field(init=False)
    _texts: dict[str, str | KernelError] = field(default_factory=dict)
    _found: dict[str, Sequence[str]] = field(default_factory=dict)
    _links: dict[str, Sequence[str]] = field(default_factory=dict)
    _identities: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.simulated = self.kernel.simulated

    def read(self, path: str) -> str:
        known = self._texts.get(path)
        if known is None:
            try:
                known = self.kernel.read(path)
            except KernelError as error:
                known = error
            self._texts[path] = known
        if isinstance(known, KernelError):
            raise KernelError(known.errno, known.strerror, path)
        return known

    def glob(self, pattern: str) -> Sequence[str]:
        if pattern not in self._found:
            self._found[pattern] = self.kernel.glob(pattern)
        return self._found[pattern]

    def links(self, device: str) -> Sequence[str]:
        if device not in self._links:
            self._links[device] = self.kernel.links(device)
        return self._links[device]

    def identity(self, path: str) -> str:
        if path not in self._identities:
            self._identities[path] = self.kernel.identity(path)
        return self._identities[path]

    def write(self, path: str, text: str) -> None:  # noqa: ARG002
        raise KernelError(errno.EROFS, os.strerror(errno.EROFS), path)

    def open(self, path: str, *, writable: bool = False) -> OpenFile:
        if writable:
            raise KernelError(errno.EROFS, os.strerror(errno.EROFS), path)
        return self.kernel.open(path)


class DryRuns:
    """Dry runs of the lanes. In the one thread for what anybody may ask for, those that wait share a look at the host.

    A look serves those who had asked before it began, until a pass begins to write or ends: what passes remember would
    not be that of the same moment.
    """

    def __init__(
        self,
        kernel: Kernel,
        lanes: Mapping[Lane, LaneQueue],
        edits: Edits,
        threads: Threads,
        passes: Callable[[], tuple[int, ...]],
    ) -> None:
        """Take the parts; `passes` returns how many passes of each lane have ended; any thread may call it."""
        self._kernel, self._lanes, self._edits = kernel, lanes, edits
        self._threads, self._passes = threads, passes
        self._asked = self._waiting = 0
        self._snapshot: Snapshot | None = None

    async def read(self, lane: Lane) -> Result:
        """Read a lane, in the thread for its looks."""
        return await self._threads.look(lane, self._lanes[lane].runner.run, self._edits.looking())

    async def read_all(self) -> Result:
        """Read every lane, in the thread for what anybody may ask for."""
        return merge(await self._look(self._edits.looking(), Lane, self._threads.open))

    async def rehearse(self, edit: Edit, lanes: Iterable[Lane]) -> Result:
        """Return the result of a pass of these lanes for an edit whose caller was authorised."""
        return merge(await self._look(self._edits.foreseeing(edit), lanes, self._threads.read))

    async def foresee(self, edit: Edit, lanes: Iterable[Lane], limits: Limits | None = None) -> Result:
        """Return the result of a pass of these lanes for an edit that anybody may ask about.

        `limits` are those that there would be with the edit, where it changes them.
        """
        self._asked += 1
        self._waiting += 1
        try:
            run = partial(self._run, self._asked, limits)
            given = self._edits.foreseeing(edit, recalls=True)
            return merge(await self._look(given, lanes, self._threads.open, run))
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._snapshot = None

    async def _look(
        self,
        given: PassInput,
        lanes: Iterable[Lane],
        thread: Run,
        run: Callable[[PassRunner, PassInput], Result] = PassRunner.run,
    ) -> list[Result]:
        return list(await asyncio.gather(*(thread(run, self._lanes[lane].runner, given) for lane in lanes)))

    def _run(self, asked: int, limits: Limits | None, runner: PassRunner, given: PassInput) -> Result:
        """Run it on what was read since it was asked for."""
        runner = replace(runner, limits=limits) if limits else runner
        # The counters of memory move with every program, and some are read until they stand still; they are few.
        if any(tunable.lane is Lane.MEMORY for tunable in runner.tunables):
            return runner.run(given)
        return replace(runner, kernel=self._since(asked)).run(given)

    def _since(self, asked: int) -> Snapshot:
        known, state = self._snapshot, self._state()
        if known is None or known.number < asked or known.state != state:
            known = self._snapshot = Snapshot(self._kernel, self._asked, state)
        return known

    def _state(self) -> object:
        """Return what is otherwise when a pass has begun to write, or has ended."""
        return self._passes(), [bool(queue.runner.writing) for queue in self._lanes.values()]
