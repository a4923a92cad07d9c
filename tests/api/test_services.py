"""Other services on the bus: rivals are named while they run, and only logind may tell of a resume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kerntune.api.services import LOGIND, RIVALS, OtherServices
from kerntune.dbus.messages import Message
from tests.api.lab import BOUND
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus


class Watch:
    """The slugs of Degraded, and the causes of the passes that the watch has asked for."""

    def __init__(self) -> None:
        self.troubles: set[str] = {"config-invalid"}
        self.causes: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        return await asyncio.wait_for(self.causes.get(), BOUND)


@asynccontextmanager
async def watching(bus: PrivateBus) -> AsyncIterator[Watch]:
    async with lab.serving(bus) as service:
        watch = Watch()
        await OtherServices(service, watch.troubles, watch.causes.put_nowait).watch()
        yield watch


def prepare_for_sleep(starts: bool, to: str | None = None) -> Message:
    """Return the signal of logind: a sleep starts, or is over."""
    message = Message.new_signal("/org/freedesktop/login1", f"{LOGIND}.Manager", "PrepareForSleep", "b", [starts])
    message.destination = to  # type: ignore[assignment]  # dbus_next takes None for everybody
    return message


@pytest.mark.parametrize(("name", "slug"), RIVALS.items())
async def test_a_rival_is_named_while_it_runs(bus: PrivateBus, name: str, slug: str) -> None:
    async with watching(bus) as watch:
        async with lab.connected(bus) as rival:
            await rival.call_bus("RequestName", "su", name, 4)
            assert await watch.next() == "rival"
            assert watch.troubles == {"config-invalid", slug}
        assert await watch.next() == "rival"
        assert watch.troubles == {"config-invalid"}


async def test_a_rival_that_ran_before_is_named(bus: PrivateBus) -> None:
    async with lab.connected(bus) as rival:
        await rival.call_bus("RequestName", "su", "com.redhat.tuned", 4)
        async with watching(bus) as watch:
            assert watch.troubles == {"config-invalid", "rival-tuned"}


async def test_a_resume_asks_for_a_pass(bus: PrivateBus) -> None:
    async with watching(bus) as watch, lab.connected(bus) as logind:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        logind.send(prepare_for_sleep(True))
        logind.send(prepare_for_sleep(False))
        assert await watch.next() == "resume"
        assert watch.causes.empty()


async def test_signals_of_strangers_are_ignored(bus: PrivateBus) -> None:
    async with watching(bus) as watch, lab.connected(bus) as logind, lab.connected(bus) as stranger:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        stranger.send(prepare_for_sleep(False, lab.NAME))
        stranger.send(
            Message.new_signal("/", "org.freedesktop.DBus", "NameOwnerChanged", "sss", ["com.redhat.tuned", "", ":1.1"])
        )
        # Its own call is answered after its signals were looked at.
        assert await stranger.call(lab.NAME, lab.ROOT, lab.IFACE, "Echo", "s", "x", timeout=5) == ["x"]
        assert watch.causes.empty()
        assert watch.troubles == {"config-invalid"}
