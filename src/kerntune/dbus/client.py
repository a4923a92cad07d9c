"""The client of one service, for programs that do several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.blocking import MAX_SIGNALS, Signal, is_from, typed_errors
from kerntune.dbus.connection import Connection
from kerntune.dbus.messages import Message, MessageType, Variant, unwrap
from kerntune.dbus.standard import THE_BUS

__all__ = ["Client", "Signal", "Signals", "Variant", "connect"]


@asynccontextmanager
async def connect(service: str, address: str | None = None, *, hint: str = "", late: str = "") -> AsyncIterator[Client]:
    """Give a client of `service`; the default is the system bus (or DBUS_SYSTEM_BUS_ADDRESS). Raise Unreachable.

    `hint` says what to try when the service cannot be reached, `late` when it has not answered in time.
    """
    client = Client(address, service, hint, late)
    try:
        await client._connection.connect()
        yield client
    finally:
        await client._connection.close()


class Client:
    """A client of one service. Every error is a class of kerntune.errors, with the text that the service sent."""

    def __init__(self, address: str | None, service: str, hint: str = "", late: str = "") -> None:
        self.service, self.hint, self.late = service, hint, late
        self._connection = Connection(self._incoming, address=address)
        self._listeners: list[Signals] = []

    @property
    def name(self) -> str:
        """Our unique name on the bus."""
        return self._connection.unique_name

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        interactive: bool = False,
        start: bool = True,
        timeout: float | None = 60.0,
    ) -> list[Any]:
        """Call a method, and return what its reply carries, with variants unwrapped.

        `interactive` lets polkit ask for a password: then leave it time (`timeout` in seconds). Without `start` a
        service that does not run is left alone.
        Raise Unreachable without a bus, a daemon or an answer, and Usage for a text that is not UTF-8. An error name
        that is not ours becomes Failed.
        """
        how: dict[str, Any] = {"timeout": timeout, "interactive": interactive, "start": start}
        call = self._connection.call(self.service, path, interface, member, signature, *args, **how)
        with typed_errors(self.service, self.hint, self.late):
            return [unwrap(value) for value in await call]

    async def running(self) -> bool:
        """Return whether the service is on the bus; the question does not start it."""
        (owned,) = await self._connection.call_bus("NameHasOwner", "s", self.service)
        return bool(owned)

    async def get(self, path: str, interface: str, name: str) -> Any:
        """Return a property, with variants unwrapped."""
        (value,) = await self.call(path, f"{standard.BUS}.Properties", "Get", "ss", interface, name)
        return value

    def listen(
        self, path: str, interface: str | None = None, member: str | None = None, *, restarts: bool = True
    ) -> Signals:
        """Return the signals of an object in their order: all, or those of one interface, or of one member of it.

        `async with client.listen(...) as signals` hears everything from there on; `async for signal in
        client.listen(...)` does so from its first step. Without `restarts` the signals end when the service leaves
        the bus.
        """
        return Signals(self, path, interface, member, restarts=restarts)

    def _incoming(self, message: Message) -> None:
        """Give signals to the listeners. Nobody calls a client, so no other message matters."""
        if message.message_type is MessageType.SIGNAL:
            for listener in self._listeners:
                listener._hear(message)


class Signals:
    """Signals as they arrive; the iteration ends with Unreachable when the bus is lost.

    When only the daemon goes, it waits for the next daemon; without `restarts` it ends with Unreachable too.
    """

    def __init__(
        self, client: Client, path: str, interface: str | None, member: str | None, *, restarts: bool = True
    ) -> None:
        self._client = client
        self._path = path
        self._interface = interface
        self._member = member
        self._restarts = restarts
        self._owner = ""
        # None means that the service has gone.
        self._heard: asyncio.Queue[Signal | None] = asyncio.Queue(MAX_SIGNALS)
        self._listening = False

    async def __aenter__(self) -> Signals:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening:
            self._listening = False
            self._client._listeners.remove(self)
            for rule in self._rules():
                self._client._connection.call_oneway(*THE_BUS, "RemoveMatch", "s", rule)

    def __aiter__(self) -> Signals:
        return self

    async def __anext__(self) -> Signal:
        await self._start()
        if self._heard.empty():
            heard = asyncio.ensure_future(self._heard.get())
            lost = asyncio.ensure_future(self._client._connection.closed())
            try:
                await asyncio.wait([heard, lost], return_when=asyncio.FIRST_COMPLETED)
                if not heard.done():
                    raise errors.Unreachable("the connection to the bus was lost", self._client.hint)
                return self._signal(heard.result())
            finally:
                heard.cancel()
                lost.cancel()
        return self._signal(self._heard.get_nowait())

    def _signal(self, heard: Signal | None) -> Signal:
        if heard is None:
            raise errors.Unreachable(f"{self._client.service} has left the bus", self._client.hint)
        return heard

    async def _start(self) -> None:
        if self._listening:
            return
        self._listening = True
        self._client._listeners.append(self)
        for rule in self._rules():
            await self._client._connection.call_bus("AddMatch", "s", rule)
        with typed_errors(self._client.service, self._client.hint, self._client.late):
            (self._owner,) = await self._client._connection.call_bus("GetNameOwner", "s", self._client.service)

    def _rules(self) -> tuple[str, str]:
        return standard.signal_rules(self._client.service, self._path, self._interface, self._member)

    def _hear(self, message: Message) -> None:
        """Keep a wanted signal. Check its sender: anybody can send one to us alone, which needs no match rule."""
        if message.sender == standard.BUS and message.member == "NameOwnerChanged":
            name, old, new = message.body
            if name == self._client.service:
                self._owner = new
                if old and not self._restarts:
                    self._keep(None)
            return
        if message.sender == self._owner and is_from(message, self._path, self._interface, self._member):
            args = [unwrap(value) for value in message.body]
            self._keep(Signal(message.path, message.interface, message.member, args))

    def _keep(self, heard: Signal | None) -> None:
        if self._heard.full():
            self._heard.get_nowait()
        self._heard.put_nowait(heard)
