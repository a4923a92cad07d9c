"""Events of devices become requests for passes of their lanes; later looks find what has no event."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from kerntune.daemon import hotplug
from kerntune.daemon.hotplug import Hotplug, cause, following
from kerntune.kernel.devices import Event, Overrun
from kerntune.model import Lane

ADDED = Event("block", "add", "nvme1n1")


class Source:
    """Events that a test makes up; a byte in the pipe makes it readable."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self.waiting: list[Event | Exception] = []

    def send(self, *events: Event | Exception) -> None:
        self.waiting += events
        os.write(self._writer, b"x")

    def fileno(self) -> int:
        return self.reader

    def events(self) -> Iterator[Event]:
        os.read(self.reader, 1)
        while self.waiting:
            event = self.waiting.pop(0)
            if isinstance(event, Exception):
                raise event
            yield event

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


class Looks:
    """What was asked for, as a queue to wait on."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[str, set[Lane]]] = asyncio.Queue()
        self.events = 0

    def __call__(self, cause: str, lanes: Iterable[Lane], *, events: int = 0) -> None:
        self.events += events
        self.asked.put_nowait((cause, set(lanes)))

    async def next(self) -> tuple[str, set[Lane]]:
        return await asyncio.wait_for(self.asked.get(), 5)


@pytest.fixture
def source() -> Iterator[Source]:
    with closing(Source()) as made:
        yield made


@pytest.mark.parametrize(
    ("event", "lane"),
    [
        (ADDED, Lane.BLOCK),
        (Event("block", "change", "sda"), Lane.BLOCK),
        (Event("cpu", "online", "cpu3"), Lane.CPU),
        (Event("module", "add", "acpi_cpufreq"), Lane.CPU),
    ],
)
async def test_an_event_asks_for_a_pass_of_its_lane(source: Source, event: Event, lane: Lane) -> None:
    look = Looks()
    with following([source], look):
        source.send(event)
        assert await look.next() == (f"{event.action} {event.device}", {lane})


@pytest.mark.parametrize("event", [Event("nvme", "change", "nvme1"), Event("nvme-subsystem", "add", "nvme-subsys1")])
async def test_a_controller_is_followed_by_later_looks(
    source: Source, monkeypatch: pytest.MonkeyPatch, event: Event
) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (0.01,))
    look = Looks()
    with following([source], look):
        source.send(event)
        assert await look.next() == ("device follow-up", {Lane.BLOCK})


async def test_many_at_once_are_one_pass_a_lane(source: Source) -> None:
    look = Looks()
    with following([source], look):
        drives = [Event("block", "add", f"nvme{number}n1") for number in range(64)]
        source.send(*drives, Event("cpu", "online", "cpu1"), Event("sound", "add", "card0"))
        assert await look.next() == ("add nvme0n1 and 63 more", {Lane.BLOCK})
        assert await look.next() == ("online cpu1", {Lane.CPU})
        assert look.asked.empty()
        assert look.events == 65, "those of drives and CPUs"


async def test_a_module_is_no_device_to_count(source: Source) -> None:
    look = Looks()
    with following([source], look):
        source.send(Event("module", "add", "acpi_cpufreq"), Event("cpu", "add", "cpu0"))
        assert await look.next() == ("add acpi_cpufreq and 1 more", {Lane.CPU})
        assert look.events == 1


async def test_after_an_overrun_everything_is_looked_at(source: Source) -> None:
    look = Looks()
    with following([source], look):
        source.send(ADDED, Overrun())
        assert await look.next() == ("device events", set(Lane))


async def test_an_error_is_no_end(source: Source) -> None:
    look = Looks()
    with following([source], look):
        source.send(OSError(errno.EIO, "broken"))
        source.send(ADDED)
        assert await look.next() == ("add nvme1n1", {Lane.BLOCK})


async def test_it_looks_again_after_an_event_and_then_rests(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (0.01, 0.02))
    look = Looks()
    with following([source], look):
        source.send(ADDED)
        seen = [await look.next() for _ in range(3)]
        assert [why for why, _ in seen] == ["add nvme1n1", "device follow-up", "device follow-up"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look.asked.get(), 0.1)


async def test_another_event_starts_the_later_looks_anew(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (30.0,))
    source.send(ADDED)
    follower = Hotplug(Looks())
    for _ in range(3):
        source.send(ADDED)
        follower.ready(source)
    (timer,) = follower._timers.values()
    follower.stop()
    assert timer.cancelled()


def test_what_a_pass_says_it_is_for() -> None:
    assert cause([ADDED, Event("block", "change", "nvme1n1")]) == "add nvme1n1"
    assert cause([ADDED, Event("block", "remove", "sda")]) == "add nvme1n1 and 1 more"


async def test_without_events_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(hotplug, "monitors", refused)
    with hotplug.on_host(Looks()):
        pass
    assert "there are no device events here" in caplog.text
