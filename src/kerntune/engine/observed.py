"""The last readings, and the looks that keep them fresh: shared by all who ask, and never in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kerntune.engine.passes import Result, changed
from kerntune.model import Lane, Memory, Outcome, Reading, State, Target

FRESH: Final = 0.1  # seconds in which a reading counts as that of now
LOOK_SECONDS: Final = 1.0  # seconds that somebody waits for a look: a device may hang
TRIES: Final = 3  # looks in a row that a pass may overtake; its own readings serve then


@dataclass(slots=True)
class _Lane:
    """A lane: when it was read last, how many passes have ended, and the look that runs.

    Looks have numbers: `begun` is that of the last one, `taken` that of the last one whose readings were taken.
    """

    read_at: float = float("-inf")
    passes: int = 0
    begun: int = 0
    taken: int = 0
    look: asyncio.Task[None] | None = None
    look_at: float = 0.0


class Observed:
    """The readings of all targets, and by `seen` what the last look of a lane made of them, if it is newer than a pass.

    `look` reads one lane and writes nothing; `changed` is called when that was news.
    """

    def __init__(
        self, look: Callable[[Lane], Awaitable[Result]], changed: Callable[[Lane], None], clock: Callable[[], float]
    ) -> None:
        self.readings: dict[Target, Reading] = {}
        self.missing: dict[str, str] = {}
        self.memory: Memory | None = None
        self._seen: dict[Lane, Mapping[Target, Outcome]] = {}
        self._look, self._changed, self._clock = look, changed, clock
        self._lanes = {lane: _Lane() for lane in Lane}

    def is_fresh(self, lanes: Iterable[Lane]) -> bool:
        """Return whether what is known of the lanes is FRESH seconds old at most."""
        since = self._clock() - FRESH
        return all(self._lanes[lane].read_at >= since for lane in lanes)

    async def fresh(self, lanes: Iterable[Lane], age: float = FRESH, patience: float | None = LOOK_SECONDS) -> None:
        """Return when what is known of the lanes is `age` seconds old at most: 0 is a look that begins after now.

        A look that takes longer than `patience` seconds (None: no bound) is not waited for: what was read last serves.
        """
        since = self._clock() - age
        if stale := [lane for lane in lanes if not age or self._lanes[lane].read_at < since]:
            await asyncio.gather(*(self._freshen(lane, since, patience) for lane in stale))

    def seen(self, lane: Lane) -> Mapping[Target, Outcome]:
        """Return what the last look made of the lane's targets; nothing when a pass has ended since."""
        return self._seen.get(lane, {})

    def learn(self, lane: Lane, result: Result, written: Collection[Target]) -> None:
        """Take over what a pass has read; where a look has ended meanwhile, only what the pass has `written`."""
        state = self._lanes[lane]
        state.passes += 1
        self._seen.pop(lane, None)
        if state.read_at <= result.began:
            state.read_at = result.began
            self._take(result)
        else:
            # Another mapping: threads may go through the one there is.
            self.readings = self.readings | {target: result.readings[target] for target in written}
            self.memory = result.memory or self.memory

    def passes(self, lanes: Iterable[Lane]) -> tuple[int, ...]:
        """Return how many passes of each lane have ended: a look is out of date when that has changed meanwhile."""
        return tuple(self._lanes[lane].passes for lane in lanes)

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
                return
            look.result()
            if state.taken > begun or state.read_at > since:
                return

    async def _look_once(self, lane: Lane, state: _Lane) -> None:
        number, passes = state.begun, state.passes
        try:
            result = await self._look(lane)
        finally:
            state.look = None
        if state.passes != passes:
            return  # what a pass has read since then is newer
        state.read_at, state.taken = self._clock(), number
        before, seen = self.readings, self.seen(lane)
        self._take(result)
        self._seen[lane] = result.outcomes
        if self._is_news(before, result) or states(seen) != states(result.outcomes):
            self._changed(lane)

    def _is_news(self, before: Mapping[Target, Reading], result: Result) -> bool:
        if before.keys() != self.readings.keys():
            return True
        return any(differs(before[target], reading) for target, reading in result.readings.items())

    def _take(self, result: Result) -> None:
        names = {target.tunable for target in result.readings} | result.missing.keys()
        self.readings = {t: r for t, r in self.readings.items() if t.tunable not in names} | result.readings
        missing = {name: why for name, why in self.missing.items() if name not in names} | result.missing
        self.missing = {name: why for name, why in missing.items() if why}
        self.memory = result.memory or self.memory


def states(outcomes: Mapping[Target, Outcome]) -> dict[Target, State]:
    """Return what outcomes come to."""
    return {target: outcome.state for target, outcome in outcomes.items()}


def differs(before: Reading, now: Reading) -> bool:
    """Return whether a reading is news; figures beside it come and go with every program."""
    return changed(before, now) or before.choices != now.choices
