"""The daemon's Manager as the verbs see it; the one module of the command line that reaches the bus."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from kerntune.bus.names import MANAGER, ROOT
from kerntune.cli.answers import Change, Document, Outcome
from kerntune.errors import Failed

if TYPE_CHECKING:
    from kerntune.bus.client import Client
    from kerntune.model import Setting

READ_SECONDS: Final = 15.0
# Somebody may have to type a password, and then the kernel may have to move memory about.
EDIT_SECONDS: Final = 300.0


class Manager(Protocol):
    """What the verbs need of the daemon; its methods raise the classes of kerntune.errors."""

    async def describe(self) -> Document:
        """Everything there is."""

    async def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        """Claim values; `options` are those of Manager.Set."""

    async def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        """Withdraw claims; `options` are those of Manager.Unset."""


Connect = Callable[[], AbstractAsyncContextManager[Manager]]


class BusManager:
    """A Manager on the other side of the bus."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def describe(self) -> Document:
        (text,) = await self._client.call(ROOT, MANAGER, "Describe", "", timeout=READ_SECONDS)
        try:
            return cast(Document, json.loads(text))
        except ValueError as error:
            raise Failed("the daemon's description is not JSON", str(error)) from error

    async def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        return await self._edit("Set", "a(sss)a{sv}", settings, options)

    async def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        return await self._edit("Unset", "a(ss)a{sv}", what, options)

    async def _edit(
        self, member: str, signature: str, rows: Sequence[Sequence[str]], options: Mapping[str, bool]
    ) -> Change:
        from kerntune.bus.client import Variant  # noqa: PLC0415  # importing it takes longer than a call

        body: list[Any] = [[list(row) for row in rows], {key: Variant("b", value) for key, value in options.items()}]
        changed, outcomes = await self._client.call(
            ROOT, MANAGER, member, signature, *body, interactive=True, timeout=EDIT_SECONDS
        )
        return Change(changed, tuple(Outcome(*row) for row in outcomes))


@asynccontextmanager
async def connect() -> AsyncIterator[Manager]:
    """The daemon on the system bus (`DBUS_SYSTEM_BUS_ADDRESS` when set); raises Unreachable."""
    from kerntune.bus import client  # noqa: PLC0415  # as above

    async with client.connect() as connection:
        yield BusManager(connection)
