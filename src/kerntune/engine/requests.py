"""From what a caller asks to an edit of the claim book, or the error that refuses it without asking the kernel.

Pure: it sees the last readings, not the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kerntune.engine.claims import ClaimBook, Edit
from kerntune.engine.resolve import Covered
from kerntune.errors import InvalidValue, LimitsExceeded, NoSuchTarget, NotSupported, UnknownTunable
from kerntune.model import Claim, ClaimId, Limits, Origin, Reading, Setting, Target
from kerntune.tunables.base import Tunable

EVERY = "*"


@dataclass(frozen=True, slots=True)
class Request:
    """A Set or an Unset: the settings, the options, and who asks. `must_win` makes a beaten claim an error."""

    settings: tuple[Setting, ...]
    unset: bool = False
    persist: bool = False
    partial: bool = False
    must_win: bool = False
    who: str = ""

    @property
    def origin(self) -> Origin:
        return Origin.PERSISTENT if self.persist else Origin.RUNTIME


@dataclass(frozen=True)
class World:
    """What requests are checked against: the tunables, the last readings, and which tunables are missing and why.

    `owed` are the targets whose own values are not back yet. It has no slots, so that it can keep what it has sorted.
    """

    tunables: Mapping[str, Tunable]
    readings: Mapping[Target, Reading]
    missing: Mapping[str, str]
    owed: frozenset[Target] = frozenset()

    def tunable(self, name: str) -> Tunable:
        if name not in self.tunables:
            raise UnknownTunable(f"there is no tunable {name!r}", f"There are {', '.join(sorted(self.tunables))}")
        return self.tunables[name]

    @cached_property
    def targets(self) -> Mapping[str, Sequence[Target]]:
        """The targets of each tunable."""
        found: dict[str, list[Target]] = {}
        for target in self.readings:
            found.setdefault(target.tunable, []).append(target)
        return found

    def of(self, tunable: Tunable) -> Sequence[Target]:
        """Return the targets of one tunable."""
        return self.targets.get(tunable.name, ())

    def covered(self, tunable: Tunable, instances: str) -> list[Target]:
        """The targets a pattern in normal form covers now."""
        return list(filter(tunable.matcher(instances), self.of(tunable)))


def edit_for(request: Request, world: World, book: ClaimBook, sequence: Iterator[int], limits: Limits) -> Edit:
    """The edit a request amounts to, or the typed error that refuses it; nothing is changed here.

    `sequence` has a number for each setting, and one more.
    """
    within_reason(request, world, limits)
    if request.unset:
        return withdraw(request, world, book, next(sequence))
    claims = dict(claim_for(setting, request, world, next(sequence)) for setting in request.settings)
    unique = {claim.id: claim for claim in claims}
    if len(unique) < len(request.settings):
        raise InvalidValue("two settings of one call name the same instances", "Give each tunable and instance once")
    covered = sum(map(len, claims.values()))
    if covered > limits.outcomes:
        raise too_much(f"the settings of the call cover {covered} targets together, and {limits.outcomes} are allowed")
    edit = Edit(next(sequence), tuple(claims), superseded(claims, world, book) if request.persist else ())
    within_limit(book.apply(edit), request.origin, limits)
    return edit


def claim_for(setting: Setting, request: Request, world: World, seq: int) -> tuple[Claim, Sequence[Target]]:
    """Return one checked setting as a claim, and what it covers."""
    tunable = world.tunable(setting.tunable)
    value = tunable.normal_value(setting.value)
    instances = normal(tunable, setting.instances)
    if missing := world.missing.get(tunable.name):
        raise NotSupported(
            f"this host has no {tunable.summary}: {missing}",
            "It takes another kernel, other firmware settings or other hardware",
        )
    covered = world.covered(tunable, instances)
    if not covered and tunable.exact(instances):
        there = ", ".join(sorted({target.instance for target in world.of(tunable)})) or "nothing"
        raise NoSuchTarget(
            f"{tunable.name} has no {instances!r}", f"What there is: {there}; a pattern may name what comes later"
        )
    check_value(tunable, [world.readings[target] for target in covered], value)
    return Claim(request.origin, tunable.name, instances, value, request.who, "", seq, request.partial), covered


def sound(claim: Claim, tunables: Mapping[str, Tunable]) -> bool:
    """Whether a claim that was read from a file could have been made by a call."""
    tunable = tunables.get(claim.tunable)
    try:
        return (
            tunable is not None
            and tunable.normal(claim.instances) == claim.instances
            and tunable.normal_value(claim.value) == claim.value
        )
    except InvalidValue:
        return False


def normal(tunable: Tunable, instances: str) -> str:
    """A pattern in normal form; too long a one is refused before it is looked at."""
    if len(instances) > 256:
        raise InvalidValue(f"a pattern of {len(instances)} characters is too long", "256 are allowed")
    return tunable.normal(instances)


def check_value(tunable: Tunable, readings: Iterable[Reading], value: str) -> None:
    """InvalidValue when no covered target can take the value; some that cannot are told so by their outcomes."""
    refusals = []
    for reading in readings:
        try:
            tunable.validate(reading, value)
        except InvalidValue as error:
            refusals.append(error)
        else:
            return
    if refusals:
        raise refusals[0]


def superseded(claims: Covered, world: World, book: ClaimBook) -> tuple[ClaimId, ...]:
    """The runtime claims that a persistent one takes the place of: those that cover any of the same targets."""
    mine: dict[str, set[Target]] = {}
    for claim, covered in claims.items():
        mine.setdefault(claim.tunable, set()).update(covered)
    named = {(claim.tunable, claim.instances) for claim in claims}
    return tuple(
        other.id
        for other in book.by_origin(Origin.RUNTIME)
        if (other.tunable, other.instances) in named
        or (
            other.tunable in mine
            and not mine[other.tunable].isdisjoint(world.covered(world.tunables[other.tunable], other.instances))
        )
    )


def withdraw(request: Request, world: World, book: ClaimBook, seq: int) -> Edit:
    """The claims of the request's origin that it names; naming none is no error, but a name nobody knows is."""
    dropped: list[ClaimId] = []
    # Each once: what a name stands for may be all there is.
    for name, named in dict.fromkeys((setting.tunable, setting.instances) for setting in request.settings):
        tunable = world.tunable(name)
        if named == EVERY:
            dropped += [claim.id for claim in book.by_origin(request.origin) if claim.tunable == tunable.name]
            # Values that are owed are tried again at once.
            owed = (target.instance for target in world.owed if target.tunable == tunable.name)
            dropped += [ClaimId(request.origin, tunable.name, instance) for instance in owed]
            continue
        instances = normal(tunable, named)
        claim_id = ClaimId(request.origin, tunable.name, instances)
        known = claim_id in book.claims or not tunable.exact(instances) or world.covered(tunable, instances)
        if not known and tunable.name not in world.missing:
            raise NoSuchTarget(f"{tunable.name} has no {instances!r}, and no claim names it", "See `kerntune status`")
        dropped.append(claim_id)
    return Edit(seq, drop=tuple(dropped))


def within_reason(request: Request, world: World, limits: Limits) -> None:
    """LimitsExceeded for a call that would keep us busy too long; anybody may ask for a plan."""
    settings = len(request.settings)
    if settings > limits.claims:
        raise too_much(f"a call of {settings} settings is too long, and {limits.claims} are allowed")
    if comparisons((setting.tunable for setting in request.settings), world) > limits.comparisons:
        raise too_much(f"{settings} settings for so many targets are too much for one call")


def comparisons(names: Iterable[str], world: World) -> int:
    """Return how often a pattern of these tunables is compared with a target, when each of them is with all of its."""
    return sum(len(world.targets.get(name, ())) for name in names)


def work_of(request: Request, world: World, book: ClaimBook) -> int:
    """Return how many comparisons it takes to check a request: a persistent one is compared with what it replaces."""
    found = comparisons((setting.tunable for setting in request.settings), world)
    if request.persist and not request.unset:
        named = {setting.tunable for setting in request.settings}
        others = (claim.tunable for claim in book.by_origin(Origin.RUNTIME) if claim.tunable in named)
        found += comparisons(others, world)
    return found


def too_much(what: str) -> LimitsExceeded:
    return LimitsExceeded(what, "Use patterns that cover more at once, or several calls")


def within_limit(book: ClaimBook, origin: Origin, limits: Limits) -> None:
    """LimitsExceeded when a book would hold too many claims made by callers."""
    if len(book.by_origin(origin)) > limits.claims:
        raise LimitsExceeded(
            f"there are {limits.claims} {origin.word} claims already",
            "Withdraw some: kerntune unset, or patterns",
        )
