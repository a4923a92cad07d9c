"""Progress over a bus, with the real daemon on a simulated host that is slow to make huge pages."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune.api.names import BUS_NAME, HUGE_PAGES, MANAGER, MEMORY, ROOT
from kerntune.dbus.client import Signal, Signals, connect
from tests.cli.scripted import private_bus
from tests.cli.test_bus import read_all
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus

# There is no polkit on this bus: root alone may change anything.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to set huge pages takes root")

LIMIT = 20.0  # seconds
SLOW = 300  # milliseconds for a GiB
PAGES = 4096  # 8 GiB on two nodes
ERASED = "\r\x1b[K"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    with private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    with Daemon(bus, "--demo") as running:
        yield running


def be_slow(daemon: Daemon, milliseconds: int) -> None:
    """The daemon reads this before any call that is made later."""
    (daemon.runtime / "demo").write_text(f"slow {milliseconds}\n")


async def heard(signals: Signals) -> list[tuple[float, Signal]]:
    """Progress, with its time of arrival, up to the pass's end."""
    found: list[tuple[float, Signal]] = []
    async with asyncio.timeout(LIMIT):
        async for signal in signals:
            if signal.member == "Changed" and any(row[0] == "hugepages" for row in signal.args[2]):
                return found
            if signal.member == "Progress":
                found.append((time.monotonic(), signal))
    raise AssertionError("the pass was not announced")


async def test_the_caller_is_told_and_nobody_else(bus: PrivateBus, daemon: Daemon) -> None:
    """Not somebody who listens, and not the caller of something else meanwhile."""
    be_slow(daemon, SLOW)
    async with (
        connect(BUS_NAME, bus.address) as caller,
        connect(BUS_NAME, bus.address) as sharer,
        connect(BUS_NAME, bus.address) as listener,
        caller.listen(ROOT, MANAGER) as to_caller,
        sharer.listen(ROOT, MANAGER) as to_sharer,
        listener.listen(ROOT, MANAGER) as to_listener,
    ):
        begun = time.monotonic()
        async with asyncio.timeout(LIMIT):
            other = asyncio.create_task(sharer.call(ROOT, MEMORY, "SetOvercommit", "sua{sv}", "always", 95, {}))
            assert await caller.call(ROOT, HUGE_PAGES, "SetCount", "tta{sv}", 0, PAGES, {}) == [PAGES]
            took = time.monotonic() - begun
            await other
        told = await heard(to_caller)
        assert await heard(to_sharer) == []
        assert await heard(to_listener) == []
    assert {tuple(signal.args[:2]) for _, signal in told} == {("hugepages", "2M")}
    counts = [signal.args[2] for _, signal in told]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < PAGES, "the pool is seen to grow"
    assert len(set(counts)) >= 3
    assert {signal.args[3] for _, signal in told} == {PAGES}
    assert told[0][0] - begun >= 0.25
    assert len(told) <= 4 * took, "at most 4 a second"


async def test_of_what_is_quickly_done_nothing_is_told(bus: PrivateBus, daemon: Daemon) -> None:
    async with connect(BUS_NAME, bus.address) as caller, caller.listen(ROOT, MANAGER) as signals:
        await caller.call(ROOT, HUGE_PAGES, "SetCount", "tta{sv}", 0, PAGES, {})
        assert await heard(signals) == []


async def test_giving_pages_back_is_no_progress(bus: PrivateBus, daemon: Daemon) -> None:
    async with connect(BUS_NAME, bus.address) as caller:
        await caller.call(ROOT, HUGE_PAGES, "SetCount", "tta{sv}", 0, PAGES, {})
        be_slow(daemon, 2 * SLOW)
        async with caller.listen(ROOT, MANAGER) as signals:
            await caller.call(ROOT, HUGE_PAGES, "SetCount", "tta{sv}", 0, 0, {})
            assert await heard(signals) == []


def test_a_terminal_shows_a_bar_and_erases_it(bus: PrivateBus, daemon: Daemon) -> None:
    be_slow(daemon, SLOW)
    ours, theirs = pty.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        subprocess.Popen(
            [sys.executable, "-m", "kerntune.cli", "set", f"hugepages={PAGES}"],
            env=bus.environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs,
        ) as process,
    ):  # fmt: skip
        os.close(theirs)
        text = read_all(screen.fileno())
        assert process.wait(LIMIT) == 0
    bars, _, answer = text.rpartition(ERASED)
    assert "hugepages@2M [" in bars
    assert f" of {PAGES} pages" in bars
    assert "\n" not in bars.replace("\r\n", ""), "each is drawn over the one before"
    assert "satisfied" in answer
    assert " pages" not in answer


def test_elsewhere_there_is_none(bus: PrivateBus, daemon: Daemon, tmp_path: Path) -> None:
    be_slow(daemon, SLOW)
    done = subprocess.run(
        [sys.executable, "-m", "kerntune.cli", "set", f"hugepages={PAGES}"],
        env=bus.environment | {"TERM": "xterm"}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert ERASED not in done.stdout
