"""The data to write to the bus: it is queued while the socket is full. A bus that has stopped reading is given up."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

log = logging.getLogger(__name__)

MAX_QUEUE: Final = 64 << 20  # bytes that wait for a bus which does not read
STALLED: Final = 30.0  # seconds in which more data waits than the socket takes
HIGH_WATER: Final = 64 << 10  # bytes asyncio may hold before it tells us to pause


class Outbox:
    """A queue that sends in order and never blocks; asyncio's flow control drives it through `pause` and `resume`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._transport = transport
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._paused = False
        self._stall: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Return whether sent data still has a chance to arrive."""
        return not self._transport.is_closing()

    def send(self, data: bytes) -> None:
        """Write `data` now, or after the queued data; drop it if the connection is closing."""
        if not self.open:
            return
        if not self._paused:
            self._transport.write(data)
            return
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > MAX_QUEUE:
            self.give_up(f"the bus does not read: {self._queued} bytes wait")

    def pause(self) -> None:
        """Queue data from now on: the socket is full."""
        self._paused = True
        self._stall = asyncio.get_running_loop().call_later(STALLED, self.give_up, "the bus has stopped reading")

    def resume(self) -> None:
        """Write the queued data: the socket takes data again. Writing may pause the queue again at once."""
        self._paused = False
        self._cancel_stall()
        while self._queue and not self._paused:
            data = self._queue.popleft()
            self._queued -= len(data)
            self._transport.write(data)

    def finish(self) -> None:
        """Write the queued data, and then close the connection."""
        while self._queue:
            self._transport.write(self._queue.popleft())
        self._transport.close()

    def lost(self) -> None:
        """Drop the queue: the connection has ended, and no queued data will go out."""
        self._queue.clear()
        self._cancel_stall()

    def give_up(self, why: str) -> None:
        """End the connection at once, and log why."""
        if self.open:
            log.error("%s; leaving the bus", why)
            self.abort()

    def abort(self) -> None:
        """End the connection at once, without a log line."""
        self._transport.abort()

    def _cancel_stall(self) -> None:
        if self._stall:
            self._stall.cancel()
