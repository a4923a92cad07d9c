"""What is measured, with the targets of the design, and the book in which the rounds are written down. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

KERNTUNE, TUNED, FLOOR = "kerntuned", "tuned", "floor"
SUBJECTS: Final = (KERNTUNE, TUNED, FLOOR)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `most` and `least` are the target, where the design has one; `floors` is in floors."""

    id: str
    title: str
    unit: str
    most: float | None = None
    least: float | None = None
    floors: float | None = None

    def met(self, value: float, to_floor: float | None = None) -> bool | None:
        """Return whether a figure and its ratio to the floor reach the target, None without one."""
        if self.most is not None:
            return value <= self.most and (self.floors is None or to_floor is None or to_floor <= self.floors)
        return value >= self.least if self.least is not None else None


ONE, MANY = "one client, one string", "32 clients, one string"
STOPPED = "polkitd stopped"
FLOORS = 2.2

ROWS: Final = (
    Row("read-root", f"read, {ONE}, root", "ms", most=0.3, floors=FLOORS),
    Row("read-user", f"read, {ONE}, ordinary user", "ms", most=0.3, floors=FLOORS),
    Row("read-root-stopped", f"read, {ONE}, root, {STOPPED}", "ms", most=0.3, floors=FLOORS),
    Row("read-user-stopped", f"read, {ONE}, ordinary user, {STOPPED}", "ms", most=0.3, floors=FLOORS),
    Row("rate-root", f"reads, {MANY}, root", "calls/s", least=8000),
    Row("rate-user", f"reads, {MANY}, ordinary user", "calls/s", least=8000),
    Row("rate-root-stopped", f"reads, {MANY}, root, {STOPPED}", "calls/s", least=8000),
    Row("rate-user-stopped", f"reads, {MANY}, ordinary user, {STOPPED}", "calls/s", least=8000),
    Row("read-devices", "read, one client, every drive and what it offers", "ms"),
    Row("read-pools", "read, one client, huge-page pools re-read from the kernel", "ms"),
    Row("read-demo", f"read, {ONE}, ordinary user, simulated host", "ms", most=0.3, floors=FLOORS),
    Row("set-root", "set a scheduler, real drive, root", "ms"),
    Row("set-member", "set a scheduler, real drive, group member", "ms"),
    Row("set-same", "set the scheduler a real drive has already, root", "ms"),
    Row("set-demo-root", "set a scheduler, simulated drive, root", "ms"),
    Row("set-demo-member", "set a scheduler, simulated drive, group member", "ms"),
    Row("start-name", "start to name owned", "ms"),
    Row("start-ready", "start to READY", "ms", most=250),
    Row("rss", "resident memory, idle", "MiB"),
    Row("dirty", "private dirty memory, idle", "MiB", most=15),
    Row("dirty-grown", "private dirty memory gained over the calls", "KiB per 1000 calls"),
    Row("wakeups", "idle wake-ups, nothing managed", "per s", most=0.5),
    Row("pass-waiting", "pass over 512 CPU policies, each write waits 5 ms in the kernel", "ms"),
    Row("pass-memory", "pass over 512 CPU policies, files in memory", "ms"),
    Row("pass-files", "pass over 512 CPU policies, files on tmpfs", "ms"),
    Row("pass-same", "pass over 512 CPU policies that are satisfied", "ms"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement of one subject in one round; `worst` is the 99th percentile of a time."""

    value: float
    worst: float | None = None


@dataclass(slots=True)
class Book:
    """The rounds of every row, by subject; a round is complete when every subject of it was noted."""

    rounds: dict[str, dict[str, list[Figure]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def note(self, row: str, subject: str, value: float, worst: float | None = None) -> None:
        if row not in {known.id for known in ROWS} or subject not in SUBJECTS:
            raise KeyError(f"{row} of {subject}")
        self.rounds.setdefault(row, {}).setdefault(subject, []).append(Figure(value, worst))

    def remark(self, row: str, text: str) -> None:
        """A sentence below the table, such as why a figure is missing."""
        self.notes[row] = text

    def summary(self) -> list[dict[str, Any]]:
        """The rows as they are kept in JSON."""
        return [summed(row, self.rounds[row.id], self.notes.get(row.id, "")) for row in ROWS if row.id in self.rounds]


def summed(row: Row, subjects: dict[str, list[Figure]], note: str) -> dict[str, Any]:
    """Medians over the rounds, their range, and the medians of the rounds' ratios."""
    ours = subjects.get(KERNTUNE, [])
    found: dict[str, Any] = {"id": row.id, "title": row.title, "unit": row.unit, "note": note}
    found["target"] = {"most": row.most, "least": row.least, "floors": row.floors}
    found["subjects"] = {name: spread(figures) for name, figures in subjects.items()}
    found["ratios"] = {
        name: ratio for name in (TUNED, FLOOR) if (ratio := ratio_of(ours, subjects.get(name, []))) is not None
    }
    found["met"] = row.met(found["subjects"][KERNTUNE]["median"], found["ratios"].get(FLOOR)) if ours else None
    return found


def spread(figures: Sequence[Figure]) -> dict[str, float | None]:
    """The median, the least and the greatest of the rounds; infinities (no answer came) are None."""
    values = [figure.value for figure in figures]
    worst = [figure.worst for figure in figures if figure.worst is not None]
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    found |= {"p99": statistics.median(worst)} if worst else {}
    return {name: value if value != float("inf") else None for name, value in found.items()}


def ratio_of(ours: Sequence[Figure], theirs: Sequence[Figure]) -> float | None:
    """The median over the rounds of ours / theirs; None where one of them has no figure."""
    pairs = [(our.value, their.value) for our, their in zip(ours, theirs, strict=False)]
    ratios = [our / their for our, their in pairs if their and float("inf") not in (our, their)]
    return statistics.median(ratios) if ratios else None
