"""The daemon's Manager as the verbs see it; the only module of the command line that reaches the bus."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from kerntune.bus.names import FREEDESKTOP, HOLD, HUGE_PAGES, MANAGER, MEMORY, ROOT, hold_path
from kerntune.cli.document import Change, Document, Event, GuardChange, Health, Outcome, Pass, Pool
from kerntune.errors import Failed, NoSuchHold, UnknownObject

if TYPE_CHECKING:
    from kerntune.bus.client import Client, Signal
    from kerntune.model import Setting

READ_SECONDS: Final = 15.0
# A user may have to type a password, and then the kernel may have to move a TiB of memory about. The daemon would take
# back a longer edit. The bus reports at once when the daemon is gone, and users can interrupt.
EDIT_SECONDS: Final = 3600.0
# A user who interrupts a command does not want its result any more.
LEAVING: Final = {"cancel-on-leave": True}


class Held(Protocol):
    """A hold that was granted."""

    @property
    def number(self) -> int:
        """The number of the hold."""

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The outcomes of its settings."""

    async def ended(self) -> None:
        """Return when the hold was released, or its time is over."""

    async def release(self) -> None:
        """End the hold, and return when the kernel has the values without it."""


class Manager(Protocol):
    """The daemon as the verbs need it; its methods raise the classes of kerntune.errors."""

    async def running(self) -> bool:
        """Return True if the daemon runs now; every other call starts it where the bus knows how to."""

    async def describe(self) -> Document:
        """Return the daemon's description of everything."""

    async def pools(self) -> list[Pool]:
        """Return the pools of huge pages; the daemon reads the host's memory again for this."""

    async def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        """Claim values; `options` are those of Manager.Set."""

    async def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        """Withdraw claims; `options` are those of Manager.Unset."""

    async def plan(self, settings: Sequence[Setting], options: Mapping[str, bool | str]) -> Change:
        """Return what `set` would do, or with the options `unset`, `profile` or `reset` what those would do."""

    async def profiles(self) -> list[tuple[str, str]]:
        """Return the name and summary of each profile."""

    async def set_profile(self, name: str) -> Change:
        """Put a profile in force."""

    async def clear_profile(self) -> Change:
        """End the profile in force."""

    async def reset(self, options: Mapping[str, bool]) -> Change:
        """Withdraw the claims of all callers; `options` are those of Manager.Reset."""

    async def hold(self, settings: Sequence[str], who: str, why: str, options: Mapping[str, bool | int | str]) -> Held:
        """Hold values for as long as this connection lives; `options` are those of Manager.Hold."""

    async def release(self, number: int) -> None:
        """End a hold. Raise NoSuchHold where there is none."""

    async def verify(self) -> tuple[Outcome, ...]:
        """Return the outcomes of managed targets that are not in the desired state."""

    async def reload(self) -> None:
        """Have the daemon read the configuration files again, and wait for the pass."""

    async def properties(self, interface: str) -> Mapping[str, Any]:
        """Return all properties of one interface, as the contract has them; start no daemon."""

    def watch(self) -> AbstractAsyncContextManager[AsyncIterable[Event]]:
        """Give every change from now on. Raise Unreachable when the daemon goes."""


Connect = Callable[[], AbstractAsyncContextManager[Manager]]


class BusManager:
    """The Manager that calls the daemon over the bus."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def running(self) -> bool:
        return await self._client.running()

    async def describe(self) -> Document:
        (text,) = await self._client.call(ROOT, MANAGER, "Describe", "", timeout=READ_SECONDS)
        try:
            return cast(Document, json.loads(text))
        except ValueError as error:
            raise Failed("the daemon's description is not JSON", str(error)) from error

    async def pools(self) -> list[Pool]:
        return [Pool(*row) for row in await self._client.get(ROOT, HUGE_PAGES, "Pools")]

    async def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        return await self._edit("Set", "a(sss)a{sv}", settings, {**options, **LEAVING})

    async def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        return await self._edit("Unset", "a(ss)a{sv}", what, {**options, **LEAVING})

    async def plan(self, settings: Sequence[Setting], options: Mapping[str, bool | str]) -> Change:
        return await self._edit("Plan", "a(sss)a{sv}", settings, options)

    async def profiles(self) -> list[tuple[str, str]]:
        (rows,) = await self._client.call(ROOT, MANAGER, "ListProfiles", timeout=READ_SECONDS)
        return [(name, summary) for name, summary in rows]

    async def set_profile(self, name: str) -> Change:
        return await self._change("SetProfile", "sa{sv}", name, _variants(LEAVING))

    async def clear_profile(self) -> Change:
        return await self._change("ClearProfile", "a{sv}", _variants(LEAVING))

    async def reset(self, options: Mapping[str, bool]) -> Change:
        return await self._change("Reset", "a{sv}", _variants({**options, **LEAVING}))

    async def hold(self, settings: Sequence[str], who: str, why: str, options: Mapping[str, bool | int | str]) -> Held:
        from kerntune import holding  # noqa: PLC0415  # help should not wait for asyncio
        from kerntune.cli import progress  # noqa: PLC0415

        async with progress.shown(self._client, sys.stderr):
            return await holding.begin(self._client, settings, who, why, **options)

    async def release(self, number: int) -> None:
        try:
            await self._client.call(
                hold_path(number), HOLD, "Release", "a{sv}", {}, interactive=True, timeout=EDIT_SECONDS
            )
        except UnknownObject as error:
            raise NoSuchHold(f"there is no hold {number}", "kerntune holds shows those there are") from error

    async def verify(self) -> tuple[Outcome, ...]:
        (rows,) = await self._client.call(ROOT, MANAGER, "Verify", timeout=READ_SECONDS)
        return _outcomes(rows)

    async def reload(self) -> None:
        await self._client.call(ROOT, MANAGER, "Reload", "a{sv}", {}, interactive=True, timeout=EDIT_SECONDS)

    async def properties(self, interface: str) -> Mapping[str, Any]:
        # A command that asks repeatedly must not start a daemon that was just stopped.
        (found,) = await self._client.call(
            ROOT, f"{FREEDESKTOP}.Properties", "GetAll", "s", interface, start=False, timeout=READ_SECONDS
        )
        return cast("Mapping[str, Any]", found)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterable[Event]]:
        # To listen starts no daemon, but a call does, where the bus knows how to.
        await self._client.call(ROOT, f"{FREEDESKTOP}.Peer", "Ping", timeout=READ_SECONDS)
        async with self._client.listen(ROOT, restarts=False) as signals:
            yield _events(signals)

    async def _edit(
        self, member: str, signature: str, rows: Sequence[Sequence[str]], options: Mapping[str, bool | str]
    ) -> Change:
        return await self._change(member, signature, [list(row) for row in rows], _variants(options))

    async def _change(self, member: str, signature: str, *body: Any) -> Change:
        from kerntune.cli import progress  # noqa: PLC0415  # help should not wait for asyncio

        async with progress.shown(self._client, sys.stderr):
            changed, outcomes = await self._client.call(
                ROOT, MANAGER, member, signature, *body, interactive=True, timeout=EDIT_SECONDS
            )
        return Change(changed, _outcomes(outcomes))


def _variants(options: Mapping[str, bool | str]) -> dict[str, Any]:
    from kerntune.bus.client import Variant  # noqa: PLC0415  # importing it takes longer than a call

    return {key: Variant("s" if isinstance(value, str) else "b", value) for key, value in options.items()}


def _outcomes(rows: Sequence[Sequence[str]]) -> tuple[Outcome, ...]:
    return tuple(Outcome(*row) for row in rows)


async def _events(signals: AsyncIterable[Signal]) -> AsyncIterator[Event]:
    """Yield the signals about managed targets as events."""
    async for signal in signals:
        match signal.member, signal.args:
            case "Changed", [generation, cause, rows] if signal.interface == MANAGER:
                yield Pass(generation, cause, _outcomes(rows))
            case "PropertiesChanged", [interface, {"Degraded": degraded}, _] if interface == MANAGER:
                yield Health(tuple(degraded))
            case "GuardChanged", [state, level, details] if signal.interface == MEMORY:
                yield _guard_change(state, level, details)


def _guard_change(state: str, level: int, details: Mapping[str, Any]) -> GuardChange:
    headroom, floor, limit = (details.get(name, 0) for name in ("headroom", "floor", "limit"))
    largest, growing = (tuple(tuple(row) for row in details.get(name, ())) for name in ("largest", "growing"))
    reason, culprit = details.get("reason", ""), details.get("culprit", "")
    return GuardChange(state, level, reason, headroom, floor, limit, largest, growing, culprit)


@asynccontextmanager
async def connect() -> AsyncIterator[Manager]:
    """Connect to the daemon on the system bus (`DBUS_SYSTEM_BUS_ADDRESS` when set). Raise Unreachable."""
    from kerntune.bus import client  # noqa: PLC0415  # as above

    async with client.connect() as connection:
        yield BusManager(connection)
