"""The form of a measurement's result on a terminal: a row for each leg, with its grounds below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kerntune.bench import figures
from kerntune.bench.model import Leg, Report, Verdict
from kerntune.cli.tables import BAD, GOOD, MIXED, QUIET, Page, Row, Table, clean, row

COLUMNS: Final = ("LEG", "BEFORE", "AFTER", "RATIO", "INTERVAL", "VERDICT")
STYLES: Final = {Verdict.FASTER: GOOD, Verdict.SLOWER: BAD, Verdict.SAME: QUIET, Verdict.INVALID: MIXED}
# Figures that answer the same question as the time, or that only the page has.
LEFT_OUT: Final = frozenset(
    {figures.SPEED, "user_seconds", "system_seconds", "loaded_bytes", "others_cpus", "throttled"}
)
LABELS: Final = frozenset(figures.figure(name).label for name in LEFT_OUT)


def written(report: Report) -> Page:
    """Return a table with a row for each leg."""
    return [Table(COLUMNS, tuple(map(_row, report.legs)), frozenset({"VERDICT"}))]


def _row(leg: Leg) -> Row:
    found = ("", "", "", "")
    if leg.looks:
        time = figures.lines(leg)[0]
        found = (time.before, time.after, *figures.estimated(figures.effect(leg)))
    cells = (*found, str(leg.verdict))
    return row(leg.name, tuple(map(_plain, cells)), STYLES[leg.verdict], *map(_plain, _notes(leg)))


def _notes(leg: Leg) -> Iterator[str]:
    yield f"{leg.what}, {len(leg.rounds)} pair{'s' if len(leg.rounds) != 1 else ''}"
    yield leg.reason
    yield from leg.notes
    if not leg.looks:
        return
    told = (line for line in figures.lines(leg)[1:] if line.label not in LABELS and line.before != line.after)
    yield "; ".join(f"{line.label} {line.before} to {line.after}" for line in told)
    yield _control(leg)


def _control(leg: Leg) -> str:
    control = leg.looks[-1].control if leg.looks else None
    if control is None:
        return ""
    found = ""
    if leg.verdict is Verdict.SAME and leg.detectable is not None:
        found = f"; a gain of {figures.percent(leg.detectable)} would have been found"
    return f"before beside itself: {' '.join(figures.estimated(control))}{found}"


def _plain(text: str) -> str:
    """Return the text without the spaces that keep a page together: a terminal may not have them."""
    return clean(text.replace(figures.THIN, " ").replace(figures.GAP, " "))


def left(seconds: float) -> str:
    """Return the remaining time as text, as far as it is known."""
    if not seconds:
        return ""
    return f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
