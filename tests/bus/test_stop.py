"""What stopping the daemon leaves behind, with the real daemon on a tree: its values, or the host's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune.bus.client import Variant, connect
from kerntune.bus.names import MANAGER, ROOT
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
    async with connect(address=bus.address) as root:
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
