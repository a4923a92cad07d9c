"""What becomes of the call of a client that leaves, with the real daemon on a simulated host that is slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kerntune.api.calls import MOMENT, Calls, Record
from kerntune.api.names import BUS_NAME, HUGE_PAGES, MANAGER, MEMORY, ROOT
from kerntune.dbus.client import Signals, Variant, connect
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller
from tests.api.alone import Alone
from tests.cli.scripted import private_bus
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus

# There is no polkit on this bus: root alone may change anything.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to set huge pages takes root")

SLOW = 300  # milliseconds for a GiB
PAGES = 4096  # 8 GiB
LIMIT = 15.0  # seconds
CANCEL = {"cancel-on-leave": Variant("b", True)}
PROFILE = '[hugepages]\n"2M/node0" = {}\n'


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    with private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    with Daemon(bus, "--demo") as running:
        folder = running.config / "profiles"
        folder.mkdir(exist_ok=True)
        (folder / "many.toml").write_text(PROFILE.format(PAGES))
        (folder / "few.toml").write_text(PROFILE.format(8))
        # The daemon reads this before any call that is made later.
        (running.runtime / "demo").write_text(f"slow {SLOW}\n")
        yield running


CALLS: dict[str, tuple[Any, ...]] = {
    "Set": (MANAGER, "a(sss)a{sv}", [["hugepages", "2M/node0", str(PAGES)]]),
    "SetCount": (HUGE_PAGES, "tta{sv}", 0, PAGES),
    "SetProfile": (MANAGER, "sa{sv}", "many"),
}


async def told(signals: Signals, cause: str) -> None:
    """Wait for a pass that was made for this."""
    async with asyncio.timeout(LIMIT):
        async for found in signals:
            if found.member == "Changed" and cause in found.args[1].split(", "):
                return


@contextlib.asynccontextmanager
async def begun(bus: PrivateBus, member: str, options: dict[str, Any]) -> AsyncIterator[None]:
    """For as long as a client waits for a slow call, of which the kernel has done a part."""
    interface, signature, *body = CALLS[member]
    async with connect(BUS_NAME, bus.address) as client, client.listen(ROOT, MANAGER) as signals:
        call = asyncio.create_task(client.call(ROOT, interface, member, signature, *body, options))
        async with asyncio.timeout(LIMIT):
            async for found in signals:
                if found.member == "Progress" and found.args[2] > 0:
                    break
        yield
        call.cancel()


async def state_of(bus: PrivateBus) -> tuple[list[str], int, str]:
    """Return the claims on huge pages, the most pages that a target has, and the profile, when all is settled."""
    async with connect(BUS_NAME, bus.address) as root:
        # One pass of the lane more.
        await root.call(ROOT, MEMORY, "SetOvercommit", "sua{sv}", "heuristic", 0, {})
        document = json.loads((await root.call(ROOT, MANAGER, "Describe"))[0])
    claims = [row["tunable"] for row in document["claims"] if row["tunable"] == "hugepages"]
    most = max(int(row["value"]) for row in document["targets"] if row["instance"].startswith("2M"))
    return claims, most, document["profile"]


@pytest.mark.parametrize("member", CALLS)
async def test_with_the_option_it_is_ended_and_put_back(bus: PrivateBus, daemon: Daemon, member: str) -> None:
    async with connect(BUS_NAME, bus.address) as listener, listener.listen(ROOT, MANAGER) as signals:
        async with begun(bus, member, CANCEL):
            pass
        await told(signals, f"{member} withdrawn")
    assert await state_of(bus) == ([], 0, "")
    assert f"the caller of {member} left when" in daemon.journal()


@pytest.mark.parametrize("member", CALLS)
async def test_without_it_the_change_is_finished(bus: PrivateBus, daemon: Daemon, member: str) -> None:
    async with connect(BUS_NAME, bus.address) as listener, listener.listen(ROOT, MANAGER) as signals:
        async with begun(bus, member, {}):
            pass
        await told(signals, member)
    assert await state_of(bus) == (["hugepages"], PAGES, "many" if member == "SetProfile" else "")
    assert "withdrawn" not in daemon.journal()


async def test_a_command_that_is_interrupted_puts_back_what_was_there(bus: PrivateBus, daemon: Daemon) -> None:
    words = ("set", f"hugepages@2M/node0={PAGES}")
    ours, theirs = pty.openpty()
    async with connect(BUS_NAME, bus.address) as listener, listener.listen(ROOT, MANAGER) as signals:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kerntune.cli", *words),
            env=bus.environment,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        async with asyncio.timeout(LIMIT):
            # The bar is drawn on a terminal, from what the kernel has done.
            await asyncio.to_thread(os.read, ours, 100)
            command.send_signal(signal.SIGINT)
            assert await command.wait() == 130
        os.close(ours)
        await told(signals, "Set withdrawn")
    assert await state_of(bus) == ([], 0, "")


async def test_a_call_that_had_not_begun_is_dropped_with_its_caller(bus: PrivateBus, daemon: Daemon) -> None:
    async with begun(bus, "SetProfile", {}), connect(BUS_NAME, bus.address) as other:
        async with connect(BUS_NAME, bus.address) as leaving:
            calls = [
                asyncio.create_task(leaving.call(ROOT, MANAGER, "SetProfile", "sa{sv}", "few", {})) for _ in range(8)
            ]
            # Answered after them, for they came first.
            await leaving.call(ROOT, MANAGER, "ListProfiles")
        for call in calls:
            call.cancel()
        # Its turn is after theirs.
        await other.call(ROOT, MANAGER, "Reload", "a{sv}", {})
        assert (await state_of(bus))[2] == "many"
    assert "few" not in daemon.journal()


@pytest.mark.parametrize("there", [True, False])
async def test_the_bus_is_asked_when_a_call_has_waited(there: bool) -> None:
    service = Alone()
    if not there:
        service.leaves(":1.5")
    calls = Calls(service, None, None, set(), None, guard=None)  # type: ignore[arg-type]  # none of them is used
    record = Record(Caller(":1.5", 0, 1, interactive=False), "somebody")
    await calls._begin(record, calls._now())
    assert service.connection.questions == []
    with contextlib.nullcontext() if there else pytest.raises(CallerGone, match="before its call had begun"):
        await calls._begin(record, calls._now() - 2 * MOMENT)
    assert (service.connection.questions, record.changed) == (["NameHasOwner"], there)
