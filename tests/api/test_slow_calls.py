"""Calls that take long, on a host that is slow: their progress, callers that leave, and a drive that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.calls import MOMENT
from kerntune.api.names import HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from kerntune.daemon.app import SETTLE
from kerntune.dbus.client import Signal, Signals
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller
from kerntune.engine.hung import Bounds
from kerntune.engine.requests import Request
from kerntune.errors import KerntuneError
from kerntune.model import Setting
from tests.api.alone import Alone, NoFiles, calls_on
from tests.api.lab import Change, Remote, connected, variants, write_config
from tests.conftest import needs_root
from tests.harness.daemon import Daemon
from tests.harness.host import DISKS
from tests.harness.privatebus import PrivateBus
from tests.unit.lab import running, small_host

LONGEST: Final = 15.0  # seconds that anything may take here
SLOW: Final = 300  # milliseconds for a GiB
PAGES: Final = 4096  # 8 GiB on two nodes
ERASED: Final = "\r\x1b[K"


def slow_down(daemon: Daemon, milliseconds: int = SLOW) -> None:
    """Have the simulated host need so long for a GiB of huge pages; the daemon reads this before any later call."""
    (daemon.runtime / "demo").write_text(f"slow {milliseconds}\n")


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "kerntune.cli", *words]


@needs_root
class TestProgress:
    async def test_only_the_caller_is_told(self, bus: PrivateBus, daemon: Daemon) -> None:
        """Another client that listens hears nothing, nor does the caller of something else meanwhile."""
        slow_down(daemon)
        async with (
            connected(bus) as caller,
            connected(bus) as sharer,
            connected(bus) as listener,
            caller.client.listen(ROOT, MANAGER) as to_caller,
            sharer.client.listen(ROOT, MANAGER) as to_sharer,
            listener.client.listen(ROOT, MANAGER) as to_listener,
        ):
            begun = time.monotonic()
            async with asyncio.timeout(LONGEST):
                other = asyncio.create_task(sharer.set(["overcommit", "", "always:95"]))
                assert await caller.set_count(PAGES) == PAGES
                took = time.monotonic() - begun
                await other
            told = await progress(to_caller)
            assert await progress(to_sharer) == []
            assert await progress(to_listener) == []
        assert {tuple(signal.args[:2]) for _, signal in told} == {("hugepages", "2M")}
        counts = [signal.args[2] for _, signal in told]
        assert counts == sorted(counts)
        assert 0 < counts[-1] < PAGES, "the pool is seen to grow"
        assert len(set(counts)) >= 3
        assert {signal.args[3] for _, signal in told} == {PAGES}
        assert told[0][0] - begun >= 0.25
        assert len(told) <= 4 * took, "at most 4 a second"

    async def test_a_quick_call_tells_nothing(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as caller, caller.client.listen(ROOT, MANAGER) as signals:
            await caller.set_count(PAGES)
            assert await progress(signals) == []

    async def test_to_give_pages_back_tells_nothing(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as caller:
            await caller.set_count(PAGES)
            slow_down(daemon, 2 * SLOW)
            async with caller.client.listen(ROOT, MANAGER) as signals:
                await caller.set_count(0)
                assert await progress(signals) == []

    def test_a_terminal_shows_a_bar_and_erases_it(self, bus: PrivateBus, daemon: Daemon) -> None:
        slow_down(daemon)
        ours, theirs = pty.openpty()
        with (
            os.fdopen(ours, "rb", buffering=0) as screen,
            subprocess.Popen(
                cli("set", f"hugepages={PAGES}"),
                env=bus.environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs,
            ) as process,
        ):  # fmt: skip
            os.close(theirs)
            text = read_all(screen.fileno())
            assert process.wait(LONGEST) == 0
        bars, _, answer = text.rpartition(ERASED)
        assert "hugepages@2M [" in bars
        assert f" of {PAGES} pages" in bars
        assert "\n" not in bars.replace("\r\n", ""), "each is drawn over the one before"
        assert "satisfied" in answer
        assert " pages" not in answer

    def test_a_pipe_gets_no_bar(self, bus: PrivateBus, daemon: Daemon) -> None:
        slow_down(daemon)
        done = subprocess.run(
            cli("set", f"hugepages={PAGES}"),
            env=bus.environment | {"TERM": "xterm"}, capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert ERASED not in done.stdout


async def progress(signals: Signals) -> list[tuple[float, Signal]]:
    """Return the Progress signals, each with its time of arrival, up to the end of the pass."""
    found: list[tuple[float, Signal]] = []
    async with asyncio.timeout(LONGEST):
        async for signal in signals:
            if signal.member == "Changed" and any(row[0] == "hugepages" for row in signal.args[2]):
                return found
            if signal.member == "Progress":
                found.append((time.monotonic(), signal))
    raise AssertionError("the pass was not announced")


def read_all(terminal: int) -> str:
    """Return what is written to a pseudo-terminal until its other side is closed (reading then fails with EIO)."""
    text = b""
    while select.select([terminal], [], [], LONGEST)[0]:
        try:
            text += os.read(terminal, 65536)
        except OSError:
            return text.decode()
    raise TimeoutError(text.decode())


# Callers that leave

CALLS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "Set": (MANAGER, "a(sss)a{sv}", ([["hugepages", "2M/node0", str(PAGES)]],)),
    "SetCount": (HUGE_PAGES, "tta{sv}", (0, PAGES)),
    "SetProfile": (MANAGER, "sa{sv}", ("many",)),
}


@needs_root
class TestCallerLeaves:
    @pytest.fixture
    def slow(self, daemon: Daemon) -> Daemon:
        """Return a daemon that needs long for the profile `many`."""
        profile = '[hugepages]\n"2M/node0" = {}\n'
        write_config(daemon, many=profile.format(PAGES), few=profile.format(8))
        slow_down(daemon)
        return daemon

    @pytest.mark.parametrize("member", CALLS)
    async def test_with_the_option_the_change_is_put_back(self, bus: PrivateBus, slow: Daemon, member: str) -> None:
        async with connected(bus) as listener, listener.client.listen(ROOT, MANAGER) as signals:
            async with half_done(bus, member, cancel_on_leave=True):
                pass
            await pass_for(signals, f"{member} withdrawn")
        assert await what_is_left(bus) == ([], 0, "")
        assert f"the caller of {member} left when" in slow.journal()

    @pytest.mark.parametrize("member", CALLS)
    async def test_without_the_option_the_change_is_finished(self, bus: PrivateBus, slow: Daemon, member: str) -> None:
        async with connected(bus) as listener, listener.client.listen(ROOT, MANAGER) as signals:
            async with half_done(bus, member):
                pass
            await pass_for(signals, member)
        assert await what_is_left(bus) == (["hugepages"], PAGES, "many" if member == "SetProfile" else "")
        assert "withdrawn" not in slow.journal()

    async def test_an_interrupted_command_puts_back_what_was_there(self, bus: PrivateBus, slow: Daemon) -> None:
        ours, theirs = pty.openpty()
        async with connected(bus) as listener, listener.client.listen(ROOT, MANAGER) as signals:
            command = await asyncio.create_subprocess_exec(
                *cli("set", f"hugepages@2M/node0={PAGES}"),
                env=bus.environment,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
            )
            os.close(theirs)
            async with asyncio.timeout(LONGEST):
                # The bar is drawn on a terminal, from what the kernel has done.
                await asyncio.to_thread(os.read, ours, 100)
                command.send_signal(signal.SIGINT)
                assert await command.wait() == 130
            os.close(ours)
            await pass_for(signals, "Set withdrawn")
        assert await what_is_left(bus) == ([], 0, "")

    async def test_a_call_that_has_not_begun_is_dropped(self, bus: PrivateBus, slow: Daemon) -> None:
        async with half_done(bus, "SetProfile"), connected(bus) as other:
            async with connected(bus) as leaving:
                calls = [asyncio.create_task(leaving.set_profile("few")) for _ in range(8)]
                # Answered after them, for they came first.
                await leaving.call("ListProfiles")
            for call in calls:
                call.cancel()
            # Its turn is after theirs.
            await other.reload()
            assert (await what_is_left(bus))[2] == "many"
        assert "few" not in slow.journal()


@contextlib.asynccontextmanager
async def half_done(bus: PrivateBus, member: str, **options: bool) -> AsyncIterator[None]:
    """Have a client wait for a slow call, of which the kernel has done a part; the client leaves with the context."""
    interface, signature, body = CALLS[member]
    async with connected(bus) as caller, caller.client.listen(ROOT, MANAGER) as signals:
        call = asyncio.create_task(caller.call(member, signature, *body, variants(options), interface=interface))
        async with asyncio.timeout(LONGEST):
            async for found in signals:
                if found.member == "Progress" and found.args[2] > 0:
                    break
        yield
        call.cancel()


async def pass_for(signals: Signals, cause: str) -> None:
    """Wait for a pass that was made for this."""
    async with asyncio.timeout(LONGEST):
        async for found in signals:
            if found.member == "Changed" and cause in found.args[1].split(", "):
                return


async def what_is_left(bus: PrivateBus) -> tuple[list[str], int, str]:
    """Return the claims on huge pages, the most pages that a target has, and the profile, when all is settled."""
    async with connected(bus) as root:
        # One pass of the lane more.
        await root.call("SetOvercommit", "sua{sv}", "heuristic", 0, {}, interface=MEMORY)
        document = await root.describe()
    claims = [row["tunable"] for row in document["claims"] if row["tunable"] == "hugepages"]
    most = max(int(row["value"]) for row in document["targets"] if row["instance"].startswith("2M"))
    return claims, most, document["profile"]


@pytest.mark.parametrize("has_waited", [True, False])
async def test_the_bus_is_asked_whether_the_caller_of_a_call_that_has_waited_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_waited: bool
) -> None:
    """A call that begins at once costs the bus no question."""
    caplog.set_level(logging.INFO, "kerntune.api.calls")
    monkeypatch.setattr("kerntune.api.calls.MOMENT", -1.0 if has_waited else MOMENT + LONGEST)
    request = Request((Setting("io-scheduler", "nvme0n1", "bfq"),))
    service = Alone()
    async with running(small_host()) as lab:
        calls = calls_on(service, lab, NoFiles())
        await calls.change(Caller(":1.4", 0, 1, interactive=False, member="Set"), request)
        assert service.connection.questions == (["NameHasOwner"] if has_waited else [])
        service.leaves(":1.5")
        with pytest.raises(CallerGone, match="before its call had begun") if has_waited else contextlib.nullcontext():
            await calls.change(Caller(":1.5", 0, 1, interactive=False, member="Unset"), request)
    assert "Set io-scheduler@nvme0n1=bfq, asked by" in caplog.text
    assert ("Unset" in caplog.text) is False


# A drive that hangs

SDA: Final = "sys/block/sda/queue/scheduler"
# A write to sda says so through one pipe, and ends when somebody opens the other: till then its thread hangs.
HANGING: Final = f"""
import sys
from kerntune.daemon.__main__ import main
from kerntune.kernel.files import HostKernel
write, pipe = HostKernel.write, sys.argv.pop(1)

def hanging(self, path, text):
    if path == {SDA!r}:
        with open(f"{{pipe}}.reached", "w") as reached:
            reached.write(".")
        open(pipe).close()
    write(self, path, text)

HostKernel.write = hanging
sys.exit(main())
"""


@needs_root
class TestDriveHangs:
    @pytest.fixture
    def pipe(self, tmp_path: Path) -> Path:
        for name in ("pipe", "pipe.reached"):
            os.mkfifo(tmp_path / name)
        return tmp_path / "pipe"

    @pytest.fixture
    def daemon(self, bus: PrivateBus, tree: Path, pipe: Path) -> Iterator[Daemon]:
        with Daemon(bus, "--root", str(tree), program=(sys.executable, "-c", HANGING, str(pipe))) as running:
            yield running

    async def test_other_drives_and_callers_are_served(
        self, bus: PrivateBus, daemon: Daemon, tree: Path, pipe: Path
    ) -> None:
        async with asyncio.timeout(2 * LONGEST), connected(bus) as client:
            before = await client.target("io-scheduler", "sda")
            began = time.monotonic()
            setting = asyncio.create_task(set_schedulers(client, "*"))
            await hangs(pipe)
            assert (await client.set(["overcommit", "", "always:90"])).outcomes[0][5] == "satisfied"
            assert (await client.target("io-scheduler", "sda"))["value"] == before["value"]
            assert "sda" in await client.get("Devices", IO_SCHEDULER)
            assert time.monotonic() - began < Bounds().write
            outcomes = {outcome[1]: outcome for outcome in (await setting).outcomes}
            assert time.monotonic() - began < Bounds().write + 2
            assert outcomes["sda"][5:7] == ["failed", "device-hangs"]
            assert {outcome[5] for name, outcome in outcomes.items() if name != "sda"} == {"satisfied"}
            assert set(outcomes) == set(DISKS)
            told = await client.target("io-scheduler", "sda")
            assert (told["state"], told["reason"], told["value"]) == ("failed", "device-hangs", before["value"])
            # The kernel returns.
            await asyncio.to_thread(pipe.write_text, "")
            while (told := await client.target("io-scheduler", "sda"))["state"] != "satisfied":
                pass
            assert told["value"] == (tree / SDA).read_text().strip() == "kyber"

    async def test_a_stop_does_not_wait_for_it(self, bus: PrivateBus, daemon: Daemon, tree: Path, pipe: Path) -> None:
        async with asyncio.timeout(LONGEST), connected(bus) as client:
            setting = asyncio.create_task(set_schedulers(client, "sda"))
            await hangs(pipe)
            kept = "".join(path.read_text() for path in daemon.runtime.iterdir() if path.is_file())
            assert DISKS["sda"] in kept, "what the host had is on disk before it is written"
            began = time.monotonic()
            assert await asyncio.to_thread(daemon.terminate) == 0
            assert time.monotonic() - began < SETTLE + 1
            assert f"still busy with a write to /{SDA}" in daemon.journal()
            assert "ends without its threads" in daemon.journal()
            with pytest.raises(KerntuneError):
                await setting
            assert (tree / SDA).read_text().strip() == DISKS["sda"]


async def set_schedulers(client: Remote, drives: str) -> Change:
    return await client.set(["io-scheduler", drives, "kyber"])


async def hangs(pipe: Path) -> None:
    """Wait until the daemon is inside the write."""
    loop, inside = asyncio.get_running_loop(), asyncio.Event()
    fd = os.open(f"{pipe}.reached", os.O_RDONLY | os.O_NONBLOCK)
    loop.add_reader(fd, inside.set)
    try:
        await inside.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
