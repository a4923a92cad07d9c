"""Alerts: the guard's verdicts as reports to the journal, the bus and the engine, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from kerntune.engine.reconciler import Reconciler
from kerntune.guard.policy import GuardLimits, GuardVerdict
from kerntune.kernel.processes import Consumers
from kerntune.model import Consumer, GuardState, Lane, Memory

log = logging.getLogger(__name__)
TOP: Final = 5
RARELY, OFTEN = 60.0, 1.0  # seconds between two looks at the processes, with enough memory and without
CAUSE: Final = "memory guard"
LOOK_SECONDS: Final = 5.0  # seconds that a look may take; the kernel may hold a file of a process that hangs
MIB: Final = 1 << 20
MESSAGE_ID: Final = "a5c1e7d20f7e4f5e8f4f3b5f0d6c9e31"  # of the guard's entries in the journal


class Told(NamedTuple):
    """A report of the guard's thread."""

    verdict: GuardVerdict
    memory: Memory | None = None
    limits: GuardLimits | None = None


class Named(NamedTuple):
    """The processes that hold memory."""

    largest: Sequence[Consumer] = ()
    growing: Sequence[Consumer] = ()
    culprit: str = ""


NOBODY: Final = Named()


@dataclass(frozen=True, slots=True)
class Alert:
    """One change of the guard; sizes are in bytes. It names no processes when memory is not short."""

    verdict: GuardVerdict
    headroom: int
    floor: int
    limit: int
    largest: Sequence[Consumer] = ()
    growing: Sequence[Consumer] = ()
    culprit: str = ""  # the process that has made memory short, in one line


class Alerts:
    """The receiver of verdicts from any thread; `work` publishes them one after the other."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Alert], None]] = []
        self._loop = asyncio.get_running_loop()
        self._untold, self._arrived = deque[Told](), asyncio.Event()
        # The look has a thread of its own, so that an alert can name the processes while the lanes are busy.
        self._threads = ThreadPoolExecutor(1, "consumers")
        self._consumers: Consumers | None = None
        self._looking: Future[Named] | None = None
        self._last = Told(GuardVerdict())

    def tell(self, verdict: GuardVerdict, memory: Memory | None, limits: GuardLimits | None) -> None:
        """Queue a changed verdict, with its memory and limits; both are None when the guard has ended."""
        self._untold.append(Told(verdict, memory, limits))
        self._loop.call_soon_threadsafe(self._arrived.set)

    def prepare(self) -> None:
        """Start the thread, import the modules and look once now: in mode never there may be no memory for that.

        The guard calls this in a thread, before it caps anything.
        """
        if self._consumers is None:
            with seeing("who holds memory"):
                self._start_look(named=False).result(LOOK_SECONDS)

    async def work(self, engine: Reconciler) -> None:
        """Publish verdicts until cancelled; a failure here stops neither the guard nor the daemon."""
        while True:
            try:
                await self._turn(engine)
            except Exception as error:  # noqa: BLE001  # above all MemoryError: an alert comes when memory is short
                with contextlib.suppress(Exception):
                    log.error("what the memory guard did cannot be told: %s", str(error) or type(error).__name__)
                    await asyncio.sleep(OFTEN)

    async def _turn(self, engine: Reconciler) -> None:
        """Publish the next verdict, or look at the processes when none has come for a while."""
        last = self._last
        often = OFTEN if last.verdict.level else RARELY
        try:
            async with asyncio.timeout(often if last.memory else None):
                told = await self._next()
        except TimeoutError:
            await self._look()
            return
        self._last = told
        named = await self._look(named=told.verdict.level > 0) if told.memory else NOBODY
        alert = alert_of(told, named)
        ended = last.verdict.caps and told.verdict.state is GuardState.RELAXED
        record(alert, LET_GO if ended else STATE_WORDS[told.verdict.state])
        if told.verdict.caps != last.verdict.caps:
            engine.look_again(CAUSE, [Lane.MEMORY])
        engine.observed.notify(CAUSE)
        for listener in self.listeners:
            listener(alert)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> Told:
        """Return the oldest unpublished verdict; of several with the same state in a row, return the last."""
        while not self._untold:
            self._arrived.clear()
            await self._arrived.wait()
        told = self._untold.popleft()
        while self._untold and self._untold[0].verdict.state is told.verdict.state:
            told = self._untold.popleft()
        return told

    async def _look(self, *, named: bool = False) -> Named:
        """Look which processes hold memory, and return them if `named`.

        Return NOBODY where the look fails or takes too long, and at once as long as such a look has not ended.
        """
        if self._looking and not self._looking.done():
            return NOBODY
        with seeing("who holds memory"):
            async with asyncio.timeout(LOOK_SECONDS):
                return await asyncio.wrap_future(self._start_look(named=named))
        return NOBODY

    def _start_look(self, *, named: bool) -> Future[Named]:
        self._looking = self._threads.submit(partial(self._look_now, named=named))
        return self._looking

    def _look_now(self, *, named: bool) -> Named:
        if self._consumers is None:
            self._consumers = Consumers()
        self._consumers.look(time.monotonic())
        if not named:
            return NOBODY
        return Named(self._consumers.largest(TOP), self._consumers.growing(TOP), self._consumers.culprit())


def alert_of(told: Told, named: Named) -> Alert:
    """Return the alert for a verdict."""
    verdict, memory, limits = told
    if memory is None or limits is None:
        return Alert(verdict, 0, 0, 0)
    limit = verdict.kbytes * 1024 + memory.swap_total if verdict.caps else 0
    return Alert(verdict, memory.headroom, limits.floor(memory), limit, *named)


@contextlib.contextmanager
def seeing(what: str) -> Iterator[None]:
    """Log a failure for lack of memory, a thread or time, and go on: the alert is published without it.

    An ImportError counts too: psutil is imported at the first look, and a package upgrade may be replacing it just
    then.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        log.error("%s cannot be seen: %s", what, str(error) or type(error).__name__)


STATE_WORDS: Final[Mapping[GuardState, str]] = {
    GuardState.OFF: "the memory guard is off",
    GuardState.RELAXED: "the memory guard watches",
    GuardState.CAPPED: "memory is short: the memory guard caps commits (promises of memory)",
    GuardState.EXHAUSTED: "memory is below the floor, and little more is committed; what was committed before "
    "can still be used",
    GuardState.OBSERVING: "the memory guard only watches",
}
LET_GO: Final = "there is memory again: the cap has ended"


def record(alert: Alert, words: str) -> None:
    """Write the journal's entry."""
    verdict = alert.verdict
    fields = {
        "MESSAGE_ID": MESSAGE_ID,
        "KERNTUNE_GUARD": verdict.state.value,
        "KERNTUNE_LEVEL": str(verdict.level),
        "KERNTUNE_HEADROOM": str(alert.headroom),
        "KERNTUNE_FLOOR": str(alert.floor),
        "KERNTUNE_CULPRIT": alert.culprit,
    }
    log.log(logging.WARNING if verdict.level else logging.INFO, "%s", sentence(alert, words), extra=fields)


def sentence(alert: Alert, words: str) -> str:
    """Return an alert as a sentence for readers of the journal."""
    words += f" ({alert.verdict.reason})" if alert.verdict.reason else ""
    if not alert.floor:
        return words
    parts = [f"{words}; {alert.headroom // MIB} MiB are left, the floor is {alert.floor // MIB} MiB"]
    if alert.limit:
        parts.append(f"the limit is {alert.limit // MIB} MiB")
    parts += [f"most to do with it: {alert.culprit}"] if alert.culprit else []
    parts += [
        f"{title}: {', '.join(map(described, found))}"
        for title, found in (("largest", alert.largest), ("grown lately", alert.growing))
        if found
    ]
    return "; ".join(parts)


def described(consumer: Consumer) -> str:
    return f"{consumer.command} (pid {consumer.pid}, uid {consumer.uid}) {consumer.size // MIB} MiB"
