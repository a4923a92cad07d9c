"""A watch on clients: it knows when one leaves the bus, and listens only for those that work is done for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.connection import Connection
from kerntune.dbus.standard import THE_BUS, owner_rule

T = TypeVar("T")


class CallerGone(errors.KerntuneError):
    """The client left the bus before its call was done."""


@dataclass(slots=True)
class _Watch:
    gone: asyncio.Future[None]
    ready: asyncio.Task[None]
    users: int = 0


class NameWatch:
    """A watch on unique names; the owner of the connection gives it the bus's signals through `owner_changed`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watches: dict[str, _Watch] = {}

    async def is_present(self, name: str) -> bool:
        """Return whether a client is still on the bus."""
        (there,) = await self._connection.call_bus("NameHasOwner", "s", name)
        return bool(there)

    @asynccontextmanager
    async def watching(self, name: str) -> AsyncIterator[asyncio.Future[None]]:
        """Give a future that is done once `name` has left the bus, even if it had left before."""
        watch = self._watches.get(name)
        if watch is None:
            gone = asyncio.get_running_loop().create_future()
            watch = self._watches[name] = _Watch(gone, asyncio.create_task(self._start(name, gone)))
        watch.users += 1
        try:
            await asyncio.shield(watch.ready)
            yield watch.gone
        finally:
            watch.users -= 1
            if not watch.users:
                del self._watches[name]
                watch.ready.cancel()
                self._connection.call_oneway(*THE_BUS, "RemoveMatch", "s", owner_rule(name))

    async def while_present(self, name: str, awaitable: Awaitable[T]) -> T:
        """Await the work, but cancel it when the client leaves the bus. Raise CallerGone if that ends the work."""
        begun: asyncio.Future[T] | None = None
        try:
            # The work begins after the watch: a caller who is told that the bus is slow has nothing done for him.
            async with self.watching(name) as gone:
                begun = asyncio.ensure_future(awaitable)
                either: set[asyncio.Future[Any]] = {begun, gone}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task = begun or asyncio.ensure_future(awaitable)  # a task that is cancelled at once never begins
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            raise CallerGone(f"{name} has left the bus")
        return task.result()

    def owner_changed(self, sender: str, name: str, _old: str, owner: str) -> None:
        """Handle NameOwnerChanged: `owner` is the new owner of a name, "" if it has none any more."""
        watch = self._watches.get(name) if sender == standard.BUS else None
        if watch and not owner and not watch.gone.done():
            watch.gone.set_result(None)

    async def _start(self, name: str, gone: asyncio.Future[None]) -> None:
        await self._connection.call_bus("AddMatch", "s", owner_rule(name))
        # It may have left before the match was in place.
        if not await self.is_present(name) and not gone.done():
            gone.set_result(None)
