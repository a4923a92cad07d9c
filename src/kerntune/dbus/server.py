"""The connection of a service, whose callers are not trusted: none of them can stall it, or have it keep too much.

Users have their turns, a user has few calls in service, and a client that does not read its replies gets no more. Every
call runs in a task of its own; nothing here ever waits for a message to be sent.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, cast

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.backpressure import SMALL, Unread
from kerntune.dbus.connection import CHUNK, Connection
from kerntune.dbus.fair_queue import FairQueue
from kerntune.dbus.framing import Frame
from kerntune.dbus.intake import Intake, Place, Places
from kerntune.dbus.messages import Message, MessageFlag, MessageType, ParseCache, error_reply, parse
from kerntune.dbus.users import Users

log = logging.getLogger(__name__)

MAX_CALL: Final = 256 << 10  # bytes of body; parsing holds the loop for 0.3 to 1 us a byte
SHORT: Final = 4 << 10  # bytes; of longer messages the header is looked at first
OF_USER: Final = 8  # places of one user for calls in service that are not authorised yet
OF_A_PLACE: Final = 2 << 10  # bytes; a longer call takes several places, because it costs as much as several
OF_A_CALL: Final = OF_USER // 2  # the most places of one call
MAX_FAILED: Final = 1000  # places in the code whose failures are remembered
LAST_WORDS: Final = 0.05  # seconds that calls have to end by themselves when the service ends
PLACE: Final[ContextVar[Place]] = ContextVar("PLACE")  # of the call that runs

THE_BUS_ITSELF: Final = standard.BUS.encode()


class ServerConnection(Connection):
    """A connection with at most `in_flight` calls of one client, and OF_USER calls of one user (or fewer long ones).

    `answer` turns a call into its reply, and raises a KerntuneError to refuse; calls wait until `open`. Signals go to
    `on_signal`. `takes` decides from the header whether the body will be looked at. If not, a long body is not parsed.
    """

    def __init__(
        self,
        answer: Callable[[Message], Awaitable[Message]],
        on_signal: Callable[[Message], None],
        takes: Callable[[Message], bool],
        *,
        in_flight: int,
        address: str | None = None,
    ) -> None:
        super().__init__(on_signal, max_body=MAX_CALL, address=address)
        self._answer, self._takes, self._in_flight = answer, takes, in_flight
        self.users = Users(self._credentials)
        self._busy: Counter[str] = Counter()
        self._intake = Intake(self._receive, self.users, FairQueue(self._busy.__getitem__, in_flight))
        self._places = Places(OF_USER, self._intake.pause, self._intake.resume)
        self._unread = Unread(self._kept, self._uid)
        self._parse_cache = ParseCache()
        self._opened = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: set[tuple[type[BaseException], str, int]] = set()

    def open(self) -> None:
        """Answer calls from now on, and those that have come before."""
        self._opened.set()

    async def close(self, *, timeout: float = 1.0) -> None:
        """Cancel the calls that still run, send the queued messages, and leave the bus."""
        if self._tasks:
            # A call may have finished its work, and have only its reply to send.
            await asyncio.wait(self._tasks, timeout=LAST_WORDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close(timeout=timeout)

    def send(self, message: Message) -> int:
        """Queue `message`, and count its bytes until its receiver has read them. Raise as `Connection.send` does."""
        size = super().send(message)
        if message.message_type is not MessageType.METHOD_CALL:
            self._unread.sent(size, message.destination)
        return size

    # places

    def authorised(self) -> None:
        """Give back the place of the running call: it may take long now, and other calls of its user need not wait.

        Except for root's, a long call keeps its places to its end: an administrator would wait for hundreds
        of such calls.
        """
        place = PLACE.get(None)
        if place and (place.is_root or not place.is_long):
            place.give_back()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give back the place of the running call while it waits for another program, so that others of its user go on.

        A long call keeps its places, because it keeps its settings in memory.
        """
        place = PLACE.get(None)
        if place is None or not place.taken or place.is_long:
            yield
            return
        place.give_back()
        try:
            yield
        finally:
            place.take()

    # what comes in

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        self._intake.run(more=nbytes == CHUNK)

    def connection_lost(self, exc: Exception | None) -> None:
        self._intake.stop()
        super().connection_lost(exc)

    def _sort(self, frame: Frame) -> None:
        """Look at a frame now, or at its sender's turn. Messages of the bus itself and replies to us cannot wait."""
        sender = frame.sender
        if sender == THE_BUS_ITSELF or (frame.data and frame.is_reply):
            self._receive(frame)
        elif not self._intake.put(sender, frame):
            self.log_ratelimited(
                "busy", f"{sender.decode(errors='replace')} sends too much at once: dropped some of it"
            )

    def _parse(self, frame: Frame) -> Message:
        """Return the message; a long call or signal that no object takes is returned without its body."""
        if len(frame.data) > SHORT and frame.whole and not frame.is_reply:
            head = parse(frame.header().data)
            if not self._takes(head):
                return head
        return self._parse_cache.parse(frame.data)

    def _handle(self, message: Message, uid: int, size: int) -> None:
        sender = message.sender
        if message.message_type is MessageType.SIGNAL:
            super()._handle(message, uid, size)
        elif self._busy[sender] >= self._in_flight:
            many = errors.LimitsExceeded(f"more than {self._in_flight} calls at once", "Wait for the replies")
            self._refuse(message, many)
        else:
            self._busy[sender] += 1
            place = self._places.take(uid, min(1 + size // OF_A_PLACE, OF_A_CALL))
            task = asyncio.get_running_loop().create_task(self._serve(message, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: Message, place: Place) -> None:
        PLACE.set(place)
        try:
            await self._opened.wait()
            await self._unread.wait_for_room(call.sender)
            reply = await self._answer(call)
            if not call.flags & MessageFlag.NO_REPLY_EXPECTED:
                await self._send_reply(reply)
            if kept := await self._unread.too_much(self.unique_name):
                self.disconnect(f"the bus keeps {kept} bytes of ours that clients do not read")
        except errors.KerntuneError as error:
            self._refuse(call, error)
        except asyncio.CancelledError:  # by `close`
            hint = "Ask again when it has started"
            self._refuse(call, errors.Failed("the service has stopped before this was done", hint))
            raise
        except Exception as error:  # noqa: BLE001  # the edge: a client gets no traceback, the journal gets it once
            self._log_once(call, error)
            self._refuse(call, errors.Failed("internal error", "The daemon's journal has the details"))
        finally:
            place.give_back()
            self._busy[call.sender] -= 1
            if not self._busy[call.sender]:
                del self._busy[call.sender]

    async def _send_reply(self, reply: Message) -> None:
        """Send a reply. A client that does not read gets no long one, and no error: the call was carried out."""
        data = self.pack(reply)
        if len(data) > SMALL:
            try:
                await self._unread.wait_for_room(reply.destination)
            except errors.LimitsExceeded as error:
                self.log_ratelimited("unread", f"did not send a reply to {reply.destination}: {error}")
                return
        self.post(data)
        self._unread.sent(len(data), reply.destination)

    def _refuse(self, call: Message, error: errors.KerntuneError) -> None:
        if not call.flags & MessageFlag.NO_REPLY_EXPECTED and not self._unread.is_silent(call.sender):
            self.send(error_reply(call, error.dbus_name, str(error)))

    def _log_once(self, call: Message, error: Exception) -> None:
        """Log the traceback, but only the first from each place, because a client can cause any number."""
        place = (type(error), *_innermost(error.__traceback__))
        if place in self._failed:
            return
        if len(self._failed) >= MAX_FAILED:
            self._failed.clear()
        self._failed.add(place)
        log.error("%s.%s of %s failed", call.interface, call.member, call.path, exc_info=error)

    def _refuse_long(self, message: Message) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            self._refuse(
                message,
                errors.LimitsExceeded("the message is too long, or too many of yours wait", "Ask for less at once"),
            )

    # questions to the bus

    async def _credentials(self, name: str) -> dict[str, Any]:
        (found,) = await self.call_bus("GetConnectionCredentials", "s", name)
        return cast("dict[str, Any]", found)

    async def _uid(self, name: str) -> int:
        return (await self.users.of(name)).uid

    async def _kept(self, name: str) -> tuple[int, int]:
        """Return the bytes that the bus keeps from a connection, and the bytes it keeps for the connection to read."""
        (found,) = await self.call(
            standard.BUS, standard.BUS_PATH, standard.STATS, "GetConnectionStats", "s", name, timeout=5.0
        )
        if not {"IncomingBytes", "OutgoingBytes"} <= found.keys():
            raise errors.UnknownMethod("the bus keeps no account of bytes")
        return found["IncomingBytes"].value, found["OutgoingBytes"].value


def _innermost(trace: TracebackType | None) -> tuple[str, int]:
    """Return the file and line where an exception was raised."""
    *_, (frame, line) = traceback.walk_tb(trace)
    return frame.f_code.co_filename, line
