"""The drift timer: while something is managed, it asks for passes, which find values that others have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from kerntune.engine.observed import Observed
from kerntune.model import Lane, Report


class DriftTimer:
    """A timer that asks for a pass once in each interval, for the lanes that manage something.

    It fires at whole multiples of the interval on the monotonic clock, so that similar timers wake the CPU with it.
    """

    def __init__(self, observed: Observed, look: Callable[[str, Iterable[Lane]], None]) -> None:
        """Take what is known, and the function that asks for passes, with a cause and their lanes."""
        self._observed, self._look, self._interval = observed, look, 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, interval: int) -> None:
        """Set the interval from now on, in seconds; 0 means never."""
        self.stop()
        self._interval = interval
        self._arm()

    def update(self, _report: Report) -> None:
        """Start or stop the timer after a pass: there may be a first value to look after, or none any more."""
        if not self._observed.outcomes:
            self.stop()
        elif self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Ask for no more passes."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._interval and self._observed.outcomes:
            now = self._loop.time()
            self._timer = self._loop.call_at((now // self._interval + 1) * self._interval, self._fire)

    def _fire(self) -> None:
        self._arm()  # first: whatever goes wrong with one pass, the next is asked for
        tunables = self._observed.tunables
        self._look("drift", {tunables[target.tunable].lane for target in self._observed.outcomes})
