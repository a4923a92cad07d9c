"""What stopping the daemon leaves behind, with the real daemon on a tree: its values, or the host's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.dbus.client import Variant, connect
from kerntune.errors import Failed
from tests.harness.daemon import READY, Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus
from tests.hosts import lay_out

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without polkit only root may set anything")

OWN = {"overcommit_memory": "0", "vda": "128", "vdb": "256"}
ASKED = {"overcommit_memory": "1", "vda": "2048", "vdb": "1024"}


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Path:
    lay_out("small-vm", tmp_path)
    for name in ("vda", "vdb"):
        (tmp_path / "sys/block" / name / "queue").mkdir(parents=True, exist_ok=True)
        file(tmp_path, name).write_text(f"{OWN[name]}\n")
    file(tmp_path, "overcommit_memory").write_text("0\n")
    return tmp_path


def file(root: Path, name: str) -> Path:
    return root / (f"sys/block/{name}/queue/read_ahead_kb" if name.startswith("vd") else f"proc/sys/vm/{name}")


def values(root: Path) -> dict[str, str]:
    return {name: file(root, name).read_text().strip() for name in OWN}


async def ask(bus: PrivateBus) -> None:
    """A runtime and a persistent claim beside that of the configuration."""
    async with connect(BUS_NAME, bus.address) as root:
        for drive, persist in (("vda", False), ("vdb", True)):
            options = {"persist": Variant("b", persist)}
            await root.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", [["read-ahead", drive, ASKED[drive]]], options)


def daemon_on(bus: PrivateBus, host: Path, *options: str) -> Daemon:
    daemon = Daemon(bus, "--root", str(host), wait=False)
    lines = ("[overcommit]", '"*" = "always:95"', *options)
    (daemon.config / "kerntune.toml").write_text("\n".join(lines))
    return daemon


@pytest.mark.parametrize("end", ["terminate", "interrupt"])
async def test_the_hosts_own_values_are_back_and_the_next_start_applies_the_claims(
    bus: PrivateBus, host: Path, end: str
) -> None:
    with daemon_on(bus, host, "[daemon]", "restore-on-stop = true") as daemon:
        daemon.wait_for(READY)
        await ask(bus)
        assert values(host) == ASKED
        daemon.process.send_signal(15 if end == "terminate" else 2)
        assert daemon.wait() == 0
        assert values(host) == OWN
        daemon.start()
        daemon.wait_for(READY)
        assert values(host) == ASKED


async def test_without_it_values_stay_in_place(bus: PrivateBus, host: Path) -> None:
    with daemon_on(bus, host) as daemon:
        daemon.wait_for(READY)
        await ask(bus)
        assert daemon.terminate() == 0
        assert values(host) == ASKED


async def test_a_crash_and_a_lost_bus_leave_them_too(bus: PrivateBus, host: Path) -> None:
    with daemon_on(bus, host, "[daemon]", "restore-on-stop = true") as daemon:
        daemon.wait_for(READY)
        await ask(bus)
        daemon.kill()
        assert values(host) == ASKED
        daemon.start()
        daemon.wait_for(READY)
        bus.stop()
        assert daemon.wait() == 1
        assert values(host) == ASKED


# Told to stop while the kernel is slow

SLOW = 300  # milliseconds for a GiB of huge pages
STUCK = 10_000
PAGES = 28_000  # 55 GiB, in about as many writes; node 0 can spare them
SOON = 2.0  # seconds
BOOTING = "STATUS=applying what is configured; huge pages can take long"
STOPPING = "STOPPING=1"
POOL = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"


@pytest.fixture
def slow(bus: PrivateBus) -> Iterator[Daemon]:
    """On a simulated host that is slow to make huge pages from the start; not started yet."""
    daemon = Daemon(bus, "--demo", wait=False)
    os.mkfifo(daemon.runtime / "demo")
    fifo = os.open(daemon.runtime / "demo", os.O_RDWR)
    os.write(fifo, b"slow %d\n" % SLOW)
    try:
        yield daemon
    finally:
        daemon.__exit__(None, None, None)
        os.close(fifo)


def ended(daemon: Daemon) -> float:
    """SIGTERM; the seconds until its orderly end."""
    began = time.monotonic()
    assert daemon.terminate() == 0, daemon.journal()
    took = time.monotonic() - began
    assert "is lost" not in daemon.journal(), "of the bus"
    return took


def baselines(daemon: Daemon) -> dict[str, str]:
    rows = json.loads((daemon.runtime / "runtime.json").read_text())["baselines"]
    return {f"{tunable}@{instance}": value for tunable, instance, _key, value in rows}


def after_told(daemon: Daemon) -> list[str]:
    """What the service manager is told from STOPPING=1 on."""
    return list(daemon.messages[daemon.messages.index(STOPPING) :])


def want_pages(daemon: Daemon) -> None:
    (daemon.config / "kerntune.toml").write_text(f'[hugepages]\n"2M" = {PAGES}\n')


@contextlib.asynccontextmanager
async def setting(bus: PrivateBus, *, partial: bool = False, done: int = 1) -> AsyncIterator[asyncio.Task[Any]]:
    """A Set that takes long, of which the kernel has done a part, so many pages at least."""
    options = {"allow-partial": Variant("b", partial)}
    async with connect(BUS_NAME, bus.address) as root, root.listen(ROOT, MANAGER) as signals:
        settings = [["hugepages", "2M/node0", str(PAGES)]]
        task = asyncio.create_task(root.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", settings, options))
        async with asyncio.timeout(10):
            async for signal in signals:
                if signal.member == "Progress" and signal.args[2] >= done:
                    break
        yield task


def test_during_the_boot_pass_it_ends_soon_and_the_next_start_goes_on(bus: PrivateBus, slow: Daemon) -> None:
    want_pages(slow)
    slow.start()
    slow.wait_for(BOOTING)
    assert ended(slow) < SOON
    assert after_told(slow) == [STOPPING]
    assert READY not in slow.messages
    (had,) = re.findall(rf"hugepages@2M partial, interrupted, wanted {PAGES}, is (\d+) \(boot\)", slow.journal())
    assert 0 < int(had) < PAGES
    assert set(baselines(slow).values()) == {"0"}
    # Without the delay, for this host is another one each time.
    slow.start()
    slow.wait_for(READY)
    assert f"hugepages@2M is {PAGES}" in slow.journal()


async def test_during_a_long_write_it_ends_soon_and_the_old_count_is_back(bus: PrivateBus, slow: Daemon) -> None:
    slow.start()
    slow.wait_for(READY)
    async with setting(bus) as call:
        assert await asyncio.to_thread(ended, slow) < SOON
        with pytest.raises(Failed, match="told to stop"):
            await call
    assert "hugepages@2M/node0 is no longer managed and is 0 (Set withdrawn)" in slow.journal()
    assert baselines(slow) == {}
    assert not (slow.state / "claims.json").exists()


async def test_who_takes_less_keeps_the_claim(bus: PrivateBus, slow: Daemon) -> None:
    slow.start()
    slow.wait_for(READY)
    async with setting(bus, partial=True) as call:
        assert await asyncio.to_thread(ended, slow) < SOON
        (_, ((*_, actual, state, reason, _detail),)) = await call
    assert (state, reason) == ("partial", "interrupted")
    assert int(actual) > 0
    assert baselines(slow)["hugepages@2M/node0"] == "0"


async def test_a_reload_that_is_ended_says_nothing_after_it(bus: PrivateBus, slow: Daemon) -> None:
    slow.start()
    slow.wait_for(READY)
    want_pages(slow)
    async with connect(BUS_NAME, bus.address) as root:
        call = asyncio.create_task(root.call(ROOT, MANAGER, "Reload", "a{sv}", {}))
        await asyncio.to_thread(slow.wait_for, "RELOADING=1")
        assert await asyncio.to_thread(ended, slow) < SOON
        with pytest.raises(Failed, match="stop"):
            await call
    assert after_told(slow) == [STOPPING]


async def test_a_write_that_cannot_be_ended_is_named_and_the_next_start_puts_it_right(
    bus: PrivateBus, slow: Daemon
) -> None:
    slow.start()
    slow.wait_for(READY)
    # The call comes after it.
    (slow.runtime / "demo").write_text(f"slow {STUCK}\n")
    async with setting(bus, done=0) as call:
        assert await asyncio.to_thread(ended, slow) < SOON + 0.5
        with pytest.raises(Failed, match="has stopped before this was done"):
            await call
    assert f"the kernel is still busy with a write to {POOL}" in slow.journal()
    assert "the next start puts right" in slow.journal()
    assert baselines(slow)["hugepages@2M/node0"] == "0"
    assert not (slow.state / "claims.json").exists()
    slow.start()
    slow.wait_for(READY)
    assert baselines(slow) == {}


def test_while_it_waits_for_a_bus() -> None:
    with PrivateBus() as bus:
        gone = bus.address
    with Daemon(bus, "--demo", wait=False, env={"DBUS_SYSTEM_BUS_ADDRESS": gone}) as daemon:
        daemon.wait_for("EXTEND_TIMEOUT_USEC=20000000")
        assert ended(daemon) < SOON
        assert after_told(daemon) == [STOPPING]
