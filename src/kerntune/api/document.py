"""The daemon's answers, as types and look-ups; this module asks nothing and prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, NotRequired, TypedDict

from kerntune import errors, syntax
from kerntune.globs import Glob, natural_sort_key
from kerntune.model import Target
from kerntune.patterns import EVERY, GLOB, PATTERNS, Kind, Matcher, full_name, left_out_word, with_size
from kerntune.suggest import no_such_target, no_such_tunable
from kerntune.syntax import What


class Outcome(NamedTuple):
    """One `(ssssssss)`; state and reason stay text, so that a newer daemon's words can be shown."""

    tunable: str
    instance: str
    requested: str
    before: str
    actual: str
    state: str
    reason: str
    detail: str


class Change(NamedTuple):
    """The answer of Set and Unset: `changed` is True if anything changed, `outcomes` has one for each target."""

    changed: bool
    outcomes: tuple[Outcome, ...]


class Pool(NamedTuple):
    """One `(tsttttt)` of HugePages.Pools: bytes of a page, the node's number ("": the whole host), counts of pages."""

    page_size: int
    node: str
    total: int
    free: int
    reserved: int
    surplus: int
    requested: int


class Pass(NamedTuple):
    """A pass of the daemon that changed something: its cause, and only the outcomes that changed."""

    generation: int
    cause: str
    outcomes: tuple[Outcome, ...]


class Health(NamedTuple):
    """The daemon's Degraded, when it changes; empty means all is well."""

    degraded: tuple[str, ...]


class GuardChange(NamedTuple):
    """A change of the memory guard's state; bytes, and (pid, command, uid, bytes) of the largest processes."""

    state: str
    level: int
    reason: str
    headroom: int
    floor: int
    limit: int
    largest: tuple[tuple[int, str, int, int], ...]
    growing: tuple[tuple[int, str, int, int], ...]
    culprit: str = ""


Event = Pass | Health | GuardChange


class MemoryRow(TypedDict):
    """The host's memory, in bytes."""

    total: int
    available: int
    hugetlb: int
    swap_total: int
    swap_free: int
    committed: int
    commit_limit: int


class HostRow(TypedDict):
    """The host that the daemon tunes; `default_page_size` is in bytes."""

    kernel: str
    simulated: bool
    root: str
    default_page_size: int
    memory: MemoryRow


class GuardRow(TypedDict):
    """The memory guard; sizes are in bytes. `room` is what a cap still grants."""

    state: str
    level: int
    reason: str
    headroom: int
    floor: int
    room: NotRequired[int]
    culprit: NotRequired[str]


class TunableRow(TypedDict):
    """A tunable; `kind` is the kind of its instances, `detail` says why it is not supported or its values may be old.

    `unit` is what its values count: "pages", "KiB", or "" for other values.
    """

    name: str
    summary: str
    kind: str
    supported: bool
    detail: str
    unit: NotRequired[str]


class TargetRow(TypedDict):
    """A target; `claim`, `beaten` and `parts` (the summands of its number) are claim ids.

    `value` is None when it cannot be read. `choices` are the values that can be chosen, those of modules that the
    kernel would load included, or a range such as 0..200.
    """

    tunable: str
    instance: str
    aliases: list[str]
    value: str | None
    choices: list[str]
    requested: str
    before: str
    state: str
    reason: str
    detail: str
    claim: str | None
    beaten: list[str]
    baseline: str | None
    parts: NotRequired[list[str]]


class ClaimRow(TypedDict):
    """A claim; `matches` are the instances that it matches now, `place` is the file and line that make it."""

    id: str
    origin: str
    tunable: str
    instances: str
    value: str
    who: str
    why: str
    seq: int
    partial: bool
    matches: list[str]
    hold: NotRequired[int]
    place: NotRequired[str]


class HoldRow(TypedDict):
    """A hold; times are in microseconds since 1970, 0 for never. A detached hold does not end with its client."""

    hold: int
    who: str
    why: str
    uid: int
    detached: bool
    since_usec: int
    expires_usec: int


class Document(TypedDict):
    """The answer of Manager.Describe, as JSON."""

    version: str
    generation: int
    degraded: list[str]
    profile: str
    host: HostRow
    guard: GuardRow
    counters: dict[str, int]
    tunables: list[TunableRow]
    targets: list[TargetRow]
    claims: list[ClaimRow]
    holds: NotRequired[list[HoldRow]]


def named(tunable: str, instance: str) -> str:
    """Return the name of a target or a claim as people write it."""
    return f"{tunable}@{instance}" if instance else tunable


def resolve(document: Document, text: str) -> list[What]:
    """Return the tunables and instances that a name means, as people type it; a glob may stand for several tunables.

    Raise Usage, and UnknownTunable.
    """
    tunable, instances = syntax.what(text)
    if not GLOB.search(tunable):
        tunable_row(document, tunable)
        return [What(tunable, instances)]
    glob = Glob.parse(tunable)
    found = [What(row["name"], instances) for row in document["tunables"] if glob.matches(row["name"])]
    if not found:
        tunable_row(document, tunable)
    # Of the tunables that a glob stands for, some may have no instances of such a name.
    return [each for each in found if is_pattern(document, *each)] or found


def select(document: Document, names: Sequence[str] = ()) -> list[TargetRow]:
    """Return the targets that names mean, as people type them, each once; without names all of them.

    Devices that `*` leaves out are among them only if they have a claim, or a name means them. Raise Usage,
    UnknownTunable, InvalidValue for a text that is no pattern, and NoSuchTarget or NotSupported for instances of which
    there are none, and for which no claim waits.
    """
    found: dict[tuple[str, str], TargetRow] = {}
    for text in names or (EVERY,):
        meant = resolve(document, text)
        rows = [row for each in meant for row in covered(document, *each)]
        if not rows and meant[0].instances != EVERY and not waiting(document, meant):
            if GLOB.search(text.partition("@")[0]):
                raise errors.NoSuchTarget(f"nothing matches {text}", "kerntune list shows what there is")
            raise nothing_matches(document, *meant[0])
        found |= {(row["tunable"], row["instance"]): row for row in rows}
    return list(found.values())


def waiting(document: Document, meant: Iterable[What]) -> list[ClaimRow]:
    """Return the claims that wait for a device, of these names."""
    found: set[str] = set()
    for tunable, instances in meant:
        pattern, matches = normal(document, tunable, instances), matcher(document, tunable, instances)
        for claim in document["claims"]:
            is_same = claim["tunable"] == tunable and claim["instances"] == pattern
            if not claim["matches"] and (is_same or matches(Target(claim["tunable"], claim["instances"]))):
                found.add(claim["id"])
    return [claim for claim in document["claims"] if claim["id"] in found]


def covered(document: Document, name: str, pattern: str) -> list[TargetRow]:
    """Return the targets of a tunable that a pattern covers; "" and "*" cover all, but drives that `*` leaves out.

    Those that have a claim are covered all the same. Raise UnknownTunable, and InvalidValue for a text that is no
    pattern of its instances.
    """
    kind, matches = kind_of(tunable_row(document, name)), matcher(document, name, pattern)
    rows = [
        row
        for row in document["targets"]
        if matches(Target(row["tunable"], row["instance"], aliases=tuple(row["aliases"])))
    ]
    if pattern not in ("", EVERY):
        return rows
    return [row for row in rows if row["claim"] or not is_left_out(kind, row)]


def matcher(document: Document, name: str, pattern: str) -> Matcher:
    """Return a function that checks if a pattern covers a target of this tunable; "" and "*" cover all of them."""
    instances = normal(document, name, pattern)
    if instances == EVERY:
        return lambda target: target.tunable == name
    matches = PATTERNS[kind_of(tunable_row(document, name))].matcher(instances)
    return lambda target: target.tunable == name and matches(target)


def normal(document: Document, name: str, pattern: str) -> str:
    """Return a pattern in normal form, "*" for all instances. Raise UnknownTunable and InvalidValue."""
    kind = kind_of(tunable_row(document, name))
    if pattern in ("", EVERY):
        return EVERY
    if kind is Kind.POOLS:
        pattern = with_size(pattern, document["host"]["default_page_size"])
    found = PATTERNS[kind].normal(pattern)
    if kind is Kind.NAMES:
        return full_name(found, (row["instance"] for row in document["targets"] if row["tunable"] == name))
    return found


def is_pattern(document: Document, name: str, pattern: str) -> bool:
    """Return True if a text may name instances of a tunable."""
    try:
        normal(document, name, pattern)
    except errors.InvalidValue:
        return False
    return True


def is_left_out(kind: Kind, row: TargetRow) -> bool:
    """Return True for a device that `*` does not cover."""
    return kind is Kind.DRIVES and bool(left_out_word(row["instance"]))


def left_out_of(document: Document, names: Sequence[str], rows: Sequence[TargetRow]) -> list[str]:
    """Return the devices of these tunables that the rows of `select` do not have, because `*` leaves them out."""
    kinds = {row["name"]: kind_of(row) for row in document["tunables"]}
    tunables = {
        each.tunable for text in names or (EVERY,) for each in resolve(document, text) if each.instances == EVERY
    }
    there = {row["instance"] for row in rows}
    found = {
        row["instance"]: None
        for row in document["targets"]
        if row["tunable"] in tunables and is_left_out(kinds[row["tunable"]], row) and row["instance"] not in there
    }
    return sorted(found, key=natural_sort_key)


def kind_of(row: TunableRow) -> Kind:
    """Return what the instances of a tunable are. Raise Failed when the daemon is of another version than we are."""
    try:
        return Kind(row["kind"])
    except (KeyError, ValueError) as error:
        hint = "It was upgraded and not restarted: systemctl restart kerntuned"
        raise errors.Failed("kerntuned is of another version than this command", hint) from error


def managed(document: Document) -> set[tuple[str, str]]:
    """Return (tunable, instance) of every target that has a claim, and of every pattern kept for later targets."""
    targets = {(row["tunable"], row["instance"]) for row in document["targets"] if row["claim"]}
    return targets | {(row["tunable"], row["instances"]) for row in waiting_claims(document)}


def waiting_claims(document: Document) -> list[ClaimRow]:
    """Return the claims that match no target now, and are kept for later ones."""
    return [claim for claim in document["claims"] if not claim["matches"]]


def claims_behind(document: Document) -> dict[tuple[str, str], ClaimRow]:
    """Return the claim behind each (tunable, instance) of outcomes.

    It is the claim that won there, or the pattern itself that waits for a device.
    """
    claims = {claim["id"]: claim for claim in document["claims"]}
    waiting = {(row["tunable"], row["instances"]): row for row in waiting_claims(document)}
    won = [(row, claims.get(row["claim"] or "")) for row in document["targets"]]
    return waiting | {(row["tunable"], row["instance"]): claim for row, claim in won if claim}


def in_order(document: Document, rows: Iterable[TargetRow]) -> list[TargetRow]:
    """Return targets in the order of their tunables, then of their names, where 10 comes after 9."""
    places = {row["name"]: place for place, row in enumerate(document["tunables"])}
    return sorted(rows, key=lambda row: (places.get(row["tunable"], len(places)), natural_sort_key(row["instance"])))


def tunable_row(document: Document, name: str) -> TunableRow:
    """Return the tunable of that name. Raise UnknownTunable, which lists the names."""
    for row in document["tunables"]:
        if row["name"] == name:
            return row
    raise no_such_tunable(name, [row["name"] for row in document["tunables"]])


def may_be_old(row: TunableRow) -> bool:
    """Return True if the values of a tunable that the host supports are those of an earlier look."""
    return row["supported"] and bool(row["detail"])


def nothing_matches(document: Document, name: str, pattern: str) -> errors.KerntuneError:
    """Return the error for a pattern that covers no target: the tunable is not supported, or it has other instances."""
    row = tunable_row(document, name)
    if not row["supported"]:
        return errors.NotSupported(f"this host does not support {name}", row["detail"])
    kind = kind_of(row)
    rows = covered(document, name, EVERY) or [each for each in document["targets"] if each["tunable"] == name]
    there = [Target(name, each["instance"], aliases=tuple(each["aliases"])) for each in rows]
    text = normal(document, name, pattern)
    missing = no_such_target(name, kind, text, there)
    if pattern == EVERY or not PATTERNS[kind].exact(text):
        return errors.NoSuchTarget(f"nothing matches {named(name, pattern)}", missing.hint)
    return missing
