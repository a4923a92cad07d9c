"""When to stop fighting over a value: three repairs in ten minutes. Pure; the clock is the caller's."""

from __future__ import annotations

from collections.abc import Iterable

from kerntune.model import Target

REPAIRS = 3
WINDOW = 600.0  # seconds


class DriftLog:
    """The times at which each target was put right after others had changed it; `total` counts them all."""

    def __init__(self) -> None:
        self._repairs: dict[Target, list[float]] = {}
        self.total = 0

    def repaired(self, target: Target, now: float) -> None:
        self.total += 1
        # Drives come and go without end: what is too long ago is of no use for any target.
        kept = {other: recent for other in self._repairs if (recent := self._recent(other, now))}
        self._repairs = {**kept, target: [*kept.get(target, ()), now]}

    def __len__(self) -> int:
        return len(self._repairs)

    def contested(self, target: Target, now: float) -> bool:
        """Return whether the target has been repaired so often that another repair would be a fight."""
        return len(self._recent(target, now)) >= REPAIRS

    def forgive(self, targets: Iterable[Target]) -> None:
        """Somebody named these targets: they are written again."""
        for target in targets:
            self._repairs.pop(target, None)

    def _recent(self, target: Target, now: float) -> list[float]:
        return [then for then in self._repairs.get(target, ()) if now - then < WINDOW]
