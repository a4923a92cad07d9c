"""Data that nobody takes: the bus that does not read, and clients that do not read what the bus keeps for them.

A bus that has stopped reading is given up. A client with too many unread bytes gets no more.

dbus-daemon stops reading from a connection of which it keeps more than max_incoming_bytes (127 MiB, dbus-daemon(1)). So
one client that asks and never reads would cut off everybody. The bus itself reports what it keeps for each client
(org.freedesktop.DBus.Debug.Stats, for root). If it does not, no client is refused: dbus-broker charges the reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from kerntune import errors

log = logging.getLogger(__name__)

MAX_QUEUE: Final = 64 << 20  # bytes that wait for a bus which does not read
STALLED: Final = 30.0  # seconds in which more data waits than the socket takes
HIGH_WATER: Final = 64 << 10  # bytes asyncio may hold before it tells us to pause

SMALL: Final = 64 << 10  # bytes; a client that was sent less is not looked at, and the bus limits their number
CLIENT: Final = 4 << 20  # bytes that one client may leave unread
SILENCE: Final = CLIENT + (256 << 10)  # bytes, above which a client is not even refused: it would not read that either
USER: Final = 16 << 20  # bytes that all clients of a user may leave unread
ALL: Final = 96 << 20  # bytes that all clients together may leave unread
INTERVAL: Final = 0.05  # seconds between two questions about a client that has much to read
OURSELVES: Final = 8 << 20  # bytes sent between two questions about all that we sent
CLIENTS: Final = 4096  # accounts of clients that were sent little; a client that comes once has one too
LARGE: Final = 256  # clients that were sent much, above which the bus is asked whether the oldest are still there

Ask = Callable[[str], Awaitable[tuple[int, int]]]


class _Client:
    """The account of one client: `sent` is an upper bound of its unread bytes, `kept` the last answer of the bus."""

    __slots__ = ("asked", "kept", "looking", "sent", "uid")

    def __init__(self) -> None:
        self.sent = self.kept = 0
        self.uid: int | None = None
        self.asked = -INTERVAL
        self.looking = asyncio.Lock()


class Unread:
    """The accounts of what is sent, by client.

    `ask`: unique name -> bytes that the bus keeps from the connection, and bytes that it keeps for it to read. It
    raises Unreachable for a client that has left, and another KerntuneError if the bus does not tell.
    `uid_of`: unique name -> uid.
    """

    def __init__(self, ask: Ask, uid_of: Callable[[str], Awaitable[int]]) -> None:
        self._ask, self._uid_of = ask, uid_of
        self._small: dict[str, _Client] = {}  # clients with SMALL at most, the oldest first
        self._large: dict[str, _Client] = {}  # clients with more
        self._since = 0
        self._blind = False

    def sent(self, size: int, to: str | None) -> None:
        """Count bytes that were sent to a client, or to all listeners."""
        if self._blind:
            return
        self._since += size
        if to is None:
            return
        client = self._large.get(to) or self._small.get(to)
        if client is None:
            if len(self._small) >= CLIENTS:
                del self._small[next(iter(self._small))]
            client = self._small[to] = _Client()
        client.sent += size
        if client.sent > SMALL and to in self._small:
            self._large[to] = self._small.pop(to)

    def is_silent(self, name: str) -> bool:
        """Return whether the client leaves so much unread that a refusal would only add to it."""
        return name in self._large and self._large[name].sent > SILENCE

    async def wait_for_room(self, name: str) -> None:
        """Return when more may be sent to this client. Raise LimitsExceeded if it, or its user, has to read first."""
        client = self._large.get(name)
        if client is None:
            return
        if client.uid is None:
            client.uid = await self._uid_of(name)
        if client.sent > CLIENT:
            await self._look(name, above=CLIENT)
        if self._of_user(client.uid) > USER:
            await self._look(*(other for other, found in self._large.items() if found.uid == client.uid))
        if self._blind:
            return
        if client.sent > CLIENT:
            raise errors.LimitsExceeded(
                f"{client.sent} bytes of replies to you wait", "Read them before you ask for more"
            )
        if client.sent > SMALL and (waiting := self._of_user(client.uid)) > USER:
            raise errors.LimitsExceeded(
                f"{waiting} bytes of replies to clients of uid {client.uid} wait", "Some of them do not read"
            )

    async def too_much(self, ourselves: str) -> int:
        """Return the bytes that the bus keeps of all we have sent, if more than is safe, else 0. Ask it seldom."""
        if self._since < OURSELVES or self._blind:
            return 0
        self._since = 0
        # At most OURSELVES / SMALL clients were sent much since the last time, so no client that left stays for good.
        await self._look(*list(self._large)[: max(0, min(len(self._large) - LARGE, LARGE))])
        kept = await self._stats(ourselves)
        return kept[0] if kept and kept[0] > ALL else 0

    def _of_user(self, uid: int) -> int:
        return sum(client.sent for client in self._large.values() if client.uid == uid)

    async def _look(self, *names: str, above: int = 0) -> None:
        """Ask the bus about unread bytes of clients that were sent more than `above`, about each not twice at once."""
        for name in names:
            client = self._large.get(name)
            if client is None or self._blind:
                continue
            async with client.looking:
                news = client.kept <= above or self._now() - client.asked >= INTERVAL
                if news and client.sent > above:
                    await self._look_at(name, client)

    async def _look_at(self, name: str, client: _Client) -> None:
        before = client.sent
        kept = await self._stats(name)
        client.asked = self._now()
        if kept is None:
            return
        # The bus has handled all that was sent before the question.
        client.kept = kept[1]
        client.sent += client.kept - before
        if client.sent <= SMALL:
            self._large.pop(name, None)

    async def _stats(self, name: str) -> tuple[int, int] | None:
        """Return the bytes that the bus keeps from and for a connection; None if it does not say."""
        try:
            return await self._ask(name)
        except errors.Unreachable:
            return 0, 0
        except (errors.AccessDenied, errors.UnknownMethod, errors.UnknownInterface, errors.UnknownObject):
            self._blind = True
            self._small.clear()
            self._large.clear()
            return None
        except errors.KerntuneError:
            return None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class WriteQueue:
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
            self.disconnect(f"the bus does not read: {self._queued} bytes wait")

    def pause(self) -> None:
        """Queue data from now on: the socket is full."""
        self._paused = True
        self._stall = asyncio.get_running_loop().call_later(STALLED, self.disconnect, "the bus has stopped reading")

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

    def disconnect(self, why: str) -> None:
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
