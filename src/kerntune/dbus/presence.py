"""The presence of clients: it knows when one leaves the bus, and listens only for clients that a caller waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kerntune.dbus import standard
from kerntune.dbus.connection import Link
from kerntune.dbus.standard import THE_BUS


@dataclass(slots=True)
class _Watch:
    gone: asyncio.Future[None]
    ready: asyncio.Task[None]
    users: int = 0


class Presence:
    """A watch on unique names; the owner of the connection gives it the bus's signals through `owner_changed`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._watches: dict[str, _Watch] = {}

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
                self._link.tell(*THE_BUS, "RemoveMatch", "s", standard.owner_rule(name))

    def owner_changed(self, sender: str, name: str, _old: str, owner: str) -> None:
        """Handle NameOwnerChanged: `owner` is the new owner of a name, "" if it has none any more."""
        watch = self._watches.get(name) if sender == standard.BUS else None
        if watch and not owner and not watch.gone.done():
            watch.gone.set_result(None)

    async def _start(self, name: str, gone: asyncio.Future[None]) -> None:
        await self._link.bus("AddMatch", "s", standard.owner_rule(name))
        (there,) = await self._link.bus("NameHasOwner", "s", name)  # it may have left before the match was in place
        if not there and not gone.done():
            gone.set_result(None)
