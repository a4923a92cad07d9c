"""Desired state as a pure function: claims, baselines and targets in, the desired state of each target out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from kerntune.model import Claim, ClaimId, DesiredState, Origin, Reading, Reason, State, Step, Target
from kerntune.tunables.base import Tunable
from kerntune.tunables.sums import Total

Covered = Mapping[Claim, Collection[Target]]
NOTHING_READ: Final[Mapping[Target, Reading]] = {}


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
    return wishes_of(tunable, covered, baselines, targets, strict, readings=readings, reserved=reserved)


def wishes_of(
    tunable: Tunable,
    covered: Covered,
    baselines: Mapping[Target, str],
    targets: Collection[Target],
    strict: Collection[ClaimId] = (),
    *,
    readings: Mapping[Target, Reading] = NOTHING_READ,
    reserved: Collection[Target] = (),
) -> dict[Target, DesiredState]:
    """Return the same from what each claim covers."""
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
            desired_states[target] = wish_of(target, asking, sums.get(target), strict)
        elif target in baselines and target not in reserved:
            host = Claim(Origin.BASELINE, tunable.name, target.instance, baselines[target], who="the host")
            desired_states[target] = DesiredState(target, host.value, host)
    return desired_states


def wish_of(target: Target, asking: Sequence[Claim], total: Total | None, strict: Collection[ClaimId]) -> DesiredState:
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
    """Return a sum with what a pass needs that is for some of its claims; `requested` was asked for until now.

    Who is added gets all of his own, and makes nobody give what he has not. On a node he gets it beside what is there.
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
    """Return the claim that a refusal of a sum is about: the newest that the pass is for; None where it is no such."""
    asked = step.desired.sum.asked if step.desired.sum else ()
    if not asked or step.verdict is None or step.verdict.state is not State.REFUSED:
        return None
    if step.verdict.reason is Reason.PAGES_IN_USE:
        asked = tuple(claim for claim in asked if claim.origin is Origin.HOLD)
    return max([claim for claim in asked if not claim.partial] or asked, key=lambda claim: claim.seq, default=None)


def stand_in(
    claim: Claim, desired_states: Mapping[Target, DesiredState], readings: Mapping[Target, Reading]
) -> list[Claim]:
    """Return what takes the place of a claim that is refused: nothing of one that is held, else what there is.

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
