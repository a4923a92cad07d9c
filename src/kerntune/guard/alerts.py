"""Tells the journal, the bus and the engine what the guard does, one verdict after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from kerntune.engine.reconciler import Reconciler
from kerntune.guard.policy import GuardLimits, GuardState, GuardVerdict
from kerntune.kernel.processes import Consumers
from kerntune.model import Consumer, Lane, Memory

log = logging.getLogger(__name__)
TOP: Final = 5
RARELY, OFTEN = 60.0, 1.0  # seconds between two looks at the processes, with room and without
CAUSE: Final = "memory guard"
PATIENCE: Final = 5.0  # seconds that the first look may take
MIB: Final = 1 << 20
MESSAGE_ID: Final = "a5c1e7d20f7e4f5e8f4f3b5f0d6c9e31"  # of the journal's entries


class Told(NamedTuple):
    """What the guard's thread says."""

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
    """One change of the guard, in bytes; no processes where nothing is short."""

    verdict: GuardVerdict
    headroom: int
    floor: int
    limit: int
    largest: Sequence[Consumer] = ()
    growing: Sequence[Consumer] = ()
    culprit: str = ""  # who has made memory short, in a line


class Alerts:
    """Takes verdicts from any thread; `work` tells them one after the other."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Alert], None]] = []
        self._loop = asyncio.get_running_loop()
        self._untold, self._arrived = deque[Told](), asyncio.Event()
        # A thread of its own: who holds memory is told while the lanes are busy.
        self._threads = ThreadPoolExecutor(1, "consumers")
        self._consumers: Consumers | None = None
        self._last = Told(GuardVerdict())

    def tell(self, verdict: GuardVerdict, memory: Memory | None, limits: GuardLimits | None) -> None:
        """A verdict that is news, with what it was made of; neither of them when the guard has ended."""
        self._untold.append(Told(verdict, memory, limits))
        self._loop.call_soon_threadsafe(self._arrived.set)

    def prepare(self) -> None:
        """Make thread, modules and a first look now: in mode never there may be no room for them.

        It is called in a thread, before anything is capped.
        """
        if self._consumers is None:
            with seeing("who holds memory"):
                self._threads.submit(self._look_now).result(PATIENCE)

    async def work(self, engine: Reconciler) -> None:
        """Until cancelled: whatever telling meets, the guard goes on, and so does the daemon."""
        while True:
            try:
                await self._turn(engine)
            except Exception as error:  # noqa: BLE001  # of no memory above all, which is when there is something to tell
                with contextlib.suppress(Exception):
                    log.error("what the memory guard did cannot be told: %s", str(error) or type(error).__name__)
                    await asyncio.sleep(OFTEN)

    async def _turn(self, engine: Reconciler) -> None:
        """Tell what comes next, or look at who holds memory when nothing has come for a while."""
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
        record(alert, LET_GO if ended else WORDS[told.verdict.state])
        if told.verdict.caps != last.verdict.caps:
            engine.look_again(CAUSE, [Lane.MEMORY])
        engine.announce(CAUSE)
        for listener in self.listeners:
            listener(alert)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> Told:
        """What has not been told yet: each state, and of a state that came with many words the last ones."""
        while not self._untold:
            self._arrived.clear()
            await self._arrived.wait()
        told = self._untold.popleft()
        while self._untold and self._untold[0].verdict.state is told.verdict.state:
            told = self._untold.popleft()
        return told

    async def _look(self, *, named: bool = False) -> Named:
        """See who holds memory now, and `named` who they are; where that fails for want of it, nobody is named."""
        with seeing("who holds memory"):
            return await self._loop.run_in_executor(self._threads, partial(self._look_now, named=named))
        return NOBODY

    def _look_now(self, *, named: bool = False) -> Named:
        if self._consumers is None:
            self._consumers = Consumers()
        self._consumers.look(time.monotonic())
        if not named:
            return NOBODY
        return Named(self._consumers.largest(TOP), self._consumers.growing(TOP), self._consumers.culprit())


def alert_of(told: Told, named: Named) -> Alert:
    """Return the alert that a verdict makes."""
    verdict, memory, limits = told
    if memory is None or limits is None:
        return Alert(verdict, 0, 0, 0)
    limit = verdict.kbytes * 1024 + memory.swap_total if verdict.caps else 0
    return Alert(verdict, memory.headroom, limits.floor(memory), limit, *named)


@contextlib.contextmanager
def seeing(what: str) -> Iterator[None]:
    """Log a failure for want of memory, of a thread or of time, and go on: the rest is told all the same.

    So is what a package does that is just being replaced: psutil is imported when it is wanted first.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        log.error("%s cannot be seen: %s", what, str(error) or type(error).__name__)


WORDS: Final[Mapping[GuardState, str]] = {
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
    """Return an alert for people who read the journal."""
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
