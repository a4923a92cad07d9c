"""Where it is measured: a private bus with a real polkitd, both daemons and the floor; all of it goes at the end."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.harness.daemon import Daemon
from tests.harness.polkitd import Polkitd, accounts
from tests.harness.privatebus import PrivateBus

from benchmarks import floor, tuned, wire
from benchmarks.load import CHECKOUT, Call
from kerntune.api import names
from kerntune.dbus import standard

BUS: Final = (standard.BUS, standard.BUS_PATH, standard.BUS)
POLICIES: Final = Path("/usr/share/dbus-1/system.d")
UNIT: Final = CHECKOUT / "systemd/kerntuned.service"
LIMIT: Final = 20.0  # seconds to start, and to get a name
SCHEDULERS: Final = ("none", "mq-deadline")


def get(interface: str, name: str) -> Call:
    """Reads one property of ours."""
    return Call(names.BUS_NAME, names.ROOT, f"{standard.BUS}.Properties", "Get", "ss", (interface, name))


def set_scheduler(device: str, scheduler: str) -> Call:
    """Sets one drive's scheduler through us."""
    return Call(names.BUS_NAME, names.ROOT, names.IO_SCHEDULER, "SetScheduler", "ssa{sv}", (device, scheduler, {}))


def release(device: str) -> Call:
    """Withdraws our claim, so that the drive gets back what it had."""
    rows = [["io-scheduler", device]]
    return Call(names.BUS_NAME, names.ROOT, names.MANAGER, "Unset", "a(ss)a{sv}", (rows, {}))


def of_tuned(member: str, signature: str = "", *args: Any) -> Call:
    """Calls TuneD."""
    return Call(tuned.NAME, "/Tuned", "com.redhat.tuned.control", member, signature, args)


OUR_READ: Final = get(names.MEMORY, "OvercommitMode")
THEIR_READ: Final = of_tuned("active_profile")
# As the package's program starts it: with the host's Python and its packages, as TuneD is too.
INSTALLED: Final = ("/usr/bin/python3", "-c", "import sys; from kerntune.daemon.__main__ import main; sys.exit(main())")
FLOOR_READ: Final = replace(OUR_READ, destination=floor.FLOOR)


class Lab:
    """The bus and who is on it, until `stack` ends; `drives` are three loop devices to set, or none."""

    def __init__(self, stack: ExitStack, peer: tuned.Package | None) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kerntune-bench-")))
        # Both daemons find their byte code in place, as they would when installed from a package.
        cached = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        self.env = cached | unit_environment(UNIT.read_text()) | {"PYTHONPATH": str(CHECKOUT / "src")}
        stack.enter_context(accounts())
        own = folder / "floor.conf"
        own.write_text(floor.POLICY)
        include = [CHECKOUT / "dbus/org.kerntune.Tuner1.conf", own]
        if peer:
            include.append(peer.bus_policy)
            stack.enter_context(tuned.known_to_polkit(peer))
        self.bus = stack.enter_context(PrivateBus(include=include, include_dirs=[POLICIES]))
        self.polkitd = stack.enter_context(Polkitd(self.bus))
        self.drives = stack.enter_context(idle_drives())
        disk = self.drives[1] if self.drives else "none"
        self.tuned = stack.enter_context(tuned.Tuned(peer, self.bus, disk, cached)) if peer else None
        stack.enter_context(standing_floor(self.bus.address))

    @contextmanager
    def kerntuned(self, *options: str) -> Iterator[Daemon]:
        """Our daemon, ready."""
        with Daemon(self.bus, *options, program=INSTALLED, env=self.env, limit=LIMIT) as daemon:
            yield daemon

    @contextmanager
    def running_tuned(self) -> Iterator[tuned.Tuned | None]:
        """TuneD with its name owned, if it can be had."""
        if self.tuned is None:
            yield None
            return
        with Owned(self.bus.address, tuned.NAME) as owned:
            self.tuned.start()
            owned.wait(self.tuned.log)
        try:
            yield self.tuned
        finally:
            self.tuned.stop()


def unit_environment(unit: str) -> dict[str, str]:
    """What the unit file sets for the daemon (Environment= in systemd.exec(5), without quotes)."""
    lines = [line.removeprefix("Environment=") for line in unit.splitlines() if line.startswith("Environment=")]
    return dict(assignment.split("=", 1) for assignment in " ".join(lines).split())


class Owned:
    """Waits for a bus name to be owned; listening begins with the context."""

    def __init__(self, address: str, name: str) -> None:
        self._name = name
        self._connection = wire.Connection(address, timeout=LIMIT)
        rule = f"type='signal',sender='{standard.BUS}',member='NameOwnerChanged',arg0='{name}'"
        self._connection.send(Call(*BUS, "AddMatch", "s", (rule,)).marshalled(2))
        self._connection.await_reply(2)

    def __enter__(self) -> Owned:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def wait(self, log: Any) -> float:
        """The time (perf_counter) at which the name was owned; RuntimeError with the log when it is not in LIMIT."""
        try:
            while True:
                for message in self._connection.receive():
                    if message[1] == wire.SIGNAL and b"NameOwnerChanged" in message:
                        return time.perf_counter()
        except TimeoutError:
            raise RuntimeError(f"nobody owned {self._name} in {LIMIT:.0f} s: {log()}") from None


@contextmanager
def idle_drives() -> Iterator[tuple[str, ...]]:
    """Three loop devices without a file behind them that offer both schedulers; they get back what they had."""
    found: list[str] = []
    for path in sorted(Path("/sys/block").glob("loop*/queue/scheduler"), reverse=True):
        offered = path.read_text().replace("[", "").replace("]", "").split()
        if set(SCHEDULERS) <= set(offered) and not (path.parents[1] / "loop").exists():
            found.append(path.parts[3])
    drives = tuple(found[:3]) if len(found) >= 3 else ()
    before = {drive: scheduler(drive) for drive in drives}
    try:
        yield drives
    finally:
        for drive, value in before.items():
            if scheduler(drive) != value:
                scheduler_file(drive).write_text(value)


def scheduler_file(drive: str) -> Path:
    """What the kernel is told through."""
    return Path("/sys/block") / drive / "queue" / "scheduler"


def scheduler(drive: str) -> str:
    """What the drive has now."""
    return scheduler_file(drive).read_text().partition("[")[2].partition("]")[0]


@contextmanager
def standing_floor(address: str) -> Iterator[None]:
    """The floor's process, with its name owned."""
    argv: Sequence[str] = [sys.executable, "-m", "benchmarks.floor", address]
    process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], LIMIT)[0] or process.stdout.readline() != b"ready\n":
            raise RuntimeError("the floor does not come up")
        yield
    finally:
        process.kill()
        process.communicate(timeout=LIMIT)
