"""Holds: over a bus from the call to the end of their clients, and where the bus or the kernel fails them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kerntune import errors
from kerntune.api import holds as module
from kerntune.api.calls import Calls
from kerntune.api.contract import ACTION
from kerntune.api.holds import HOLD_ENDED, MAX_TEXT_BYTES, HeldObject, Holds, offered, printable
from kerntune.api.names import BUS_NAME, HOLD, ROOT
from kerntune.dbus.service import Caller
from kerntune.engine.claims import FilesEdit
from kerntune.engine.results import Answer
from kerntune.errors import Failed, InvalidArgs, InvalidValue
from kerntune.model import Setting
from kerntune.units import MAX_HOLD
from tests.api.alone import Alone, NoFiles, calls_on
from tests.api.lab import BOUND, Remote, connected
from tests.conftest import needs_root
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus
from tests.hostile.raw import Raw
from tests.unit.lab import FULL, POOL, Lab, pages, running, small_host

TEN_PAGES = ["hugepages", "2M", "10"]
WHO = "{}, root (python)"
Error = type[errors.KerntuneError]


@needs_root
class TestOverABus:
    async def test_a_hold_is_shown_from_its_beginning_to_its_release(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root, root.client.listen(ROOT) as signals:
            before, now = await root.pages(), time.time() * 1e6
            settings = [TEN_PAGES, ["io-scheduler", "nvme*", "bfq"]]
            path, outcomes = await root.begin_hold(*settings, who="train", why="step <b>1</b>")
            assert path == f"{ROOT}/hold/1"
            assert [row[:3] + row[4:6] for row in outcomes] == [
                ["hugepages", "2M", "+10", str(before + 10), "satisfied"],
                ["io-scheduler", "nvme0n1", "bfq", "bfq", "satisfied"],
                ["io-scheduler", "nvme1n1", "bfq", "bfq", "satisfied"],
            ]
            assert await root.get("Holds") == [path]
            (held,) = (await root.held()).values()
            assert now <= held.pop("SinceUSec") <= time.time() * 1e6
            assert held == {
                "Who": WHO.format("train"),
                "Why": "step <b>1</b>",
                "Uid": 0,
                "Settings": settings,
                "Outcomes": outcomes,
                "ExpiresUSec": 0,
            }
            await root.set(["hugepages", "2M", "3"])
            assert await told_of_pages(root, path) == ["+10", "10", "13", "satisfied"]
            await root.release(path)
            assert (await root.pages(), await root.held()) == (3, {})
            with pytest.raises(errors.UnknownObject):
                await root.release(path)
            heard = []
            async with asyncio.timeout(BOUND):
                async for signal in signals:
                    heard.append(signal.member)
                    if signal.member == "InterfacesRemoved":
                        assert signal.args == [path, [HOLD]]
                        break
            assert heard.count("InterfacesAdded") == 1

    async def test_a_hold_ends_with_its_client(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            before = await root.pages()
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(bus)) for _ in range(3)]
                for each in clients:
                    await each.hold(TEN_PAGES)
                assert await root.pages() == before + 30
            await none_left(root, before)
            assert f"hold 2 of {WHO.format('job')}, uid 0, ends: client gone" in daemon.journal()

    async def test_a_hold_ends_at_its_time_also_without_a_client(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            before = await root.pages()
            await root.hold(TEN_PAGES, ttl_usec=50_000)
            await none_left(root, before)
            async with connected(bus) as other:
                path = await other.hold(TEN_PAGES, ttl_usec=1_000_000, detached=True)
            assert list(await root.held()) == [path]
            await none_left(root, before)
            assert "ends: expired" in daemon.journal()

    async def test_a_hold_survives_the_daemon_and_not_its_client(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root, connected(bus) as stays:
            before = await root.pages()
            async with connected(bus) as leaves:
                await leaves.hold(TEN_PAGES)
                path = await stays.hold(TEN_PAGES, who="stays")
                await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)
            # The simulated host begins anew with the daemon.
            assert await root.pages() == before + 10
            (held,) = (await root.held()).values()
            assert held["Who"] == WHO.format("stays")
            assert [row[2:6:3] for row in held["Outcomes"]] == [["+10", "satisfied"]]
            assert (await told_of_pages(root, path))[::3] == ["+10", "satisfied"]
            assert await stays.hold(TEN_PAGES) == f"{ROOT}/hold/3"
            await stays.release(path)
            assert await root.pages() == before + 10

    async def test_a_restart_of_the_bus_ends_all_holds(self, bus: PrivateBus, daemon: Daemon) -> None:
        """A client that has the name of one of the former bus is another client."""
        async with connected(bus) as root, AsyncExitStack() as stack:
            before = await root.pages()
            await root.hold(TEN_PAGES)
            daemon.kill()
            bus.stop()
            bus.start()
            new = await stack.enter_async_context(connected(bus))
            while new.client.name != root.client.name:
                new = await stack.enter_async_context(connected(bus))
            await asyncio.to_thread(daemon.start)
            assert (await new.pages(), await new.held()) == (before, {})

    async def test_a_hold_that_is_refused_leaves_nothing(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            before = await root.pages()
            for asked, error in REFUSED:
                settings = asked.get("settings", [TEN_PAGES])
                with pytest.raises(error):
                    await root.hold(*settings, **{name: value for name, value in asked.items() if name != "settings"})
                assert (await root.pages(), await root.held()) == (before, {}), asked

    async def test_an_empty_name_becomes_that_of_the_program(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            for blank in ("", "  "):
                path = await root.hold(TEN_PAGES, who=blank)
                assert await root.get("Who", HOLD, path) == "root (python)"

    async def test_a_hold_of_a_profile_has_what_the_caller_does_not_set(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            path = await root.hold(["io-scheduler", "nvme*", "bfq"], profile="ai-inference")
            settings = await root.get("Settings", HOLD, path)
            assert ["io-scheduler", "nvme*", "bfq"] in settings
            assert [row for row in settings if row[0] == "cpu-governor"]
            assert len({(tunable, instances) for tunable, instances, _ in settings}) == len(settings)

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.soak)])
    def test_many_holds_leave_nothing_behind(self, bus: PrivateBus, daemon: Daemon, count: int) -> None:
        """No object, no match rule, and no memory that grows with each."""
        sizes = asyncio.run(hold_many(bus, daemon, count))
        with Raw(bus.address) as client:
            assert client.stats(BUS_NAME)["MatchRules"] <= 8
        # The bus side remembers its last 1024 clients, and how much each has not read yet: 1 KiB for each.
        assert sizes[-1] - sizes[count // 20] < count + 512, sizes


REFUSED: list[tuple[dict[str, Any], Error]] = [
    ({"settings": []}, errors.InvalidArgs),
    ({"who": "x" * (MAX_TEXT_BYTES + 1)}, errors.InvalidArgs),
    ({"why": "two\nlines"}, errors.InvalidArgs),
    ({"who": "\x1b[31mred"}, errors.InvalidArgs),
    ({"who": "\u3164"}, errors.InvalidArgs),
    ({"detached": True}, errors.InvalidArgs),
    ({"ttl_usec": 0}, errors.InvalidArgs),
    ({"ttl_usec": MAX_HOLD + 1}, errors.InvalidArgs),
    ({"persist": True}, errors.InvalidArgs),
    ({"profile": "gone"}, errors.NoSuchProfile),
    ({"settings": [TEN_PAGES, TEN_PAGES]}, errors.InvalidValue),
    ({"settings": [["hugepages", "2M", "99999999"]]}, errors.OverLimit),
    ({"settings": [["hugepages", "2M", ">=4"]]}, errors.InvalidValue),
    ({"settings": [["hugepages", "2M", "0"]]}, errors.InvalidValue),
    ({"settings": [["io-scheduler", "nvme9n9", "none"]]}, errors.NoSuchTarget),
    ({"settings": [["tea", "", "green"]]}, errors.UnknownTunable),
]


async def told_of_pages(root: Remote, path: str) -> list[str]:
    """Return what a hold of huge pages tells: the request, the number before, the number now, and the state."""
    row = (await root.get("Outcomes", HOLD, path))[0]
    return list(row[2:6])


async def none_left(root: Remote, before: int) -> None:
    """Wait until no hold is left, and the pool has so many pages again."""
    async with asyncio.timeout(BOUND):
        while (await root.pages(), await root.held()) != (before, {}):  # noqa: ASYNC110  # nobody tells of both
            await asyncio.sleep(0.01)


async def hold_many(bus: PrivateBus, daemon: Daemon, count: int) -> list[int]:
    """Begin and end so many holds, each of a client of its own, and return the daemon's size after each ten, in KiB."""

    def resident() -> int:
        with open(f"/proc/{daemon.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    async with connected(bus) as root:
        before, sizes = await root.pages(), []
        for number in range(count):
            async with connected(bus) as client:
                path = await client.hold(["hugepages", "2M", "1"])
                if number % 2:
                    await client.release(path)
            if number % 10 == 9:
                await none_left(root, before)
                sizes.append(resident())
    return sizes


# Without a bus: the engine is real

SLOW = Failed("org.freedesktop.DBus did not answer AddMatch within 5 s")
CLIENT = ":1.5"
PAGES = Setting("hugepages", "2M", "30")


class Stage(Alone):
    """A service on no bus; it keeps the paths of the objects that it publishes and retracts."""

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
    """The holds of a daemon on a small host, and one client."""

    lab: Lab
    bus: Stage
    calls: Calls
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
        edit = engine.files_edit(FilesEdit((), engine.edits.claims.choice), reset=True, holds=True)
        return await engine.carry_out(edit, "Reset")

    async def until(self, count: int) -> None:
        """Wait until the pool has so many pages, and the holds of that are published."""
        await self.lab.until(lambda: pages(self.lab.kernel) == [count] and bool(self.holds.paths) == bool(count))


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with running(small_host()) as lab:
        bus = Stage()
        calls = calls_on(bus, lab, NoFiles())
        holds = Holds(calls)
        lab.engine.observed.listeners.append(lambda report: holds.sync(report.cause))
        yield Scene(lab, bus, calls, holds)


class SlowWrite:
    """A write of the pool from which the kernel does not return before `end`."""

    def __init__(self, lab: Lab) -> None:
        self.reached, self._end = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()
        lab.kernel.before_write = self._wait

    def _wait(self, path: str, text: str) -> None:
        if path == POOL and not self._end.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            self._end.wait(BOUND)

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what fails be tried again without a pause."""
    monkeypatch.setattr(module, "RETRY", 0.0)


@pytest.fixture
def ends(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Give a function that returns the ends of holds in the journal: the text, and the cause."""
    with caplog.at_level(logging.INFO, module.__name__):
        yield lambda: [
            (record.getMessage(), getattr(record, "KERNTUNE_CAUSE"))  # noqa: B009
            for record in caplog.records
            if getattr(record, "MESSAGE_ID", "") == HOLD_ENDED
        ]


@pytest.mark.usefixtures("at_once")
class TestFailures:
    async def test_a_hold_ends_with_its_client_though_the_bus_is_slow_to_watch_it(self) -> None:
        async with scene() as found:
            await found.hold()
            found.bus.connection.fails = [SLOW, MemoryError(), SLOW]
            async with asyncio.timeout(BOUND):
                while found.bus.connection.fails:  # noqa: ASYNC110  # the watches are ours to see
                    await asyncio.sleep(0)
            assert pages(found.lab.kernel) == [30]
            found.bus.leaves(CLIENT)
            await found.until(0)

    async def test_a_hold_ends_at_its_time_though_its_client_cannot_be_watched(self) -> None:
        async with scene() as found:
            await found.hold(ttl_usec=50_000)
            found.bus.connection.fails = [SLOW] * 1_000_000
            await found.until(0)
            assert found.bus.connection.fails

    async def test_a_call_whose_client_cannot_be_watched_begins_nothing(self) -> None:
        async with scene() as found:
            found.bus.connection.fails = [SLOW]
            found.lab.writes()
            with pytest.raises(Failed, match="did not answer AddMatch"):
                await found.hold()
            assert (found.lab.writes(), found.lab.engine.edits.committed.holds, found.holds.paths) == ([], {}, [])

    async def test_a_hold_that_cannot_be_published_ends_with_its_client(self) -> None:
        async with scene() as found:
            found.bus.publishes = False
            with pytest.raises(ValueError, match="signature"):
                await found.hold()
            found.bus.leaves(CLIENT)
            await found.until(0)

    async def test_a_hold_whose_release_fails_ends_with_its_client(self) -> None:
        async with scene() as found:
            await found.hold()
            found.lab.store.full_for_claims = FULL
            with pytest.raises(Failed, match="cannot be saved"):
                await found.release()
            assert (pages(found.lab.kernel), len(found.holds.paths)) == ([30], 1)
            found.bus.leaves(CLIENT)
            await found.until(0)


class TestSeveralEnds:
    async def test_one_hold_of_a_client_may_end_without_the_other(self) -> None:
        async with scene() as found:
            await found.hold()
            await found.hold()
            await found.bus.is_watched(CLIENT)
            await found.release(1)
            assert pages(found.lab.kernel) == [30]
            found.bus.leaves(CLIENT)
            await found.until(0)

    async def test_a_hold_whose_client_leaves_during_its_release_ends_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0
        async with scene() as found:
            await found.hold()
            release, write = found.lab.engine.release, SlowWrite(found.lab)
            releasing = asyncio.create_task(found.release())
            await write.reached.wait()

            async def counted(*args: Any, **options: Any) -> Answer:
                nonlocal calls
                calls += 1
                return await release(*args, **options)

            monkeypatch.setattr(found.lab.engine, "release", counted)
            found.bus.leaves(CLIENT)
            for _ in range(100):
                await asyncio.sleep(0)
            assert calls == 1
            write.end()
            await releasing
            assert (pages(found.lab.kernel), found.holds.paths, calls) == ([0], [], 1)

    async def test_a_hold_that_ends_before_it_is_answered_is_no_success(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with scene() as found:
            change = found.lab.engine.change

            async def then_reset(*args: Any, **options: Any) -> Answer:
                answer = await change(*args, **options)
                await found.reset()
                return answer

            monkeypatch.setattr(found.lab.engine, "change", then_reset)
            with pytest.raises(Failed, match="hold 1 was ended before it was answered"):
                await found.hold()
            assert (found.bus.told, found.holds.paths, pages(found.lab.kernel)) == ([], [], [0])

    async def test_the_settings_of_a_hold_are_shown_while_a_reset_ends_it(self) -> None:
        async with scene() as found:
            await found.hold()
            write = SlowWrite(found.lab)
            resetting = asyncio.create_task(found.reset())
            await write.reached.wait()
            (hold,) = found.lab.engine.edits.committed.holds.values()
            assert HeldObject(found.calls, hold, []).settings == [[*PAGES]]
            write.end()
            await resetting

    async def test_the_journal_has_each_end_and_its_cause(self, ends: Callable[[], list[tuple[str, str]]]) -> None:
        async with scene() as found:
            for _ in range(4):
                await found.hold()
            await found.release(2)
            await found.reset()
            assert [cause for _, cause in ends()] == ["Release", "Reset", "Reset", "Reset"]
            assert ends()[0][0].startswith("hold 2 of job, ")

    async def test_the_next_daemon_drops_the_holds_of_clients_that_left(
        self, ends: Callable[[], list[tuple[str, str]]]
    ) -> None:
        async with scene() as found:
            await found.hold()
            found.bus.leaves(CLIENT)
            await Holds(found.calls).inherit()
            assert [cause for _, cause in ends()] == ["client gone"]
            assert found.lab.store.claims.holds == {}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("", ""),
        ("  ", ""),
        (" job 1 ", "job 1"),
        ("Zo\u0308e", "Zo\u0308e"),
        ("\u05e9\u05c1\u05b8", "\u05e9\u05c1\u05b8"),
        pytest.param(" " + "x" * MAX_TEXT_BYTES, "x" * MAX_TEXT_BYTES, id="the longest"),
    ],
)
def test_a_text_that_people_can_see_is_taken(given: str, text: str) -> None:
    assert printable(who=given) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * (MAX_TEXT_BYTES + 1), id="too long"),
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
def test_a_text_that_cannot_be_seen_or_overflows_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgs, match="why "):
        printable(why=text)


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
        assert [each for each in offered(asked, own, world) if each.instances != "1G"] == [asked[1]]
        with pytest.raises(InvalidValue, match="300 characters"):
            offered(asked, [Setting("io-scheduler", "n" * 300, "bfq")], world)
