"""When the daemon looks again by itself: at events of devices, a while after them, and by the drift timer."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any

import pytest

from kerntune.daemon import hotplug
from kerntune.daemon.drift_timer import DriftTimer
from kerntune.daemon.hotplug import Hotplug, cause, following
from kerntune.kernel.devices import Event, Overrun
from kerntune.model import Lane, State
from tests.unit.lab import Lab, large_host, queue, running

ADDED = Event("block", "add", "nvme1n1")


class Timers:
    """The calls that the loop is asked to make later for objects of one class; a test makes them when it wants."""

    def __init__(self, owner: type) -> None:
        self._made: list[tuple[asyncio.TimerHandle, Callable[[], object]]] = []
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def noted(when: float, callback: Callable[..., object], *args: Any, **context: Any) -> asyncio.TimerHandle:
            handle = call_at(when, callback, *args, **context)
            if isinstance(getattr(callback, "__self__", None), owner):
                self._made.append((handle, partial(callback, *args)))
            return handle

        loop.call_at = noted  # type: ignore[method-assign,assignment]  # of this loop, which ends with the test

    @property
    def due(self) -> list[float]:
        """When each call that waits is due, on the loop's clock."""
        return [handle.when() for handle, _ in self._made if not handle.cancelled()]

    def fire(self) -> None:
        """Make the one call that waits, now."""
        ((handle, call),) = [one for one in self._made if not one[0].cancelled()]
        handle.cancel()
        call()


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
        self.counters = {"hotplug_events": 0}

    def __call__(self, cause: str, lanes: Iterable[Lane]) -> None:
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
    with following([source], look, look.counters):
        source.send(event)
        assert await look.next() == (f"{event.action} {event.device}", {lane})


@pytest.mark.parametrize("event", [Event("nvme", "change", "nvme1"), Event("nvme-subsystem", "add", "nvme-subsys1")])
async def test_a_controller_is_followed_by_later_looks(
    source: Source, monkeypatch: pytest.MonkeyPatch, event: Event
) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (0.01,))
    look = Looks()
    with following([source], look, look.counters):
        source.send(event)
        assert await look.next() == ("device follow-up", {Lane.BLOCK})


async def test_many_at_once_are_one_pass_a_lane(source: Source) -> None:
    look = Looks()
    with following([source], look, look.counters):
        drives = [Event("block", "add", f"nvme{number}n1") for number in range(64)]
        source.send(*drives, Event("cpu", "online", "cpu1"), Event("sound", "add", "card0"))
        assert await look.next() == ("add nvme0n1 and 63 more", {Lane.BLOCK})
        assert await look.next() == ("online cpu1", {Lane.CPU})
        assert look.asked.empty()
        assert look.counters == {"hotplug_events": 65}, "those of drives and CPUs"


async def test_a_module_is_no_device_to_count(source: Source) -> None:
    look = Looks()
    with following([source], look, look.counters):
        source.send(Event("module", "add", "acpi_cpufreq"), Event("cpu", "add", "cpu0"))
        assert await look.next() == ("add acpi_cpufreq and 1 more", {Lane.CPU})
        assert look.counters == {"hotplug_events": 1}


async def test_after_an_overrun_everything_is_looked_at(source: Source) -> None:
    look = Looks()
    with following([source], look, look.counters):
        source.send(ADDED, Overrun())
        assert await look.next() == ("device events", set(Lane))


async def test_an_error_is_no_end(source: Source) -> None:
    look = Looks()
    with following([source], look, look.counters):
        source.send(OSError(errno.EIO, "broken"))
        source.send(ADDED)
        assert await look.next() == ("add nvme1n1", {Lane.BLOCK})


async def test_it_looks_again_after_an_event_and_then_rests(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (0.01, 0.02))
    look = Looks()
    with following([source], look, look.counters):
        source.send(ADDED)
        seen = [await look.next() for _ in range(3)]
        assert [why for why, _ in seen] == ["add nvme1n1", "device follow-up", "device follow-up"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look.asked.get(), 0.1)


async def test_another_event_starts_the_later_looks_anew(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "FOLLOW_UPS", (30.0,))
    timers, follower = Timers(Hotplug), Hotplug(Looks(), {"hotplug_events": 0})
    for _ in range(3):
        source.send(ADDED)
        follower.ready(source)
    assert len(timers.due) == 1
    follower.stop()
    assert timers.due == []


def test_what_a_pass_says_it_is_for() -> None:
    assert cause([ADDED, Event("block", "change", "nvme1n1")]) == "add nvme1n1"
    assert cause([ADDED, Event("block", "remove", "sda")]) == "add nvme1n1 and 1 more"


async def test_without_events_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(hotplug, "monitors", refused)
    with hotplug.on_host(Looks(), {}):
        pass
    assert "there are no device events here" in caplog.text


# The slow look: only while something is managed, only where, and at whole multiples of the interval

DRIVES = ("io-scheduler", "nvme*", "mq-deadline")


@asynccontextmanager
async def timed(interval: int = 60) -> AsyncIterator[tuple[Lab, DriftTimer, Timers]]:
    async with running(large_host()) as lab:
        timers, timer = Timers(DriftTimer), DriftTimer(lab.engine.observed, lab.engine.look_again)
        timer.set(interval)
        lab.engine.observed.listeners.append(timer.update)
        try:
            yield lab, timer, timers
        finally:
            timer.stop()
            assert timers.due == []


async def test_nothing_wakes_up_where_nothing_is_managed() -> None:
    async with timed() as (lab, _, timers):
        await lab.engine.reconcile("boot")
        assert timers.due == []
        await lab.set(DRIVES)
        assert len(timers.due) == 1
        await lab.unset(("io-scheduler", "nvme*"))
        assert timers.due == []


async def test_it_fires_at_whole_multiples_of_the_interval() -> None:
    async with timed(60) as (lab, timer, timers):
        await lab.set(DRIVES)
        (due,) = timers.due
        assert due % 60 == 0
        assert 0 < due - asyncio.get_running_loop().time() <= 60
        timers.fire()
        (due,) = timers.due
        assert due % 60 == 0
        timer.set(7)
        (due,) = timers.due
        assert due % 7 == 0


async def test_it_goes_on_when_no_pass_could_be_asked_for() -> None:
    def fail(_cause: str, _lanes: Iterable[Lane]) -> None:
        raise MemoryError

    async with running(large_host()) as lab:
        timers, timer = Timers(DriftTimer), DriftTimer(lab.engine.observed, fail)
        timer.set(60)
        lab.engine.observed.listeners.append(timer.update)
        await lab.set(DRIVES)
        with pytest.raises(MemoryError):
            timers.fire()
        assert len(timers.due) == 1
        timer.stop()


async def test_0_is_never() -> None:
    async with timed(0) as (lab, _, timers):
        await lab.set(DRIVES)
        assert timers.due == []


async def test_it_puts_back_what_others_changed_and_says_so() -> None:
    async with timed() as (lab, _, timers):
        await lab.set(DRIVES)
        lab.kernel.disks["nvme0n1"].scheduler = "none"
        lab.writes()
        lab.reports.clear()
        timers.fire()
        await lab.engine.reconcile("after it")
        assert lab.writes() == [(queue("nvme0n1"), "mq-deadline")]
        ((why, outcome),) = [(report.cause, outcome) for report in lab.reports for outcome in report.outcomes]
        assert why.startswith("drift")
        assert (outcome.before, outcome.actual, outcome.state) == ("none", "mq-deadline", State.SATISFIED)
        assert outcome.detail == "something else had set it to none; it was put back"


async def test_only_lanes_that_manage_something_are_looked_at() -> None:
    async with timed() as (lab, _, timers):
        await lab.set(DRIVES)
        lab.reports.clear()
        timers.fire()
        await lab.engine.reconcile("after it")
        assert sum(report.cause.startswith("drift") for report in lab.reports) == 1
