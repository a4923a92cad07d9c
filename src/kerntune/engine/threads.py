"""The engine's threads: what may take long never runs in the event loop, nor waits for work of another kind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple

from kerntune.engine.writing import WRITERS
from kerntune.model import Lane

Found = TypeVar("Found")
Given = TypeVarTuple("Given")
READERS: Final = 2
PATIENCE: Final = 1.0  # seconds


class Threads:
    """Passes have theirs, a lane's writes, a lane's looks, saves, and rehearsals; made when they are needed.

    What anybody may ask for has few, and where one lane hangs the looks of the others go on.
    """

    def __init__(self) -> None:
        self.passes = ThreadPoolExecutor(len(Lane), "pass")
        self.writers = {lane: ThreadPoolExecutor(WRITERS, f"write {lane}") for lane in Lane}
        self._looks = {lane: ThreadPoolExecutor(1, f"look {lane}") for lane in Lane}
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._open = ThreadPoolExecutor(1, "open")
        self._savers = ThreadPoolExecutor(1, "save")

    def look(self, lane: Lane, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run a look at a lane."""
        return asyncio.get_running_loop().run_in_executor(self._looks[lane], work, *given)

    def read(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that only looks, for a caller who was authorised."""
        return asyncio.get_running_loop().run_in_executor(self._readers, work, *given)

    def open(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that only looks and that anybody may ask for: no authorised call waits behind it."""
        return asyncio.get_running_loop().run_in_executor(self._open, work, *given)

    def save(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that writes to disk; in the order in which it is asked for."""
        return asyncio.get_running_loop().run_in_executor(self._savers, work, *given)

    def prepare(self) -> None:
        """Make the threads that any call may need: while memory is short there may be no room for them."""
        gate = threading.Event()
        # Where there is no room even now, those that there are have to do.
        with contextlib.suppress(RuntimeError):
            looks = [(pool, 1) for pool in self._looks.values()]
            for pool, count in (
                (self.passes, len(Lane)),
                (self._readers, READERS),
                (self._open, 1),
                (self._savers, 1),
                *looks,
            ):
                for _ in range(count):
                    # One that waits for the gate makes the pool start another.
                    pool.submit(gate.wait, PATIENCE)
        gate.set()

    def close(self) -> None:
        """Let go of the threads; a write that has begun is finished by the kernel."""
        for pool in (
            self.passes,
            self._readers,
            self._open,
            self._savers,
            *self._looks.values(),
            *self.writers.values(),
        ):
            pool.shutdown(wait=False, cancel_futures=True)
