"""The form of figures and verdicts as text for people, on the page and on the terminal; it decides nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kerntune.bench.model import Estimate, Leg, Sample, Verdict
from kerntune.bench.traps import LEFT, RESIDENT, TAKEN

NOTHING: Final = "\N{EN DASH}"
THIN: Final = "\N{NARROW NO-BREAK SPACE}"  # between groups of three digits
GAP: Final = "\N{NO-BREAK SPACE}"  # between a number and its unit
SECONDS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
APART: Final = 20  # factor: values of one row that differ by more get units of their own

VERDICT_WORDS: Final = {
    Verdict.FASTER: "faster",
    Verdict.SLOWER: "slower",
    Verdict.SAME: "no difference found",
    Verdict.INVALID: "invalid",
}


def three(value: float) -> str:
    """Return a number with at least three significant digits: 0.284, 1.20, 1 234."""
    rounded = float(f"{value:.3g}")
    if rounded == 0 or abs(rounded) >= 1e7 or abs(rounded) < 1e-3:
        return f"{rounded:g}"
    if abs(rounded) >= 100:
        return f"{value:,.0f}".replace(",", THIN)
    return f"{rounded:.{2 - math.floor(math.log10(abs(rounded)))}f}"


def seconds(value: float, like: float | None = None) -> str:
    """Return a time in s, ms or µs, in the unit that fits `like`."""
    if not math.isfinite(value):
        return NOTHING
    factor, unit = _unit(value if like is None else like)
    return f"{three(value / factor)}{GAP}{unit}"


def tick(value: float, like: float) -> str:
    """Return a round time for an axis, without the zeros that `seconds` has."""
    factor, unit = _unit(like)
    return f"{value / factor:.4g}{GAP}{unit}"


def percent(part: float) -> str:
    """Return a part of 1 in percent: 2.5 %."""
    return f"{100 * part:.3g}{GAP}%"


def _unit(value: float) -> tuple[float, str]:
    measure = abs(float(f"{value:.3g}"))
    return next((row for row in SECONDS if measure >= row[0]), SECONDS[-1] if measure else SECONDS[0])


def size(value: float) -> str:
    """Return bytes in MiB; in GiB or TiB from ten of them, in KiB below a tenth of a MiB."""
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB")):
        if abs(value) >= 10 * factor:
            return f"{value / factor:.1f}{GAP}{unit}"
    if 0 < abs(value) < MIB / 10:
        return f"{value / KIB:.0f}{GAP}KiB"
    return f"{value / MIB:,.{0 if value == 0 or abs(value) >= 10 * MIB else 1}f}{GAP}MiB".replace(",", THIN)


def speed(value: float) -> str:
    """Return bytes a second in decimal units, as makers of drives and networks write them."""
    factor, unit = (1e9, "GB/s") if value >= 1e9 else (1e6, "MB/s")
    return f"{three(value / factor)}{GAP}{unit}"


def count(value: float) -> str:
    """Return a number of things as text: 262 237."""
    return f"{value:,.0f}".replace(",", THIN)


def decimal(value: float) -> str:
    """Return a small number that need not be whole as text: 0.25."""
    return f"{value:.2f}"


def ratio(value: float, *, fine: bool = False) -> str:
    """Return after / before as text: 0.52, 0.0023, 12.4; `fine` gives three decimals."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "\N{INFINITY}"
    if value >= 10:
        return three(value)
    if value >= 0.0995 or value == 0:
        return f"{value:.{3 if fine else 2}f}"
    return f"{value:.2g}" if value < 1e-4 else f"{value:.{1 - math.floor(math.log10(value))}f}"


def estimated(estimate: Estimate | None) -> tuple[str, str]:
    """Return a ratio and its interval: `0.52` and `[0.47, 0.58]`. Too few pairs have no interval."""
    if estimate is None:
        return NOTHING, ""
    numbers = (estimate.ratio, estimate.low, estimate.high)
    # Without this an interval that leaves out 1 could be written as if it ended there.
    fine = any(number != 1 and ratio(number) == "1.00" for number in numbers[1:])
    middle, low, high = (ratio(number, fine=fine) for number in numbers)
    has_bounds = math.isfinite(estimate.high) and math.isfinite(estimate.low)
    return middle, f"[{low}, {high}]" if has_bounds else "too few pairs for an interval"


@dataclass(frozen=True, slots=True)
class Figure:
    """The name of a figure for people, and the form of its value."""

    label: str
    written: Callable[[float], str]


SPEED: Final = "loaded_bytes_per_second"  # not measured, but computed from two other figures

FIGURES: Final[Mapping[str, Figure]] = {
    SPEED: Figure("loaded a second", speed),
    "user_seconds": Figure("CPU time, user", seconds),
    "system_seconds": Figure("CPU time, kernel", seconds),
    "p50_seconds": Figure("wake-up latency, p50", seconds),
    "p90_seconds": Figure("wake-up latency, p90", seconds),
    "p99_seconds": Figure("wake-up latency, p99", seconds),
    "minor_faults": Figure("minor page faults", count),
    "major_faults": Figure("major page faults", count),
    "loaded_bytes": Figure("loaded", size),
    "read_bytes": Figure("read from disk", size),
    "hugetlb_bytes": Figure("on huge pages", size),
    "anon_huge_bytes": Figure("on transparent huge pages", size),
    "file_pmd_bytes": Figure("file in huge mappings", size),
    TAKEN: Figure("taken from the pool", size),
    LEFT: Figure("left in the pool", size),
    RESIDENT: Figure("largest process, without huge pages", size),
    "others_cpus": Figure("CPUs that others used", decimal),
    "throttled": Figure("times too hot", count),
}


def figure(name: str) -> Figure:
    """Return the form of a figure; an unknown figure has the form of the unit at the end of its name."""
    if found := FIGURES.get(name):
        return found
    words, _, unit = name.rpartition("_")
    written = {"seconds": seconds, "bytes": size}.get(unit)
    return Figure((words if written else name).replace("_", " "), written or count)


def quantity(leg: Leg) -> str:
    """Return the name of the quantity that is compared in a leg."""
    return "mean wake-up latency" if leg.name == "cpu" else "time"


def effect(leg: Leg) -> Estimate | None:
    """Return the estimate of the last look."""
    return leg.looks[-1].effect if leg.looks else None


def answer(leg: Leg) -> str:
    """Return the result in one line: `0.52 of the time [0.47, 0.58]`, or why it is invalid."""
    found = effect(leg)
    if leg.verdict is Verdict.INVALID or found is None:
        return leg.reason or "nothing was compared"
    middle, interval = estimated(found)
    what = "latency" if leg.name == "cpu" else "time"
    said = f"{middle} of the {what}" if found.ratio <= 1 else f"{middle} times the {what}"
    return f"{said} {interval}" if interval.startswith("[") else f"{said}, {interval}"


@dataclass(frozen=True, slots=True)
class Line:
    """The medians of one figure, as text, and after / before; `interval` belongs to the compared quantity."""

    label: str
    before: str
    after: str
    ratio: str
    interval: str = ""


def lines(leg: Leg) -> list[Line]:
    """Return the table of a leg: the compared quantity, then every measured figure."""
    before, after = ([getattr(each, side) for each in leg.rounds] for side in ("before", "after"))
    was, now = _alike(*(median(sample.seconds for sample in side) for side in (before, after)))
    middle, interval = estimated(effect(leg))
    table = [Line(quantity(leg), was, now, middle, interval)]
    measured = {name for sample in (*before, *after) for name in _figures(sample)}
    for name in (*(name for name in FIGURES if name in measured), *sorted(measured - FIGURES.keys())):
        middles = [median(_figures(sample).get(name, math.nan) for sample in side) for side in (before, after)]
        if any(middle and not math.isnan(middle) for middle in middles):  # a 0 on both sides says nothing
            table.append(_line(figure(name), *middles))
    return table


def _line(known: Figure, before: float, after: float) -> Line:
    if known.written is seconds:
        was, now = _alike(before, after)
    else:
        was, now = (NOTHING if math.isnan(value) else known.written(value) for value in (before, after))
    compared = ratio(after / before) if before > 0 and not math.isnan(after) else ""
    return Line(known.label, was, now, compared)


def _alike(before: float, after: float) -> tuple[str, str]:
    """Return two times in one unit, unless they are far apart."""
    low, high = sorted((before, after))
    like = high if low > 0 and high / low < APART else None
    return seconds(before, like), seconds(after, like)


def _figures(sample: Sample) -> dict[str, float]:
    found = dict(sample.figures)
    if (loaded := found.get("loaded_bytes", 0)) > 0 and sample.seconds > 0:
        found[SPEED] = loaded / sample.seconds
    return found


def median(values: Iterable[float]) -> float:
    """Return the median of the values that are numbers, or NaN when none is."""
    return statistics.median(found) if (found := [value for value in values if math.isfinite(value)]) else math.nan
