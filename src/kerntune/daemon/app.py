"""The composition root: puts kernel, engine and bus together and runs them in the order that the design prescribes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kerntune import errors
from kerntune.bus import names, objects, typed
from kerntune.bus.describe import Host
from kerntune.bus.dispatch import NameTaken, Service, load
from kerntune.bus.neighbours import Neighbours
from kerntune.daemon import logs, notify
from kerntune.daemon.alarm import Alarm
from kerntune.daemon.cap_file import Undone, undo_cap_alone
from kerntune.daemon.choosing import Choosing
from kerntune.daemon.drift import DriftTimer
from kerntune.daemon.guard import MemoryGuard
from kerntune.daemon.hotplug import Look
from kerntune.daemon.reloading import Reloading
from kerntune.daemon.state import BOOT_ID, STATE_SET_ASIDE, State
from kerntune.engine.guard import Alert
from kerntune.engine.reconciler import Reconciler
from kerntune.kernel.files import Kernel, find
from kerntune.kernel.memory import default_page_size
from kerntune.kernel.support import kernel_release
from kerntune.model import Target
from kerntune.tunables import REGISTRY

log = logging.getLogger(__name__)
BUS_WAIT = 5.0  # seconds to wait for a bus at start
BUS_RETRY = 0.1
USUAL = (700, 10, 10)  # Python's own thresholds of its garbage collection
SETTLE = 10.0  # seconds that callers in flight may take when we are told to stop
RESTORE = 30.0  # seconds that the host's own values may take then; TimeoutStopSec= of the unit allows for both


Events = Callable[[Look], contextlib.AbstractContextManager[None]]


class Status(IntEnum):
    """Exit status of kerntuned."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TAKEN = 17  # RestartPreventExitStatus= in the unit


@dataclass(frozen=True, slots=True)
class Directories:
    """Where things are kept; systemd names them (systemd.exec(5), RuntimeDirectory= and the like)."""

    runtime: Path
    state: Path
    config: Path

    @classmethod
    def from_environment(cls) -> Directories:
        return cls(
            Path(os.environ.get("RUNTIME_DIRECTORY", "/run/kerntune")),
            Path(os.environ.get("STATE_DIRECTORY", "/var/lib/kerntune")),
            Path(os.environ.get("CONFIGURATION_DIRECTORY", "/etc/kerntune")),
        )

    def make(self) -> None:
        """The configuration's is the administrator's: it is not made."""
        for folder in (self.runtime, self.state):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


async def run(kernel: Kernel, root: str, directories: Directories, events: Events) -> Status:
    """The daemon, until it is told to stop or the bus is gone; `events` calls back when something comes or goes."""
    with contextlib.ExitStack() as stack:
        if not lock(directories.runtime, stack):
            log.error("another kerntuned runs with %s", directories.runtime)
            return Status.TAKEN
        boot = find(kernel, str(BOOT_ID).lstrip("/")) or BOOT_ID.read_text().strip()
        undone = undo_cap_alone(kernel, directories.runtime)
        state = State(directories.runtime, directories.state, boot_id=boot)
        state.forget({t for t, value in state.baselines.items() if not restorable(t, value)})
        alarm = Alarm()
        stack.callback(alarm.close)
        guard = MemoryGuard(kernel, directories.runtime, alarm.tell)
        engine = Reconciler(kernel, REGISTRY, state, guard=guard)
        guard.preparations += [alarm.prepare, engine.threads.prepare]
        for claim in engine.unsound:
            log.error("left out a saved claim that no call could have made: %s = %s", claim.id, claim.value)
        stack.callback(engine.threads.close)
        stack.callback(guard.stop)
        set_aside = state.set_aside or engine.unsound or undone is Undone.SET_ASIDE
        troubles = {STATE_SET_ASIDE} if set_aside else set()
        reloading = Reloading(directories.config, directories.runtime, engine, troubles)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading.soon)
        drift = DriftTimer(engine)
        stack.callback(drift.stop)
        reloading.listeners += [lambda config: drift.set(config.drift_interval), lambda c: guard.configure(c.guard)]
        reloading.start()
        engine.listeners += [logs.recorder(), drift.noted]
        stack.enter_context(events(engine.look_again))
        host = Host(kernel_release(kernel), root, kernel.simulated, default_page_size(kernel))
        # Whichever of them fails ends the daemon, and systemd starts it again.
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(engine.work(), name="lanes"),
                group.create_task(alarm.work(engine), name="alarm"),
            ]
            try:
                return await serve(host, engine, troubles, reloading, alarm)
            finally:
                for task in working:
                    task.cancel()


async def serve(host: Host, engine: Reconciler, troubles: set[str], reloading: Reloading, alarm: Alarm) -> Status:
    """Connect, own the name, observe, boot pass, READY; then answer until the end."""
    extending = asyncio.create_task(notify.extend_start())
    try:
        service = await connect()
        await engine.observe()
        if service is None:
            await engine.reconcile("boot", enforce=True)
            log.error(
                "no bus for %.0f s: the boot pass is done, and that is all that can be done without one", BUS_WAIT
            )
            return Status.FAILED
        stop = stop_event()
        core = objects.Core(service, engine, host, troubles, Choosing(reloading, engine))
        alarm.listeners.append(publish(service, core))
        booting = asyncio.create_task(engine.reconcile("boot", enforce=True))
        # The boot pass is queued first; edits that come now wait for it or join it.
        await asyncio.sleep(0)
        service.open()
        await booting
    except NameTaken as error:
        log.error("%s", error)
        return Status.TAKEN
    except errors.KerntuneError as error:
        log.error("%s", error)
        return Status.FAILED
    finally:
        extending.cancel()
    notify.tell(f"READY=1\nSTATUS={summary(engine, troubles)}")
    engine.listeners.append(lambda _report: notify.tell(f"STATUS={summary(engine, troubles)}"))
    reloading.booted()
    settle_down()
    await Neighbours(service, troubles, engine.look_again).watch()
    return await until_end(service, engine, stop, reloading)


def settle_down() -> None:
    """What is there after a start stays: no garbage is looked for in it, nor as often as until now (lean.py)."""
    gc.freeze()
    gc.set_threshold(*USUAL)


async def connect() -> Service | None:
    """The service with its name owned, or None when there is no bus for BUS_WAIT seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUS_WAIT
    while True:
        service = Service(load(names.interface_files()), names.ROOT)
        try:
            await service.connect(names.BUS_NAME)
        except errors.Unreachable as error:
            if loop.time() > deadline:
                log.error("%s", error)
                return None
            await asyncio.sleep(BUS_RETRY)
        else:
            return service


def publish(service: Service, core: objects.Core) -> Callable[[Alert], None]:
    """Put the interfaces on the bus and let each pass announce what it changed; what announces the guard's alerts."""
    memory = typed.Memory(core)
    impls: dict[str, object] = {
        names.MANAGER: objects.Manager(core),
        names.HUGE_PAGES: typed.HugePages(core),
        names.CPU_GOVERNOR: typed.CpuGovernor(core),
        names.IO_SCHEDULER: typed.IoScheduler(core),
        names.MEMORY: memory,
    }
    service.publish(names.ROOT, impls)
    contract = load(names.interface_files())
    watched = {
        name: (impl, [p for p, found in contract[name].properties.items() if found.emits == "true"])
        for name, impl in impls.items()
    }
    core.engine.listeners.append(objects.announcer(service, watched))
    return memory.announce


async def until_end(service: Service, engine: Reconciler, stop: asyncio.Event, reloading: Reloading) -> Status:
    """Status.OK when told to stop, FAILED when the bus is gone (systemd starts us again)."""
    ends = {
        asyncio.create_task(stop.wait(), name="stop"),
        asyncio.create_task(service.closed(), name="bus"),
    }
    beating = asyncio.create_task(notify.watchdog(lambda: engine.guard is None or engine.guard.alive))
    done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    told = any(task.get_name() == "stop" for task in done)
    for task in (*ends, beating):
        task.cancel()
    if not told:
        log.error("the connection to the bus is lost")
        return Status.FAILED
    notify.tell("STOPPING=1")
    await engine.settle(SETTLE)
    if reloading.config.restore_on_stop and not await engine.put_back(RESTORE):
        log.error("the host's own values are not all back after %.0f s", RESTORE)
    await service.close()
    return Status.OK


def restorable(target: Target, value: str) -> bool:
    """Whether a saved baseline belongs to a tunable there is, and could be written back."""
    return any(tunable.name == target.tunable and tunable.restorable(value) for tunable in REGISTRY)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def lock(runtime: Path, stack: contextlib.ExitStack) -> bool:
    """Whether we are the only daemon with this runtime directory; the lock goes with the process."""
    file = stack.enter_context((runtime / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def summary(engine: Reconciler, troubles: Set[str]) -> str:
    """One line for `systemctl status`."""
    said = [f"{len(engine.outcomes)} targets managed"]
    if engine.troubles:
        said.append(f"not as asked: {', '.join(sorted(engine.troubles))}")
    return "; ".join([*said, *sorted(troubles | engine.book.choice.troubles)])
