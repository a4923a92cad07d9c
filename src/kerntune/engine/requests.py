"""Makes an edit of the claims from a request, or the error that refuses it without asking the kernel.

Pure: it sees the last readings, not the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kerntune.engine.claims import Claims, Covered, Edit
from kerntune.errors import InvalidValue, LimitsExceeded, NoSuchTarget, NotSupported, OverLimit
from kerntune.model import (
    NO_MEMORY,
    Claim,
    ClaimId,
    Hold,
    Limits,
    Memory,
    Origin,
    Reading,
    Setting,
    Target,
)
from kerntune.paths import setting as setting_named
from kerntune.patterns import EVERY, Kind, with_size
from kerntune.suggest import lacks, no_such_target, no_such_tunable
from kerntune.tunables.base import Tunable, as_number
from kerntune.tunables.pool_room import Room
from kerntune.units import spell_alike, spell_size, unit_of

ROOT = 0  # uid
POOLS = "hugepages"


@dataclass(frozen=True, slots=True)
class Request:
    """A Set, an Unset or a Hold: the settings, the options, and who asks.

    `must_win` makes an overridden claim an error. `hold` is the hold that the claims belong to.
    """

    settings: tuple[Setting, ...]
    unset: bool = False
    persist: bool = False
    partial: bool = False
    must_win: bool = False
    who: str = ""
    hold: Hold | None = None

    @property
    def origin(self) -> Origin:
        if self.hold:
            return Origin.HOLD
        return Origin.PERSISTENT if self.persist else Origin.RUNTIME


@dataclass(frozen=True)
class World:
    """The facts that requests are checked against: tunables, the last readings, and why a tunable is missing.

    `owed` are the targets whose own values are not back yet. `page_size` is the host's default size of huge pages in
    bytes, 0 without any. It has no slots, so that it can keep what it has sorted.
    """

    tunables: Mapping[str, Tunable]
    readings: Mapping[Target, Reading]
    missing: Mapping[str, str]
    owed: frozenset[Target] = frozenset()
    memory: Memory = NO_MEMORY
    page_size: int = 0

    def tunable(self, name: str) -> Tunable:
        if name not in self.tunables:
            raise no_such_tunable(name, sorted(self.tunables))
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
        """Return the targets that a pattern in normal form covers now."""
        return list(filter(tunable.matcher(instances), self.of(tunable)))


def edit_for(request: Request, world: World, known: Claims, limits: Limits) -> Edit:
    """Return the edit of a request, without numbers, or raise the typed error that refuses it."""
    within_reason(request, world, limits)
    if request.unset:
        return withdraw(request, world, known)
    claims = dict(claim_for(setting, request, world) for setting in request.settings)
    unique = {claim.id: claim for claim in claims}
    if len(unique) < len(request.settings):
        raise InvalidValue("two settings of one call name the same instances", "Give each tunable and instance once")
    covered = sum(map(len, claims.values()))
    if covered > limits.outcomes:
        raise too_much(f"the settings of the call cover {covered} targets together, and {limits.outcomes} are allowed")
    dropped = superseded(claims, world, known) if request.persist else ()
    edit = Edit(put=tuple(claims), drop=dropped, hold=request.hold)
    within_limits(edit, world, known, limits)
    return edit


def claim_for(setting: Setting, request: Request, world: World) -> tuple[Claim, Sequence[Target]]:
    """Return one checked setting as a claim, and what it covers."""
    tunable = world.tunable(setting.tunable)
    instances = instances_of(tunable, setting.instances, world)
    number, unit = as_number(tunable, instances, setting.value), unit_of(setting.value) if tunable.sizes else ""
    value = tunable.normal_value(number, typed=setting.value if unit else "")
    tunable.check(instances, value)
    if missing := world.missing.get(tunable.name):
        raise NotSupported(
            f"this host has no {tunable.summary}: {missing}",
            "It takes another kernel, other firmware settings or other hardware",
        )
    covered = world.covered(tunable, instances)
    if not covered and tunable.exact(instances):
        raise no_such_target(tunable.name, tunable.kind, instances, world.of(tunable))
    check_value(tunable, [world.readings[target] for target in covered], value)
    if request.hold is None:
        claim = Claim(request.origin, tunable.name, instances, value, request.who, partial=request.partial, unit=unit)
        return claim, covered
    if tunable.adds and int(value) == 0:
        raise InvalidValue(f"a hold of 0 for {tunable.name} adds nothing", "Its number is added to what there is")
    hold = request.hold
    claim = Claim(
        Origin.HOLD,
        tunable.name,
        instances,
        value,
        hold.who,
        hold.why,
        partial=request.partial,
        hold=hold.number,
        unit=unit,
    )
    return claim, covered


def sound(claim: Claim, tunables: Mapping[str, Tunable]) -> bool:
    """Return whether a call could have made a claim that was read from a file."""
    tunable = tunables.get(claim.tunable)
    try:
        if tunable is None or tunable.normal(claim.instances) != claim.instances:
            return False
        if tunable.normal_value(claim.value) != claim.value:
            return False
        tunable.check(claim.instances, claim.value)
    except InvalidValue:
        return False
    return True


def instances_of(tunable: Tunable, text: str, world: World) -> str:
    """Return the pattern of a setting in normal form; huge pages without a size have the default page size.

    Raise InvalidValue for a text that is no pattern, and NotSupported where the host has no default page size.
    """
    if tunable.kind is Kind.POOLS:
        text = with_size(text, world.page_size)
    if text or tunable.kind is not Kind.POOLS:
        return normal(tunable, text)
    if not world.page_size:
        why = world.missing.get(tunable.name, "/proc/meminfo names no Hugepagesize")
        raise NotSupported(f"this host has no default size of huge pages: {why}", "Name a size: hugepages@2M=64G")
    return spell_size(world.page_size)


def normal(tunable: Tunable, instances: str) -> str:
    """Return a pattern in normal form. Raise InvalidValue, for one that is too long before it is parsed."""
    if len(instances) > 256:
        raise InvalidValue(f"a pattern of {len(instances)} characters is too long", "256 are allowed")
    return tunable.normal(instances)


def check_value(tunable: Tunable, readings: Iterable[Reading], value: str) -> None:
    """Raise InvalidValue when no covered target can take the value; where some can, outcomes say which cannot."""
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


def superseded(claims: Covered, world: World, known: Claims) -> tuple[ClaimId, ...]:
    """Return the runtime claims that persistent ones replace: those that cover any of the same targets."""
    mine: dict[str, set[Target]] = {}
    for claim, covered in claims.items():
        mine.setdefault(claim.tunable, set()).update(covered)
    named = {(claim.tunable, claim.instances) for claim in claims}
    return tuple(
        other.id
        for other in known.by_origin(Origin.RUNTIME)
        if (other.tunable, other.instances) in named
        or (
            other.tunable in mine
            and not mine[other.tunable].isdisjoint(world.covered(world.tunables[other.tunable], other.instances))
        )
    )


def withdraw(request: Request, world: World, known: Claims) -> Edit:
    """Return the edit that drops the claims a request names. Raise NoSuchTarget for a name that nobody knows."""
    dropped: list[ClaimId] = []
    # Each once: what a name stands for may be all there is.
    for name, named in dict.fromkeys((setting.tunable, setting.instances) for setting in request.settings):
        tunable = world.tunable(name)
        if named == EVERY and tunable.kind is not Kind.SINGLE:
            dropped += [claim.id for claim in known.by_origin(request.origin) if claim.tunable == tunable.name]
            # Values that are owed are tried again at once.
            owed = (target.instance for target in world.owed if target.tunable == tunable.name)
            dropped += [ClaimId(request.origin, tunable.name, instance) for instance in owed]
            continue
        instances = instances_of(tunable, named, world)
        claim_id = ClaimId(request.origin, tunable.name, instances)
        is_known = claim_id in known.by_id or not tunable.exact(instances) or world.covered(tunable, instances)
        if not is_known and tunable.name not in world.missing:
            what = f"{lacks(tunable.name, tunable.kind, instances)}, and no claim names it"
            raise NoSuchTarget(what, "See `kerntune status`")
        dropped.append(claim_id)
    return Edit(drop=tuple(dropped))


def within_reason(request: Request, world: World, limits: Limits) -> None:
    """Raise LimitsExceeded for a call that would keep us busy too long; anybody may ask for a plan."""
    settings = len(request.settings)
    if settings > limits.claims:
        raise too_much(f"a call of {settings} settings is too long, and {limits.claims} are allowed")
    if comparisons((setting.tunable for setting in request.settings), world) > limits.comparisons:
        raise too_much(f"{settings} settings for so many targets are too much for one call")


def comparisons(names: Iterable[str], world: World) -> int:
    """Return how many comparisons there are of these patterns, given by their tunables, with the targets of each."""
    return sum(len(world.targets.get(name, ())) for name in names)


def work_of(request: Request, world: World, known: Claims) -> int:
    """Return how many comparisons it takes to check a request: a persistent one is compared with what it replaces."""
    found = comparisons((setting.tunable for setting in request.settings), world)
    if request.persist and not request.unset:
        named = {setting.tunable for setting in request.settings}
        others = (claim.tunable for claim in known.by_origin(Origin.RUNTIME) if claim.tunable in named)
        found += comparisons(others, world)
    return found


def too_much(what: str) -> LimitsExceeded:
    return LimitsExceeded(what, "Use patterns that cover more at once, or several calls")


def within_limits(edit: Edit, world: World, known: Claims, limits: Limits) -> None:
    """Raise LimitsExceeded or OverLimit when there would be too many claims or holds of callers after the edit."""
    if not edit.put:
        return
    origin = edit.put[0].origin
    if len(known.apply(edit).by_origin(origin)) > limits.claims:
        raise LimitsExceeded(
            f"there are {limits.claims} {origin.word} claims already",
            f"Withdraw some (kerntune unset), use patterns, or change {setting_named('limits', 'claims')}",
        )
    if edit.hold:
        may_hold(edit.hold, edit.put, world, known, limits)


def may_hold(hold: Hold, claims: Sequence[Claim], world: World, known: Claims, limits: Limits) -> None:
    """Raise LimitsExceeded when there are holds enough, OverLimit when one user would hold too much memory.

    Root sets the limits; those of a single user do not bind root.
    """
    others = [other for other in known.holds.values() if other.number != hold.number]
    mine = {other.number for other in others if other.uid == hold.uid}
    if len(others) >= limits.holds:
        raise LimitsExceeded(
            f"there are {limits.holds} holds already",
            f"`kerntune holds` shows them; the administrator may change {setting_named('limits', 'holds')}",
        )
    if hold.uid == ROOT:
        return
    if len(mine) >= limits.holds_per_user:
        raise LimitsExceeded(
            f"uid {hold.uid} has {limits.holds_per_user} holds already",
            "Release some (kerntune holds, kerntune release); the administrator may change "
            f"{setting_named('limits', 'holds-per-user')}",
        )
    # Or one user's claims would leave the others none.
    share = limits.claims * limits.holds_per_user // max(1, limits.holds)
    if sum(claim.hold in mine for claim in known.by_origin(Origin.HOLD)) + len(claims) > share:
        raise LimitsExceeded(f"the holds of uid {hold.uid} would have more than {share} claims", "Use patterns")
    asked = sum(bytes_of(claim, world) for claim in claims)
    held = {claim: bytes_of(claim, world) for claim in known.by_origin(Origin.HOLD) if claim.hold != hold.number}
    has = sum(size for claim, size in held.items() if claim.hold in mine)
    may = (sum(held.values()) + spare(world, limits)) * limits.held_percent_per_user // 100
    if asked and has + asked > may:
        unit = next((claim.unit for claim in claims if claim.unit), "")
        figures = spell_alike((asked, max(0, may - has), has, may), unit)
        raise OverLimit(
            "{} in huge pages asked, {} possible: uid {uid} holds {}, and one user may hold {}, {percent} % of what "
            "can be held now".format(*figures, uid=hold.uid, percent=limits.held_percent_per_user),
            "Ask for less, or release what is held; the administrator may change "
            f"{setting_named('limits', 'held-percent-per-user')}",
        )


def spare(world: World, limits: Limits) -> int:
    """Return the memory that huge pages can still have, in bytes, as it was read last."""
    pools = {target: reading for target, reading in world.readings.items() if target.tunable == POOLS}
    known = {target: reading for target, reading in pools.items() if reading.value is not None}
    return Room.on(world.memory, limits, known).spare


def bytes_of(claim: Claim, world: World) -> int:
    """Return the memory that a claim of a hold sets aside."""
    tunable = world.tunables[claim.tunable]
    return sum(tunable.takes(target, claim.value) for target in world.covered(tunable, claim.instances))
