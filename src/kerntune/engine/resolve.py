"""Desired state as a pure function: claims, baselines and targets in, wishes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kerntune.model import Claim, ClaimId, Origin, Target, Wish
from kerntune.tunables.base import Tunable


def rank(claim: Claim) -> tuple[int, int]:
    """Who wins: the higher origin, then the newer."""
    return claim.origin, claim.seq


def resolve(
    tunable: Tunable,
    claims: Iterable[Claim],
    baselines: Mapping[Target, str],
    targets: Iterable[Target],
    strict: Collection[ClaimId] = (),
) -> dict[Target, Wish]:
    """What each target of one tunable should be. A target nobody claims is wished its baseline, if it has one."""
    mine = sorted((claim for claim in claims if claim.tunable == tunable.name), key=rank, reverse=True)
    wishes = {}
    for target in targets:
        asking = [claim for claim in mine if tunable.matches(claim.instances, target)]
        if asking:
            winner, beaten = asking[0], tuple(asking[1:])
            waits = winner.id in strict and not winner.partial
            wishes[target] = Wish(target, winner.value, winner, beaten, strict=waits)
        elif target in baselines:
            own = Claim(Origin.BASELINE, tunable.name, target.instance, baselines[target], who="the host")
            wishes[target] = Wish(target, own.value, own)
    return wishes


def unmatched(tunable: Tunable, claims: Iterable[Claim], targets: Collection[Target]) -> list[Claim]:
    """The claims of one tunable that cover nothing now."""
    return [
        claim
        for claim in claims
        if claim.tunable == tunable.name and not any(tunable.matches(claim.instances, target) for target in targets)
    ]
