"""The order of waiting messages: users have their turns, however much one user sends. This module parses nothing.

It is self-clocked fair queueing, twice: users have equal shares, and the connections of a user have equal shares of
its share. A waiting message is tagged with the amount of work that its user, or connection, will have caused once it
is done. The lowest tag is next. A user, or connection, that was idle starts where the others are.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple

from kerntune.dbus.framing import Frame
from kerntune.dbus.users import UNKNOWN

# Work is counted in bytes to parse; a message without any bytes costs about as much as this many bytes.
OVERHEAD: Final = 512
# The limits of the queue. dbus-daemon lets a client of the system bus wait for 128 replies
# (max_replies_per_connection).
UNANSWERED: Final = 32  # messages of one sender, above which those that nobody waits for are dropped
WAITING: Final = 256  # messages of one sender
OF_USER: Final = 4096  # messages of one user, above which a sender may have FEW
FEW: Final = 16
REFUSED: Final = 256  # messages of one user that wait to be refused
LONG: Final = 512 << 10  # bytes of one sender, above which only headers are kept, and answered LimitsExceeded
MAX_BODY: Final = 64 << 10  # bytes of a body, except root's; parsing holds the loop for up to 1 us a byte
USER: Final = 2 << 20  # bytes of one user, likewise
TOTAL: Final = 8 << 20  # bytes of all users, likewise
SPARE: Final = 4 << 10  # bytes that a sender may have, however much others of its user, or all others, have
MAX_TOTAL_BYTES: Final = 2 * TOTAL  # bytes of all users


class Turn(NamedTuple):
    """A message whose turn it is, its user and sender; `since` is when it came, or the bus last knew the sender."""

    uid: int
    sender: bytes
    frame: Frame
    since: float


class _Sender:
    """The waiting messages of one connection, each with the time at which it came; `tag` belongs to the first."""

    __slots__ = ("bytes", "frames", "name", "seen", "tag")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.frames: deque[tuple[float, Frame]] = deque()
        self.bytes = self.tag = 0
        self.seen = -math.inf


class _User:
    """The connections of one user; `line` has those that wait only for their turn."""

    __slots__ = ("bytes", "is_paused", "line", "messages", "now", "order", "refused", "senders", "tag", "uid")

    def __init__(self, uid: int | None) -> None:
        self.uid = uid
        self.senders: dict[bytes, _Sender] = {}
        self.line: list[tuple[int, int, _Sender]] = []
        self.refused: deque[tuple[bytes, Frame]] = deque()
        self.messages = self.bytes = self.now = self.tag = self.order = 0
        self.is_paused = False

    @property
    def ready(self) -> bool:
        return bool(self.refused or (self.line and not self.is_paused))

    @property
    def first(self) -> Frame:
        return self.refused[0][1] if self.refused else self.line[0][-1].frames[0][1]

    def key(self) -> tuple[int, int]:
        """Return the tag of the first message, and a number that decides between equal tags."""
        return self.tag + _work(self.first), self.order


def _work(frame: Frame) -> int:
    return OVERHEAD + len(frame.data)


class FairQueue:
    """The waiting messages, at most `MAX_TOTAL_BYTES` bytes of them.

    A user that is paused has no turn, but its surplus calls are refused. Those are the calls above `most` of one
    connection, counted with those that are `busy` already.
    """

    def __init__(self, busy: Callable[[str], int] = lambda _: 0, most: int = WAITING) -> None:
        self._busy, self._most = busy, most
        self._users: dict[int | None, _User] = {}
        self._ready: dict[int | None, _User] = {}
        self._aside: dict[bytes, _User] = {}
        self._order = count()
        self._now = 0
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of waiting messages, with those that have no turn now."""
        return sum(user.messages for user in self._users.values())

    def put(self, uid: int | None, sender: bytes, frame: Frame, now: float = 0.0) -> bool:
        """Queue a message. Return False if it is dropped, because too much waits already.

        Without a uid the sender is set aside, until `identify` gives the uid.
        """
        user = self._aside.get(sender) or self._users.get(uid) or _User(uid)
        found = user.senders.get(sender) or _Sender(sender)
        waiting = len(found.frames)
        if waiting >= (UNANSWERED if frame.unanswered else WAITING) or (waiting >= FEW and user.messages >= OF_USER):
            return False
        if user.is_paused and not frame.unanswered and waiting + self._busy(sender.decode()) >= self._most:
            return self._refuse(user, sender, frame)
        little = found.bytes + len(frame.data) <= SPARE
        crowded = user.bytes + len(frame.data) > USER or self._bytes + len(frame.data) > TOTAL
        if found.bytes + len(frame.data) > LONG or (crowded and not little):
            if frame.unanswered:
                return False
            frame = frame.cut()
        size = len(frame.data)
        if self._bytes + size > MAX_TOTAL_BYTES or (user.bytes + size > 2 * USER and not little):
            return False
        found.frames.append((now, frame))
        found.bytes += size
        self._grow(user, 1, size)
        if not waiting:
            user.senders[sender] = found
            if user.uid is None:
                self._aside[sender] = user
            elif sender not in self._aside:
                self._line_up(user, found)
        self._settle(user)
        return True

    def _refuse(self, user: _User, sender: bytes, frame: Frame) -> bool:
        frame = frame.bodyless()
        size = len(frame.data)
        if len(user.refused) >= REFUSED or self._bytes + size > MAX_TOTAL_BYTES:
            return False
        user.refused.append((sender, frame))
        self._grow(user, 1, size)
        self._settle(user)
        return True

    @property
    def idle(self) -> bool:
        """Return whether no message waits, and no user is paused."""
        return not self._users and not self._aside

    @property
    def next(self) -> Turn | None:
        """The message whose turn it is, if there is one."""
        user = self._first()
        return self._of(user) if user else None

    def _of(self, user: _User) -> Turn:
        uid = UNKNOWN if user.uid is None else user.uid
        if user.refused:
            return Turn(uid, *user.refused[0], math.inf)
        found = user.line[0][-1]
        came, frame = found.frames[0]
        return Turn(uid, found.name, frame, max(came, found.seen))

    def pop(self) -> Turn:
        """Return the message whose turn it is, and end its turn. Raise IndexError if there is none."""
        user = self._first()
        if user is None:
            raise IndexError("no message has its turn")
        turn = self._of(user)
        self._now, _ = user.key()
        user.tag, user.order = self._now, next(self._order)
        if user.refused:
            user.refused.popleft()
        else:
            user.now, _, found = heapq.heappop(user.line)
            found.frames.popleft()
            found.bytes -= len(turn.frame.data)
            if found.frames:
                self._line_up(user, found)
            else:
                del user.senders[found.name]
        self._grow(user, -1, -len(turn.frame.data))
        self._settle(user)
        return turn

    def set_aside(self) -> None:
        """Set aside the sender whose turn it is, until `identify` tells whether it is still there."""
        if user := self._first():
            _, _, found = heapq.heappop(user.line)
            self._aside[found.name] = user
            self._settle(user)

    @property
    def aside(self) -> int:
        """The number of senders that are set aside."""
        return len(self._aside)

    def is_aside(self, sender: bytes) -> bool:
        """Return whether this sender is set aside, until `identify` tells about it."""
        return sender in self._aside

    def identify(self, sender: bytes, uid: int | None, now: float = 0.0) -> None:
        """Give a sender that was set aside to its user. Without a uid it has left the bus: drop all that it sent."""
        was = self._aside.pop(sender, None)
        if was is None:
            return
        found = was.senders.pop(sender)
        self._grow(was, -len(found.frames), -found.bytes)
        if uid is None:
            self._settle(was)
            return
        user = was
        if uid != was.uid:
            self._settle(was)
            user = self._users.get(uid) or _User(uid)
        self._grow(user, len(found.frames), found.bytes)
        if earlier := user.senders.get(sender):
            earlier.frames += found.frames
            earlier.bytes += found.bytes
        else:
            user.senders[sender] = found
            found.seen = now
            if was.uid is not None:
                found.frames[0] = (math.inf, found.frames[0][1])  # its turn had come: it is not doubted again
            if user is was:
                heapq.heappush(user.line, (found.tag, next(self._order), found))
            else:
                self._line_up(user, found)
        if user.is_paused:
            self._trim(user, user.senders[sender])
        self._settle(user)

    def _trim(self, user: _User, found: _Sender) -> None:
        """Refuse the surplus calls of a connection whose user is paused."""
        allowed = max(1, self._most - self._busy(found.name.decode()))
        while len(found.frames) > allowed:
            _, frame = found.frames.pop()
            found.bytes -= len(frame.data)
            self._grow(user, -1, -len(frame.data))
            self._refuse(user, found.name, frame)

    def pause(self, uid: int) -> None:
        """Give this user no turn until `resume`."""
        user = self._users.setdefault(uid, _User(uid))
        user.is_paused = True
        self._settle(user)

    def resume(self, uid: int) -> None:
        """Give this user its turns again."""
        if user := self._users.get(uid):
            user.is_paused = False
            self._settle(user)

    def _first(self) -> _User | None:
        # There are few of them: the bus takes 256 connections of one user.
        return min(self._ready.values(), key=_User.key, default=None)

    def _line_up(self, user: _User, found: _Sender) -> None:
        """Tag the first message of a sender, and put the sender in the line of its user."""
        found.tag = max(found.tag, user.now) + _work(found.frames[0][1])
        heapq.heappush(user.line, (found.tag, next(self._order), found))

    def _grow(self, user: _User, messages: int, size: int) -> None:
        user.messages += messages
        user.bytes += size
        self._bytes += size

    def _settle(self, user: _User) -> None:
        """Update the lists after a change: the user has turns from now on, or none, or is forgotten."""
        if user.messages or user.is_paused:
            self._users[user.uid] = user
        else:
            self._users.pop(user.uid, None)
        if not user.ready:
            self._ready.pop(user.uid, None)
        elif user.uid not in self._ready:
            user.tag, user.order = max(user.tag, self._now), next(self._order)
            self._ready[user.uid] = user
