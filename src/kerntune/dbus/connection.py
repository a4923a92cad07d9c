"""A connection to the bus: the calls that wait for replies, and the way of each message. It knows no objects.

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
from kerntune.dbus.backpressure import WriteQueue
from kerntune.dbus.framing import Cutter, Frame, StreamError
from kerntune.dbus.messages import (
    MAX_SENT,
    UNPARSEABLE,
    InvalidAddressError,
    Message,
    MessageType,
    TimedOut,
    address_of,
    exception,
    marshalled,
    may_reply,
    method_call,
    parse,
    sockets,
    unreachable,
)
from kerntune.dbus.standard import THE_BUS
from kerntune.dbus.users import UNKNOWN

log = logging.getLogger(__name__)

CHUNK: Final = 64 << 10  # bytes read before other tasks have their turn
LOG_INTERVAL: Final = 60.0  # seconds between two log lines of one kind
LAST_SERIAL: Final = (1 << 32) - 1  # a serial is a UINT32, and not 0 ("Message Format" in the D-Bus Specification)


class Waiting(NamedTuple):
    """A call that waits for its reply, and its destination."""

    destination: str
    reply: asyncio.Future[Message]


class Connection(asyncio.BufferedProtocol):
    """One connection to the bus; calls and signals go to `on_message`, which must neither block nor raise.

    A body above `max_body` bytes is not parsed. server.ServerConnection is for services, whose callers are not trusted.
    """

    def __init__(
        self, on_message: Callable[[Message], None], *, address: str | None = None, max_body: int = MAX_SENT
    ) -> None:
        self.address = address_of(address)
        self.unique_name = ""
        self._on_message = on_message
        self._write_queue: WriteQueue | None = None
        self._chunk = bytearray(CHUNK)
        self._auth: bytearray | None = bytearray()  # the unfinished line; None once authenticated
        self._authenticated: asyncio.Future[None] | None = None
        self._cutter = Cutter(max_body)
        self._serial = 0
        self._replies: dict[int, Waiting] = {}
        self._lost = asyncio.Event()
        self._logged: dict[str, float] = {}

    async def connect(self, *, timeout: float = 5.0) -> None:
        """Connect, authenticate and say Hello; `timeout` in seconds. Raise Unreachable."""
        self._authenticated = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._open()
                await self._authenticated
                (self.unique_name,) = await self.call_bus("Hello", timeout=None)
        except TimeoutError:
            raise self._unreachable(f"did not answer within {timeout:g} s") from None
        except OSError as error:
            raise self._unreachable(f"cannot be reached: {error.strerror or error}") from error
        except InvalidAddressError as error:
            raise self._unreachable(f"is no bus address: {error}") from error
        finally:
            self._authenticated.cancel()
            if self._write_queue and not self.unique_name:
                self._write_queue.abort()

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
            raise errors.LimitsExceeded(f"the message of {len(data)} bytes is too long", f"The limit is {MAX_SENT}")
        return data

    def _next_serial(self) -> int:
        """Return the next serial that no call waits for; after the last one the serials begin again."""
        while True:
            self._serial = self._serial % LAST_SERIAL + 1
            if self._serial not in self._replies:
                return self._serial

    def post(self, data: bytes) -> None:
        """Queue a packed message."""
        if self._write_queue:
            self._write_queue.send(data)

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
        if not (self._write_queue and self._write_queue.open):
            raise self._unreachable("is not connected")
        where = (destination, path, interface, member)
        message = method_call(where, signature, args, interactive=interactive, start=start)
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

    async def call_bus(self, member: str, signature: str = "", *args: Any, timeout: float | None = 5.0) -> list[Any]:
        """Call a method of the bus itself (org.freedesktop.DBus)."""
        return await self.call(*THE_BUS, member, signature, *args, timeout=timeout)

    def call_oneway(self, destination: str, path: str, interface: str, member: str, signature: str, *args: Any) -> None:
        """Call a method without a reply: none is sent, and none is waited for."""
        self.send(method_call((destination, path, interface, member), signature, args, answered=False))

    def disconnect(self, why: str) -> None:
        """End the connection at once, and log why."""
        if self._write_queue:
            self._write_queue.disconnect(why)

    async def closed(self) -> None:
        """Return when the connection has ended, from either side."""
        await self._lost.wait()

    async def close(self, *, timeout: float = 1.0) -> None:
        """Send the queued messages, for `timeout` seconds at most, and end the connection."""
        if self._write_queue is None or self._lost.is_set():
            return
        self._write_queue.finish()
        try:
            async with asyncio.timeout(timeout):
                await self._lost.wait()
        except TimeoutError:
            self._write_queue.abort()
            await self._lost.wait()

    def log_ratelimited(self, kind: str, text: str) -> None:
        """Log `text`, but only one line a minute of each `kind`, because clients can cause any number."""
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(kind, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged[kind] = now
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
            self._write_queue = WriteQueue(transport)
            self._write_queue.send(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
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
            self.disconnect(f"the bus sent what is no message: {error}")

    def pause_writing(self) -> None:
        if self._write_queue:
            self._write_queue.pause()

    def resume_writing(self) -> None:
        if self._write_queue:
            self._write_queue.resume()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost.set()
        if self._write_queue:
            self._write_queue.lost()
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
        if end and line.startswith(b"OK ") and self._write_queue:
            self._auth = None
            self._write_queue.send(b"BEGIN\r\n")
            self._authenticated.set_result(None)
        else:
            answer = line[:100].decode(errors="replace")
            self._authenticated.set_exception(self._unreachable(f"refused to authenticate us: {answer}"))

    def _sort(self, frame: Frame) -> None:
        """Handle a frame that has come."""
        self._receive(frame)

    def _receive(self, frame: Frame, uid: int = UNKNOWN) -> None:
        """Give a reply to the call that waits for it, and any other message of the user `uid` to its handler."""
        try:
            message = self._parse(frame)
        except UNPARSEABLE as error:
            self.log_ratelimited("unparseable", f"dropped a message that could not be parsed: {error!r:.200}")
            return
        if frame.is_reply:
            waiting = self._replies.get(message.reply_serial or 0)
            if waiting and not waiting.reply.done() and may_reply(message.sender, waiting.destination):
                if frame.whole:
                    waiting.reply.set_result(message)
                else:
                    waiting.reply.set_exception(errors.LimitsExceeded("the answer is too long", "Ask for less at once"))
        elif frame.whole:
            self._handle(message, uid, len(frame.data))
        else:
            self.log_ratelimited("too long", f"refused a message of {message.sender} that is too long, or one too many")
            self._refuse_long(message)

    def _parse(self, frame: Frame) -> Message:
        return parse(frame.data)

    def _handle(self, message: Message, uid: int, size: int) -> None:  # noqa: ARG002  # only a service needs to know
        """Handle a call or a signal of `size` bytes."""
        self._on_message(message)

    def _refuse_long(self, message: Message) -> None:
        """Refuse a message whose body was too long to look at."""

    def _unreachable(self, what: str) -> errors.Unreachable:
        return unreachable(self.address, what)


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
