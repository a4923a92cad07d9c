"""The numbers of targets where holds add up: what each should be, and whom to refuse where that is too much. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kerntune.model import Claim, DesiredState, Origin, Reason, State, Sum, Target, Verdict
from kerntune.patterns import parse_pool
from kerntune.tunables.amounts import Bound, refused

Asking = Mapping[Target, Sequence[Claim]]  # the claims on each target, the strongest first


class Total(NamedTuple):
    """A number, and what it is made of."""

    value: int
    sum: Sum


def apart(asking: Asking, own: Mapping[Target, int]) -> dict[Target, Total]:
    """Return the number of each target that holds claim: they add to what is claimed otherwise, or to its own."""
    found = {}
    for target, claims in asking.items():
        if held := holds(claims):
            base = other(claims)
            found[target] = total(int(base.value) if base else own[target], base, held)
    return found


def of_pools(asking: Asking, own: Mapping[Target, int]) -> dict[Target, Total]:
    """Return the numbers of pools of huge pages, and of their nodes, that holds have a part in.

    Held pages come on top of what there would be without holds: nodes have what is claimed of them, and the rest of
    a total that is claimed. A host with one node has one pool under two names.
    """
    found: dict[Target, Total] = {}
    for size in dict.fromkeys(parse_pool(target.instance).size for target in own):
        group = {target: asking.get(target, ()) for target in own if parse_pool(target.instance).size == size}
        if any(map(holds, group.values())):
            found |= _of_size(group, own)
    return found


def _of_size(group: Asking, own: Mapping[Target, int]) -> dict[Target, Total]:
    nodes = [target for target in group if "/" in target.instance]
    whole = next((target for target in group if target not in nodes), None)
    if whole is None:  # it is going away
        return apart(group, own)
    fixed = {node: int(claim.value) for node in nodes if (claim := other(group[node]))}
    free = [node for node in nodes if node not in fixed]
    every = sorted((claim for claims in group.values() for claim in holds(claims)), key=lambda claim: claim.seq)
    claimed, held = other(group[whole]), holds(group[whole])
    rest = max(0, int(claimed.value) - sum(fixed.values())) if claimed else None
    if len(nodes) <= 1:
        strongest = next((other(group[node]) for node in fixed), claimed)
        base = int(strongest.value) if strongest else own[whole]
        return {target: total(base, strongest, every) for target, claims in group.items() if claims}
    # How a total is spread over the nodes is the kernel's to say, and pages held of the whole are on any of them.
    shares = {node: 0 if claimed else own[node] for node in free}
    found = {}
    for node, base in (fixed | shares).items():
        is_shared = bool(held) or (claimed is not None and node in free)
        if holds(group[node]) or (is_shared and node in fixed):
            found[node] = total(base, other(group[node]), holds(group[node]), at_least=is_shared)
    if group[whole]:
        base = sum(fixed.values()) + (rest if rest is not None and free else sum(shares.values()))
        found[whole] = total(base, claimed, every)
    return found


def total(base: int, claim: Claim | None, held: Sequence[Claim], *, at_least: bool = False) -> Total:
    """Return a number with its parts: who was promised all of it is served first."""
    whole, partial = [each for each in held if not each.partial], [each for each in held if each.partial]
    parts = (*whole, *([claim] if claim else []), *partial)
    return Total(base + sum(int(each.value) for each in held), Sum(parts, at_least))


def holds(claims: Iterable[Claim]) -> list[Claim]:
    """Return those of the claims that are held, the oldest first."""
    return sorted((claim for claim in claims if claim.origin is Origin.HOLD), key=lambda claim: claim.seq)


def other(claims: Iterable[Claim]) -> Claim | None:
    """Return the strongest claim that is no hold's."""
    return next((claim for claim in claims if claim.origin is not Origin.HOLD), None)


def refused_claim(
    desired: DesiredState, claim: Claim | None, number: int, most: int, bound: Bound, *, size: int
) -> Verdict | None:
    """Return what is told of the claim that is refused where `most` pages are not enough for a sum; None if they are.

    `size` is that of a page, in bytes.
    """
    if desired.sum is None or claim is None or int(desired.value) - desired.sum.lacks <= most:
        return None
    possible = max(0, most + desired.sum.lacks - int(desired.value) + int(claim.value))
    more = "+" if claim.origin is Origin.HOLD else ""
    pages, name = (int(claim.value), possible, number), str(Target(claim.tunable, claim.instances))
    return Verdict(State.REFUSED, Reason.OVER_LIMIT, refused(claim.unit, size, pages, name, bound, plus=more))
