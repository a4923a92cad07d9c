"""Rivals that run are named while they do, and a resume that logind tells of is believed of nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kerntune.api.services import LOGIND, RIVALS, OtherServices
from kerntune.dbus.connection import Connection
from kerntune.dbus.messages import Message
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus

POLICY = "".join(f'<allow own="{name}"/>' for name in (LOGIND, *RIVALS))


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    """A bus on which everybody may be anybody."""
    file = tmp_path_factory.mktemp("bus") / "neighbours.conf"
    Path(file).write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"\n'
        ' "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">\n'
        f'<busconfig><policy context="default"><allow own="org.kerntune.Lab"/>{POLICY}'
        '<allow send_destination="*"/></policy></busconfig>'
    )
    with PrivateBus(include=[file]) as running:
        yield running


class Watch:
    """The slugs, and the causes of the passes that were asked for."""

    def __init__(self) -> None:
        self.troubles: set[str] = {"config-invalid"}
        self.causes: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        return await asyncio.wait_for(self.causes.get(), 5)


@asynccontextmanager
async def watching(bus: PrivateBus) -> AsyncIterator[Watch]:
    async with lab.serving(bus) as service:
        watch = Watch()
        await OtherServices(service, watch.troubles, watch.causes.put_nowait).watch()
        yield watch


@asynccontextmanager
async def other(bus: PrivateBus) -> AsyncIterator[Connection]:
    """Somebody else on the bus."""
    link = Connection(lambda _message: None, address=bus.address)
    await link.connect()
    try:
        yield link
    finally:
        await link.close()


def prepare_for_sleep(starts: bool, to: str | None = None) -> Message:
    message = Message.new_signal("/org/freedesktop/login1", f"{LOGIND}.Manager", "PrepareForSleep", "b", [starts])
    message.destination = to  # type: ignore[assignment]  # dbus_next takes None for everybody
    return message


@pytest.mark.parametrize(("name", "slug"), RIVALS.items())
async def test_a_rival_is_named_while_it_runs(bus: PrivateBus, name: str, slug: str) -> None:
    async with watching(bus) as watch:
        async with other(bus) as rival:
            await rival.call_bus("RequestName", "su", name, 4)
            assert await watch.next() == "rival"
            assert watch.troubles == {"config-invalid", slug}
        assert await watch.next() == "rival"
        assert watch.troubles == {"config-invalid"}


async def test_a_rival_that_was_there_before(bus: PrivateBus) -> None:
    async with other(bus) as rival:
        await rival.call_bus("RequestName", "su", "com.redhat.tuned", 4)
        async with watching(bus) as watch:
            assert watch.troubles == {"config-invalid", "rival-tuned"}


async def test_after_resume_everything_is_looked_at(bus: PrivateBus) -> None:
    async with watching(bus) as watch, other(bus) as logind:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        logind.send(prepare_for_sleep(True))
        logind.send(prepare_for_sleep(False))
        assert await watch.next() == "resume"
        assert watch.causes.empty()


async def test_nobody_else_is_believed(bus: PrivateBus) -> None:
    async with watching(bus) as watch, other(bus) as logind, other(bus) as stranger:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        stranger.send(prepare_for_sleep(False, lab.NAME))
        stranger.send(
            Message.new_signal("/", "org.freedesktop.DBus", "NameOwnerChanged", "sss", ["com.redhat.tuned", "", ":1.1"])
        )
        # Its own call is answered after its signals were looked at.
        assert await stranger.call(lab.NAME, lab.ROOT, lab.IFACE, "Echo", "s", "x", timeout=5) == ["x"]
        assert watch.causes.empty()
        assert watch.troubles == {"config-invalid"}
