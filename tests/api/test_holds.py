"""Holds over a bus, with the real daemon on a simulated host: from the call to the end of its client."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME, HOLD, HUGE_PAGES, MANAGER, ROOT
from kerntune.dbus.client import Client, Variant, connect
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus

# There is no polkit on this bus: root alone may change anything.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without polkit root alone may hold")

BOUND = 10.0  # seconds
MANAGED = "org.freedesktop.DBus.ObjectManager"
POOL = ["hugepages", "2M", "10"]
Error = type[Exception]
WHO = "{}, root (python)"


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    with Daemon(bus, "--demo") as running:
        yield running


class Caller:
    """Short words for what is asked of the daemon."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def hold(self, *settings: list[str], who: str = "job", why: str = "", **options: Variant) -> str:
        return str((await self.held(*settings, who=who, why=why, **options))[0])

    async def held(self, *settings: list[str], who: str = "job", why: str = "", **options: Variant) -> list[Any]:
        chosen = {name.replace("_", "-"): value for name, value in options.items()}
        return await self.client.call(ROOT, MANAGER, "Hold", "a(sss)ssa{sv}", [*settings], who, why, chosen)

    async def release(self, path: str) -> None:
        await self.client.call(path, HOLD, "Release", "a{sv}", {})

    async def objects(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = await self.client.call(ROOT, MANAGED, "GetManagedObjects")
        return found[0]

    async def pages(self) -> int:
        return next(int(row[2]) for row in await self.client.get(ROOT, HUGE_PAGES, "Pools") if row[:2] == [2 << 20, ""])

    async def until(self, pages: int) -> None:
        """Wait until the pool has so many pages, and no hold is left."""
        async with asyncio.timeout(BOUND):
            while (await self.pages(), await self.objects()) != (pages, {}):  # noqa: ASYNC110  # nobody tells of both
                await asyncio.sleep(0.01)


@asynccontextmanager
async def calling(bus: PrivateBus) -> AsyncIterator[Caller]:
    async with connect(BUS_NAME, bus.address) as client:
        yield Caller(client)


async def test_from_its_beginning_to_its_release(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root, root.client.listen(ROOT) as signals:
        before = await root.pages()
        now = time.time() * 1e6
        path, outcomes = await root.held(
            ["hugepages", "2M", "10"], ["io-scheduler", "nvme*", "bfq"], who="train", why="step <b>1</b>"
        )
        assert path == f"{ROOT}/hold/1"
        total = str(before + 10)
        assert [row[:3] + row[4:6] for row in outcomes] == [
            ["hugepages", "2M", "+10", total, "satisfied"],
            ["io-scheduler", "nvme0n1", "bfq", "bfq", "satisfied"],
            ["io-scheduler", "nvme1n1", "bfq", "bfq", "satisfied"],
        ]
        assert await root.client.get(ROOT, MANAGER, "Holds") == [path]
        (shown,) = (await root.objects()).values()
        since = shown[HOLD].pop("SinceUSec")
        assert now <= since <= time.time() * 1e6
        assert shown == {
            HOLD: {
                "Who": WHO.format("train"),
                "Why": "step <b>1</b>",
                "Uid": 0,
                "Settings": [["hugepages", "2M", "10"], ["io-scheduler", "nvme*", "bfq"]],
                "Outcomes": outcomes,
                "ExpiresUSec": 0,
            }
        }
        await root.client.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", [["hugepages", "2M", "3"]], {})
        assert (await root.client.get(path, HOLD, "Outcomes"))[0][2:6] == ["+10", "10", "13", "satisfied"]
        await root.release(path)
        assert (await root.pages(), await root.objects()) == (3, {})
        with pytest.raises(errors.UnknownObject):
            await root.release(path)
        heard = []
        async with asyncio.timeout(BOUND):
            async for signal in signals:
                heard.append(signal.member)
                if signal.member == "InterfacesRemoved":
                    assert signal.args == [path, [HOLD]]
                    break
        assert heard.count("InterfacesAdded") == 1


async def test_it_ends_with_its_client(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root:
        before = await root.pages()
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(calling(bus)) for _ in range(3)]
            for each in clients:
                await each.hold(POOL)
            assert await root.pages() == before + 30
        await root.until(before)
        assert f"hold 2 of {WHO.format('job')}, uid 0, ends: client gone" in daemon.journal()


async def test_at_its_time_and_detached(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root:
        before = await root.pages()
        await root.hold(POOL, ttl_usec=Variant("t", 50_000))
        await root.until(before)
        async with calling(bus) as other:
            path = await other.hold(POOL, ttl_usec=Variant("t", 1_000_000), detached=Variant("b", True))
        assert list(await root.objects()) == [path]
        await root.until(before)
        assert "ends: expired" in daemon.journal()


async def test_it_survives_the_daemon_and_not_its_client(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root, calling(bus) as stays:
        before = await root.pages()
        async with calling(bus) as goes:
            await goes.hold(POOL)
            path = await stays.hold(POOL, who="stays")
            await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        # The simulated host begins anew with the daemon.
        assert await root.pages() == before + 10
        (shown,) = (await root.objects()).values()
        assert shown[HOLD]["Who"] == WHO.format("stays")
        assert [row[2:6:3] for row in shown[HOLD]["Outcomes"]] == [["+10", "satisfied"]]
        assert (await root.client.get(path, HOLD, "Outcomes"))[0][2:6:3] == ["+10", "satisfied"]
        assert await stays.hold(POOL) == f"{ROOT}/hold/3"
        await stays.release(path)
        assert await root.pages() == before + 10


async def test_after_a_restart_of_the_bus_all_clients_are_gone(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root:
        before = await root.pages()
        await root.hold(POOL)
    async with calling(bus) as root:
        await root.hold(POOL)
        daemon.kill()
        bus.stop()
        bus.start()
        await asyncio.to_thread(daemon.start)
    async with calling(bus) as root:
        assert (await root.pages(), await root.objects()) == (before, {})


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"settings": []}, errors.InvalidArgs),
        ({"who": "x" * 257}, errors.InvalidArgs),
        ({"why": "two\nlines"}, errors.InvalidArgs),
        ({"who": "\x1b[31mred"}, errors.InvalidArgs),
        ({"who": "\u3164"}, errors.InvalidArgs),
        ({"detached": Variant("b", True)}, errors.InvalidArgs),
        ({"ttl_usec": Variant("t", 0)}, errors.InvalidArgs),
        ({"persist": Variant("b", True)}, errors.InvalidArgs),
        ({"profile": Variant("s", "gone")}, errors.NoSuchProfile),
        ({"settings": [POOL, POOL]}, errors.InvalidValue),
        ({"settings": [["hugepages", "2M", "99999999"]]}, errors.OverLimit),
        ({"settings": [["hugepages", "2M", ">=4"]]}, errors.InvalidValue),
        ({"settings": [["hugepages", "2M", "0"]]}, errors.InvalidValue),
        ({"settings": [["io-scheduler", "nvme9n9", "none"]]}, errors.NoSuchTarget),
        ({"settings": [["tea", "", "green"]]}, errors.UnknownTunable),
    ],
)
async def test_what_is_refused_leaves_nothing(
    bus: PrivateBus, daemon: Daemon, asked: dict[str, Any], error: Error
) -> None:
    async with calling(bus) as root:
        before = await root.pages()
        with pytest.raises(error):
            await root.held(*asked.pop("settings", [POOL]), **asked)
        assert (await root.pages(), await root.objects()) == (before, {})


async def test_an_empty_name_is_filled(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root:
        for blank in ("", "  "):
            path = await root.hold(POOL, who=blank)
            assert await root.client.get(path, HOLD, "Who") == "root (python)"


async def test_all_of_a_profile_but_what_is_set_otherwise(bus: PrivateBus, daemon: Daemon) -> None:
    async with calling(bus) as root:
        path = await root.hold(["io-scheduler", "nvme*", "bfq"], profile=Variant("s", "ai-inference"))
        settings = await root.client.get(path, HOLD, "Settings")
        assert ["io-scheduler", "nvme*", "bfq"] in settings
        assert [row for row in settings if row[0] == "cpu-governor"]
        assert len({(tunable, instances) for tunable, instances, _ in settings}) == len(settings)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_leave_nothing_behind(bus: PrivateBus, daemon: Daemon, count: int) -> None:
    """No object, no match rule, and no memory that grows with each."""
    asyncio.run(many(bus, daemon, count))


async def many(bus: PrivateBus, daemon: Daemon, count: int) -> None:

    def resident() -> int:
        with open(f"/proc/{daemon.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    async with calling(bus) as root:
        before, sizes = await root.pages(), []
        for number in range(count):
            async with calling(bus) as client:
                path = await client.hold(["hugepages", "2M", "1"])
                if number % 2:
                    await client.release(path)
            if number % 10 == 9:
                await root.until(before)
                sizes.append(resident())
        (owner,) = await root.client._connection.call_bus("GetNameOwner", "s", "org.kerntune.Tuner1")
        rules = await stats(root, owner)
        assert rules <= 8
        # The bus side remembers its last 1024 clients, and how much each has not read yet: 1 KiB for each.
        assert sizes[-1] - sizes[count // 20] < count + 512, sizes


async def stats(root: Caller, name: str) -> int:
    """The match rules of a connection."""
    (found,) = await root.client._connection.call(
        "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.Debug.Stats",
        "GetConnectionStats", "s", name, timeout=BOUND,
    )  # fmt: skip
    return int(found["MatchRules"].value)
