"""Profiles and Reset over a bus, with the real daemon on a simulated host, and files that were damaged meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.daemon.app import Status
from kerntune.dbus.client import Client, Signal, Variant, connect
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus

# There is no polkit on this bus: root alone may change anything.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="what is managed for everybody takes root")

LONGEST = 10.0  # seconds
DISK = 'summary = "{0}"\n[io-scheduler]\n"nvme*" = "{0}"\n'
BASELINE = {"baseline": Variant("b", True)}


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    """It has profiles of its own, and was not started yet."""
    daemon = Daemon(bus, "--demo", wait=False)
    for path, text in (
        ("kerntune.toml", '[overcommit]\n"*" = "always:95"\n'),
        ("profiles/fast.toml", DISK.format("none")),
        ("profiles/fair.toml", DISK.format("bfq")),
        ("profiles/bad.toml", 'include = ["bad"]\n'),
    ):
        (daemon.config / path).parent.mkdir(exist_ok=True)
        (daemon.config / path).write_text(text)
    try:
        yield daemon
    finally:
        daemon.__exit__(None, None, None)


class Caller:
    """Short words for what is asked of the daemon."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, member: str, signature: str = "", *args: Any) -> Any:
        return await self._client.call(ROOT, MANAGER, member, signature, *args)

    async def get(self, name: str) -> Any:
        return await self._client.get(ROOT, MANAGER, name)

    async def profile(self, name: str) -> tuple[bool, dict[str, str]]:
        return rows(await self.call("SetProfile", "sa{sv}", name, {}))

    async def plan(self, **options: bool | str) -> tuple[bool, dict[str, str]]:
        chosen = {key: Variant("s" if isinstance(value, str) else "b", value) for key, value in options.items()}
        return rows(await self.call("Plan", "a(sss)a{sv}", [], chosen))

    async def set(self, tunable: str, instances: str, value: str, **options: bool) -> None:
        chosen = {key: Variant("b", value) for key, value in options.items()}
        await self.call("Set", "a(sss)a{sv}", [[tunable, instances, value]], chosen)


def rows(answer: list[Any]) -> tuple[bool, dict[str, str]]:
    """Whether it changed anything; state and value by target."""
    changed, outcomes = answer
    return changed, {row[1] or row[0]: f"{row[5]} {row[4]}" for row in outcomes}


@asynccontextmanager
async def calling(bus: PrivateBus) -> AsyncIterator[Caller]:
    async with connect(BUS_NAME, bus.address) as client:
        yield Caller(client)


async def test_a_profile_from_its_choice_to_its_end(bus: PrivateBus, daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    async with calling(bus) as root:
        found = dict(await root.call("ListProfiles") and (await root.call("ListProfiles"))[0])
        assert (found["fast"], found["fair"]) == ("none", "bfq")
        assert "profiles include each other: bad -> bad" in found["bad"]
        assert {"ai-inference", "ai-training", "balanced", "model-download"} <= found.keys()
        assert await root.get("ActiveProfile") == ""
        assert await root.plan(profile="fair") == (True, {"nvme0n1": "planned none", "nvme1n1": "planned none"})
        assert await root.profile("fair") == (True, {"nvme0n1": "satisfied bfq", "nvme1n1": "satisfied bfq"})
        assert (await root.profile("fair"))[0] is False
        assert await root.get("ActiveProfile") == "fair"
        for name, error in (("gone", errors.NoSuchProfile), ("bad", errors.InvalidValue), ("", errors.InvalidArgs)):
            with pytest.raises(error):
                await root.profile(name)
        with pytest.raises(errors.InvalidArgs, match="no option 'persist'"):
            await root.call("SetProfile", "sa{sv}", "fair", {"persist": Variant("b", True)})
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    async with calling(bus) as root:
        assert await root.get("ActiveProfile") == "fair"
        assert rows(await root.call("ClearProfile", "a{sv}", {}))[0] is True
        assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("", [])


async def test_reset_to_the_files_and_to_the_host(bus: PrivateBus, daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    async with calling(bus) as root:
        await root.profile("fair")
        await root.set("io-scheduler", "nvme0n1", "kyber", persist=True)
        await root.set("overcommit", "", "heuristic")
        assert await root.plan(reset=True) == (True, {"nvme0n1": "planned kyber", "overcommit": "planned heuristic"})
        assert rows(await root.call("Reset", "a{sv}", {})) == (
            True,
            {"nvme0n1": "satisfied bfq", "overcommit": "satisfied always:95"},
        )
        for options in (
            {"baseline": True},
            {"holds": True},
            {"reset": True, "profile": "fair"},
            {"reset": True, "unset": True},
        ):
            with pytest.raises(errors.InvalidArgs):
                await root.plan(**options)
        planned = await root.plan(reset=True, baseline=True)
        assert set(planned[1].values()) == {"planned bfq", "planned always:95"}
        changed, found = rows(await root.call("Reset", "a{sv}", BASELINE))
        assert changed
        assert {state.partition(" ")[0] for state in found.values()} == {"unmanaged"}
        assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("", ["config-suspended"])
    await asyncio.to_thread(daemon.restart)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    assert "STATUS=0 targets managed; config-suspended" in daemon.messages
    async with calling(bus) as root:
        await root.call("Reload", "a{sv}", {})
        assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("fair", [])


async def test_everybody_hears_of_it(bus: PrivateBus, daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    async with connect(BUS_NAME, bus.address) as ear, ear.listen(ROOT) as signals, calling(bus) as root:
        await root.profile("fair")
        await root.call("Reset", "a{sv}", BASELINE)
        changes: dict[str, list[Any]] = {"ActiveProfile": [], "Degraded": []}
        causes = set()
        async with asyncio.timeout(LONGEST):
            async for signal in signals:
                causes |= cause_of(signal)
                for name, value in properties_of(signal).items():
                    changes.setdefault(name, []).append(value)
                if changes["Degraded"] and len(changes["ActiveProfile"]) == 2:
                    break
    assert changes["ActiveProfile"] == ["fair", ""]
    assert changes["Degraded"] == [["config-suspended"]]
    assert causes >= {"SetProfile"}


def cause_of(signal: Signal) -> set[str]:
    return {signal.args[1]} if signal.member == "Changed" else set()


def properties_of(signal: Signal) -> dict[str, Any]:
    found: dict[str, Any] = signal.args[1] if signal.member == "PropertiesChanged" and signal.args[0] == MANAGER else {}
    return found


@pytest.mark.parametrize("name", ["claims.json", "runtime.json", "config.json", "profile.json", "fair.toml"])
async def test_a_damaged_file_stops_no_start(bus: PrivateBus, daemon: Daemon, name: str) -> None:
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    async with calling(bus) as root:
        await root.profile("fair")
        await root.set("cpu-governor", "*", "performance", persist=True)
    await asyncio.to_thread(daemon.kill)
    (path,) = daemon.folder.rglob(name)
    path.write_bytes(damaged(path.read_bytes()))
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for, "READY=1")
    assert str(path) in daemon.journal()
    async with calling(bus) as root:
        slug = "config-invalid" if name == "fair.toml" else "state-set-aside"
        assert slug in await root.get("Degraded")
        lost = name == "claims.json"
        assert await root.get("ActiveProfile") == ("" if lost else "fair")
        claims = (await root.call("Describe"))[0]
        assert '"config:overcommit"' in claims
        assert ('"persistent:cpu-governor@*"' in claims) is not lost
        assert ('"profile:io-scheduler@nvme*"' in claims) is not lost


def damaged(data: bytes) -> bytes:
    """Cut off in the middle, and some of the rest changed: nothing of it can be read."""
    return random.Random(len(data)).randbytes(5) + data[: len(data) // 2]


def test_the_shipped_profiles_are_found_in_a_checkout() -> None:
    assert len(list(Path(CHECKOUT, "packaging/profiles").glob("*.toml"))) == 4


def test_a_bus_without_our_policy_is_named_as_the_reason() -> None:
    with PrivateBus() as bare, Daemon(bare, "--demo", wait=False) as daemon:
        assert daemon.wait() == Status.FAILED
        assert "is org.kerntune.Tuner1.conf in /usr/share/dbus-1/system.d?" in daemon.journal()
        assert "Traceback" not in daemon.journal()
