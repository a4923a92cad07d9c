"""Desired state as a pure function: claims, baselines and targets in, wishes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kerntune.model import Claim, ClaimId, Origin, Target, Wish
from kerntune.tunables.base import Tunable

Covered = Mapping[Claim, Collection[Target]]


def rank(claim: Claim) -> tuple[int, int]:
    """Who wins: the higher origin, then the newer."""
    return claim.origin, claim.seq


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
) -> dict[Target, Wish]:
    """What each target of one tunable should be. A target nobody claims is wished its baseline, if it has one."""
    return wishes_of(tunable, cover(tunable, claims, targets), baselines, targets, strict)


def wishes_of(
    tunable: Tunable,
    covered: Covered,
    baselines: Mapping[Target, str],
    targets: Iterable[Target],
    strict: Collection[ClaimId] = (),
) -> dict[Target, Wish]:
    """The same, where it is known what each claim covers."""
    claimed: dict[Target, list[Claim]] = {}
    for claim in sorted(covered, key=rank, reverse=True):
        for target in covered[claim]:
            claimed.setdefault(target, []).append(claim)
    wishes = {}
    for target in targets:
        if asking := claimed.get(target):
            winner, beaten = asking[0], tuple(asking[1:])
            waits = winner.id in strict and not winner.partial
            wishes[target] = Wish(target, winner.value, winner, beaten, strict=waits)
        elif target in baselines:
            own = Claim(Origin.BASELINE, tunable.name, target.instance, baselines[target], who="the host")
            wishes[target] = Wish(target, own.value, own)
    return wishes


def unmatched(covered: Covered) -> list[Claim]:
    """The claims that cover nothing now."""
    return [claim for claim, targets in covered.items() if not targets]
