"""The answers of the verbs: a page for people, and the same as data for programs; this module asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kerntune.api.document import (
    Change,
    Document,
    Event,
    GuardChange,
    Health,
    HoldRow,
    Outcome,
    TargetRow,
    TunableRow,
    claims_behind,
    in_order,
    may_be_old,
    named,
)
from kerntune.cli.health import CAPPING, NOTES, HostHealth, judged, judged_outcome, of_document
from kerntune.cli.rows import cpus_of, pair, shown, target_row, together, waiting_row, why
from kerntune.cli.tables import EMPTY, GOOD, Page, Prose, Row, Table, clean, row
from kerntune.errors import Exit, Usage
from kerntune.model import Reason, State
from kerntune.patterns import Kind, left_out_word
from kerntune.results import WELL, Condition, condition, exit_code
from kerntune.units import gib

if TYPE_CHECKING:
    from kerntune.config.content import Content, Problem

NOTHING_CHANGED: Final = "Nothing changed."
SUSPENDED: Final = "config-suspended"
NOTHING_MANAGED: Final = "Nothing is managed: no claim has been made (kerntune set makes one)"
NOT_MANAGED: Final = "None of these is managed: nobody claims them (kerntune set makes a claim)"
NOTHING_IN_FORCE: Final = (
    "Nothing is managed now: the configuration and the profile are suspended until kerntune reload"
)

MEANINGS: Final[Mapping[str, str]] = {
    "config-invalid": (
        "a configuration file or profile is not in order, and what was last good of it is in force; kerntune config "
        "check names the lines, kerntune reload reads them again"
    ),
    SUSPENDED: (
        "configuration and profile are suspended by reset --baseline until kerntune reload, kerntune profile set or a "
        "reboot"
    ),
    "state-set-aside": (
        "a file of kerntuned's own could not be read and was set aside as NAME.bad, with what it held; journalctl -u "
        "kerntuned names it, and a restart clears this"
    ),
    "state-unread": (
        "a file of kerntuned's own cannot be read and is kept as NAME.unread; what it holds is not in force until a "
        "start can read it (journalctl -u kerntuned says why, systemctl restart kerntuned tries again)"
    ),
    "guard-observing": (
        "overcommit is always, and the memory guard may not cap, so that nothing makes the ratio real; the line of the "
        "memory guard says why"
    ),
    "rival-tuned": "TuneD runs too and may set the same values; kerntune doctor says more (systemctl stop tuned)",
    "rival-power-profiles-daemon": (
        "power-profiles-daemon runs too and may set the same values; kerntune doctor says more (systemctl stop "
        "power-profiles-daemon)"
    ),
    Reason.DEVICE_HANGS: (
        "the kernel does not return from a read or write of a device, which is left out until it does; its row says "
        "since when, dmesg may say why"
    ),
    Reason.PARTIALLY_ALLOCATED: (
        "there were fewer free huge pages than requested; kerntuned asks again when memory is free, or kerntune reload"
    ),
    Reason.PAGES_IN_USE: "huge pages in use cannot be given back; they go when the programs that hold them end",
    Reason.OVER_LIMIT: "a value would endanger the host and was not set, or in part; its row has the figures",
    Reason.CHANGED_BY_OTHERS: (
        "something else keeps changing a value, and kerntuned leaves that one alone; kerntune doctor looks for it, "
        "kerntune set or kerntune reload tries again"
    ),
    Reason.KERNEL_REJECTED: "the kernel refused a value; its log (dmesg) may say why",
    Reason.READ_BACK_DIFFERS: "the kernel took a value and holds another; its row has both",
    "guard-capping": (
        "memory is short: until there is memory again, programs that ask for more than the memory guard grants get "
        "ENOMEM"
    ),
    Reason.OUT_OF_RANGE: "a value is one that the kernel does not take; its row says which it takes",
    Reason.READ_ONLY: "a setting cannot be written here; its row says who can",
}


# The rows in the answer of a verb, and their fields for programs.
ROWS: Final[Mapping[str, str]] = {
    "status": "targets",
    "list": "targets",
    "get": "targets",
    "set": "outcomes",
    "unset": "outcomes",
    "verify": "outcomes",
    "holds": "holds",
}
FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "targets": ("target", *TargetRow.__annotations__, "condition"),
    "outcomes": ("target", *Outcome._fields, "condition"),
    "holds": tuple(HoldRow.__annotations__),
}


class Advice(NamedTuple):
    """Advice to the caller beside the answer."""

    what: str
    hint: str


class Answer(NamedTuple):
    """The answer of a verb: `data` is for --json, `page` is for people."""

    data: Any
    page: Page
    exit_code: Exit = Exit.OK
    advice: tuple[Advice, ...] = ()


def changed(
    change: Change,
    advice: Iterable[Advice] = (),
    *,
    code: Exit | None = None,
    none: str = NOTHING_CHANGED,
) -> Answer:
    """Return the answer to an edit; without a `code` the exit status is that of a Set.

    `none` is the text for an answer without outcomes.
    """
    data = {"changed": change.changed, "outcomes": [outcome_data(outcome) for outcome in change.outcomes]}
    code = exit_code(change.outcomes) if code is None else code
    return Answer(data, outcomes(change.outcomes, none=none), code, tuple(advice))


def outcome_data(row: Outcome, *, owed: bool = False) -> dict[str, str]:
    """Return an outcome for programs, with its condition."""
    return {**row._asdict(), "condition": condition(row.state, row.reason, owed=owed)}


def target_data(row: TargetRow) -> dict[str, Any]:
    """Return a target for programs, with its condition."""
    return {**row, "condition": judged(row).condition}


def known_fields(verb: str, names: str) -> list[str]:
    """Return the names of fields, which stand between commas. Raise Usage for one that the verb's answer lacks."""
    known = FIELDS[ROWS[verb]]
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise Usage(f"there is no field {unknown[0]!r} here", f"There are {', '.join(known)}")
    return wanted


def fields(data: Mapping[str, Any], verb: str, names: str) -> list[dict[str, Any]]:
    """Return only these fields of the rows of an answer; `target` is what people type: TUNABLE@INSTANCE."""
    rows = [{"target": named(row["tunable"], row["instance"]), **row} if "instance" in row else row
            for row in data[ROWS[verb]]]  # fmt: skip
    return [{name: row.get(name) for name in known_fields(verb, names)} for row in rows]


def field_lines(rows: Iterable[Mapping[str, Any]]) -> Page:
    """Return a line for each row, with a tab between its fields."""
    return ["\t".join(clean(_field(value)) for value in row.values()) for row in rows]


def _field(value: Any) -> str:
    """Return a field as text: a list has blanks between its parts, and what is not there is empty."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def outcomes(
    rows: Iterable[Outcome],
    *,
    none: str = NOTHING_CHANGED,
    document: Document | None = None,
    brief: bool = False,
) -> Page:
    """Return a table of the outcomes of the named targets; without a row return the text `none`.

    With a document it tells what is owed to the host, and shows policies as their CPUs. If it is to be `brief`, only
    troubles have notes.
    """
    claims = claims_behind(document) if document else None
    table = []
    for one in rows:
        owed = claims is not None and (one.tunable, one.instance) not in claims
        found = condition(one.state, one.reason, owed=owed)
        table.append(
            _outcome_row(one, found, "" if brief and found in WELL else why(one.state, one.reason, one.detail))
        )
    columns = ("", "TARGET", "REQUESTED", "ACTUAL", "STATE")
    cpus = cpus_of(document) if document else None
    return [Table(columns, tuple(together(table, cpus)), same=("REQUESTED", "ACTUAL"))] if table else [none]


def _outcome_row(row: Outcome, found: str, note: str) -> Row:
    if found == Condition.WAITING and not row.actual:
        return waiting_row(row.tunable, row.instance, row.requested, notes=[note])
    values = pair(row.tunable, row.instance, row.requested, row.actual)
    return target_row(found, named(row.tunable, row.instance), *values, found, notes=[note])


def targets(
    document: Document, tunables: Sequence[TunableRow], rows: Sequence[TargetRow], left_out: Sequence[str] = ()
) -> Page:
    """Return a table of targets with value and choices, of unsupported tunables, and how to see those left out."""
    table: list[Row] = []
    for tunable in tunables:
        mine = [row for row in rows if row["tunable"] == tunable["name"]]
        table += map(_target, in_order(document, mine))
        if not tunable["supported"]:
            cells = ("", Condition.NOT_APPLICABLE, "")
            table.append(target_row(Condition.NOT_APPLICABLE, tunable["name"], *cells, notes=[tunable["detail"]]))
    page: list[str | Prose | Table] = ["There are no targets."]
    if table:
        rows_ = tuple(together(table, cpus_of(document)))
        page = [Table(("", "TARGET", "ACTUAL", "STATE", "CHOICES"), rows_, wraps=True)]
    said = [Prose(f"{row['name']}: these values may be old: {row['detail']}") for row in tunables if may_be_old(row)]
    return [*page, *said, *_left_out(tunables, left_out)]


def _left_out(tunables: Sequence[TunableRow], names: Sequence[str]) -> Iterator[Prose]:
    """Yield what `*` leaves out, and how to see it."""
    if names:
        tunable = next(row["name"] for row in tunables if row["kind"] == Kind.DRIVES)
        are = "device is" if len(names) == 1 else "devices are"
        glob = f"{tunable}@{left_out_word(names[0])}*"
        yield Prose(f"{len(names)} loop, ram or zram {are} left out: kerntune list '{glob}'")


def _target(row: TargetRow) -> Row:
    found = judged(row).condition
    value = shown(row["tunable"], row["instance"], row["value"] or "")
    # Most targets are unmanaged: the word in every row would say nothing.
    state = "" if found == State.UNMANAGED else found
    is_old = row["value"] is None or row["reason"] == Reason.DEVICE_HANGS
    notes = [why(row["state"], row["reason"], row["detail"])] if is_old or found not in WELL else []
    return target_row(
        found, named(row["tunable"], row["instance"]), value, state, " ".join(row["choices"]), notes=notes
    )


def values(rows: Sequence[TargetRow]) -> Page:
    """Return one target's bare value, or a line for each of several."""
    if len(rows) == 1:
        return [rows[0]["value"] or ""]
    return [f"{named(row['tunable'], row['instance'])} {row['value'] or EMPTY}" for row in rows]


def verified(rows: Sequence[Outcome], document: Document, health: HostHealth, *, chosen: bool = False) -> Page:
    """Return the page of `verify`: the health, then the targets not in the desired state, troubles first.

    Where some targets were `chosen`, it tells of these only.
    """
    head = [Prose(health.sentence), *([] if chosen else explained(document["degraded"]))]
    if not health.counts:
        return [*head, Prose(NOT_MANAGED) if chosen else nothing_managed(document["degraded"])]
    claims = claims_behind(document)
    wrong = [row for row in rows if not judged_outcome(row, claims).is_well]
    others = [row for row in rows if row not in wrong]
    return [*head, *outcomes([*wrong, *others], document=document, brief=True)] if rows else head


def repaired(back: Sequence[Outcome]) -> Page:
    """Return what `verify --repair` says before the rest: the values that were put back."""
    if not back:
        return ["Nothing was put back."]
    return [f"{len(back)} value{'' if len(back) == 1 else 's'} put back:", *outcomes(back)]


def reloaded(document: Document) -> Page:
    """Return the page of `reload`."""
    return [
        Prose(f"The configuration was read again. {of_document(document).sentence}"),
        *explained(document["degraded"]),
    ]


def watching(document: Document) -> Page:
    """Return the first line of a running watch."""
    return [f"Watching {head(document)}. {of_document(document).sentence}. Ctrl-C ends it"]


def happened(clock: str, event: Event) -> Page:
    """Return a line for each change, with the time in front of it."""
    if isinstance(event, Health):
        health = f"degraded: {', '.join(event.degraded)}" if event.degraded else "degraded: nothing any more"
        return [f"{clock}  {clean(health)}"]
    if isinstance(event, GuardChange):
        return [f"{clock}  memory guard  {part}" for part in _guard_change(event)]
    return [f"{clock}  {clean(event.cause)}  {step}" for step in _steps(event.outcomes)]


def left(clock: str) -> Page:
    """Return the line for a daemon that has gone."""
    return [f"{clock}  kerntuned has left the bus; waiting until it is back"]


def back(clock: str, document: Document) -> Page:
    """Return the line for the daemon that follows it."""
    return [f"{clock}  kerntuned is back, generation {document['generation']}"]


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


def _steps(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a line for each change of a target, and for changes of several that differ in their names alone."""
    rows = []
    for one in outcomes:
        found = condition(one.state, one.reason)
        before, after = (shown(one.tunable, one.instance, value) for value in (one.before, one.actual))
        values = "" if one.before == one.actual else f"{before or EMPTY} -> {after or EMPTY}"
        notes = [why(one.state, one.reason, one.detail)]
        rows.append(target_row(found, named(one.tunable, one.instance), values, found, notes=notes))
    for each in together(rows):
        yield "  ".join(filter(None, (*each.cells, each.note)))


def head(document: Document) -> str:
    """Return the line about the daemon."""
    host = document["host"]
    where = "a simulated host" if host["simulated"] else f"Linux {host['kernel']}"
    if host["root"] != "/" and not host["simulated"]:
        where += f" at {host['root']}"
    profile = f", profile {document['profile']}" if document["profile"] else ""
    return f"kerntuned {document['version']} on {where}, generation {document['generation']}{profile}"


def guard(document: Document) -> Iterable[Prose]:
    """Yield the line about the memory guard, where it has something to do."""
    guard = document["guard"]
    if guard["floor"] or guard["reason"]:
        sentence = _guarding(guard["state"], guard["reason"], guard["headroom"], guard["floor"])
        if guard["state"] in CAPPING:
            sentence += f", more than {gib(guard.get('room', 0))} is refused"
        yield Prose(f"memory guard: {sentence}")
        if culprit := guard.get("culprit"):
            yield Prose(f"most to do with it: {culprit}")


def _guarding(state: str, reason: str, headroom: int, floor: int) -> str:
    left = f"{gib(headroom)} left, floor {gib(floor)}" if floor else ""
    return clean(", ".join(part for part in (state, left, reason) if part))


def profiles(found: Sequence[tuple[str, str]], active: str) -> Page:
    """Return a table of the profiles; a mark, or a word where there are no marks, shows the one in force."""
    if active and active not in dict(found):
        found = sorted([*found, (active, "there is no such profile any more; what it last said stays in force")])
    if not found:
        return ["There are no profiles."]
    rows = []
    for name, summary in found:
        mark, word, style = ("→", "in force", GOOD) if name == active else ("", "", "")
        rows.append(row(mark, (name, word, summary), style))
    columns = ("", "PROFILE", "STATE", "SUMMARY")
    return [Table(columns, tuple(rows), frozenset({"", "PROFILE", "STATE"}), wraps=True)]


def profile(found: Content) -> Page:
    """Return what a profile says, with the reason of each value below it, below what is wrong in it."""
    rows = []
    for one in found.claims:
        source = f"from {one.who}: " if one.who != found.name else ""
        value = shown(one.tunable, one.instances, one.value, brief=True)
        rows.append(row("", (named(one.tunable, one.instances), value), "", f"{source}{one.why}"))
    head = Prose(f"{found.name}: {found.summary or 'no summary'} ({found.files[0]})")
    return [*_problems(found.problems), head, *([Table(("", "TARGET", "VALUE"), tuple(rows))] if rows else [])]


def checked(problems: Sequence[Problem], summary: str) -> Page:
    """Return the report on configuration files."""
    return [*_problems(problems), summary]


def _problems(problems: Iterable[Problem]) -> Iterator[Prose]:
    """Yield a paragraph for each problem, as the daemon logs it."""
    return (Prose(str(problem)) for problem in problems)


def explained(slugs: Iterable[str]) -> Iterator[Prose]:
    """Yield a line for each slug; for a slug without a text here it points to the target's row."""
    for slug in slugs:
        mark = "·" if slug in NOTES else "!"
        yield Prose(f"{mark} {slug}: {MEANINGS.get(slug, 'a value is not in the desired state; its row says more')}")


def nothing_managed(slugs: Iterable[str]) -> Prose:
    """Return the reason why nothing is in force."""
    return Prose(NOTHING_IN_FORCE if SUSPENDED in slugs else NOTHING_MANAGED)
