"""What anybody reads over the bus is what the files hold now, though nothing is managed; what changed is announced."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from kerntune.api.names import BUS_NAME, CPU_GOVERNOR, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from kerntune.dbus.client import Client, Signal, connect
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus
from tests.live.ground import make_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the bus policy lets root own the name")

LONGEST: Final = 10.0  # seconds
POLICY: Final = "sys/devices/system/cpu/cpufreq/policy0"


class Change(NamedTuple):
    """What another hand writes, where it is read, and what is read then."""

    path: str
    text: str
    interface: str
    name: str
    expected: Any


CHANGES: Final = [
    Change("sys/block/sda/queue/scheduler", "kyber", IO_SCHEDULER, "Devices", {"sda": ["kyber", ["kyber"]]}),
    Change("proc/sys/vm/overcommit_memory", "1", MEMORY, "OvercommitMode", "always"),
    Change("proc/sys/vm/overcommit_ratio", "70", MEMORY, "OvercommitRatio", 70),
    Change(f"{POLICY}/scaling_governor", "powersave", CPU_GOVERNOR, "Policies", {"policy0": ["powersave", "0"]}),
]
IDS: Final = ["scheduler", "overcommit", "ratio", "governor"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "host")
    for name, text in (("scaling_governor", "schedutil"), ("related_cpus", "0"), ("scaling_driver", "acpi-cpufreq")):
        path = root / POLICY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus, tree: Path) -> Iterator[Daemon]:
    with Daemon(bus, "--root", str(tree)) as running:
        yield running


@asynccontextmanager
async def calling(bus: PrivateBus) -> AsyncIterator[Client]:
    async with connect(BUS_NAME, bus.address) as client:
        yield client


def part_of(value: Any, expected: Any) -> Any:
    """Of a table only the rows that are expected."""
    return {name: value.get(name) for name in expected} if isinstance(expected, dict) else value


@pytest.mark.parametrize("change", CHANGES, ids=IDS)
async def test_a_property_is_what_another_hand_has_set(
    bus: PrivateBus, daemon: Daemon, tree: Path, change: Change
) -> None:
    path, text, interface, name, expected = change
    async with calling(bus) as client, client.listen(ROOT) as signals:
        before = await client.get(ROOT, interface, name)
        assert part_of(before, expected) != expected
        (tree / path).write_text(f"{text}\n")
        async with asyncio.timeout(LONGEST):
            # Readings of the last tenth of a second serve.
            while part_of(await client.get(ROOT, interface, name), expected) != expected:
                pass
            announced = await properties(signals, interface)
        assert part_of(announced[name], expected) == expected
        values = (await client.call(ROOT, "org.freedesktop.DBus.Properties", "GetAll", "s", interface))[0]
        assert part_of(values[name], expected) == expected


async def test_describe_is_what_another_hand_has_set(bus: PrivateBus, daemon: Daemon, tree: Path) -> None:
    async with calling(bus) as client:
        assert (await scheduler(client))["value"] == "bfq"
        (tree / "sys/block/sda/queue/scheduler").write_text("kyber\n")
        async with asyncio.timeout(LONGEST):
            while (row := await scheduler(client))["value"] != "kyber":
                pass
        assert (row["state"], row["choices"]) == ("unmanaged", ["kyber"])


async def scheduler(client: Client) -> dict[str, Any]:
    document = json.loads((await client.call(ROOT, MANAGER, "Describe"))[0])
    return next(row for row in document["targets"] if (row["tunable"], row["instance"]) == ("io-scheduler", "sda"))


async def properties(signals: AsyncIterator[Signal], interface: str) -> dict[str, Any]:
    """The values of the next PropertiesChanged of an interface."""
    async for signal in signals:
        if signal.member == "PropertiesChanged" and signal.args[0] == interface:
            return dict(signal.args[1])
    raise AssertionError("the bus is gone")
