"""The last readings and outcomes, and the looks that keep them fresh: all who ask share a look, in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from kerntune.engine.requests import World
from kerntune.engine.results import Group, Result, changed, changed_since, changes_of, compared, is_due
from kerntune.model import NO_MEMORY, Lane, Memory, Outcome, Reading, Reason, Report, State, Target
from kerntune.results import WELL, condition
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
FRESH: Final = 0.1  # seconds in which a reading counts as that of now
LOOK_SECONDS: Final = 1.0  # seconds that somebody waits for a look: a device may hang
TRIES: Final = 3  # looks in a row that a pass may overtake; its own readings serve then


@dataclass(slots=True)
class _Lane:
    """A lane: when it was read last, how many passes have ended, and the look that runs.

    Looks have numbers: `begun` is that of the last one, `taken` that of the last one whose readings were taken. `found`
    are the outcomes of that one, until a pass ends. `late`: somebody has not waited for the look that runs.
    """

    read_at: float = float("-inf")
    passes: int = 0
    begun: int = 0
    taken: int = 0
    look: asyncio.Task[None] | None = None
    look_at: float = 0.0
    late: bool = False
    found: Mapping[Target, Outcome] | None = None


class Observed:
    """The readings of all targets, the outcomes of the last passes, and the listeners that hear of what changes.

    `look` reads one lane and writes nothing. `being_set` returns the groups that are just being set: a look says
    nothing of them. `due` is called with a lane when a look has found something that a pass should take note of now.
    """

    def __init__(
        self,
        tunables: Mapping[str, Tunable],
        page_size: int = 0,
        *,
        look: Callable[[Lane], Awaitable[Result]],
        being_set: Callable[[], AbstractSet[Group]],
        due: Callable[[Lane], None],
        clock: Callable[[], float],
    ) -> None:
        self.tunables, self._page_size = tunables, page_size
        self.readings: dict[Target, Reading] = {}
        self.missing: dict[str, str] = {}  # the tunables that this host lacks, and why
        self.memory: Memory | None = None
        self.outcomes: dict[Target, Outcome] = {}
        self.generation = 0
        self.counters = {"hotplug_events": 0, "drift_repairs": 0}  # since the daemon started
        self.listeners: list[Callable[[Report], None]] = []
        self._look, self._being_set, self._due, self._clock = look, being_set, due, clock
        self._lanes = {lane: _Lane() for lane in Lane}

    @property
    def world(self) -> World:
        """The facts that requests are checked against."""
        owed = frozenset(target for target, outcome in self.outcomes.items() if outcome.is_owed)
        return World(self.tunables, self.readings, self.missing, owed, self.memory or NO_MEMORY, self._page_size)

    @property
    def troubles(self) -> set[Reason]:
        """The reasons for which something that is managed is not in the desired state."""
        return {outcome.reason for outcome in self.outcomes.values() if conditioned(outcome) not in WELL}

    def group(self, target: Target) -> Group:
        """Return the group of a target: those that one plan sets together."""
        return target.tunable, self.tunables[target.tunable].group(target)

    # Looks

    async def read_all(self) -> None:
        """Read everything, however long that takes, and write nothing."""
        await self.fresh(Lane, 0, None)

    def refresh(self, *lanes: Lane) -> Awaitable[None] | None:
        """Read the targets of these lanes again, of all where none is named: what to await for it.

        Return None when they were read just now: most of those who poll need not wait.
        """
        wanted = lanes or tuple(Lane)
        since = self._clock() - FRESH
        return None if all(self._lanes[lane].read_at >= since for lane in wanted) else self.fresh(wanted)

    async def fresh(self, lanes: Iterable[Lane], age: float = FRESH, patience: float | None = LOOK_SECONDS) -> None:
        """Return when what is known of the lanes is `age` seconds old at most: 0 is a look that begins after now.

        A look that takes longer than `patience` seconds (None: no bound) is not waited for: what was read last serves.
        """
        since = self._clock() - age
        if stale := [lane for lane in lanes if not age or self._lanes[lane].read_at < since]:
            await asyncio.gather(*(self._freshen(lane, since, patience) for lane in stale))

    def is_late(self, lane: Lane) -> bool:
        """Return whether a look takes too long to be waited for, so that what is known of the lane is older."""
        return self._lanes[lane].late

    def passes(self, lanes: Iterable[Lane] = Lane) -> tuple[int, ...]:
        """Return how many passes of each lane have ended: a look is out of date when that has changed meanwhile."""
        return tuple(self._lanes[lane].passes for lane in lanes)

    def outcomes_now(self) -> Mapping[Target, Outcome]:
        """Return the outcomes of the last passes, and what Verify would say where a look has found something since."""
        found, busy = dict(self.outcomes), self._being_set()
        for target, outcome in (row for state in self._lanes.values() for row in (state.found or {}).items()):
            last = self.outcomes.get(target)
            if self.group(target) in busy or (last and compared(last) == compared(outcome)):
                continue
            if outcome.requested:
                found[target] = changed_since(outcome, last)
            else:
                found.pop(target, None)  # what was owed is back, or is somebody else's
        return found

    async def _freshen(self, lane: Lane, since: float, patience: float | None) -> None:
        state = self._lanes[lane]
        begun = state.begun
        for _ in range(TRIES):
            if state.look is None:
                state.begun += 1
                state.look_at = self._clock()
                state.look = asyncio.create_task(self._look_once(lane, state), name=f"look {lane}")
            look = state.look
            left = None if patience is None else max(0.0, state.look_at + patience - self._clock())
            # Others wait for the same look, and this caller may go.
            done, _ = await asyncio.wait([look], timeout=left)
            if not done:
                state.late = True
                return
            look.result()
            if state.taken > begun or state.read_at > since:
                return

    async def _look_once(self, lane: Lane, state: _Lane) -> None:
        number, passes = state.begun, state.passes
        try:
            result = await self._look(lane)
        finally:
            state.look, state.late = None, False
        if state.passes != passes:
            return  # what a pass has read since then is newer
        state.read_at, state.taken = self._clock(), number
        before, found = self.readings, state.found or {}
        self._take(result)
        state.found = result.outcomes
        if self._is_changed(before, result) or states(found) != states(result.outcomes):
            self.notify("look")
            if state.passes and self._is_due(result):  # else the boot pass is to come
                self._due(lane)

    def _is_changed(self, before: Mapping[Target, Reading], result: Result) -> bool:
        if before.keys() != self.readings.keys():
            return True
        return any(differs(before[target], reading) for target, reading in result.readings.items())

    def _is_due(self, look: Result) -> bool:
        """Return whether a pass should take note of something that has become right, or can be set now."""
        busy = self._being_set()
        return any(
            is_due(outcome, self.outcomes.get(target))
            for target, outcome in look.outcomes.items()
            if self.group(target) not in busy
        )

    # Passes

    def learn(self, lane: Lane, result: Result, written: Collection[Target]) -> None:
        """Take over what a pass has read; where a look has ended meanwhile, only what the pass has `written`."""
        state = self._lanes[lane]
        state.passes += 1
        state.found = None
        if state.read_at <= result.began:
            state.read_at = result.began
            self._take(result)
        else:
            # Another mapping: threads may go through the one there is.
            self.readings = self.readings | {target: result.readings[target] for target in written}
            self.memory = result.memory or self.memory

    def publish(self, lane: Lane, result: Result, cause: str) -> None:
        """Take over the outcomes of a pass, and tell the listeners which of them have changed."""
        own = {name for name, tunable in self.tunables.items() if tunable.lane is lane}
        old = {t: o for t, o in self.outcomes.items() if t.tunable in own}
        managed = {t: o for t, o in result.outcomes.items() if o.state is not State.UNMANAGED}
        self.outcomes = {t: o for t, o in self.outcomes.items() if t.tunable not in own} | managed
        if changes := changes_of(old, result):
            self.generation += 1
        self.notify(cause, changes)

    def notify(self, cause: str, changes: Sequence[Outcome] = ()) -> None:
        """Call every listener: these outcomes have changed, or something beside them.

        A listener that fails costs the others nothing, nor the pass, nor who waits for it.
        """
        report = Report(self.generation, cause, tuple(changes))
        for listener in self.listeners:
            try:
                listener(report)
            except Exception:
                log.exception("a listener failed on the report of %s", cause)

    def _take(self, result: Result) -> None:
        names = {target.tunable for target in result.readings} | result.missing.keys()
        self.readings = {t: r for t, r in self.readings.items() if t.tunable not in names} | result.readings
        missing = {name: why for name, why in self.missing.items() if name not in names} | result.missing
        self.missing = {name: why for name, why in missing.items() if why}
        self.memory = result.memory or self.memory


def conditioned(outcome: Outcome) -> str:
    """Return the Condition of an outcome."""
    return condition(outcome.state, outcome.reason, owed=outcome.is_owed)


def states(outcomes: Mapping[Target, Outcome]) -> dict[Target, State]:
    """Return what outcomes come to."""
    return {target: outcome.state for target, outcome in outcomes.items()}


def differs(before: Reading, now: Reading) -> bool:
    """Return whether a reading is otherwise; figures beside it come and go with every program."""
    return changed(before, now) or before.choices != now.choices
