"""Whose message is looked at next, and when: whatever one sender sends, the others' come in between; parses nothing.

Self-clocked fair queueing: each message is tagged with the amount of work its sender will have caused once it is done,
and the lowest tag is next. A sender who was idle starts where the others are.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

from kerntune.bus.frames import Frame

# Work is counted in bytes to parse; a message without any costs about as much as this many.
OVERHEAD: Final = 512
# What may wait. dbus-daemon lets a client of the system bus wait for 128 replies (max_replies_per_connection).
UNANSWERED: Final = 32  # messages of one sender, above which those that nobody waits for are dropped
WAITING: Final = 256  # messages of one sender
LONG: Final = 512 << 10  # bytes of one sender, above which only the headers are kept, and answered LimitsExceeded
TOTAL: Final = 8 << 20  # bytes of all senders, likewise
MOST: Final = 2 * TOTAL  # bytes of all senders

SLICE: Final = 0.001  # seconds of looking at messages before other tasks have their turn
BATCH: Final = 16  # messages in a slice: what they begin costs more than they do, and the socket fills meanwhile
HEAVY: Final = 16 << 10  # bytes; a longer message waits until no more comes, for others' may be behind it
QUIET: Final = 0.005  # seconds without a read, after which no more comes
PATIENCE: Final = 0.5  # seconds between two long messages when more comes all the time


class _Sender:
    """What waits of one sender, and the tag of its last message."""

    __slots__ = ("bytes", "messages", "tag")

    def __init__(self, tag: int) -> None:
        self.messages = self.bytes = 0
        self.tag = tag


class Turns:
    """Messages that wait, at most `MOST` bytes of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, bytes, Frame]] = []
        self._senders: dict[bytes, _Sender] = {}
        self._order = count()
        self._now = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, sender: bytes, frame: Frame) -> bool:
        """Queue a message; False when it is dropped, because too much waits already."""
        found = self._senders.get(sender)
        if found is None:
            found = _Sender(self._now)
        if found.messages >= (UNANSWERED if frame.unanswered else WAITING):
            return False
        if found.bytes + len(frame.data) > LONG or self._bytes + len(frame.data) > TOTAL:
            if frame.unanswered:
                return False
            frame = frame.cut()
        size = len(frame.data)
        if self._bytes + size > MOST:
            return False
        self._senders[sender] = found
        found.messages += 1
        found.bytes += size
        self._bytes += size
        found.tag = max(found.tag, self._now) + OVERHEAD + size
        heapq.heappush(self._heap, (found.tag, next(self._order), sender, frame))
        return True

    @property
    def size(self) -> int:
        """Bytes of the message whose turn it is, 0 when none waits."""
        return len(self._heap[0][-1].data) if self._heap else 0

    def take(self) -> Frame:
        """The message whose turn it is; IndexError when none waits."""
        self._now, _, sender, frame = heapq.heappop(self._heap)
        self._bytes -= len(frame.data)
        found = self._senders[sender]
        found.messages -= 1
        found.bytes -= len(frame.data)
        if not found.messages:
            del self._senders[sender]
        return frame


class Intake:
    """Hands what waits in `turns` to `receive`, in the loop's own time."""

    def __init__(self, receive: Callable[[Frame], None]) -> None:
        self.turns = Turns()
        self._receive = receive
        self._next: asyncio.Handle | None = None
        self._read_at = self._heavy_at = 0.0
        self._more = False
        self._stopped = False

    def run(self, *, more: bool) -> None:
        """The socket was read, and the messages are queued; with `more` it holds others still."""
        if self.turns and not self._stopped:
            self._read_at = asyncio.get_running_loop().time()
            self._more = more
            if self._next is None or isinstance(self._next, asyncio.TimerHandle):
                self._take()

    def stop(self) -> None:
        """What waits is of no use any more."""
        self._stopped = True
        if self._next:
            self._next.cancel()

    def _take(self) -> None:
        """Look at messages for a while; then the calls that this began, and the socket, have their turn.

        While the socket holds more it is one message at a time: what is behind has to be sorted before it is too much.
        """
        if self._next:
            self._next.cancel()
            self._next = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = now if self._more else now + SLICE
        self._more = False
        for _ in range(BATCH):
            if not self.turns or self._stopped:
                break
            if self.turns.size > HEAVY:
                if now < min(self._read_at + QUIET, self._heavy_at + PATIENCE):
                    self._next = loop.call_later(QUIET, self._take)
                    return
                self._heavy_at = now
            self._receive(self.turns.take())
            now = loop.time()
            if now >= until:
                break
        if self.turns and not self._stopped:
            self._next = loop.call_soon(self._take)
