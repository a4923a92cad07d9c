"""The form of answers for people: this module makes rows and prose; it asks, decides and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kerntune.cli import tables
from kerntune.cli.document import Document, Event, GuardChange, Health, Outcome, TargetRow, in_order, named
from kerntune.cli.health import explained, nothing_managed
from kerntune.cli.tables import BAD, EMPTY, GOOD, MIXED, QUIET, Prose, Row, Table, clean, row, together
from kerntune.model import Reason, State
from kerntune.results import CONTENT
from kerntune.units import gib

Page = tables.Page

# State -> (mark, style). A newer daemon's state that is not here gets UNHEARD_OF.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    State.SATISFIED: ("✔", GOOD),
    State.PLANNED: ("→", GOOD),
    State.PARTIAL: ("◐", MIXED),
    State.OVERRIDDEN: ("≠", MIXED),
    State.CONTESTED: ("!", BAD),
    State.REFUSED: ("✘", BAD),
    State.FAILED: ("✘", BAD),
    State.UNSUPPORTED: ("○", MIXED),
    State.UNMANAGED: ("·", QUIET),
}
CAPPING: Final = frozenset({"capped", "exhausted"})  # states of the memory guard
UNHEARD_OF: Final = ("?", MIXED)


def outcomes(rows: Iterable[Outcome], *, none: str = "Nothing changed.") -> Page:
    """Return a table of the outcomes of the named targets; without a row return the text `none`."""
    table = [
        state_row(row.state, (named(row.tunable, row.instance), row.requested, row.actual, row.state), why(*row[5:]))
        for row in rows
    ]
    return [Table(("", "TARGET", "REQUESTED", "ACTUAL", "STATE"), tuple(together(table)))] if table else [none]


def targets(document: Document, name: str | None = None) -> Page:
    """Return a table of every target, or of one tunable's, with value and choices, and of unsupported tunables."""
    table: list[Row] = []
    for tunable in document["tunables"]:
        if name in (None, tunable["name"]):
            mine = [row for row in document["targets"] if row["tunable"] == tunable["name"]]
            table += map(_target, in_order(document, mine))
            if not tunable["supported"]:
                cells = (tunable["name"], "", State.UNSUPPORTED, "")
                table.append(state_row(State.UNSUPPORTED, cells, tunable["detail"]))
    return [Table(("", "TARGET", "ACTUAL", "STATE", "CHOICES"), tuple(table))] if table else ["There are no targets."]


def _target(row: TargetRow) -> Row:
    name = named(row["tunable"], row["instance"])
    cells = (name, row["value"] or "", row["state"], " ".join(row["choices"]))
    return state_row(row["state"], cells, why(row["state"], row["reason"], row["detail"]))


def values(rows: Sequence[TargetRow]) -> Page:
    """Return one target's bare value, or a line for each of several."""
    if len(rows) == 1:
        return [rows[0]["value"] or ""]
    return [f"{named(row['tunable'], row['instance'])} {row['value'] or EMPTY}" for row in rows]


def verified(
    wrong: Sequence[Outcome], lacking: Sequence[Outcome], *, managed: int, satisfied: int, degraded: Sequence[str]
) -> Page:
    """Return the page of `verify`: targets not in the desired state, those that this host lacks, and the numbers."""
    health = explained(degraded)
    if not managed:
        return [nothing_managed(degraded), *health]
    missing = f"; {len(lacking)} {'is' if len(lacking) == 1 else 'are'} not here now" if lacking else ""
    said = f"{satisfied} of {managed} in the desired state{missing}"
    if not wrong:
        return [f"{said}.", *health, *(outcomes(lacking) if lacking else ())]
    said += f"; {len(wrong)} {'is' if len(wrong) == 1 else 'are'} not"
    return [said, *health, *outcomes([*wrong, *lacking])]


def reloaded(document: Document) -> Page:
    """Return the page of `reload`."""
    return [Prose(f"The configuration was read again: {head(document)}"), *explained(document["degraded"])]


def watching(document: Document) -> Page:
    """Return the first line of a running watch."""
    return [f"Watching {head(document)}; Ctrl-C ends it"]


def happened(clock: str, event: Event) -> Page:
    """Return a line for each change, with the time in front of it."""
    if isinstance(event, Health):
        health = f"degraded: {', '.join(event.degraded)}" if event.degraded else "all well again"
        return [f"{clock}  {clean(health)}"]
    if isinstance(event, GuardChange):
        return [f"{clock}  memory guard  {part}" for part in _guard_change(event)]
    return [f"{clock}  {clean(event.cause)}  {_step(row)}" for row in event.outcomes]


def _guard_change(event: GuardChange) -> Iterable[str]:
    """Yield the guard's state, and where memory is short the processes that have it."""
    limit = f", limit {gib(event.limit)}" if event.limit else ""
    yield _guarding(event.state, event.reason, event.headroom, event.floor) + limit
    if event.culprit:
        yield clean(f"most to do with it: {event.culprit}")
    for title, found in (("largest", event.largest), ("growing", event.growing)):
        if found:
            rows = (f"{command} (pid {pid}, uid {uid}) {gib(size)}" for pid, command, uid, size in found)
            yield clean(f"{title}: {', '.join(rows)}")


def _step(row: Outcome) -> str:
    mark, _ = MARKS.get(row.state, UNHEARD_OF)
    values = f"{row.before or EMPTY} -> {row.actual or EMPTY}"
    parts = (mark, named(row.tunable, row.instance), values, row.state, why(row.state, row.reason, row.detail))
    return "  ".join(clean(part) for part in parts if part)


def head(document: Document) -> str:
    """Return the line about the daemon."""
    host = document["host"]
    where = "a simulated host" if host["simulated"] else f"Linux {host['kernel']}"
    if host["root"] != "/" and not host["simulated"]:
        where += f" at {host['root']}"
    health = f"degraded: {', '.join(document['degraded'])}" if document["degraded"] else "all well"
    profile = f"profile {document['profile']}, " if document["profile"] else ""
    return f"kerntuned {document['version']} on {where}, generation {document['generation']}, {profile}{health}"


def guard(document: Document) -> Iterable[Prose]:
    """Yield the line about the memory guard, where it has something to do."""
    guard = document["guard"]
    if guard["floor"] or guard["reason"]:
        said = _guarding(guard["state"], guard["reason"], guard["headroom"], guard["floor"])
        if guard["state"] in CAPPING:
            said += f", more than {gib(guard.get('room', 0))} is refused"
        yield Prose(f"memory guard: {said}")
        if culprit := guard.get("culprit"):
            yield Prose(clean(f"most to do with it: {culprit}"))


def _guarding(state: str, reason: str, headroom: int, floor: int) -> str:
    left = f"{gib(headroom)} left, floor {gib(floor)}" if floor else ""
    return clean(", ".join(part for part in (state, left, reason) if part))


def why(state: str, reason: str, detail: str) -> str:
    """Return prose about a state: the detail, after the reason where something is not as it should be."""
    if reason == Reason.OK or state in CONTENT:
        return detail
    return f"{reason}: {detail}" if detail else reason


def state_row(state: str, cells: tuple[str, ...], *notes: str) -> Row:
    """Return the row of a target in that state, with notes."""
    mark, style = MARKS.get(state, UNHEARD_OF)
    return row(mark, cells, style, *notes)
