"""Starts under adverse conditions, with the real daemon: who holds the lock, what the bus says, and what lies about."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.daemon.app import BUS_WAIT, LOCK_WAIT, Status
from kerntune.dbus.client import Variant, connect
from kerntune.kernel.kconfig import QUEUE
from kerntune.tunables.scopes import POLICIES
from tests.harness.daemon import READY, Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus
from tests.live.ground import make_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may own the name")

BOUND = 10.0  # seconds
WAITING = "STATUS=waiting for drivers that udev is still loading"


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    """Not started yet."""
    daemon = Daemon(bus, "--demo", wait=False)
    (daemon.config / "kerntune.toml").write_text('[read-ahead]\n"*" = 1024\n')
    yield daemon
    daemon.__exit__(None, None, None)


def test_a_bus_that_does_not_let_us_own_the_name_is_like_none() -> None:
    """Its policy is missing or damaged: the values are applied all the same, and no start follows the other at once."""
    with PrivateBus() as strict, Daemon(strict, "--demo", wait=False) as daemon:
        (daemon.config / "kerntune.toml").write_text('[read-ahead]\n"*" = 1024\n')
        daemon.restart()
        began = time.monotonic()
        assert daemon.wait() == Status.FAILED
        assert time.monotonic() - began > BUS_WAIT - 1
        journal = daemon.journal()
        assert "may not own org.kerntune.Tuner1" in journal
        assert "read-ahead@sda is 1024, was 128 (boot)" in journal
        assert READY not in daemon.messages


def test_a_lock_that_is_held_for_a_moment_is_waited_for(daemon: Daemon) -> None:
    """As `kerntuned --uncap` holds it."""
    folder = os.open(daemon.runtime, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    letting_go = threading.Timer(LOCK_WAIT / 2, os.close, [folder])
    letting_go.start()
    daemon.start()
    daemon.wait_for(READY)
    letting_go.join()


def test_a_lock_that_stays_held_is_another_daemon(daemon: Daemon) -> None:
    folder = os.open(daemon.runtime, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        daemon.start()
        assert daemon.wait() == Status.TAKEN
        assert "another kerntuned runs" in daemon.journal()
    finally:
        os.close(folder)


def test_a_hangup_ends_no_start() -> None:
    """From the first instruction on: it is ignored before anything else is imported."""
    code = "import signal, kerntune.daemon.__main__; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND, check=True)
    assert done.stdout == "True\n"
    first_module = CHECKOUT / "src/kerntune/daemon/slim_imports.py"
    entry = (CHECKOUT / "src/kerntune/daemon/__main__.py").read_text()
    first = [line for line in entry.splitlines() if line.startswith(("import", "from"))]
    assert first[1] == "import kerntune.daemon.slim_imports  # noqa: F401"
    assert first_module.read_text().index("SIG_IGN") < first_module.read_text().index("import asyncio")


def test_hangups_while_it_starts(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_for("EXTEND_TIMEOUT_USEC=20000000")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(READY)


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
def test_no_file_stops_the_start(daemon: Daemon, make: Callable[[Path], None]) -> None:
    """Under any name that it reads or writes; each file is told of, none is waited for, and one that is good counts."""
    for folder, names in (
        (daemon.runtime, ("lock", "runtime.json", "cap.json", "config.json", "profile.json", ".runtime.json.new")),
        (daemon.state, ("claims.json", ".claims.json.new")),
        (daemon.config, ("kerntune.d/10-a.toml", "profiles/mine.toml", "kerntune.d/profiles")),
    ):
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            make(path)
    (daemon.config / "kerntune.d/20-b.toml").write_text('profile = "mine"\n')
    daemon.start()
    daemon.wait_for(READY)
    assert "read-ahead@sda is 1024, was 128 (boot)" in daemon.journal()
    assert "Traceback" not in daemon.journal()
    assert daemon.terminate() == 0


@pytest.mark.parametrize("make", [Path.mkdir, fifo, listened, dangling, looping, huge, endless])
def test_nor_one_in_place_of_the_configuration(daemon: Daemon, make: Callable[[Path], None]) -> None:
    (daemon.config / "kerntune.toml").unlink()
    for name in ("kerntune.toml", "kerntune.d", "profiles"):
        make(daemon.config / name)
    daemon.start()
    daemon.wait_for(READY)
    assert "Traceback" not in daemon.journal()
    assert daemon.terminate() == 0


async def test_nothing_of_ours_is_imported_after_the_start(bus: PrivateBus) -> None:
    """An upgrade may have put other files there by then."""
    program = [sys.executable, "-X", "importtime", "-m", "kerntune.daemon"]
    async with connect(BUS_NAME, bus.address) as root:
        with Daemon(bus, "--demo", program=program) as daemon:
            (daemon.config / "profiles").mkdir()
            (daemon.config / "profiles/mine.toml").write_text('[read-ahead]\n"*" = 512\n')
            (daemon.config / "kerntune.toml").write_text('profile = "mine"\n[guard]\nenabled = false\n')
            before = daemon.journal()
            assert "| kerntune.engine.reconciler\n" in re.sub("[ ]+", " ", before)
            for setting in (
                ["overcommit", "", "always:95"],
                ["hugepages", "2M", "4"],
                ["cpu-governor", "*", "powersave"],
            ):
                await root.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", [setting], {"persist": Variant("b", True)})
            await root.call(ROOT, MANAGER, "Reload", "a{sv}", {})
            await root.call(ROOT, MANAGER, "ListProfiles")
            await root.call(ROOT, MANAGER, "SetProfile", "sa{sv}", "mine", {})
            await root.call(ROOT, MANAGER, "Verify")
            await root.call(ROOT, MANAGER, "Describe")
            await root.call(ROOT, MANAGER, "Reset", "a{sv}", {})
            daemon.terminate()
            later = daemon.journal().removeprefix(before)
    assert [line for line in later.splitlines() if "import time:" in line and "kerntune" in line] == []


async def test_a_service_manager_that_does_not_read_or_is_gone_holds_nothing(bus: PrivateBus, tmp_path: Path) -> None:
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
        async with connect(BUS_NAME, bus.address) as root, asyncio.timeout(BOUND):
            for pages in (4, 8, 12):
                if pages == 12:
                    listening.close()
                    path.unlink()
                settings = [["hugepages", "2M", str(pages)]]
                changed, _ = await root.call(ROOT, MANAGER, "Set", "a(sss)a{sv}", settings, {})
                assert changed
        assert await asyncio.to_thread(daemon.terminate) == 0
        assert "internal error" not in daemon.journal()


def test_what_hangs_in_a_thread_does_not_hold_the_end() -> None:
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


def test_a_driver_that_udev_is_still_loading_is_waited_for(bus: PrivateBus, tmp_path: Path) -> None:
    """What is desired of it is in force when the daemon is ready, and is told as not there until then."""
    tree = make_tree(tmp_path / "host")
    queue = tree / QUEUE
    queue.parent.mkdir(parents=True)
    queue.touch()
    policy = tree / POLICIES / "policy0"
    with Daemon(bus, "--root", str(tree), wait=False) as daemon:
        (daemon.config / "kerntune.toml").write_text('[cpu-governor]\n"*" = "powersave"\n')
        daemon.restart()
        daemon.wait_for(WAITING)
        assert "cpu-governor@* unsupported, no-kernel-support" in daemon.journal()
        assert "no frequency driver is loaded yet" in daemon.journal()
        assert READY not in daemon.messages
        policy.mkdir(parents=True)
        for name, text in (
            ("scaling_driver", "acpi-cpufreq"),
            ("related_cpus", "0"),
            ("scaling_governor", "schedutil"),
        ):
            (policy / name).write_text(f"{text}\n")
        queue.unlink()
        daemon.wait_for(READY)
        assert (policy / "scaling_governor").read_text().strip() == "powersave"


def test_what_is_not_there_when_udev_is_done_is_not_waited_for(bus: PrivateBus, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "host")
    with Daemon(bus, "--root", str(tree), wait=False) as daemon:
        (daemon.config / "kerntune.toml").write_text('[cpu-governor]\n"*" = "powersave"\n')
        daemon.restart()
        daemon.wait_for(READY)
        assert WAITING not in daemon.messages


def test_udev_is_not_waited_for_where_nothing_is_absent(bus: PrivateBus, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "host")
    (tree / QUEUE).parent.mkdir(parents=True)
    (tree / QUEUE).touch()
    with Daemon(bus, "--root", str(tree)) as daemon:
        assert WAITING not in daemon.messages
