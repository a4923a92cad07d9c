"""The client of one service without an event loop: one call at a time, over a socket that blocks.

To import asyncio takes longer than all that most commands do. `client.py` is the client for programs that do several
things at once.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.framing import Cutter, StreamError
from kerntune.dbus.messages import (
    MAX_SENT,
    UNPARSEABLE,
    InvalidAddressError,
    Message,
    MessageType,
    TimedOut,
    Variant,
    address_of,
    exception,
    is_reply,
    marshalled,
    method_call,
    parse,
    sockets,
    unreachable,
    unwrap,
)
from kerntune.dbus.standard import THE_BUS

__all__ = ["BlockingClient", "Signal", "Variant", "connect"]

MAX_SIGNALS: Final = 4096  # signals that wait to be read; when full, the oldest are dropped
CONNECT_SECONDS: Final = 5.0
PING_SECONDS: Final = 15.0
SHORTEST: Final = 0.001  # seconds: a timeout of 0 does not wait at all
CHUNK: Final = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal, with variants unwrapped."""

    path: str
    interface: str
    member: str
    args: list[Any]


@contextmanager
def connect(
    service: str, address: str | None = None, *, hint: str = "", late: str = "", deadline: float | None = None
) -> Iterator[BlockingClient]:
    """Give a client of `service`; the default is the system bus (or DBUS_SYSTEM_BUS_ADDRESS). Raise Unreachable.

    `hint` says what to try when the service cannot be reached, `late` when it has not answered in time. `deadline` is
    that of BlockingClient.
    """
    with BlockingClient(address_of(address), service, hint, late, deadline) as client:
        yield client


@contextmanager
def typed_errors(service: str, hint: str, late: str) -> Iterator[None]:
    """Turn what can happen to a call into Unreachable, with a hint, or Usage for a text that is not UTF-8."""
    try:
        yield
    except TimedOut as error:
        raise errors.Unreachable(error.what, late) from error
    except UnicodeEncodeError as error:
        raise errors.Usage(f"{error.object!r:.60} is no UTF-8", "Write it in UTF-8") from error
    except errors.Unreachable as error:
        raise errors.Unreachable(f"{service} cannot be reached: {error.what}", hint) from error


def is_from(message: Message, path: str, interface: str | None, member: str | None) -> bool:
    """Return whether a signal is of that object, and of that interface and member if they are given."""
    return message.path == path and interface in (None, message.interface) and member in (None, message.member)


class Interrupted(errors.Failed):
    """A descriptor that the caller named became readable before the reply came."""


class BlockingClient:
    """A client of one service. Every error is a class of kerntune.errors, with the text that the service sent.

    The signals that were asked for (`listen`) are kept in their order, also those that come during a call. A call
    gives them to `on_signal` instead, if the caller has set it.

    No call waits longer than until `deadline` (of time.monotonic), whatever its timeout; None sets no such bound.
    """

    def __init__(
        self, address: str, service: str, hint: str = "", late: str = "", deadline: float | None = None
    ) -> None:
        """Connect, authenticate and say Hello. Raise Unreachable."""
        self.address, self.service, self.hint, self.late = address, service, hint, late
        self.deadline = deadline
        self.on_signal: Callable[[Signal], None] | None = None
        self._cutter = Cutter(MAX_SENT)
        self._received: deque[tuple[Message, bool]] = deque()  # with False for one whose body was too long
        self._signals: deque[Signal] = deque(maxlen=MAX_SIGNALS)
        self._listens: set[tuple[str, str | None, str | None]] = set()
        self._owner, self._has_left = "", False
        self._serial = 0
        seconds = self._at_most(CONNECT_SECONDS)
        end = time.monotonic() + seconds
        self._socket = self._connected(seconds)
        try:
            self._authenticate(seconds, end)
            (self.name,) = self._bus("Hello")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        interactive: bool = False,
        start: bool = True,
        timeout: float = 60.0,
        beside: Sequence[int] = (),
    ) -> list[Any]:
        """Call a method, and return what its reply carries, with variants unwrapped.

        `interactive` lets polkit ask for a password: then leave it time (`timeout` in seconds). Without `start` a
        service that does not run is left alone.
        Raise Unreachable without a bus, a daemon or an answer, and Usage for a text that is not UTF-8. An error name
        that is not ours becomes Failed. Raise Interrupted when one of the descriptors `beside` becomes readable.
        """
        where = (self.service, path, interface, member)
        call = method_call(where, signature, args, interactive=interactive, start=start)
        with typed_errors(self.service, self.hint, self.late):
            return [unwrap(value) for value in self._answer(call, timeout, beside)]

    @property
    def has_left(self) -> bool:
        """True if the bus has told that the service left it since the last `listen`."""
        return self._has_left

    def running(self) -> bool:
        """Return whether the service is on the bus; the question does not start it."""
        (owned,) = self._bus("NameHasOwner", "s", self.service)
        return bool(owned)

    def fileno(self) -> int:
        """Return the descriptor of the connection: it is readable when `next_signal` may find one."""
        return self._socket.fileno()

    def bind(self, *names: str) -> str:
        """Turn to the service that owns one of these names now, and return the name: the first that is owned, or "".

        From then on the client is that of this one process: what follows it on the bus gets no call, and none starts.
        """
        for name in names:
            with suppress(errors.Unreachable):  # the name has no owner
                (self.service,) = self._bus("GetNameOwner", "s", name)
                return name
        return ""

    def pid(self) -> int:
        """Return the process of the service. Raise Unreachable if it is not on the bus."""
        (found,) = self._bus("GetConnectionUnixProcessID", "s", self.service)
        return int(found)

    def get(self, path: str, interface: str, name: str) -> Any:
        """Return a property, with variants unwrapped."""
        (value,) = self.call(path, f"{standard.BUS}.Properties", "Get", "ss", interface, name)
        return value

    def listen(
        self, path: str, interface: str | None = None, member: str | None = None, *, start: bool = False
    ) -> None:
        """Keep the signals of an object from now on: all, or those of one interface, or of one member of it.

        To listen starts no service. With `start` a call does so before, where the bus knows how to.
        """
        if start:
            self.call(path, f"{standard.BUS}.Peer", "Ping", timeout=PING_SECONDS)
        if (path, interface, member) not in self._listens:
            self._listens.add((path, interface, member))
            for rule in standard.signal_rules(self.service, path, interface, member):
                self._bus("AddMatch", "s", rule)
        with typed_errors(self.service, self.hint, self.late):
            (self._owner,) = self._bus("GetNameOwner", "s", self.service)
        self._has_left = False

    def next_signal(self, beside: Sequence[int] = (), *, timeout: float | None = None) -> Signal | None:
        """Wait for the next signal, and return it.

        Return None after `timeout` seconds, or when one of the descriptors `beside` is readable. Raise Unreachable when
        the service has left the bus, or the bus is lost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._hear_all()  # what came together with the last answer
        while not self._signals:
            if self._has_left:
                raise errors.Unreachable(f"{self.service} has left the bus", self.hint)
            if self._wait(deadline, beside) != self._socket.fileno():
                return None
            self._read()
            self._hear_all()
            # Others can keep the socket readable.
            if deadline is not None and time.monotonic() >= deadline and not self._has_left:
                break
        return self._signals.popleft() if self._signals else None

    def _bus(self, member: str, signature: str = "", *args: Any) -> list[Any]:
        """Call a method of the bus itself (org.freedesktop.DBus). Raise Unreachable if it does not answer."""
        call = method_call((*THE_BUS, member), signature, args)
        seconds = self._at_most(CONNECT_SECONDS)
        try:
            return self._answer(call, seconds)
        except TimedOut as error:
            raise self._unreachable(f"did not answer {member} within {seconds:.3g} s") from error

    def _answer(self, call: Message, timeout: float, beside: Sequence[int] = ()) -> list[Any]:
        """Send a call and return the body of its reply, or raise the class of its error.

        Signals that come meanwhile are heard. Raise Unreachable, TimedOut, Interrupted.
        """
        self._serial += 1
        call.serial = self._serial
        timeout = self._at_most(timeout)
        deadline = time.monotonic() + timeout
        self._send(marshalled(call))
        while True:
            while self._received:
                message, is_whole = self._received.popleft()
                if not is_reply(message, call):
                    self._hear(message, is_whole)
                elif not is_whole:
                    raise errors.LimitsExceeded("the answer is too long", "Ask for less at once")
                elif message.message_type is MessageType.ERROR:
                    raise exception(message)
                else:
                    return message.body
            ready = None if time.monotonic() >= deadline else self._wait(deadline, beside)
            if ready is None:
                raise TimedOut(f"{call.destination} did not answer {call.member} within {timeout:.5g} s")
            if ready in beside:
                raise Interrupted(f"{call.member} was interrupted")
            self._read()

    def _send(self, data: bytes) -> None:
        """Send a message. Raise Unreachable, and use the connection no more, if the bus does not take it."""
        seconds = self._at_most(CONNECT_SECONDS)
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            self._socket.shutdown(socket.SHUT_RDWR)  # a part of the message may be on its way
            raise self._unreachable(f"did not take a message within {seconds:.3g} s") from error
        except OSError as error:
            raise self._unreachable(f"closed the connection: {error.strerror or error}") from error

    def _at_most(self, seconds: float) -> float:
        """Return so many seconds, or those that the deadline leaves if they are fewer."""
        return seconds if self.deadline is None else min(seconds, max(SHORTEST, self.deadline - time.monotonic()))

    def _wait(self, deadline: float | None, beside: Sequence[int] = ()) -> int | None:
        """Return the readable descriptor, which is one `beside` or else the socket's; None at the deadline."""
        waiting = select.poll()
        for descriptor in (self._socket.fileno(), *beside):
            waiting.register(descriptor, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {descriptor for descriptor, _ in waiting.poll(left)}
        return next((descriptor for descriptor in (*beside, self._socket.fileno()) if descriptor in ready), None)

    def _read(self) -> None:
        """Take what the bus has sent. Raise Unreachable if it has closed the connection.

        What cannot be parsed is left out: a later version of D-Bus may have other types of messages and fields.
        """
        try:
            chunk = self._socket.recv(CHUNK)
            if not chunk:
                raise self._unreachable("closed the connection")
            for frame in self._cutter.feed(chunk):
                with suppress(*UNPARSEABLE):
                    self._received.append((parse(frame.data), frame.whole))
        except OSError as error:
            raise self._unreachable(f"closed the connection: {error.strerror or error}") from error
        except StreamError as error:
            raise errors.Failed("the bus sent what is no message", str(error)) from error

    def _hear_all(self) -> None:
        while self._received:
            self._hear(*self._received.popleft())

    def _hear(self, message: Message, is_whole: bool) -> None:  # noqa: FBT001  # as the queue has it
        """Keep a wanted signal. Check its sender: anybody can send one to us alone, which needs no match rule."""
        if message.message_type is not MessageType.SIGNAL or not is_whole:
            return
        if message.sender == standard.BUS and message.member == "NameOwnerChanged":
            name, old, new = message.body
            if name == self.service:
                self._owner, self._has_left = new, self._has_left or bool(old)
            return
        wanted = any(is_from(message, *listen) for listen in self._listens)
        if message.sender == self._owner and wanted:
            args = [unwrap(value) for value in message.body]
            signal = Signal(message.path, message.interface, message.member, args)
            if self.on_signal:
                self.on_signal(signal)
            else:
                self._signals.append(signal)

    def _connected(self, seconds: float) -> socket.socket:
        """Return a socket that is connected to the first address that answers. Raise Unreachable."""
        failure = self._unreachable("names no unix socket")
        try:
            for where in sockets(self.address):
                found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                found.settimeout(seconds)
                try:
                    found.connect(where)
                except OSError as error:
                    found.close()
                    failure = self._unreachable(f"cannot be reached: {error.strerror or error}")
                else:
                    return found
        except InvalidAddressError as error:
            raise self._unreachable(f"is no bus address: {error}") from error
        raise failure

    def _authenticate(self, seconds: float, end: float) -> None:
        """Authenticate by uid ("Authentication Protocol" in the D-Bus Specification). Raise Unreachable."""
        answer = b""
        try:
            self._socket.sendall(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
            while not answer.endswith(b"\r\n") and len(answer) < CHUNK:
                self._socket.settimeout(max(SHORTEST, end - time.monotonic()))
                chunk = self._socket.recv(CHUNK)
                if not chunk:
                    raise self._unreachable("closed the connection")
                answer += chunk
            if not answer.startswith(b"OK "):
                raise self._unreachable(f"refused to authenticate us: {answer[:100].decode(errors='replace').strip()}")
            self._socket.sendall(b"BEGIN\r\n")
        except TimeoutError:
            raise self._unreachable(f"did not answer within {seconds:.3g} s") from None
        except OSError as error:
            raise self._unreachable(f"cannot be reached: {error.strerror or error}") from error

    def _unreachable(self, what: str) -> errors.Unreachable:
        return unreachable(self.address, what)
