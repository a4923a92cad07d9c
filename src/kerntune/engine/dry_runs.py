"""What those who only look share: work that has not begun when they ask for it, and what it reads of the host.

Whoever asks is told what is so after he has asked, as if nobody else had.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

from kerntune.engine.passes import PassInput, PassRunner, Result
from kerntune.kernel.files import Kernel, KernelError, OpenFile
from kerntune.model import Lane

Found = TypeVar("Found")


class Shared(Generic[Found]):
    """Does one thing again and again, once at a time: all who ask before it begins share what it returns."""

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
    """A kernel of which everything is read once; one thread at a time, and nothing is written.

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
    """Dry runs in the one thread for what anybody may ask for: those that wait there share a look at the host.

    A look serves those who had asked before it began, until a pass begins to write or ends: what passes remember would
    not be that of the same moment.
    """

    def __init__(self, kernel: Kernel, state: Callable[[], object]) -> None:
        """`state` returns how far the passes are; any thread may call it."""
        self._kernel, self._state = kernel, state
        self._asked = self._waiting = 0
        self._snapshot: Snapshot | None = None

    @contextlib.contextmanager
    def asking(self) -> Iterator[Callable[[PassRunner, PassInput], Result]]:
        """Give what makes a dry run of a lane, in that thread: it sees nothing that was read before now."""
        self._asked += 1
        self._waiting += 1
        try:
            yield partial(self._run, self._asked)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._snapshot = None

    def _run(self, asked: int, runner: PassRunner, given: PassInput) -> Result:
        # The counters of memory move with every program, and some are read until they stand still; they are few.
        if any(tunable.lane is Lane.MEMORY for tunable in runner.tunables):
            return runner.run(given)
        return replace(runner, kernel=self._since(asked)).run(given)

    def _since(self, asked: int) -> Snapshot:
        known, state = self._snapshot, self._state()
        if known is None or known.number < asked or known.state != state:
            known = self._snapshot = Snapshot(self._kernel, self._asked, state)
        return known
