"""A service: its objects on the bus. It turns calls into handlers, their results into replies, changes into signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.introspection import Interface, snake
from kerntune.dbus.messages import Message, MessageFlag, MessageType
from kerntune.dbus.name_watch import NameWatch
from kerntune.dbus.objects import Objects
from kerntune.dbus.server import ServerConnection

DO_NOT_QUEUE: Final = 4  # flag of RequestName
OWNER: Final = frozenset({1, 4})  # its answers: primary owner, already owner


class NameTaken(errors.KerntuneError):
    """Another connection owns the bus name."""


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
    """A service with objects below `root`, and at most `in_flight` calls of one client at a time.

    A handler is `async def set_count(self, caller, page_size, count, options)`. It returns None, the value, or a tuple
    for several out arguments. D-Bus structs and arrays are lists; variants stay Variants both ways. A handler raises a
    KerntuneError to refuse.

    Properties are attributes without I/O; each value is a new object. If an object has `def refresh(self)`, the service
    calls it before it reads a property that others may change. It awaits what `refresh` returns, if anything.
    """

    def __init__(
        self, interfaces: Mapping[str, Interface], root: str, *, in_flight: int = 32, address: str | None = None
    ) -> None:
        self._objects = Objects(interfaces, root)
        self.connection = ServerConnection(self._answer, self._heard, self._takes, in_flight=in_flight, address=address)
        self.clients = NameWatch(self.connection)
        self._listeners: dict[tuple[str, str, str], list[Callable[..., None]]] = {}
        self.on_signal(standard.BUS, "NameOwnerChanged", "sss", self.clients.owner_changed)

    async def connect(self, bus_name: str) -> None:
        """Connect and own `bus_name`; calls wait for `open`. Raise Unreachable, NameTaken or AccessDenied."""
        self._objects.bus_name = bus_name
        await self.connection.connect()
        try:
            (answer,) = await self.connection.call_bus("RequestName", "su", bus_name, DO_NOT_QUEUE)
            if answer not in OWNER:
                raise NameTaken(
                    f"{bus_name} has another owner", f"Is the daemon running already? busctl status {bus_name}"
                )
        except errors.AccessDenied as error:
            await self.connection.close()
            raise errors.AccessDenied(
                f"may not own {bus_name}: {error}",
                f"The bus policy lets root own it: is {bus_name}.conf in /usr/share/dbus-1/system.d? Who runs this?",
            ) from error
        except errors.KerntuneError:
            await self.connection.close()
            raise

    def publish(self, path: str, impls: Mapping[str, object]) -> None:
        """Put an object (interface name -> implementation) on the bus. Raise TypeError that names what is missing."""
        self._objects.add(path, impls)
        if path != self._objects.root:
            added = {name: self._objects.values(path, name) for name in impls}
            self.emit(self._objects.root, standard.OBJECT_MANAGER, "InterfacesAdded", path, added)

    def retract(self, path: str) -> None:
        """Take an object off the bus."""
        removed = self._objects.remove(path)
        if removed and path != self._objects.root:
            self.emit(self._objects.root, standard.OBJECT_MANAGER, "InterfacesRemoved", path, removed)

    def publish_changes(self, path: str) -> None:
        """Publish in one PropertiesChanged for each interface of an object what has changed since the last time."""
        for interface, values, invalidated in self._objects.changes(path):
            self.emit(path, standard.PROPERTIES, "PropertiesChanged", interface, values, invalidated)

    def emit(self, path: str, interface: str, member: str, *args: Any, to: str | None = None) -> None:
        """Send a signal to everybody, or to one client."""
        signature = self._objects.interfaces[interface].signals[member]
        message = Message.new_signal(path, interface, member, signature, list(args))
        message.destination = to  # type: ignore[assignment]  # dbus_next says str, and takes None for everybody
        try:
            self.connection.send(message)
        except errors.LimitsExceeded as error:  # no caller waits, and no pass may fail for it
            self.connection.log_ratelimited("signal", f"did not send {interface}.{member}: {error}")

    def on_signal(self, interface: str, member: str, signature: str, listener: Callable[..., None]) -> None:
        """Call `listener(sender, *body)` with such signals. It checks the sender: anybody may send us one."""
        self._listeners.setdefault((interface, member, signature), []).append(listener)

    def _heard(self, signal: Message) -> None:
        for listener in self._listeners.get((signal.interface, signal.member, signal.signature), ()):
            listener(signal.sender, *signal.body)

    def _takes(self, message: Message) -> bool:
        """Return whether a method, or a listener, takes a message with this signature."""
        if message.message_type is MessageType.SIGNAL:
            return (message.interface, message.member, message.signature) in self._listeners
        try:
            interface, _ = self._objects.resolve(message.path, message.interface, message.member)
        except errors.KerntuneError:
            return False
        return interface.methods[message.member][0] == message.signature

    async def _answer(self, call: Message) -> Message:
        """Run the handler of a call, and return the reply."""
        interface, impl = self._objects.resolve(call.path, call.interface, call.member)
        takes, gives = interface.methods[call.member]
        if call.signature != takes:
            raise errors.InvalidArgs(f'{call.member} takes "{takes}", not "{call.signature}"')
        handler = getattr(impl, snake(call.member))
        first = call.path if impl is self._objects else await self._caller(call, interface)
        result = await handler(first, *call.body)
        body = [] if result is None else list(result) if isinstance(result, tuple) else [result]
        return Message.new_method_return(call, gives, body)

    async def _caller(self, call: Message, interface: Interface) -> Caller:
        """Return the sender of a call, as the bus knows it, with the annotations of what it calls."""
        uid, pid = await self.connection.users.of(call.sender)
        interactive = bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        return Caller(call.sender, uid, pid, interactive, call.member, interface.annotations[call.member])
