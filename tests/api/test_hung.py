"""A drive that hangs, in the real daemon: others are set, everybody is answered meanwhile, and a stop does not wait."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.names import BUS_NAME, IO_SCHEDULER, MANAGER, ROOT
from kerntune.daemon.app import SETTLE
from kerntune.dbus.client import Client, connect
from kerntune.engine.hung import Bounds
from kerntune.errors import KerntuneError
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus
from tests.live.ground import DISKS, make_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the bus policy lets root own the name")

LONGEST: Final = 15.0  # seconds
SDA: Final = "sys/block/sda/queue/scheduler"
# A write to sda says so through one pipe, and ends when somebody opens the other: till then its thread hangs.
HANGING: Final = f"""
import sys
from kerntune.daemon.__main__ import main
from kerntune.kernel.files import HostKernel
write, pipe = HostKernel.write, sys.argv.pop(1)

def hanging(self, path, text):
    if path == {SDA!r}:
        with open(f"{{pipe}}.reached", "w") as reached:
            reached.write(".")
        open(pipe).close()
    write(self, path, text)

HostKernel.write = hanging
sys.exit(main())
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "host")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    for name in ("pipe", "pipe.reached"):
        os.mkfifo(tmp_path / name)
    return tmp_path / "pipe"


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus, tree: Path, pipe: Path) -> Iterator[Daemon]:
    with Daemon(bus, "--root", str(tree), program=(sys.executable, "-c", HANGING, str(pipe))) as running:
        yield running


async def reached(pipe: Path) -> None:
    """Return when the daemon is inside the write."""
    loop, inside = asyncio.get_running_loop(), asyncio.Event()
    fd = os.open(f"{pipe}.reached", os.O_RDONLY | os.O_NONBLOCK)
    loop.add_reader(fd, inside.set)
    try:
        await inside.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def put(client: Client, *setting: str) -> list[list[str]]:
    """Set it; the outcomes."""
    _, outcomes = await client.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", [list(setting)], {}, timeout=LONGEST)
    return [list(outcome) for outcome in outcomes]


async def row(client: Client) -> dict[str, Any]:
    document = json.loads((await client.call(ROOT, MANAGER, "Describe"))[0])
    return next(row for row in document["targets"] if (row["tunable"], row["instance"]) == ("io-scheduler", "sda"))


async def test_a_drive_that_hangs_takes_nothing_along(bus: PrivateBus, daemon: Daemon, tree: Path, pipe: Path) -> None:
    async with asyncio.timeout(2 * LONGEST), connect(BUS_NAME, bus.address) as client:
        before = await row(client)
        began = time.monotonic()
        setting = asyncio.create_task(put(client, "io-scheduler", "*", "kyber"))
        await reached(pipe)
        # Meanwhile everybody is answered.
        assert (await put(client, "overcommit", "", "always:90"))[0][5] == "satisfied"
        assert (await row(client))["value"] == before["value"]
        assert "sda" in await client.get(ROOT, IO_SCHEDULER, "Devices")
        assert time.monotonic() - began < Bounds().write
        outcomes = {outcome[1]: outcome for outcome in await setting}
        assert time.monotonic() - began < Bounds().write + 2
        assert outcomes["sda"][5:7] == ["failed", "device-hangs"]
        assert {outcome[5] for name, outcome in outcomes.items() if name != "sda"} == {"satisfied"}
        assert set(outcomes) == set(DISKS)
        told = await row(client)
        assert (told["state"], told["reason"], told["value"]) == ("failed", "device-hangs", before["value"])
        # The kernel returns.
        await asyncio.to_thread(pipe.write_text, "")
        while (told := await row(client))["state"] != "satisfied":
            pass
        assert told["value"] == (tree / SDA).read_text().strip() == "kyber"


async def test_a_stop_does_not_wait_for_it(bus: PrivateBus, daemon: Daemon, tree: Path, pipe: Path) -> None:
    async with asyncio.timeout(LONGEST), connect(BUS_NAME, bus.address) as client:
        setting = asyncio.create_task(put(client, "io-scheduler", "sda", "kyber"))
        await reached(pipe)
        kept = "".join(path.read_text() for path in daemon.runtime.iterdir() if path.is_file())
        assert DISKS["sda"] in kept, "what the host had is on disk before it is written"
        began = time.monotonic()
        assert await asyncio.to_thread(daemon.terminate) == 0
        assert time.monotonic() - began < SETTLE + 1
        assert f"still busy with a write to /{SDA}" in daemon.journal()
        assert "ends without its threads" in daemon.journal()
        with pytest.raises(KerntuneError):
            await setting
        assert (tree / SDA).read_text().strip() == DISKS["sda"]
