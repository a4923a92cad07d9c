"""The engine's threads: what may take long never runs in the event loop, nor waits for work of another kind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple

from kerntune.engine.hung import Crew
from kerntune.engine.writer import WRITERS
from kerntune.model import Lane

Found = TypeVar("Found")
Given = TypeVarTuple("Given")
READERS: Final = 2
LOOKING: Final = READERS + 3  # who may read a lane at the same time: these, a pass, a look, and the open calls
CLOSE_SECONDS: Final = 1.0  # seconds


class Threads:
    """Passes have theirs, a lane's devices, a lane's looks, saves, and rehearsals; made when they are needed.

    What anybody may ask for has few, and where one lane hangs the looks of the others go on.
    """

    def __init__(self) -> None:
        self.passes = ThreadPoolExecutor(len(Lane), "pass")
        self.crews = {lane: Crew(WRITERS + LOOKING, f"devices {lane}") for lane in Lane}
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
            pools: list[tuple[ThreadPoolExecutor | Crew, int]] = [
                (self.passes, len(Lane)),
                (self._readers, READERS),
                (self._open, 1),
                (self._savers, 1),
                *((pool, 1) for pool in self._looks.values()),
                # A pass and a look; memory has no devices.
                *((self.crews[lane], 2) for lane in (Lane.CPU, Lane.BLOCK)),
            ]
            for pool, count in pools:
                for _ in range(count):
                    # One that waits for the gate makes the pool start another.
                    pool.submit(gate.wait, CLOSE_SECONDS)
        gate.set()

    def close(self) -> None:
        """Let go of the threads; a write that has begun is finished by the kernel."""
        for pool in (
            self.passes,
            self._readers,
            self._open,
            self._savers,
            *self._looks.values(),
        ):
            pool.shutdown(wait=False, cancel_futures=True)
        for crew in self.crews.values():
            crew.close()
