"""The contents of a leg's picture, for any drawing program: its columns, its pairs and its axis."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kerntune.bench.model import Leg, Round, Sample

FACTOR: Final = 4  # times the least value; from so much on, an axis is logarithmic
MOST_TICKS: Final = 9
LEAST, MOST = 1e-9, 1e9  # seconds that a picture can show
LEAST_RATIO, MOST_RATIO = 1e-3, 1e3
AGAIN, BEFORE, AFTER = "before again", "before", "after"


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from its first tick to its last; a linear one begins with 0. Values outside stand at an end."""

    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the place of a value, from 0 to 1."""
        low, high = self.ticks[0], self.ticks[-1]
        kept = min(max(value, low), high)
        return math.log(kept / low) / math.log(high / low) if self.is_log else (kept - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Pair:
    """A run before and another run of its round, which stands in `column`."""

    before: Sample
    other: Sample
    column: str


def samples(leg: Leg) -> dict[str, list[Sample]]:
    """Return the runs that have a time, by column; the control, if there is one, stands at the left."""
    sides: dict[str, list[Sample]] = {}
    if any(each.control for each in leg.rounds):
        sides[AGAIN] = [each.control for each in leg.rounds if each.control]
    sides |= {BEFORE: [each.before for each in leg.rounds], AFTER: [each.after for each in leg.rounds]}
    return {column: [sample for sample in side if _has_time(sample)] for column, side in sides.items()}


def pairs(rounds: Iterable[Round]) -> list[Pair]:
    """Return the pairs of runs that a picture joins: before and the control, before and after."""
    found = []
    for each in rounds:
        if each.control:
            found.append(Pair(each.before, each.control, AGAIN))
        found.append(Pair(each.before, each.after, AFTER))
    return [pair for pair in found if _has_time(pair.before) and _has_time(pair.other)]


def _has_time(sample: Sample) -> bool:
    return math.isfinite(sample.seconds) and sample.seconds >= 0


def axis(values: Iterable[float]) -> Axis:
    """Return an axis of times: from 0, or logarithmic where the longest is several times the shortest."""
    found = [min(max(value, LEAST), MOST) if value else 0.0 for value in values]
    top = max(found, default=0.0)
    if top == 0:
        return Axis((0.0, 1.0))
    if (least := min(found)) > 0 and top / least > FACTOR:
        return Axis(_log_ticks(least, top), is_log=True)
    step = _round_numbers(top / 5, top / 5)[-1]
    return Axis(tuple(number * step for number in range(math.ceil(top / step - 1e-9) + 1)))


def ratio_axis(numbers: Iterable[float]) -> Axis:
    """Return a logarithmic axis of ratios, with 1 on it and room for a word on either side of 1."""
    shown = [number for number in numbers if LEAST_RATIO <= number <= MOST_RATIO]
    low, high = min([*shown, 0.6]), max([*shown, 1.7])
    return Axis(_log_ticks(min(low, high ** (-1 / 3)), max(high, low ** (-1 / 3))), is_log=True)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    numbers = _round_numbers(low, high)
    if len(numbers) > MOST_TICKS:
        numbers = _round_numbers(low, high, (1,))
    stride = max(1, math.ceil((len(numbers) - 1) / (MOST_TICKS - 1)))
    numbers = numbers[::stride]
    return tuple(numbers if numbers[-1] >= high else [*numbers, numbers[-1] * 10**stride])


def _round_numbers(low: float, high: float, digits: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten, from one at or below `low` to one at or above `high`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    numbers = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    # The computation may miss a round number by its last bit.
    first, last = bisect.bisect_right(numbers, low * (1 + 1e-9)), bisect.bisect_left(numbers, high * (1 - 1e-9))
    return numbers[first - 1 : last + 1]
