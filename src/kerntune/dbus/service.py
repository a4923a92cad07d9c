"""The service of the contract: it turns calls into handlers, results and errors into replies, changes into signals.

Every call runs in a task of its own; no code here ever waits for a message to be sent.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.backpressure import SMALL, Unread
from kerntune.dbus.connection import Link
from kerntune.dbus.fair_queue import Turns
from kerntune.dbus.interface import Interface, load, snake
from kerntune.dbus.messages import Message, MessageFlag, MessageType, error_reply
from kerntune.dbus.objects import Tree
from kerntune.dbus.places import Place, Places
from kerntune.dbus.presence import Presence
from kerntune.dbus.standard import OBJECT_MANAGER, PROPERTIES
from kerntune.dbus.users import Users

__all__ = ["Caller", "CallerGone", "Interface", "NameTaken", "Service", "load"]

log = logging.getLogger(__name__)
T = TypeVar("T")

DO_NOT_QUEUE: Final = 4  # flag of RequestName
OWNER: Final = frozenset({1, 4})  # its answers: primary owner, already owner
MAX_PLACES: Final = 1000
LAST_WORDS: Final = 0.05  # seconds that calls have to end by themselves when the service ends
STATS: Final = f"{standard.BUS}.Debug.Stats"
OF_USER: Final = 8  # places of one user for calls in service that are not authorised yet
OF_A_PLACE: Final = 2 << 10  # bytes; a longer call takes several places, because it costs as much as several
OF_A_CALL: Final = OF_USER // 2  # the most places of one call
PLACE: Final[ContextVar[Place]] = ContextVar("PLACE")  # of the call that runs


class NameTaken(errors.KerntuneError):
    """Another connection owns the bus name."""


class CallerGone(errors.KerntuneError):
    """The client left the bus before its call was done."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a method: authorise it by `name` (unique on the bus). `pid` is for the log only (0: not known).

    `annotations` are those of the called `member`, as the interface file has them.
    """

    name: str
    uid: int
    pid: int
    interactive: bool
    member: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


class Service:
    """The daemon on the bus: its objects below `root`, and at most `in_flight` calls of one client at a time.

    At most OF_USER calls of one user are in service at a time, or fewer long ones; others wait for their turn. See
    `aside` and `authorised`.

    A handler is `async def set_count(self, caller, page_size, count, options)`. It returns None, the value, or a tuple
    for several out arguments. D-Bus structs and arrays are lists; variants stay Variants both ways. A handler raises a
    KerntuneError to refuse. Properties are attributes without I/O. If an object has `def refresh(self)`, the service
    calls it before it reads a property that others may change. It awaits what `refresh` returns, if anything.
    """

    def __init__(
        self, interfaces: Mapping[str, Interface], root: str, *, in_flight: int = 32, address: str | None = None
    ) -> None:
        self._tree = Tree(interfaces, root)
        self._users = Users(self._credentials)
        self._busy: Counter[str] = Counter()
        self._link = Link(
            self._incoming,
            address=address,
            users=self._users,
            turns=Turns(self._busy.__getitem__, in_flight),
            takes=self._takes,
        )
        self._places = Places(OF_USER, self._link.hold, self._link.go_on)
        self._presence = Presence(self._link)
        self._unread = Unread(self._kept, self._uid)
        self._listeners: dict[tuple[str, str, str], list[Callable[..., None]]] = {}
        self.on_signal(standard.BUS, "NameOwnerChanged", "sss", self._presence.owner_changed)
        self._opened = asyncio.Event()
        self._in_flight = in_flight
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: set[tuple[type[BaseException], str, int]] = set()

    # life

    async def connect(self, bus_name: str) -> None:
        """Connect and own `bus_name`; calls wait for `open`. Raise Unreachable, NameTaken or AccessDenied."""
        await self._link.connect()
        try:
            (answer,) = await self._link.bus("RequestName", "su", bus_name, DO_NOT_QUEUE)
            if answer not in OWNER:
                raise NameTaken(
                    f"{bus_name} has another owner", f"is the daemon running already? busctl status {bus_name}"
                )
        except errors.AccessDenied as error:
            await self.close()
            raise errors.AccessDenied(
                f"may not own {bus_name}: {error}",
                f"The bus policy lets root own it: is {bus_name}.conf in /usr/share/dbus-1/system.d? Who runs this?",
            ) from error
        except errors.KerntuneError:
            await self.close()
            raise

    def open(self) -> None:
        """Answer calls from now on, and those that have come before."""
        self._opened.set()

    async def closed(self) -> None:
        """Return when the connection to the bus has ended."""
        await self._link.closed()

    async def close(self) -> None:
        """Cancel the calls that still run, send the queued messages, and leave the bus."""
        if self._tasks:
            # A call may have finished its work, and have only its reply to send.
            await asyncio.wait(self._tasks, timeout=LAST_WORDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    # objects and signals

    def publish(self, path: str, impls: Mapping[str, object]) -> None:
        """Put an object (interface name -> implementation) on the bus. Raise TypeError that names what is missing."""
        self._tree.add(path, impls)
        if path != self._tree.root:
            added = {name: self._tree.values(path, name) for name in impls}
            self._signal(self._tree.root, OBJECT_MANAGER, "InterfacesAdded", path, added)

    def retract(self, path: str) -> None:
        """Take an object off the bus."""
        removed = self._tree.remove(path)
        if removed and path != self._tree.root:
            self._signal(self._tree.root, OBJECT_MANAGER, "InterfacesRemoved", path, removed)

    def emit(self, path: str, interface: str, signal: str, *args: Any, to: str | None = None) -> None:
        """Send a signal to everybody, or to one client."""
        self._signal(path, interface, signal, *args, to=to)

    def changed(self, path: str, interface: str, *properties: str) -> None:
        """Publish new values in one PropertiesChanged, as the annotations in the contract say."""
        values, invalidated = self._tree.changes(path, interface, properties)
        if values or invalidated:
            self._signal(path, PROPERTIES, "PropertiesChanged", interface, values, invalidated)

    def _signal(self, path: str, interface: str, member: str, *args: Any, to: str | None = None) -> None:
        signature = self._tree.interfaces[interface].signals[member]
        message = Message.new_signal(path, interface, member, signature, list(args))
        message.destination = to  # type: ignore[assignment]  # dbus_next says str, and takes None for everybody
        try:
            self._unread.sent(self._link.send(message), to)
        except errors.LimitsExceeded as error:  # no caller waits, and no pass may fail for it
            self._link.complain("signal", f"did not send {interface}.{member}: {error}")

    # calls out

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float | None,
    ) -> list[Any]:
        """Call a method of another service, for `timeout` seconds at most. Raise as Link.call does."""
        return await self._link.call(destination, path, interface, member, signature, *args, timeout=timeout)

    async def match(self, rule: str) -> None:
        """Ask the bus for the signals that a rule matches."""
        await self._link.bus("AddMatch", "s", rule)

    def on_signal(self, interface: str, member: str, signature: str, listener: Callable[..., None]) -> None:
        """Call `listener(sender, *body)` with such signals. It checks the sender: anybody may send us one."""
        self._listeners.setdefault((interface, member, signature), []).append(listener)

    def tell(self, destination: str, path: str, interface: str, member: str, signature: str, *args: Any) -> None:
        """Call a method of another service without waiting for a reply."""
        self._link.tell(destination, path, interface, member, signature, *args)

    async def _caller(self, message: Message, interface: Interface) -> Caller:
        """Return the sender of `message`, as the bus knows it, with the annotations of what it calls."""
        uid, pid = await self._users.of(message.sender)
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        return Caller(message.sender, uid, pid, interactive, message.member, interface.annotations[message.member])

    async def _credentials(self, name: str) -> dict[str, Any]:
        (found,) = await self._link.bus("GetConnectionCredentials", "s", name)
        return cast("dict[str, Any]", found)

    async def _uid(self, name: str) -> int:
        return (await self._users.of(name)).uid

    async def _kept(self, name: str) -> tuple[int, int]:
        """Return the bytes that the bus keeps from a connection, and the bytes it keeps for the connection to read."""
        (found,) = await self._link.call(
            standard.BUS, standard.BUS_PATH, STATS, "GetConnectionStats", "s", name, timeout=5.0
        )
        if not {"IncomingBytes", "OutgoingBytes"} <= found.keys():
            raise errors.UnknownMethod("the bus keeps no account of bytes")
        return found["IncomingBytes"].value, found["OutgoingBytes"].value

    async def present(self, caller: Caller) -> bool:
        """Return whether the client is still on the bus."""
        (there,) = await self._link.bus("NameHasOwner", "s", caller.name)
        return bool(there)

    async def while_present(self, caller: Caller, awaitable: Awaitable[T]) -> T:
        """Await the work, but cancel it when the client leaves the bus. Raise CallerGone if that ends the work."""
        begun: asyncio.Future[T] | None = None
        try:
            # The work begins after the watch: a caller who is told that the bus is slow has nothing done for him.
            async with self._presence.watching(caller.name) as gone:
                begun = asyncio.ensure_future(awaitable)
                either: set[asyncio.Future[Any]] = {begun, gone}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task = begun or asyncio.ensure_future(awaitable)  # a task that is cancelled at once never begins
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            raise CallerGone(f"{caller.name} has left the bus")
        return task.result()

    def watching(self, name: str) -> AbstractAsyncContextManager[asyncio.Future[None]]:
        """Give a future that is done once a client has left the bus, even if it had left before."""
        return self._presence.watching(name)

    async def uid_of(self, name: str) -> int | None:
        """Ask the bus for the user of a connection. Return None if it has ended, UNKNOWN if the bus does not say."""
        return await self._users.still(name)

    async def bus_id(self) -> str:
        """Return the id of this bus (GetId). Other buses, and this bus after a restart, have another id."""
        (found,) = await self._link.bus("GetId")
        return cast("str", found)

    # calls in

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

    def _takes(self, message: Message) -> bool:
        """Return whether a method, or a listener, takes a message with this signature."""
        if message.message_type is MessageType.SIGNAL:
            return (message.interface, message.member, message.signature) in self._listeners
        try:
            interface, _ = self._tree.resolve(message.path, message.interface, message.member)
        except errors.KerntuneError:
            return False
        return interface.methods[message.member][0] == message.signature

    def _incoming(self, message: Message) -> None:
        sender = message.sender
        if message.message_type is MessageType.SIGNAL:
            for listener in self._listeners.get((message.interface, message.member, message.signature), ()):
                listener(sender, *message.body)
        elif self._busy[sender] >= self._in_flight:
            many = errors.LimitsExceeded(f"more than {self._in_flight} calls at once", "wait for the replies")
            self._refuse(message, many)
        else:
            self._busy[sender] += 1
            place = self._places.take(self._link.uid, min(1 + self._link.size // OF_A_PLACE, OF_A_CALL))
            task = asyncio.get_running_loop().create_task(self._serve(message, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, message: Message, place: Place) -> None:
        PLACE.set(place)
        try:
            await self._opened.wait()
            await self._unread.room(message.sender)
            signature, body = await self._dispatch(message)
            if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
                await self._answer(message, Message.new_method_return(message, signature, body))
            if kept := await self._unread.too_much(self._link.unique_name):
                self._link.leave(f"the bus keeps {kept} bytes of ours that clients do not read")
        except errors.KerntuneError as error:
            self._refuse(message, error)
        except asyncio.CancelledError:  # by `close`
            hint = "Ask again when it has started"
            self._refuse(message, errors.Failed("kerntuned has stopped before this was done", hint))
            raise
        except Exception as error:  # noqa: BLE001  # the dispatch edge: a client gets no traceback, the journal gets it once
            self._log_once(message, error)
            self._refuse(message, errors.Failed("internal error", "the daemon's journal has the details"))
        finally:
            place.give_back()
            self._busy[message.sender] -= 1
            if not self._busy[message.sender]:
                del self._busy[message.sender]

    async def _dispatch(self, message: Message) -> tuple[str, list[Any]]:
        """Run the handler, and return its out signature and the body of the reply."""
        interface, impl = self._tree.resolve(message.path, message.interface, message.member)
        takes, gives = interface.methods[message.member]
        if message.signature != takes:
            raise errors.InvalidArgs(f'{message.member} takes "{takes}", not "{message.signature}"')
        handler = getattr(impl, snake(message.member))
        first = message.path if impl is self._tree else await self._caller(message, interface)
        result = await handler(first, *message.body)
        if result is None:
            return gives, []
        return gives, list(result) if isinstance(result, tuple) else [result]

    async def _answer(self, call: Message, reply: Message) -> None:
        """Send a reply. A client that does not read gets no long one, and no error: the call was carried out."""
        data = self._link.pack(reply)
        if len(data) > SMALL:
            try:
                await self._unread.room(call.sender)
            except errors.LimitsExceeded as error:
                self._link.complain("unread", f"did not send a reply to {call.sender}: {error}")
                return
        self._link.post(data)
        self._unread.sent(len(data), call.sender)

    def _refuse(self, message: Message, error: errors.KerntuneError) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED and not self._unread.silent(message.sender):
            self._unread.sent(self._link.send(error_reply(message, error.dbus_name, str(error))), message.sender)

    def _log_once(self, message: Message, error: Exception) -> None:
        """Log the traceback, but only the first from each place, because a client can cause any number."""
        place = (type(error), *_innermost(error.__traceback__))
        if place in self._seen:
            return
        if len(self._seen) >= MAX_PLACES:
            self._seen.clear()
        self._seen.add(place)
        log.error("%s.%s of %s failed", message.interface, message.member, message.path, exc_info=error)


def _innermost(trace: TracebackType | None) -> tuple[str, int]:
    """Return the file and line where an exception was raised."""
    *_, (frame, line) = traceback.walk_tb(trace)
    return frame.f_code.co_filename, line
