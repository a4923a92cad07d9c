"""The life of the daemon: starts under adverse conditions, and stops, also while the kernel is slow."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from kerntune.api.names import MANAGER, ROOT
from kerntune.daemon.app import BUS_WAIT, Status
from kerntune.daemon.directories import LOCK_WAIT
from kerntune.errors import Failed
from kerntune.kernel.kconfig import QUEUE
from kerntune.tunables.scopes import POLICIES
from tests.api.lab import BOUND, Change, connected, not_started, write_config
from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.daemon import READY, Daemon
from tests.harness.privatebus import PrivateBus
from tests.hosts import lay_out

pytestmark = needs_root

READ_AHEAD: Final = '[read-ahead]\n"*" = 1024\n'
GOVERNOR: Final = '[cpu-governor]\n"*" = "powersave"\n'
EXTENDED: Final = "EXTEND_TIMEOUT_USEC=20000000"
WAITING: Final = "STATUS=waiting for drivers that udev is still loading"
STOPPING: Final = "STOPPING=1"


@pytest.fixture
def stopped(stopped: Daemon) -> Daemon:
    """Return a daemon that is to set a read-ahead, and was not started yet."""
    write_config(stopped, main=READ_AHEAD)
    return stopped


class TestBus:
    def test_a_bus_that_does_not_let_us_own_the_name_is_like_no_bus(self) -> None:
        """Its policy is missing or damaged: values are applied all the same, and the next start does not come soon."""
        with PrivateBus() as strict, not_started(Daemon(strict, "--demo", wait=False)) as daemon:
            write_config(daemon, main=READ_AHEAD)
            began = time.monotonic()
            daemon.start()
            assert daemon.wait() == Status.FAILED
            assert time.monotonic() - began > BUS_WAIT - 1
            journal = daemon.journal()
            assert "may not own org.kerntune.Tuner1" in journal
            assert "is org.kerntune.Tuner1.conf in /usr/share/dbus-1/system.d?" in journal
            assert "read-ahead@sda is 1024, was 128 (boot)" in journal
            assert "Traceback" not in journal
            assert READY not in daemon.messages

    def test_a_stop_ends_the_wait_for_a_bus(self) -> None:
        with PrivateBus() as bus:
            gone = bus.address
        with Daemon(bus, "--demo", wait=False, env={"DBUS_SYSTEM_BUS_ADDRESS": gone}) as daemon:
            daemon.wait_for(EXTENDED)
            assert terminate(daemon) < SOON
            assert said_since_stop(daemon) == [STOPPING]


class TestLock:
    def test_a_lock_that_is_held_for_a_moment_is_waited_for(self, stopped: Daemon) -> None:
        """As `kerntuned --uncap` holds it."""
        folder = os.open(stopped.runtime, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        letting_go = threading.Timer(LOCK_WAIT / 2, os.close, [folder])
        letting_go.start()
        stopped.start()
        letting_go.join()

    def test_a_lock_that_stays_held_is_that_of_another_daemon(self, bus: PrivateBus) -> None:
        with not_started(Daemon(bus, "--demo", wait=False)) as daemon:
            folder = os.open(daemon.runtime, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                daemon.start()
                assert daemon.wait() == Status.TAKEN
                assert "another kerntuned runs" in daemon.journal()
            finally:
                os.close(folder)


class TestHangup:
    def test_it_is_ignored_from_the_first_instruction_on(self) -> None:
        """SIGHUP is ignored before anything else is imported."""
        code = "import signal, kerntune.daemon.__main__; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND, check=True)
        assert done.stdout == "True\n"
        first_module = CHECKOUT / "src/kerntune/daemon/slim_imports.py"
        entry = (CHECKOUT / "src/kerntune/daemon/__main__.py").read_text()
        first = [line for line in entry.splitlines() if line.startswith(("import", "from"))]
        assert first[1] == "import kerntune.daemon.slim_imports  # noqa: F401"
        assert first_module.read_text().index("SIG_IGN") < first_module.read_text().index("import asyncio")

    def test_it_ends_no_start(self, bus: PrivateBus) -> None:
        with Daemon(bus, "--demo", wait=False) as daemon:
            daemon.wait_for(EXTENDED)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for(READY)


def test_a_killed_demonstration_leaves_nothing_beside_the_directories_that_are_named(
    bus: PrivateBus, tmp_path: Path
) -> None:
    with Daemon(bus, "--demo", env={"TMPDIR": str(tmp_path)}) as daemon:
        daemon.kill()
        assert list(tmp_path.iterdir()) == []


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listened(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def looping(path: Path) -> None:
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [Path.mkdir, fifo, listened, dangling, looping, huge, endless])
class TestOddFiles:
    """Files that are no plain files, under each name that the daemon reads or writes."""

    def test_none_stops_the_start(self, stopped: Daemon, make: Callable[[Path], None]) -> None:
        """The log names each of them, the daemon waits for none, and good files beside them count."""
        for folder, names in (
            (stopped.runtime, ("lock", "runtime.json", "cap.json", "config.json", "profile.json", ".runtime.json.new")),
            (stopped.state, ("claims.json", ".claims.json.new")),
            (stopped.config, ("kerntune.d/10-a.toml", "profiles/mine.toml", "kerntune.d/profiles")),
        ):
            for name in names:
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                make(path)
        (stopped.config / "kerntune.d/20-b.toml").write_text('profile = "mine"\n')
        stopped.start()
        assert "read-ahead@sda is 1024, was 128 (boot)" in stopped.journal()
        assert "Traceback" not in stopped.journal()
        assert stopped.terminate() == 0

    def test_nor_does_one_in_place_of_the_configuration(self, stopped: Daemon, make: Callable[[Path], None]) -> None:
        (stopped.config / "kerntune.toml").unlink()
        for name in ("kerntune.toml", "kerntune.d", "profiles"):
            make(stopped.config / name)
        stopped.start()
        assert "Traceback" not in stopped.journal()
        assert stopped.terminate() == 0


async def test_nothing_of_ours_is_imported_after_the_start(bus: PrivateBus) -> None:
    """An upgrade may have put other files there by then."""
    program = [sys.executable, "-X", "importtime", "-m", "kerntune.daemon"]
    async with connected(bus) as root:
        with Daemon(bus, "--demo", program=program) as daemon:
            write_config(daemon, mine='[read-ahead]\n"*" = 512\n', main='profile = "mine"\n[guard]\nenabled = false\n')
            before = daemon.journal()
            assert "| kerntune.engine.reconciler\n" in re.sub("[ ]+", " ", before)
            settings = [["overcommit", "", "always:95"], ["hugepages", "2M", "4"], ["cpu-governor", "*", "powersave"]]
            for setting in settings:
                await root.set(setting, persist=True)
            await root.reload()
            for member in ("ListProfiles", "Verify", "Describe"):
                await root.call(member)
            await root.set_profile("mine")
            await root.reset()
            daemon.terminate()
            later = daemon.journal().removeprefix(before)
    assert [line for line in later.splitlines() if "import time:" in line and "kerntune" in line] == []


async def test_a_service_manager_that_does_not_read_or_is_gone_stops_nothing(bus: PrivateBus, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(path))
    listening.settimeout(BOUND)
    with Daemon(bus, "--demo", wait=False, env={"NOTIFY_SOCKET": str(path)}) as daemon:
        while READY not in listening.recv(4096).decode():
            pass
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as other, contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=", str(path))
        async with connected(bus) as root, asyncio.timeout(BOUND):
            for pages in (4, 8, 12):
                if pages == 12:
                    listening.close()
                    path.unlink()
                assert (await root.set(["hugepages", "2M", str(pages)])).changed
        assert await asyncio.to_thread(daemon.terminate) == 0
        assert "internal error" not in daemon.journal()


class TestUdev:
    """A driver that udev still loads: QUEUE is there while it does."""

    @pytest.fixture
    def daemon(self, bus: PrivateBus, tree: Path) -> Iterator[Daemon]:
        with not_started(Daemon(bus, "--root", str(tree), wait=False)) as daemon:
            write_config(daemon, main=GOVERNOR)
            yield daemon

    @pytest.fixture
    def queue(self, tree: Path) -> Path:
        (tree / QUEUE).parent.mkdir(parents=True)
        (tree / QUEUE).touch()
        return tree / QUEUE

    def test_a_driver_that_is_being_loaded_is_waited_for(self, daemon: Daemon, tree: Path, queue: Path) -> None:
        """Its value is in force when the daemon is ready, and the journal calls the driver absent until then."""
        policy = tree / POLICIES / "policy0"
        daemon.start()
        daemon.wait_for(WAITING)
        assert "cpu-governor@* unsupported, no-kernel-support" in daemon.journal()
        assert "no frequency driver is loaded yet" in daemon.journal()
        assert READY not in daemon.messages
        policy.mkdir(parents=True)
        values = {"scaling_driver": "acpi-cpufreq", "related_cpus": "0", "scaling_governor": "schedutil"}
        for name, text in values.items():
            (policy / name).write_text(f"{text}\n")
        queue.unlink()
        daemon.wait_for(READY)
        assert (policy / "scaling_governor").read_text().strip() == "powersave"

    def test_a_driver_that_is_absent_when_udev_is_done_is_not_waited_for(self, daemon: Daemon) -> None:
        daemon.start()
        daemon.wait_for(READY)
        assert WAITING not in daemon.messages

    def test_udev_is_not_waited_for_where_nothing_is_absent(self, daemon: Daemon, queue: Path) -> None:
        (daemon.config / "kerntune.toml").unlink()
        daemon.start()
        daemon.wait_for(READY)
        assert WAITING not in daemon.messages


# Stops

OWN: Final = {"overcommit_memory": "0", "vda": "128", "vdb": "256"}
ASKED: Final = {"overcommit_memory": "1", "vda": "2048", "vdb": "1024"}


class TestValuesAfterTheEnd:
    @pytest.fixture
    def host(self, tmp_path: Path) -> Path:
        lay_out("small-vm", tmp_path)
        for name, value in OWN.items():
            file_of(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
            file_of(tmp_path, name).write_text(f"{value}\n")
        return tmp_path

    @pytest.fixture
    def daemon(self, bus: PrivateBus, host: Path) -> Iterator[Daemon]:
        with not_started(Daemon(bus, "--root", str(host))) as daemon:
            write_config(daemon, main='[overcommit]\n"*" = "always:95"\n[daemon]\nrestore-on-stop = true\n')
            yield daemon

    @pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
    async def test_the_values_of_the_host_are_back_and_the_next_start_applies_the_claims(
        self, bus: PrivateBus, host: Path, daemon: Daemon, end: signal.Signals
    ) -> None:
        await start_and_ask(bus, daemon)
        assert values(host) == ASKED
        daemon.process.send_signal(end)
        assert daemon.wait() == 0
        assert values(host) == OWN
        daemon.start()
        assert values(host) == ASKED

    async def test_without_the_option_a_stop_leaves_values_in_place(
        self, bus: PrivateBus, host: Path, daemon: Daemon
    ) -> None:
        write_config(daemon, main='[overcommit]\n"*" = "always:95"\n')
        await start_and_ask(bus, daemon)
        assert daemon.terminate() == 0
        assert values(host) == ASKED

    async def test_a_crash_and_a_lost_bus_leave_values_in_place(
        self, bus: PrivateBus, host: Path, daemon: Daemon
    ) -> None:
        await start_and_ask(bus, daemon)
        daemon.kill()
        assert values(host) == ASKED
        daemon.start()
        bus.stop()
        assert daemon.wait() == 1
        assert values(host) == ASKED


def file_of(root: Path, name: str) -> Path:
    return root / (f"sys/block/{name}/queue/read_ahead_kb" if name.startswith("vd") else f"proc/sys/vm/{name}")


def values(root: Path) -> dict[str, str]:
    return {name: file_of(root, name).read_text().strip() for name in OWN}


async def start_and_ask(bus: PrivateBus, daemon: Daemon) -> None:
    """Make a runtime and a persistent claim beside that of the configuration."""
    await asyncio.to_thread(daemon.start)
    async with connected(bus) as root:
        await root.set(["read-ahead", "vda", ASKED["vda"]])
        await root.set(["read-ahead", "vdb", ASKED["vdb"]], persist=True)


# Stops while the kernel is slow

SLOW: Final = 300  # milliseconds for a GiB of huge pages
STUCK: Final = 10_000
PAGES: Final = 28_000  # 55 GiB, in about as many writes; node 0 can spare them
SOON: Final = 2.0  # seconds
BOOTING: Final = "STATUS=applying what is configured; huge pages can take long"
PAGES_FILE: Final = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
MANY: Final = f'[hugepages]\n"2M" = {PAGES}\n'


class TestStopOnASlowHost:
    @pytest.fixture
    def slow(self, bus: PrivateBus) -> Iterator[Daemon]:
        """Give a daemon, not started yet, on a host that is slow to make huge pages from the start."""
        with contextlib.ExitStack() as stack:
            daemon = Daemon(bus, "--demo", wait=False)
            os.mkfifo(daemon.runtime / "demo")
            fifo = os.open(daemon.runtime / "demo", os.O_RDWR)
            stack.callback(os.close, fifo)
            os.write(fifo, b"slow %d\n" % SLOW)
            yield stack.enter_context(not_started(daemon))

    @pytest.fixture
    def ready(self, slow: Daemon) -> Daemon:
        slow.start()
        slow.wait_for(READY)
        return slow

    def test_a_stop_interrupts_the_boot_pass_and_the_next_start_finishes_it(self, slow: Daemon) -> None:
        write_config(slow, main=MANY)
        slow.start()
        slow.wait_for(BOOTING)
        assert terminate(slow) < SOON
        assert said_since_stop(slow) == [STOPPING]
        assert READY not in slow.messages
        (had,) = re.findall(rf"hugepages@2M partial, interrupted, wanted {PAGES}, is (\d+) \(boot\)", slow.journal())
        assert 0 < int(had) < PAGES
        assert set(baselines(slow).values()) == {"0"}
        # Without the delay, for this host is another one each time.
        slow.start()
        slow.wait_for(READY)
        assert f"hugepages@2M is {PAGES}" in slow.journal()

    async def test_a_stop_puts_the_old_count_back(self, bus: PrivateBus, ready: Daemon) -> None:
        async with half_set(bus) as call:
            assert await asyncio.to_thread(terminate, ready) < SOON
            with pytest.raises(Failed, match="told to stop"):
                await call
        assert "hugepages@2M/node0 is no longer managed and is 0 (Set withdrawn)" in ready.journal()
        assert baselines(ready) == {}
        assert not (ready.state / "claims.json").exists()

    async def test_a_caller_who_takes_less_keeps_the_claim(self, bus: PrivateBus, ready: Daemon) -> None:
        async with half_set(bus, partial=True) as call:
            assert await asyncio.to_thread(terminate, ready) < SOON
            ((*_, actual, state, reason, _detail),) = (await call).outcomes
        assert (state, reason) == ("partial", "interrupted")
        assert int(actual) > 0
        assert baselines(ready)["hugepages@2M/node0"] == "0"

    async def test_an_interrupted_reload_says_nothing_after_the_stop(self, bus: PrivateBus, ready: Daemon) -> None:
        write_config(ready, main=MANY)
        async with connected(bus) as root:
            call = asyncio.create_task(root.reload())
            await asyncio.to_thread(ready.wait_for, "RELOADING=1")
            assert await asyncio.to_thread(terminate, ready) < SOON
            with pytest.raises(Failed, match="stop"):
                await call
        assert said_since_stop(ready) == [STOPPING]

    async def test_a_write_that_cannot_be_interrupted_is_named_and_the_next_start_corrects_it(
        self, bus: PrivateBus, ready: Daemon
    ) -> None:
        # The call comes after it.
        (ready.runtime / "demo").write_text(f"slow {STUCK}\n")
        async with half_set(bus, done=0) as call:
            assert await asyncio.to_thread(terminate, ready) < SOON + 0.5
            with pytest.raises(Failed, match="has stopped before this was done"):
                await call
        assert f"the kernel is still busy with a write to {PAGES_FILE}" in ready.journal()
        assert "the next start puts right" in ready.journal()
        assert baselines(ready)["hugepages@2M/node0"] == "0"
        assert not (ready.state / "claims.json").exists()
        ready.start()
        ready.wait_for(READY)
        assert baselines(ready) == {}


@contextlib.asynccontextmanager
async def half_set(bus: PrivateBus, *, partial: bool = False, done: int = 1) -> AsyncIterator[asyncio.Task[Change]]:
    """Give a Set that takes long, of which the kernel has done a part, so many pages at least."""
    async with connected(bus) as root, root.client.listen(ROOT, MANAGER) as signals:
        setting = ["hugepages", "2M/node0", str(PAGES)]
        task = asyncio.create_task(root.set(setting, allow_partial=partial))
        async with asyncio.timeout(BOUND):
            async for found in signals:
                if found.member == "Progress" and found.args[2] >= done:
                    break
        yield task


def terminate(daemon: Daemon) -> float:
    """Stop the daemon with SIGTERM, and return the seconds until its orderly end."""
    began = time.monotonic()
    assert daemon.terminate() == 0, daemon.journal()
    took = time.monotonic() - began
    assert "is lost" not in daemon.journal(), "of the bus"
    return took


def baselines(daemon: Daemon) -> dict[str, str]:
    rows = json.loads((daemon.runtime / "runtime.json").read_text())["baselines"]
    return {f"{tunable}@{instance}": value for tunable, instance, _key, value in rows}


def said_since_stop(daemon: Daemon) -> list[str]:
    """Return what the daemon has said to the service manager from STOPPING=1 on."""
    return list(daemon.messages[daemon.messages.index(STOPPING) :])


def test_a_thread_that_hangs_does_not_hold_up_the_end() -> None:
    """As a look into a users' database does that does not answer."""
    code = (
        "import threading, kerntune.daemon.__main__ as entry\n"
        "def start(argv):\n"
        "    threading.Thread(target=threading.Event().wait, name='stuck').start()\n"
        "    return 5\n"
        "entry.start = start\n"
        "entry.main([])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 5
    assert "without its threads stuck" in done.stderr
