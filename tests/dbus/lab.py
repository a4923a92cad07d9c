"""A small service with one of everything, and clients to try it with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kerntune import errors
from kerntune.dbus import messages
from kerntune.dbus.client import Client, connect
from kerntune.dbus.connection import Connection
from kerntune.dbus.framing import Frame
from kerntune.dbus.introspection import Interface, parse
from kerntune.dbus.messages import Message, MessageFlag, MessageType, Variant
from kerntune.dbus.service import Caller, Service
from kerntune.dbus.standard import BUS, BUS_PATH, STATS
from tests.harness.privatebus import PrivateBus

NAME = "org.kerntune.Lab"
HINT = "is it running? systemctl status lab"
LATE = "It may still be at work"
ROOT = "/org/kerntune/Lab"
IFACE = "org.kerntune.Lab.Bench"
PROPERTIES = "org.freedesktop.DBus.Properties"
PEER = "org.freedesktop.DBus.Peer"

XML = """
<node>
  <interface name="org.kerntune.Lab.Bench">
    <method name="Echo"><arg name="text" type="s" direction="in"/><arg name="text" type="s" direction="out"/></method>
    <method name="Both"><arg name="a" type="u" direction="out"/><arg name="b" type="s" direction="out"/></method>
    <method name="Options">
      <arg name="options" type="a{sv}" direction="in"/><arg name="kinds" type="as" direction="out"/>
    </method>
    <method name="Who">
      <arg name="name" type="s" direction="out"/><arg name="uid" type="u" direction="out"/>
      <arg name="pid" type="u" direction="out"/><arg name="interactive" type="b" direction="out"/>
    </method>
    <method name="Refuse"/>
    <method name="Crash"/>
    <method name="Wrong"><arg name="number" type="u" direction="out"/></method>
    <method name="Big"><arg name="size" type="u" direction="in"/><arg name="data" type="ay" direction="out"/></method>
    <method name="Wait"/>
    <method name="WaitWhilePresent"/>
    <property name="Version" type="s" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>
    </property>
    <property name="Count" type="u" access="read"/>
    <property name="BigTable" type="as" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="invalidates"/>
    </property>
    <property name="Sampled" type="u" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>
    </property>
    <signal name="Tick"><arg name="n" type="u"/><arg name="details" type="a{sv}"/></signal>
  </interface>
  <interface name="org.kerntune.Lab.Sample">
    <property name="Label" type="s" access="read"/>
  </interface>
</node>
"""


def interfaces() -> dict[str, Interface]:
    return {found.name: found for found in parse(XML)}


class Bench:
    """The main object. `release` ends the calls that wait; `cancelled` is set when a call that waits is cancelled."""

    version = "1"

    def __init__(self) -> None:
        self.count = 7
        self.big_table = ["a", "b"]
        self.sampled = 0
        self.waiting = 0
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.service: Service | None = None

    async def refresh(self) -> None:
        self.sampled += 1

    async def echo(self, caller: Caller, text: str) -> str:
        return text

    async def both(self, caller: Caller) -> tuple[int, str]:
        return 1, "two"

    async def options(self, caller: Caller, options: Mapping[str, Variant]) -> list[str]:
        return [f"{key}:{value.signature}" for key, value in options.items()]

    async def who(self, caller: Caller) -> tuple[str, int, int, bool]:
        return caller.name, caller.uid, caller.pid, caller.interactive

    async def refuse(self, caller: Caller) -> None:
        raise errors.OverLimit("too many pages", "ask for fewer")

    async def crash(self, caller: Caller) -> None:
        raise RuntimeError("a secret in /root")

    async def wrong(self, caller: Caller) -> str:
        return "not a number"

    async def big(self, caller: Caller, size: int) -> bytes:
        return bytes(size)

    async def wait(self, caller: Caller) -> None:
        self.waiting += 1
        self.started.set()
        await self.release.wait()

    async def wait_while_present(self, caller: Caller) -> None:
        assert self.service
        await self.service.clients.while_present(caller.name, self._wait())

    async def _wait(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Sample:
    """A child object."""

    def __init__(self, label: str) -> None:
        self.label = label


@asynccontextmanager
async def serving(bus: PrivateBus, bench: Bench | None = None, *, in_flight: int = 32) -> AsyncIterator[Service]:
    """Run the service with its main object; the calls that wait end with the context."""
    bench = bench or Bench()
    service = Service(interfaces(), ROOT, in_flight=in_flight, address=bus.address)
    bench.service = service
    await service.connect(NAME)
    try:
        service.publish(ROOT, {IFACE: bench})
        service.connection.open()
        yield service
    finally:
        bench.release.set()
        await service.connection.close()


@asynccontextmanager
async def client(bus: PrivateBus) -> AsyncIterator[Client]:
    """Connect a client of the service."""
    async with connect(NAME, bus.address, hint=HINT, late=LATE) as connected:
        yield connected


@asynccontextmanager
async def connected(bus: PrivateBus) -> AsyncIterator[Connection]:
    """Connect another program to the bus."""
    link = Connection(lambda _message: None, address=bus.address)
    await link.connect()
    try:
        yield link
    finally:
        await link.close()


async def settle(client: Client, service: Service) -> None:
    """Wait until the service has received all that the client has sent: the bus keeps the order."""
    await client.running()
    await service.connection.call_bus("GetId")


async def answered(service: Service) -> None:
    """Wait until every call that the service has received is answered."""
    while service.connection._tasks:
        await asyncio.gather(*service.connection._tasks)


async def stats(service: Service) -> dict[str, int]:
    """Return the figures that the bus has of the service's connection."""
    connection = service.connection
    where = (BUS, BUS_PATH, STATS, "GetConnectionStats")
    (found,) = await connection.call(*where, "s", connection.unique_name, timeout=5)
    return {name: value.value for name, value in found.items()}


class Raw:
    """A client that sends any message, and keeps all that it gets from others than the bus itself."""

    def __init__(self, bus: PrivateBus) -> None:
        self.got: asyncio.Queue[Message] = asyncio.Queue()
        self.link = _Keeping(self.got, bus.address)

    async def __aenter__(self) -> Raw:
        await self.link.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()

    def send(
        self,
        member: str,
        signature: str = "",
        *args: Any,
        path: str = ROOT,
        interface: str | None = IFACE,
        flags: MessageFlag = MessageFlag.NONE,
    ) -> Message:
        """Send a call without waiting, and return it."""
        message = Message(NAME, path, IFACE, member, flags=flags, signature=signature, body=list(args))
        message.interface = interface  # type: ignore[assignment]  # None is allowed
        self.link.send(message)
        return message

    async def next_reply(self) -> Message:
        """Return the next method return or error."""
        return await self._next(MessageType.METHOD_RETURN, MessageType.ERROR)

    async def reply_to(self, call: Message) -> Message:
        """Return the reply to a call, and skip others."""
        while (message := await self.next_reply()).reply_serial != call.serial:
            pass
        return message

    async def method_call(self) -> Message:
        """Return the next call to us."""
        return await self._next(MessageType.METHOD_CALL)

    async def _next(self, *kinds: MessageType) -> Message:
        while (message := await self.got.get()).message_type not in kinds:
            pass
        return message


class _Keeping(Connection):
    """A connection that keeps each message that it gets from others than the bus itself."""

    def __init__(self, got: asyncio.Queue[Message], address: str) -> None:
        super().__init__(lambda _: None, address=address)
        self._got = got

    def _sort(self, frame: Frame) -> None:
        message = messages.parse(frame.data)
        if message.sender != BUS:
            self._got.put_nowait(message)
        super()._sort(frame)
