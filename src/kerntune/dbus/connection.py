"""The connection to the bus: the calls that wait for replies, and the way of each message. It knows no object of ours.

The socket is asyncio's: dbus_next's own loops end the connection on EAGAIN, spin on EOF during authentication and never
yield while data keeps coming. No descriptor passing is negotiated, so no client can fill our table of descriptors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.fair_queue import Intake, Turns
from kerntune.dbus.framing import Cutter, Frame, StreamError
from kerntune.dbus.messages import (
    UNPARSEABLE,
    InvalidAddressError,
    Memo,
    Message,
    MessageFlag,
    MessageType,
    TimedOut,
    address_of,
    error_reply,
    exception,
    marshalled,
    may_reply,
    parse,
    sockets,
)
from kerntune.dbus.outbox import Outbox
from kerntune.dbus.standard import THE_BUS
from kerntune.dbus.users import UNKNOWN, Users

log = logging.getLogger(__name__)

MAX_CALL: Final = 256 << 10  # bytes of body; parsing holds the loop for 0.3 to 1 us a byte
SHORT: Final = 4 << 10  # bytes; of longer messages the header is looked at first
MAX_SENT: Final = 4 << 20  # bytes; the system bus disconnects a client that sends more than 32 MiB
CHUNK: Final = 64 << 10  # bytes read before other tasks have their turn
COMPLAINT: Final = 60.0  # seconds between two log lines of one kind
LAST_SERIAL: Final = (1 << 32) - 1  # a serial is a UINT32, and not 0 ("Message Format" in the D-Bus Specification)

BUS_ITSELF: Final = standard.BUS.encode()


class Waiting(NamedTuple):
    """A call that waits for its reply, and its destination."""

    destination: str
    reply: asyncio.Future[Message]


class Link(asyncio.BufferedProtocol):
    """One connection to the bus; calls and signals go to `on_message`, which must neither block nor raise.

    A body above `max_body` bytes is not parsed: such a call is answered LimitsExceeded. With `users`, the users have
    their turns, and messages are dropped if one user sends far too many. Without, everything is kept in its order.

    `size` has the bytes of the message that `on_message` looks at now, and `uid` its user, if users have turns.
    `takes` decides from the header whether the body will be looked at. If not, a long body is not parsed.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None],
        *,
        address: str | None = None,
        max_body: int = MAX_CALL,
        users: Users | None = None,
        turns: Turns | None = None,
        takes: Callable[[Message], bool] = lambda _: True,
    ) -> None:
        self.address = address_of(address)
        self.unique_name = ""
        self.uid, self.size = UNKNOWN, 0
        self._on_message, self._takes = on_message, takes
        self._outbox: Outbox | None = None
        self._chunk = bytearray(CHUNK)
        self._auth: bytearray | None = bytearray()  # the unfinished line; None once authenticated
        self._authenticated: asyncio.Future[None] | None = None
        self._cutter = Cutter(max_body)
        self._intake = Intake(self._receive, users, turns) if users else None
        self._memo = Memo()
        self._serial = 0
        self._replies: dict[int, Waiting] = {}
        self._lost = asyncio.Event()
        self._said: dict[str, float] = {}

    async def connect(self, *, timeout: float = 5.0) -> None:
        """Connect, authenticate and say Hello; `timeout` in seconds. Raise Unreachable."""
        self._authenticated = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._open()
                await self._authenticated
                (self.unique_name,) = await self.bus("Hello", timeout=None)
        except TimeoutError:
            raise self._unreachable(f"did not answer within {timeout:g} s") from None
        except OSError as error:
            raise self._unreachable(f"cannot be reached: {error.strerror or error}") from error
        except InvalidAddressError as error:
            raise self._unreachable(f"is no bus address: {error}") from error
        finally:
            self._authenticated.cancel()
            if self._outbox and not self.unique_name:
                self._outbox.abort()

    def send(self, message: Message) -> int:
        """Queue `message` and return its size in bytes, at once. It is dropped if the connection is lost.

        Raise as `pack` does.
        """
        data = self.pack(message)
        self.post(data)
        return len(data)

    def pack(self, message: Message) -> bytes:
        """Return `message` as `post` takes it.

        Raise LimitsExceeded above MAX_SENT bytes, ValueError or TypeError if the body does not fit its signature.
        """
        if not message.serial:
            message.serial = self._next_serial()
        data = marshalled(message)
        if len(data) > MAX_SENT:
            raise errors.LimitsExceeded(f"the message of {len(data)} bytes is too long", f"the limit is {MAX_SENT}")
        return data

    def _next_serial(self) -> int:
        """Return the next serial that no call waits for; after the last one the serials begin again."""
        while True:
            self._serial = self._serial % LAST_SERIAL + 1
            if self._serial not in self._replies:
                return self._serial

    def post(self, data: bytes) -> None:
        """Queue a packed message."""
        if self._outbox:
            self._outbox.send(data)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float | None,
        interactive: bool = False,
        start: bool = True,
    ) -> list[Any]:
        """Call a method and return the body of its reply; `timeout` in seconds. Without `start` no service is started.

        Raise the class of kerntune.errors whose name the error reply carries, or BusError for any other name. Raise
        Unreachable if the other side or the bus is gone, TimedOut if no reply came in time.
        """
        if not (self._outbox and self._outbox.open):
            raise self._unreachable("is not connected")
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        if not start:
            flags |= MessageFlag.NO_AUTOSTART
        message = Message(destination, path, interface, member, flags=flags, signature=signature, body=list(args))
        self.send(message)
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[message.serial] = Waiting(destination, reply)
        try:
            async with asyncio.timeout(timeout):
                answer = await reply
        except TimeoutError:
            raise TimedOut(f"{destination} did not answer {member} within {timeout:g} s") from None
        finally:
            del self._replies[message.serial]
        if answer.message_type is MessageType.ERROR:
            raise exception(answer)
        return answer.body

    async def bus(self, member: str, signature: str = "", *args: Any, timeout: float | None = 5.0) -> list[Any]:
        """Call a method of the bus itself (org.freedesktop.DBus)."""
        return await self.call(*THE_BUS, member, signature, *args, timeout=timeout)

    def tell(self, destination: str, path: str, interface: str, member: str, signature: str, *args: Any) -> None:
        """Call a method without a reply: none is sent, and none is waited for."""
        flags = MessageFlag.NO_REPLY_EXPECTED
        self.send(Message(destination, path, interface, member, flags=flags, signature=signature, body=list(args)))

    def hold(self, uid: int) -> None:
        """Look at no message of this user until `go_on`; messages within the limits wait."""
        if self._intake:
            self._intake.hold(uid)

    def go_on(self, uid: int) -> None:
        """Look at the messages of this user again."""
        if self._intake:
            self._intake.go_on(uid)

    def leave(self, why: str) -> None:
        """End the connection at once, and log why."""
        if self._outbox:
            self._outbox.give_up(why)

    async def closed(self) -> None:
        """Return when the connection has ended, from either side."""
        await self._lost.wait()

    async def close(self, *, timeout: float = 1.0) -> None:
        """Send the queued messages, for `timeout` seconds at most, and end the connection."""
        if self._outbox is None or self._lost.is_set():
            return
        self._outbox.finish()
        try:
            async with asyncio.timeout(timeout):
                await self._lost.wait()
        except TimeoutError:
            self._outbox.abort()
            await self._lost.wait()

    def complain(self, kind: str, text: str) -> None:
        """Log `text`, but only one line a minute of each `kind`, because clients can cause any number."""
        now = asyncio.get_running_loop().time()
        if now - self._said.get(kind, -COMPLAINT) >= COMPLAINT:
            self._said[kind] = now
            log.warning("%s (further ones of this kind are not logged for a minute)", text)

    async def _open(self) -> None:
        """Connect to the first socket of the address that answers, and start the authentication."""
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for where in sockets(self.address):
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _sockets.add(found)
            try:
                found.setblocking(False)  # noqa: FBT003  # the parameter has no name
                await loop.sock_connect(found, where)
            except BaseException as error:
                found.close()
                if not isinstance(error, OSError):
                    raise
                failure = error
                continue
            transport, _ = await loop.create_unix_connection(lambda: self, sock=found)
            self._outbox = Outbox(transport)
            self._outbox.send(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
            return
        raise failure or self._unreachable("names no unix socket")

    # asyncio calls the following methods

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        chunk = bytes(self._chunk[:nbytes])
        if self._auth is not None:
            self._authenticate(chunk)
            return
        try:
            for frame in self._cutter.feed(chunk):
                self._sort(frame)
        except StreamError as error:
            self.leave(f"the bus sent what is no message: {error}")
        if self._intake:
            self._intake.run(more=nbytes == CHUNK)

    def pause_writing(self) -> None:
        if self._outbox:
            self._outbox.pause()

    def resume_writing(self) -> None:
        if self._outbox:
            self._outbox.resume()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost.set()
        if self._intake:
            self._intake.stop()
        if self._outbox:
            self._outbox.lost()
        for waiting in (self._authenticated, *(waiting.reply for waiting in self._replies.values())):
            if waiting and not waiting.done():
                waiting.set_exception(self._unreachable("closed the connection"))

    def _authenticate(self, chunk: bytes) -> None:
        """Read the answer line: OK and the bus's id, or REJECTED ("Authentication Protocol" in the specification)."""
        if self._auth is None or self._authenticated is None or self._authenticated.done():
            return
        self._auth += chunk
        line, end, _ = bytes(self._auth).partition(b"\r\n")
        if not end and len(line) < CHUNK:
            return
        if end and line.startswith(b"OK ") and self._outbox:
            self._auth = None
            self._outbox.send(b"BEGIN\r\n")
            self._authenticated.set_result(None)
        else:
            answer = line[:100].decode(errors="replace")
            self._authenticated.set_exception(self._unreachable(f"refused to authenticate us: {answer}"))

    def _sort(self, frame: Frame) -> None:
        """Look at a frame now, or at its sender's turn. Messages of the bus itself and replies to us cannot wait."""
        sender = frame.sender
        if self._intake is None or sender == BUS_ITSELF or (frame.data and not frame.unasked):
            self._receive(frame)
        elif not self._intake.put(sender, frame):
            self.complain("busy", f"{sender.decode(errors='replace')} sends too much at once: dropped some of it")

    def _receive(self, frame: Frame, uid: int = UNKNOWN) -> None:
        self.uid, self.size = uid, len(frame.data)
        try:
            message = self._parse(frame)
        except UNPARSEABLE as error:
            self.complain("unparseable", f"dropped a message that could not be parsed: {error!r:.200}")
            return
        asked = self._replies.get(message.reply_serial or 0)
        waiting = asked.reply if asked and may_reply(message.sender, asked.destination) else None
        if not frame.whole:
            self._receive_cut(message, waiting)
        elif message.message_type in (MessageType.METHOD_CALL, MessageType.SIGNAL):
            self._on_message(message)
        elif waiting and not waiting.done():
            waiting.set_result(message)

    def _parse(self, frame: Frame) -> Message:
        """Return the message; a long call or signal that no object takes is returned without its body."""
        if len(frame.data) > SHORT and frame.whole and frame.unasked:
            head = parse(frame.header().data)
            if not self._takes(head):
                return head
        return self._memo.parse(frame.data)

    def _receive_cut(self, message: Message, waiting: asyncio.Future[Message] | None) -> None:
        """Answer a message whose body was too long to look at."""
        too_long = errors.LimitsExceeded("the message is too long, or too many of yours wait", "ask for less at once")
        if waiting and not waiting.done():
            waiting.set_exception(too_long)
            return
        self.complain("too long", f"refused a message of {message.sender} that is too long, or one too many")
        if message.message_type is MessageType.METHOD_CALL and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self.send(error_reply(message, too_long.dbus_name, str(too_long)))

    def _unreachable(self, what: str) -> errors.Unreachable:
        return errors.Unreachable(f"the bus at {self.address} {what}", "is dbus running? systemctl status dbus")


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_copies() -> None:
    """Close the copies of our sockets in a forked child: they would keep the connections of a dead parent alive.

    Their numbers then belong to a socket that leads nowhere. No other file gets them while the parent's objects have
    them.
    """
    with socket.socket(socket.AF_UNIX) as nowhere:
        for copy in _sockets:
            if copy.fileno() >= 0:
                os.dup2(nowhere.fileno(), copy.fileno(), inheritable=False)


os.register_at_fork(after_in_child=_close_copies)
