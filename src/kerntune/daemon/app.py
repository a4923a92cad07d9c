"""The composition root: it connects kernel, engine and bus, and runs them in the order that the design prescribes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from kerntune import errors, journal, notify
from kerntune.api import manager, names, typed
from kerntune.api.calls import Calls
from kerntune.api.contract import interface_files
from kerntune.api.describe import Host, loads_of
from kerntune.api.holds import LEFT, Holds, log_end
from kerntune.api.services import OtherServices
from kerntune.config.active import ActiveConfig
from kerntune.daemon.directories import Directories, locked
from kerntune.daemon.drift_timer import DriftTimer
from kerntune.daemon.hotplug import Counters, Look
from kerntune.dbus.introspection import load
from kerntune.dbus.service import NameTaken, Service
from kerntune.engine.observed import Observed
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.writer import make_endable
from kerntune.guard.alerts import Alert, Alerts
from kerntune.guard.guard import MemoryGuard
from kerntune.guard.saved import Undone, undo_cap_alone
from kerntune.kernel.files import Kernel, read_or_none
from kerntune.kernel.kconfig import kernel_release, settling
from kerntune.kernel.memory import default_page_size
from kerntune.model import Lane, Reason, State, Target
from kerntune.store import BOOT_ID, STATE_SET_ASIDE, STATE_UNREAD, Store
from kerntune.tunables import REGISTRY

log = logging.getLogger(__name__)
BUS_WAIT = 5.0  # seconds to wait for a bus at start
BUS_RETRY = 0.1
DRIVERS = 10.0  # seconds to wait at boot for drivers that udev is still loading
DRIVERS_LOOK = 0.1
ASIDE = 8  # threads that wait for files and for other programs
POLICY_RETRY = 1.0
SETTLE = 2.0  # seconds that a stop may take in all
LEAVE = 0.4  # seconds of SETTLE for the bus, the threads and the journal
RESTORE = 30.0  # seconds more to put back the host's own values; TimeoutStopSec= of the unit allows for both


Events = Callable[[Look, Counters], contextlib.AbstractContextManager[None]]


class Status(IntEnum):
    """The exit status of kerntuned."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TAKEN = 17  # RestartPreventExitStatus= in the unit


async def run(kernel: Kernel, root: str, directories: Directories, events: Events) -> Status:
    """Run the daemon until it is told to stop or loses the bus. `events` calls back when a device comes or goes."""
    stop = stop_event()
    make_endable()
    with contextlib.ExitStack() as stack:
        # One of its threads may hang, for example in the user database: the daemon does not wait for it at the end.
        aside = ThreadPoolExecutor(ASIDE, "aside")
        asyncio.get_running_loop().set_default_executor(aside)
        stack.callback(aside.shutdown, wait=False, cancel_futures=True)
        if not await locked(directories.runtime, stack):
            log.error("another kerntuned runs with %s", directories.runtime)
            return Status.TAKEN
        boot = read_or_none(kernel, str(BOOT_ID).lstrip("/")) or BOOT_ID.read_text().strip()
        undone = undo_cap_alone(kernel, directories.runtime)
        store = Store(directories.runtime, directories.state, boot_id=boot)
        try:
            store.drop_baselines({t for t, value in store.baselines.items() if not restorable(t, value)})
        except OSError as error:
            log.error("the runtime directory cannot be written: %s", error)
        alerts = Alerts()
        stack.callback(alerts.close)
        guard = MemoryGuard(kernel, directories.runtime, alerts.tell)
        engine = Reconciler(kernel, REGISTRY, store, companion=guard)
        alerts.listeners.append(guard.note)
        guard.preparations += [alerts.prepare, engine.threads.prepare]
        for claim in engine.edits.unsound:
            log.error("left out a saved claim that no call could have made: %s = %s", claim.id, claim.value)
        stack.callback(engine.threads.close)
        stack.callback(guard.stop)
        set_aside = store.set_aside or engine.edits.unsound or undone is Undone.SET_ASIDE
        troubles = {STATE_SET_ASIDE} if set_aside else set()
        troubles |= {STATE_UNREAD} if store.unread else set()
        config = ActiveConfig(directories.config, directories.runtime, engine, troubles)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, config.request_reload)
        drift = DriftTimer(engine.observed, engine.look_again)
        stack.callback(drift.stop)
        config.listeners += [lambda now: drift.set(now.drift_interval), lambda now: guard.configure(now.guard)]
        config.start()
        engine.observed.listeners += [journal.recorder(), drift.update]
        stack.enter_context(events(engine.look_again, engine.observed.counters))
        loads = loads_of(kernel, REGISTRY)
        host = Host(kernel_release(kernel), root, kernel.simulated, default_page_size(kernel), loads)
        # If one of these tasks fails, the daemon ends, and systemd starts it again.
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(engine.work(), name="lanes"),
                group.create_task(alerts.work(engine), name="alerts"),
                group.create_task(notify.watchdog(lambda: guard.alive), name="watchdog"),
            ]
            try:
                return await Daemon(host, engine, troubles, config, guard, alerts, partial(settling, kernel)).live(stop)
            finally:
                for task in working:
                    task.cancel()


@dataclass(slots=True)
class Daemon:
    """The parts of the daemon, from the connection to the bus until the end; `service` is on the bus.

    `settling` returns True while udev is still examining devices.
    """

    host: Host
    engine: Reconciler
    troubles: set[str]
    config: ActiveConfig
    guard: MemoryGuard
    alerts: Alerts
    settling: Callable[[], bool]
    service: Service | None = None
    holds: Holds | None = None
    stopping: bool = False

    async def live(self, stop: asyncio.Event) -> Status:
        """Serve until `stop` is set, whatever work is under way. Return Status.OK, or why serving ended by itself."""
        serving, told = asyncio.create_task(self.serve(), name="serve"), asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([serving, told], return_when=asyncio.FIRST_COMPLETED)
            status = Status.OK if stop.is_set() else serving.result()
        finally:
            told.cancel()
            serving.cancel()
        await self.stop(told=stop.is_set())
        return status

    async def serve(self) -> Status:
        """Connect, own the name, observe, make the boot pass, say READY, answer calls. Return when the bus is gone.

        It never returns Status.OK.
        """
        extending = asyncio.create_task(notify.extend())
        try:
            service = self.service = await connect()
            await self._inherit(service)
            await self.engine.observed.read_all()
            booting = asyncio.create_task(self.engine.reconcile("boot", enforce=True))
            # The boot pass is queued first; edits that come now wait for it or join it.
            await asyncio.sleep(0)
            if service and self.holds:
                self._open(service, self.holds)
            notify.send("STATUS=applying what is configured; huge pages can take long")
            await booted(booting)
            await self._drivers_come()
            if self.holds:
                await self.holds.look_up()
        except NameTaken as error:
            log.error("%s", error)
            return Status.TAKEN
        except errors.KerntuneError as error:
            log.error("%s", error)
            return Status.FAILED
        finally:
            extending.cancel()
        if service is None:
            log.error(
                "no bus for %.0f s: the boot pass is done, and that is all that can be done without one", BUS_WAIT
            )
            return Status.FAILED
        await self._ready(service)
        await service.connection.closed()
        log.error("the connection to the bus is lost")
        return Status.FAILED

    async def _inherit(self, service: Service | None) -> None:
        """Drop the holds of a former daemon whose clients have gone. Without a bus all clients have gone."""
        if service is None:
            of_clients = [hold for hold in self.engine.edits.committed.holds.values() if hold.client]
            for hold in of_clients:
                log_end(hold, LEFT)
            await self.engine.edits.drop_holds([hold.number for hold in of_clients])
            return
        calls = Calls(service, self.engine, self.host, self.troubles, self.config, guard=self.guard)
        self.holds = Holds(calls)
        await self.holds.inherit()

    async def _drivers_come(self) -> None:
        """Wait while udev loads drivers and a claim has no target yet, then make the boot pass again."""
        loop, waited = asyncio.get_running_loop(), False
        deadline = loop.time() + DRIVERS
        while self.settling() and is_absent(self.engine.observed) and loop.time() < deadline:
            if not waited:
                notify.send("STATUS=waiting for drivers that udev is still loading")
            waited = True
            await asyncio.sleep(DRIVERS_LOOK)
        if waited:
            await booted(asyncio.ensure_future(self.engine.reconcile("boot", enforce=True)))

    def _open(self, service: Service, holds: Holds) -> None:
        self.engine.observed.listeners.append(lambda report: holds.sync(report.cause))
        self.alerts.listeners.append(publish(service, holds))
        holds.sync()
        service.connection.open()

    async def _ready(self, service: Service) -> None:
        def status() -> str:
            slugs = self.troubles | self.engine.edits.claims.choice.troubles | self.guard.troubles
            return f"STATUS={summary(self.engine.observed, slugs)}"

        notify.send(f"READY=1\n{status()}")
        # A pass that is told to stop ends with a result that is not the status of the service.
        self.engine.observed.listeners.append(lambda _report: None if self.stopping else notify.send(status()))
        self.config.booted()
        await OtherServices(service, self.troubles, self.engine.look_again).watch()

    async def stop(self, *, told: bool) -> None:
        """Stop all work within SETTLE seconds, and leave the bus. The host's own values may take RESTORE more."""
        notify.send("STOPPING=1")
        self.stopping = True
        self.config.stop()
        busy = await self.engine.end_writes(SETTLE - LEAVE)
        if told and self.config.files.restores_on_stop and not await self.engine.put_back(RESTORE):
            log.error("the host's own values are not all back")
            busy = await self.engine.end_writes(LEAVE, grace=0)
        if busy:
            log.error(
                "the kernel is still busy with a write to %s, which cannot be ended: kerntuned does not wait for it, "
                "and the next start puts right what it leaves", ", ".join(f"/{path}" for path in busy),
            )  # fmt: skip
        if self.service:
            await self.service.connection.close()


async def booted(booting: asyncio.Future[None]) -> None:
    """Wait for the boot pass. If it fails in a lane, the others are in force, and the engine tries that lane again."""
    try:
        await booting
    except errors.KerntuneError as error:
        log.error("the boot pass is not complete, and is made again: %s", error)


def is_absent(observed: Observed) -> bool:
    """Return whether a claim on CPUs or drives has found no target. A driver may still bring it."""
    absent = (target for target, outcome in observed.outcomes.items()
              if outcome.reason in (Reason.NO_SUCH_TARGET, Reason.NO_KERNEL_SUPPORT))  # fmt: skip
    return any(observed.tunables[target.tunable].lane is not Lane.MEMORY for target in absent)


async def connect() -> Service | None:
    """Return the service with its name owned, or None if no bus lets us own it in BUS_WAIT seconds. Raise NameTaken."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUS_WAIT
    contract = load(interface_files())
    while True:
        service = Service(contract, names.ROOT)
        try:
            await service.connect(names.BUS_NAME)
        except NameTaken:
            raise
        except errors.KerntuneError as error:
            # There is no bus, or it does not answer, or its policy (not yet there, or damaged) refuses us.
            if loop.time() > deadline:
                log.error("%s", error)
                return None
            await asyncio.sleep(BUS_RETRY if isinstance(error, errors.Unreachable) else POLICY_RETRY)
        else:
            return service


def publish(service: Service, holds: Holds) -> Callable[[Alert], None]:
    """Put the interfaces on the bus, and publish the changes of each pass. Return what publishes the guard's alerts."""
    calls = holds.calls
    memory = typed.Memory(calls)
    impls: dict[str, object] = {
        names.MANAGER: manager.Manager(calls, holds),
        names.HUGE_PAGES: typed.HugePages(calls),
        names.CPU_GOVERNOR: typed.CpuGovernor(calls),
        names.IO_SCHEDULER: typed.IoScheduler(calls),
        names.MEMORY: memory,
    }
    service.publish(names.ROOT, impls)
    calls.engine.observed.listeners.append(manager.publisher(calls))
    return memory.publish


def restorable(target: Target, value: str) -> bool:
    """Return whether a saved baseline belongs to an existing tunable, and could be written back."""
    return any(tunable.name == target.tunable and tunable.restorable(value) for tunable in REGISTRY)


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def summary(observed: Observed, troubles: Set[str]) -> str:
    """Return one line for `systemctl status`."""
    outcomes = observed.outcomes.values()
    satisfied = sum(outcome.state is State.SATISFIED for outcome in outcomes)
    said = f"{satisfied} of {len(outcomes)} targets in the desired state"
    slugs = sorted({*observed.troubles, *troubles})
    return f"{said}; degraded: {', '.join(slugs)}" if slugs else said
