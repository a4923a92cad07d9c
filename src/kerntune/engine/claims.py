"""The claims, which of them wins, and the desired state that follows. Pure.

An edit is data: the claims in force can be made again without an edit that failed. `resolve` makes of claims,
baselines and targets the desired state of each target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

from kerntune.model import Baseline, Claim, ClaimId, DesiredState, Hold, Origin, Reading, Reason, State, Step, Target
from kerntune.tunables.base import Tunable
from kerntune.tunables.sums import Total

FILES: Final = frozenset({Origin.CONFIG, Origin.PROFILE})
SUSPENDED: Final = "config-suspended"
CALLERS: Final = frozenset({Origin.PERSISTENT, Origin.RUNTIME})


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice of callers among the files: a profile ("": none), or to suspend all, the configuration too."""

    profile: str = ""
    suspended: bool = False

    @property
    def troubles(self) -> frozenset[str]:
        """The slugs that Degraded has of it."""
        return frozenset({SUSPENDED} if self.suspended else ())


NOTHING_CHOSEN: Final = Choice()


@dataclass(frozen=True, slots=True)
class Selection:
    """A request for the files and claims as a whole: another profile ("": none), or a reset.

    A reset drops all that callers asked for; with `baseline` it suspends the files too, with `holds` it ends all holds.
    """

    profile: str | None = None
    reset: bool = False
    baseline: bool = False
    holds: bool = False

    def chosen(self, before: Choice) -> Choice:
        """Return the choice after it. Naming a profile, or a reset to the files, ends their suspension."""
        profile = before.profile if self.profile is None else self.profile
        ends = self.reset or bool(self.profile)
        return Choice(profile, self.baseline or (before.suspended and not ends))


@dataclass(frozen=True, slots=True)
class FilesEdit:
    """All claims of the files from then on, and the choice that makes them so; `gone` are those that end with it.

    The caller is answered the outcomes of those that are `answered`, and of the targets of what goes.
    """

    claims: tuple[Claim, ...]
    choice: Choice
    answered: tuple[Claim, ...] = ()
    gone: tuple[ClaimId, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """Claims to put and claims to drop; `seq` is the place of the edit among all edits, 0 until it is queued.

    `hold` begins with the claims that are put, and the holds with the numbers in `ended` end: `drop` has their claims.
    `is_fact`: nobody asks for it, for these holds are over, whether or not that can be done or saved now.
    """

    seq: int = 0
    put: tuple[Claim, ...] = ()
    drop: tuple[ClaimId, ...] = ()
    files: FilesEdit | None = None
    hold: Hold | None = None
    ended: tuple[int, ...] = ()
    is_fact: bool = False

    def numbered(self, last: int) -> Edit:
        """Return the edit with the numbers after `last`: one for each claim that it puts, and the highest its own."""
        put = tuple(replace(claim, seq=seq) for seq, claim in enumerate(self.put, last + 1))
        return replace(self, seq=last + len(put) + 1, put=put)

    @property
    def released(self) -> tuple[ClaimId, ...]:
        """The claims that go with it."""
        return (*self.drop, *(self.files.gone if self.files else ()))

    @property
    def named(self) -> frozenset[ClaimId]:
        """The claims that it puts."""
        return frozenset(claim.id for claim in (*self.put, *(self.files.claims if self.files else ())))


@dataclass(frozen=True, slots=True)
class Claims:
    """Every claim there is, by its identity, what was chosen of the files, and the holds by their numbers.

    `last_hold` is the highest number that a hold of this boot has had: none has it again.
    """

    by_id: Mapping[ClaimId, Claim] = field(default_factory=dict)
    choice: Choice = NOTHING_CHOSEN
    holds: Mapping[int, Hold] = field(default_factory=dict)
    last_hold: int = 0

    @classmethod
    def of(cls, *claims: Claim) -> Claims:
        return cls({claim.id: claim for claim in claims})

    def apply(self, edit: Edit) -> Claims:
        """Return the claims after the edit, which neither drops nor replaces a claim that is newer than itself."""
        by_id = dict(self.by_id)
        for claim_id in edit.drop:
            if claim_id in by_id and by_id[claim_id].seq < edit.seq:
                del by_id[claim_id]
        for claim in edit.put:
            if claim.id not in by_id or by_id[claim.id].seq < claim.seq:
                by_id[claim.id] = claim
        holds = {number: hold for number, hold in self.holds.items() if number not in edit.ended}
        if edit.hold:
            holds[edit.hold.number] = edit.hold
        after = replace(self, by_id=by_id, holds=holds, last_hold=max(self.last_hold, *holds, 0))
        if edit.files is None:
            return after
        others = {claim_id: claim for claim_id, claim in by_id.items() if claim_id.origin not in FILES}
        return replace(after, by_id=others, choice=edit.files.choice).having(edit.files.claims)

    def files_edit(self, files: FilesEdit, *, reset: bool, holds: bool = False) -> Edit:
        """Return the edit that replaces the claims of the files; `reset` also drops those of all callers.

        `holds`: and ends all holds.
        """
        kept = {claim.id for claim in files.claims}
        gone = tuple(claim_id for claim_id in self.by_id if claim_id.origin in FILES and claim_id not in kept)
        dropped = tuple(claim_id for claim_id in self.by_id if reset and claim_id.origin in CALLERS)
        ending = self.releasing(self.holds if holds else ())
        return replace(ending, drop=(*dropped, *ending.drop), files=replace(files, gone=gone))

    def releasing(self, numbers: Collection[int]) -> Edit:
        """Return the edit that ends those of these holds that exist."""
        ended = tuple(number for number in numbers if number in self.holds)
        return Edit(drop=tuple(claim_id for claim_id in self.by_id if claim_id.hold in ended), ended=ended)

    def without_files(self) -> Claims:
        """Return what is saved: the files keep their own claims."""
        return replace(self, by_id={i: claim for i, claim in self.by_id.items() if i.origin not in FILES})

    def having(self, claims: Iterable[Claim]) -> Claims:
        """Return these claims beside those there are."""
        return replace(self, by_id={**self.by_id, **{claim.id: claim for claim in claims}})

    def without(self, claims: Iterable[Claim]) -> Claims:
        gone = {claim.id for claim in claims}
        return replace(self, by_id={claim_id: claim for claim_id, claim in self.by_id.items() if claim_id not in gone})

    def by_origin(self, origin: Origin) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.by_id.values() if claim.origin is origin)

    def same_as(self, other: Claims) -> bool:
        """Return whether the claims differ in nothing but sequence numbers."""
        if (self.choice, self.holds) != (other.choice, other.holds) or self.by_id.keys() != other.by_id.keys():
            return False
        return all(replace(claim, seq=0) == replace(other.by_id[i], seq=0) for i, claim in self.by_id.items())


def why_not_saved(error: OSError) -> str:
    """Return the error in prose, with the file where it names one (a full disk does not)."""
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


class StateStore(Protocol):
    """Claims and baselines on disk. Every method returns after the data is safe, or raises OSError; thread-safe."""

    @property
    def claims(self) -> Claims:
        """The claims that were committed last."""

    @property
    def baselines(self) -> Mapping[Target, str]:
        """The host's own values of the targets we write."""

    @property
    def reserved(self) -> Collection[Target]:
        """Return those of them that may be claimed by somebody who is not known now: they are not put back."""

    def save_baselines(self, baselines: Sequence[Baseline]) -> None:
        """Save the host's own values, before the first write."""

    def drop_baselines(self, targets: Collection[Target]) -> None:
        """Drop baselines that were put back."""

    def commit(self, claims: Claims) -> None:
        """Save the claims, before the caller is answered."""


Covered = Mapping[Claim, Collection[Target]]
NOTHING_READ: Final[Mapping[Target, Reading]] = {}


@dataclass(frozen=True, slots=True)
class PassInput:
    """The input of a pass. `named` are the claims a caller waits for; `enforce` overrules drift (boot, reload).

    `asking` are those of them that this pass is for; others have had theirs, or are still to have it.

    `foresees`: it is a dry run of an edit, not a look. `recalls`: what was in vain when it was tried last counts as in
    vain again, for who only asks.

    `spent` are the targets whose baselines are not owed any more, and could not be dropped. Those of `reserved` targets
    are not put back, for claims that are not known now may be on them.
    """

    claims: tuple[Claim, ...]
    baselines: Mapping[Target, str]
    named: frozenset[ClaimId] = frozenset()
    released: frozenset[ClaimId] = frozenset()
    enforce: bool = False
    dry: bool = False
    spent: frozenset[Target] = frozenset()
    reserved: frozenset[Target] = frozenset()
    asking: frozenset[ClaimId] = frozenset()
    foresees: bool = False
    recalls: bool = False


def rank(claim: Claim) -> tuple[int, int]:
    """Return the rank of a claim: the higher origin wins, then the newer claim."""
    return claim.origin, claim.seq


def precedence(tunable: Tunable, claim: Claim) -> tuple[int, int, int]:
    """Return the rank of a claim on a target: the higher origin wins, then the fastest hold, then the newer claim."""
    return claim.origin, tunable.speed(claim.value) if claim.origin is Origin.HOLD else 0, claim.seq


def cover(tunable: Tunable, claims: Iterable[Claim], targets: Collection[Target]) -> dict[Claim, list[Target]]:
    """Return what each claim on one tunable covers; a pattern is parsed once, however many targets there are."""
    mine = {claim: tunable.matcher(claim.instances) for claim in claims if claim.tunable == tunable.name}
    return {claim: [target for target in targets if matches(target)] for claim, matches in mine.items()}


def resolve(
    tunable: Tunable,
    claims: Iterable[Claim],
    baselines: Mapping[Target, str],
    targets: Collection[Target],
    strict: Collection[ClaimId] = (),
    *,
    readings: Mapping[Target, Reading] = NOTHING_READ,
    reserved: Collection[Target] = (),
) -> dict[Target, DesiredState]:
    """Return the desired state of each target of one tunable: without a claim it is the baseline, if it has one.

    The baselines of `reserved` targets count in sums, and are not put back. `readings` have the own numbers of pools
    that were never written: what holds add goes on top of them.
    """
    covered = cover(tunable, claims, targets)
    return desired_states_of(tunable, covered, baselines, targets, strict, readings=readings, reserved=reserved)


def desired_states_of(
    tunable: Tunable,
    covered: Covered,
    baselines: Mapping[Target, str],
    targets: Collection[Target],
    strict: Collection[ClaimId] = (),
    *,
    readings: Mapping[Target, Reading] = NOTHING_READ,
    reserved: Collection[Target] = (),
) -> dict[Target, DesiredState]:
    """Return the desired states as `resolve` does, from what each claim covers."""
    covering: dict[Target, list[Claim]] = {}
    for claim in sorted(covered, key=partial(precedence, tunable), reverse=True):
        for target in covered[claim]:
            covering.setdefault(target, []).append(claim)
    sums: Mapping[Target, Total] = {}
    if tunable.adds and any(claim.origin is Origin.HOLD for claim in covered):
        own = {t: int(baselines.get(t) or own_number(readings.get(t))) for t in targets}
        sums = tunable.sums({target: covering.get(target, ()) for target in targets}, own)
    desired_states = {}
    for target in targets:
        if asking := covering.get(target):
            desired_states[target] = desired_state_of(target, asking, sums.get(target), strict)
        elif target in baselines and target not in reserved:
            host = Claim(Origin.BASELINE, tunable.name, target.instance, baselines[target], who="the host")
            desired_states[target] = DesiredState(target, host.value, host)
    return desired_states


def desired_state_of(
    target: Target, asking: Sequence[Claim], total: Total | None, strict: Collection[ClaimId]
) -> DesiredState:
    """Return the desired state of a target that is claimed, by the strongest claim or as the sum of several."""
    if total is None:
        return DesiredState(target, asking[0].value, asking[0], tuple(asking[1:]), strict=waits_for(asking[0], strict))
    parts = total.sum.parts
    held = [claim for claim in asking if claim.origin is Origin.HOLD]
    winner = max(held, key=rank) if held else asking[0]
    overridden = tuple(claim for claim in asking if claim not in parts and claim != winner)
    return DesiredState(
        target, str(total.value), winner, overridden, any(waits_for(part, strict) for part in parts), total.sum
    )


def asked_now(desired: DesiredState, asking: Collection[ClaimId], requested: str, reading: Reading) -> DesiredState:
    """Return a sum with what a pass needs that serves some of its claims; `requested` was the number until now.

    A claim that is added gets all of its own, and takes from no other what it has not. On a node it gets that beside
    what is there.
    """
    if desired.sum is None:
        return desired
    number, value = int(own_number(reading)), int(desired.value)
    asked = tuple(claim for claim in desired.sum.parts if claim.id in asking)
    more = sum(int(claim.value) for claim in asked if claim.origin is Origin.HOLD)
    others = sum(int(claim.value) for claim in desired.sum.parts if claim not in asked)
    new = number if desired.sum.base in asked else value - more
    before = int(requested) if requested.isdecimal() else new
    if desired.sum.at_least and more:
        value = max(value, number + more)
    lacks = max(0, min(before - number, others))
    return replace(desired, value=str(value), sum=replace(desired.sum, asked=asked, before=before, lacks=lacks))


def whom(step: Step) -> Claim | None:
    """Return the claim to leave out of a refused sum: the newest that the pass serves; None without a refusal."""
    asked = step.desired.sum.asked if step.desired.sum else ()
    if not asked or step.verdict is None or step.verdict.state is not State.REFUSED:
        return None
    if step.verdict.reason is Reason.PAGES_IN_USE:
        asked = tuple(claim for claim in asked if claim.origin is Origin.HOLD)
    return max([claim for claim in asked if not claim.partial] or asked, key=lambda claim: claim.seq, default=None)


def stand_in(
    claim: Claim, desired_states: Mapping[Target, DesiredState], readings: Mapping[Target, Reading]
) -> list[Claim]:
    """Return the claims in place of a refused one: none for that of a hold, else the numbers that there are.

    `desired_states` are those of the targets that it covers.
    """
    if claim.origin is Origin.HOLD:
        return []
    found = []
    for target, desired in desired_states.items():
        parts = desired.sum.parts if desired.sum else ()
        had = sum(
            int(p.value) for p in parts if p.origin is Origin.HOLD and not (desired.sum and p in desired.sum.asked)
        )
        value = max(0, int(own_number(readings[target])) - had)
        found.append(replace(claim, instances=target.instance, value=str(value)))
    return found


def waits_for(claim: Claim, strict: Collection[ClaimId]) -> bool:
    """Return whether somebody waits for exactly this claim."""
    return claim.id in strict and not claim.partial


def own_number(reading: Reading | None) -> str:
    """Return the number that a target has by itself, as its baseline would be saved now."""
    return (reading.restore or reading.value or "0") if reading else "0"


def unmatched(covered: Covered) -> list[Claim]:
    """Return the claims that cover nothing now."""
    return [claim for claim, targets in covered.items() if not targets]
