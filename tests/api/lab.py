"""The daemon as its clients see it, with short words for what the tests ask of it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from kerntune.api.names import BUS_NAME, HOLD, HUGE_PAGES, MANAGER, ROOT
from kerntune.api.services import LOGIND, RIVALS
from kerntune.dbus.client import Client, Variant, connect
from kerntune.dbus.standard import OBJECT_MANAGER
from tests.dbus import lab
from tests.harness import CHECKOUT
from tests.harness.daemon import Daemon
from tests.harness.polkitd import POLKIT_NAME
from tests.harness.privatebus import PrivateBus

BOUND: Final = 10.0  # seconds that anything may take here

PLAYED: Final = (lab.NAME, POLKIT_NAME, LOGIND, *RIVALS)
POLICY: Final = f"""\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <policy user="{os.geteuid()}">
    {"".join(f'<allow own="{name}"/><allow send_destination="{name}"/>' for name in (BUS_NAME, *PLAYED))}
  </policy>
</busconfig>
"""


@contextmanager
def private_bus(folder: Path) -> Iterator[PrivateBus]:
    """Run a bus with the policy of the daemon, on which the tests may also play the services that it talks to."""
    policy = folder / "played.conf"
    policy.write_text(POLICY)
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf", policy]) as running:
        yield running


@contextmanager
def not_started(daemon: Daemon) -> Iterator[Daemon]:
    """Give a daemon that the test starts; end it, and remove its folders."""
    try:
        yield daemon
    finally:
        daemon.__exit__(None, None, None)


def write_config(daemon: Daemon, **texts: str) -> None:
    """Write files of the configuration: `main` is kerntune.toml, any other name a profile."""
    for name, text in texts.items():
        path = daemon.config / ("kerntune.toml" if name == "main" else f"profiles/{name}.toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


class Change(NamedTuple):
    """The answer to a call that changes something, or plans to: the outcomes are rows of (ssssssss)."""

    changed: bool
    outcomes: list[list[str]]

    @property
    def states(self) -> dict[str, str]:
        """The state and the value of each target."""
        return {row[1] or row[0]: f"{row[5]} {row[4]}" for row in self.outcomes}


class Remote:
    """The daemon, as one client on the bus sees it. Options are keywords: allow_partial=True."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(
        self, member: str, signature: str = "", *args: Any, interface: str = MANAGER, path: str = ROOT
    ) -> list[Any]:
        return await self.client.call(path, interface, member, signature, *args)

    async def get(self, name: str, interface: str = MANAGER, path: str = ROOT) -> Any:
        return await self.client.get(path, interface, name)

    async def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.call("Describe"))[0])
        return found

    async def target(self, tunable: str, instance: str = "") -> dict[str, Any]:
        """Return the row of one target in Describe."""
        targets = (await self.describe())["targets"]
        return next(row for row in targets if (row["tunable"], row["instance"]) == (tunable, instance))

    async def set(self, *settings: Sequence[str], **options: bool) -> Change:
        return Change(*await self.call("Set", "a(sss)a{sv}", [list(row) for row in settings], variants(options)))

    async def set_count(self, pages: int, **options: bool) -> int:
        """Set the number of huge pages of the usual size, and return what there are."""
        (count,) = await self.call("SetCount", "tta{sv}", 0, pages, variants(options), interface=HUGE_PAGES)
        return int(count)

    async def plan(self, **options: bool | str) -> Change:
        """Plan a profile or a reset."""
        return Change(*await self.call("Plan", "a(sss)a{sv}", [], variants(options)))

    async def set_profile(self, name: str, **options: bool) -> Change:
        return Change(*await self.call("SetProfile", "sa{sv}", name, variants(options)))

    async def reset(self, **options: bool) -> Change:
        return Change(*await self.call("Reset", "a{sv}", variants(options)))

    async def reload(self) -> None:
        await self.call("Reload", "a{sv}", {})

    async def hold(self, *settings: Sequence[str], who: str = "job", why: str = "", **options: Any) -> str:
        """Begin a hold, and return its path."""
        return (await self.begin_hold(*settings, who=who, why=why, **options))[0]

    async def begin_hold(
        self, *settings: Sequence[str], who: str = "job", why: str = "", **options: Any
    ) -> tuple[str, list[list[str]]]:
        """Begin a hold, and return its path and its outcomes."""
        rows = [list(row) for row in settings]
        path, outcomes = await self.call("Hold", "a(sss)ssa{sv}", rows, who, why, variants(options))
        return path, outcomes

    async def release(self, path: str) -> None:
        await self.call("Release", "a{sv}", {}, interface=HOLD, path=path)

    async def held(self) -> dict[str, dict[str, Any]]:
        """Return the properties of each hold, by its path."""
        (found,) = await self.call("GetManagedObjects", interface=OBJECT_MANAGER)
        return {path: interfaces[HOLD] for path, interfaces in found.items()}

    async def pages(self) -> int:
        """Return the number of huge pages of 2 MiB."""
        return next(int(row[2]) for row in await self.get("Pools", HUGE_PAGES) if row[:2] == [2 << 20, ""])


@asynccontextmanager
async def connected(bus: PrivateBus) -> AsyncIterator[Remote]:
    """Connect one more client to the daemon's bus."""
    async with connect(BUS_NAME, bus.address) as client:
        yield Remote(client)


def variants(options: dict[str, Any]) -> dict[str, Variant]:
    """Return options as a{sv}."""
    kinds = {bool: "b", str: "s", int: "t"}
    return {name.replace("_", "-"): Variant(kinds[type(value)], value) for name, value in options.items()}
