"""Holds where the bus is slow, the kernel is slow or others end them: the engine is real, the bus is made up."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kerntune.api import holds as module
from kerntune.api.calls import Calls
from kerntune.api.contract import ACTION
from kerntune.api.describe import Host
from kerntune.api.holds import HOLD_ENDED, HeldObject, Holds, shown, there
from kerntune.dbus.service import Caller
from kerntune.engine.requests import Request
from kerntune.engine.results import Answer
from kerntune.errors import Failed, InvalidArgs, InvalidValue
from kerntune.guard.guard import MemoryGuard
from kerntune.model import Setting
from tests.api.alone import Alone
from tests.api.test_authorization import Files
from tests.unit.engine.test_holds import FILE, files_of
from tests.unit.lab import BOUND, FULL, Lab, held, pages, running, small_host

SLOW = Failed("org.freedesktop.DBus did not answer AddMatch within 5 s")
CLIENT = ":1.5"
PAGES = Setting("hugepages", "2M", "30")


class Bus(Alone):
    """A service on no bus; it publishes nothing, and keeps what it was told to."""

    def __init__(self) -> None:
        super().__init__(uid=os.geteuid())
        self.told: list[tuple[str, str]] = []
        self.publishes = True

    def publish(self, path: str, impls: Mapping[str, object]) -> None:
        if not self.publishes:
            raise ValueError("the body does not fit its signature")
        self.told.append(("added", path))

    def retract(self, path: str) -> None:
        self.told.append(("removed", path))


@dataclass
class Scene:
    """The holds of a daemon, and what is around them."""

    lab: Lab
    bus: Bus
    holds: Holds
    caller: Caller = field(
        default_factory=lambda: Caller(CLIENT, os.geteuid(), os.getpid(), False, "Hold", {ACTION: "hold"})
    )

    async def hold(self, *settings: Setting, **options: Any) -> str:
        chosen = {name.replace("_", "-"): value for name, value in options.items()}
        return (await self.holds.begin(self.caller, settings or (PAGES,), "job", "", chosen))[0]

    async def release(self, number: int = 1) -> Answer:
        return await self.lab.engine.release([number], "Release")

    async def reset(self) -> Answer:
        engine = self.lab.engine
        return await engine.carry_out(engine.files_edit(files_of(engine.edits.claims), reset=True, holds=True), "Reset")

    async def until(self, count: int) -> None:
        """Wait until the pool has so many pages, and the holds of that are published."""
        await self.lab.until(lambda: pages(self.lab.kernel) == [count] and bool(self.holds.paths) == bool(count))


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with running(small_host()) as lab:
        bus = Bus()
        guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_told: None)
        core = Calls(bus, lab.engine, Host("6.1", "/", True, 2 << 20), set(), Files(), guard=guard)
        holds = Holds(core)
        lab.engine.observed.listeners.append(lambda report: holds.sync(report.cause))
        yield Scene(lab, bus, holds)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(module, "AGAIN", 0.0)


@pytest.fixture
def ends(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What the journal has of ends: the words, and the cause."""
    with caplog.at_level(logging.INFO, module.__name__):
        yield lambda: [
            (record.getMessage(), getattr(record, "KERNTUNE_CAUSE"))  # noqa: B009
            for record in caplog.records
            if getattr(record, "MESSAGE_ID", "") == HOLD_ENDED
        ]


# The bus


async def test_one_that_the_bus_is_slow_to_watch_ends_with_its_client_all_the_same() -> None:
    async with scene() as found:
        await found.hold()
        found.bus.connection.fails = [SLOW, MemoryError(), SLOW]
        async with asyncio.timeout(BOUND):
            while found.bus.connection.fails:  # noqa: ASYNC110  # the watches are ours to see
                await asyncio.sleep(0)
        assert pages(found.lab.kernel) == [30]
        found.bus.leaves(CLIENT)
        await found.until(0)


async def test_one_that_cannot_be_watched_ends_at_its_time() -> None:
    async with scene() as found:
        await found.hold(ttl_usec=50_000)
        found.bus.connection.fails = [SLOW] * 1_000_000
        await found.until(0)
        assert found.bus.connection.fails


async def test_the_end_of_one_costs_another_of_the_same_client_nothing() -> None:
    async with scene() as found:
        await found.hold()
        await found.hold()
        await found.lab.until(lambda: CLIENT in found.bus.clients._watches)
        await found.release(1)
        assert pages(found.lab.kernel) == [30]
        found.bus.leaves(CLIENT)
        await found.until(0)


async def test_a_call_that_cannot_be_watched_begins_nothing() -> None:
    async with scene() as found:
        found.bus.connection.fails = [SLOW]
        found.lab.writes()
        with pytest.raises(Failed, match="did not answer AddMatch"):
            await found.hold()
        assert (found.lab.writes(), found.lab.engine.edits.committed.holds, found.holds.paths) == ([], {}, [])


async def test_one_that_cannot_be_published_ends_with_its_client() -> None:
    async with scene() as found:
        found.bus.publishes = False
        with pytest.raises(ValueError, match="signature"):
            await found.hold()
        found.bus.leaves(CLIENT)
        await found.until(0)


# Others


async def test_one_that_is_being_ended_already_is_ended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a Release waits for its pass its client leaves."""
    calls = 0
    async with scene() as found:
        await found.hold()
        release, gate = found.lab.engine.release, held(found.lab.kernel, FILE)
        releasing = asyncio.create_task(found.release())
        await gate.reached.wait()

        async def counted(*args: Any, **options: Any) -> Answer:
            nonlocal calls
            calls += 1
            return await release(*args, **options)

        monkeypatch.setattr(found.lab.engine, "release", counted)
        found.bus.leaves(CLIENT)
        for _ in range(100):
            await asyncio.sleep(0)
        assert calls == 1
        gate.free.set()
        await releasing
        assert (pages(found.lab.kernel), found.holds.paths, calls) == ([0], [], 1)


async def test_one_that_cannot_be_released_ends_with_its_client() -> None:
    async with scene() as found:
        await found.hold()
        found.lab.store.full_for_claims = FULL
        with pytest.raises(Failed, match="cannot be saved"):
            await found.release()
        assert (pages(found.lab.kernel), len(found.holds.paths)) == ([30], 1)
        found.bus.leaves(CLIENT)
        await found.until(0)


async def test_one_that_is_ended_before_it_is_answered_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene() as found:
        begin = found.holds.calls.change

        async def then_reset(caller: Caller, request: Request, *, endable: bool) -> Answer:
            answer = await begin(caller, request, endable=endable)
            await found.reset()
            return answer

        monkeypatch.setattr(found.holds.calls, "change", then_reset)
        with pytest.raises(Failed, match="hold 1 was ended before it was answered"):
            await found.hold()
        assert (found.bus.told, found.holds.paths, pages(found.lab.kernel)) == ([], [], [0])


async def test_its_settings_are_shown_though_a_reset_is_on_its_way() -> None:
    async with scene() as found:
        await found.hold()
        gate = held(found.lab.kernel, FILE)
        resetting = asyncio.create_task(found.reset())
        await gate.reached.wait()
        (hold,) = found.lab.engine.edits.committed.holds.values()
        assert HeldObject(found.holds.calls, hold, []).settings == [[*PAGES]]
        gate.free.set()
        await resetting


async def test_the_journal_has_each_end_and_its_cause(ends: Callable[[], list[tuple[str, str]]]) -> None:
    async with scene() as found:
        for _ in range(4):
            await found.hold()
        await found.release(2)
        await found.reset()
        told = ends()
        assert [cause for _, cause in told] == ["Release", "Reset", "Reset", "Reset"]
        assert told[0][0].startswith("hold 2 of job, ")
        await found.hold()
        found.lab.engine.edits.committed = found.lab.store.claims
        again = Holds(found.holds.calls)
        found.bus.leaves(CLIENT)
        await again.inherit()
        assert ends()[-1][1] == "client gone"
        assert found.lab.store.claims.holds == {}


# What is asked


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("", ""),
        ("  ", ""),
        (" job 1 ", "job 1"),
        ("Zo\u0308e", "Zo\u0308e"),
        ("\u05e9\u05c1\u05b8", "\u05e9\u05c1\u05b8"),
    ],
)
def test_texts_that_can_be_seen(given: str, text: str) -> None:
    assert shown(who=given) == text


@pytest.mark.parametrize(
    "text",
    [
        "x" * 257,
        "two\nlines",
        "\x1b[31m",
        "\u200b",
        "\u202egnp",
        "\u3164",
        "a\u115f",
        "\ufe0f",
        "\u2800",
        "\u034f",
        "\u0301 first",
        " \u0301 second",
        "a" + "\u0335" * 5,
        "a" + "\u20dd" * 5,
    ],
)
def test_texts_that_cannot_be_seen_or_overflow(text: str) -> None:
    with pytest.raises(InvalidArgs, match="why "):
        shown(why=text)


async def test_a_profile_gives_what_the_host_has_and_the_caller_does_not_set() -> None:
    asked = [
        Setting("hugepages", "2M", "0"),
        Setting("hugepages-overcommit", "2M", "5"),
        Setting("hugepages", "1G", "1"),
        Setting("io-scheduler", "nvme0n1", "none"),
        Setting("io-scheduler", "nvme9n9", "none"),
        Setting("cpu-governor", "*", "performance"),
    ]
    async with running(small_host()) as lab:
        world = lab.engine.observed.world
        own = [Setting("io-scheduler", "nvme0n1", "bfq")]
        assert [each for each in there(asked, own, world) if each.instances != "1G"] == [asked[1]]
        with pytest.raises(InvalidValue, match="300 characters"):
            there(asked, [Setting("io-scheduler", "n" * 300, "bfq")], world)
