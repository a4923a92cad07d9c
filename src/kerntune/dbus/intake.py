"""The messages that a service takes in: users have their turns, and at most some calls of each are in service.

`Intake` looks at waiting messages for a slice of time, and asks the bus whose they are. `Places` are for calls in
service: a user at the limit is paused, and goes on when a place is free.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from kerntune.dbus.fair_queue import MAX_BODY, SPARE, FairQueue
from kerntune.dbus.framing import Frame
from kerntune.dbus.users import UNKNOWN, Users, is_root

SLICE: Final = 0.001  # seconds to look at messages before other tasks have their turn
BATCH: Final = 16  # messages in a slice: the calls that they begin cost more, and the socket fills meanwhile
HEAVY: Final = 16 << 10  # bytes; a longer message waits until no more data comes: messages of others may be behind it
QUIET: Final = 0.005  # seconds without a read, after which no more data is expected
LONG_MESSAGE_INTERVAL: Final = 0.5  # seconds between two long messages while more data comes all the time

ASKING: Final = 16  # questions to the bus at once, of the 128 calls that it lets a connection wait for
ASIDE: Final = 4096  # senders that the bus is asked about; it has 2048 connections (max_completed_connections)
STALE: Final = 0.05  # seconds that a message has waited, after which its sender may have left the bus


class Intake:
    """The part that hands the messages in `queue` to `receive`, in the loop's own time, with the uid of the sender."""

    def __init__(self, receive: Callable[[Frame, int], None], users: Users, queue: FairQueue | None = None) -> None:
        self.queue = FairQueue() if queue is None else queue
        self._receive = receive
        self._users = users
        self._next: asyncio.Handle | None = None
        self._read_at = self._heavy_at = 0.0
        self._more = False
        self._at_once = 0
        self._stopped = False
        self._doubted: deque[bytes] = deque()
        self._asking: set[asyncio.Task[None]] = set()

    def put(self, sender: bytes, frame: Frame) -> bool:
        """Queue a message, and ask the bus for its sender's user. Return False if too much waits already.

        If nothing waits, the first short messages of a read have their turn at once.
        """
        uid = self._users.known(sender.decode()) if sender else UNKNOWN
        if uid is not None and self._at_once and len(frame.data) <= SPARE and self.queue.idle and not self._stopped:
            self._at_once -= 1
            self._receive(frame, uid)
            return True
        stranger = uid is None and not self.queue.is_aside(sender)
        if stranger and self.queue.aside >= ASIDE:
            return False
        kept = self.queue.put(uid, sender, frame, asyncio.get_running_loop().time())
        if kept and stranger:
            self._ask(sender)
        return kept

    def run(self, *, more: bool) -> None:
        """Look at the messages that were queued by a read; with `more` the socket still holds others."""
        self._at_once = BATCH
        if self.queue.next and not self._stopped:
            self._read_at = asyncio.get_running_loop().time()
            self._more = more
            if self._next is None or isinstance(self._next, asyncio.TimerHandle):
                self._take()

    def pause(self, uid: int) -> None:
        """Give this user no turn until `resume`."""
        self.queue.pause(uid)

    def resume(self, uid: int) -> None:
        """Give this user its turns again."""
        self.queue.resume(uid)
        self._soon()

    def stop(self) -> None:
        """Look at no more messages: those that wait are of no use any more."""
        self._stopped = True
        if self._next:
            self._next.cancel()

    def _soon(self) -> None:
        if self._next is None and self.queue.next and not self._stopped:
            self._next = asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        """Look at messages for a while; then the calls that they began, and the socket, have their turn.

        While the socket holds more, look at one message at a time: others behind it must be sorted before they are too
        many.
        """
        if self._next:
            self._next.cancel()
            self._next = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = now if self._more else now + SLICE
        self._more = False
        for _ in range(BATCH):
            turn = self.queue.next
            if turn is None or self._stopped:
                break
            if len(turn.frame.data) > HEAVY:
                if now < min(self._read_at + QUIET, self._heavy_at + LONG_MESSAGE_INTERVAL):
                    self._next = loop.call_later(QUIET, self._take)
                    return
                self._heavy_at = now
            # The bus is already asked about a sender that was forgotten meanwhile and has sent more.
            doubted = now - turn.since > STALE and not self.queue.is_aside(turn.sender)
            if turn.sender and doubted and self.queue.aside < ASIDE:
                self.queue.set_aside()
                self._ask(turn.sender)
            else:
                self.queue.pop()
                too_long = len(turn.frame.data) > MAX_BODY and turn.frame.body > MAX_BODY and not is_root(turn.uid)
                self._receive(turn.frame.header() if too_long else turn.frame, turn.uid)
            now = loop.time()
            if now >= until:
                break
        self._soon()

    def _ask(self, sender: bytes) -> None:
        """Ask the bus about a sender that was set aside, when the questions before it are answered."""
        self._doubted.append(sender)
        if len(self._asking) < ASKING:
            task = asyncio.get_running_loop().create_task(self._identify())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _identify(self) -> None:
        """Ask the bus about one sender after the other, until none is left."""
        while self._doubted and not self._stopped:
            sender = self._doubted.popleft()
            uid = await self._users.still(sender.decode())
            self.queue.identify(sender, uid, asyncio.get_running_loop().time())
            self._soon()


class Places:
    """At most `most` places for each user. `pause` gets the uid when the last is taken, `resume` when one is free."""

    def __init__(self, most: int, pause: Callable[[int], None], resume: Callable[[int], None]) -> None:
        self._most, self._pause, self._resume = most, pause, resume
        self.taken: Counter[int] = Counter()

    def take(self, uid: int, places: int = 1) -> Place:
        """Take places for a call of this user, even above the limit: a call that waited aside comes back to them."""
        place = Place(self, uid, places)
        place.take()
        return place

    def change(self, uid: int, by: int) -> None:
        """Count places that were taken, or given back (negative)."""
        before = self.taken[uid]
        now = before + by
        if now:
            self.taken[uid] = now
        else:
            del self.taken[uid]
        if before < self._most <= now:
            self._pause(uid)
        elif now < self._most <= before:
            self._resume(uid)


class Place:
    """The place of one call, or the places of a long one."""

    __slots__ = ("_count", "_places", "_uid", "taken")

    def __init__(self, places: Places, uid: int, count: int) -> None:
        self._places, self._uid, self._count, self.taken = places, uid, count, False

    @property
    def is_long(self) -> bool:
        """Return whether the call takes several places."""
        return self._count > 1

    @property
    def is_root(self) -> bool:
        """Return whether the call is root's."""
        return is_root(self._uid)

    def take(self) -> None:
        """Take the place, if the call does not have it."""
        if not self.taken:
            self.taken = True
            self._places.change(self._uid, self._count)

    def give_back(self) -> None:
        """Give the place back, if the call has it."""
        if self.taken:
            self.taken = False
            self._places.change(self._uid, -self._count)
