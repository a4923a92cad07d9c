"""The advice for a caller who withdrew nothing: the claims in force, and how to withdraw them; it asks no daemon."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kerntune.cli.document import ClaimRow, Document, covered, named
from kerntune.cli.rows import Advice
from kerntune.model import Origin
from kerntune.patterns import EVERY

MAX_LISTED_CLAIMS: Final = 3  # claims that the advice names; it counts the others


def nothing_withdrawn(document: Document, what: Sequence[tuple[str, str]], *, persist: bool) -> Advice:
    """Return the advice that there is no such claim, with the claims in force and how to withdraw them."""
    kind = Origin.PERSISTENT if persist else Origin.RUNTIME
    names = ", ".join(named(tunable, "" if at == EVERY else at) for tunable, at in what)
    said = f"there is no {kind.word} claim {names} to withdraw"
    found = list(in_force(document, what))
    if not found:
        return Advice(said, "Nobody claims it: kerntune status shows who wants what")
    parts = [f"{one['origin']} {_target(one)} = {one['value']} ({how(one)})" for one in found[:MAX_LISTED_CLAIMS]]
    more = [f"{len(found) - MAX_LISTED_CLAIMS} more (kerntune status)"] if len(found) > MAX_LISTED_CLAIMS else []
    return Advice(said, f"In force {'is' if len(found) == 1 else 'are'} {'; '.join([*parts, *more])}")


def in_force(document: Document, what: Iterable[tuple[str, str]]) -> Iterator[ClaimRow]:
    """Yield the claims that won the targets of these names, and those that wait for such targets."""
    names = list(what)
    winners = {row["claim"] for tunable, instances in names for row in covered(document, tunable, instances)}
    for claim in document["claims"]:
        waits = not claim["matches"] and any(
            claim["tunable"] == tunable and instances in {"", EVERY, claim["instances"]} for tunable, instances in names
        )
        if claim["id"] in winners or waits:
            yield claim


def how(claim: ClaimRow) -> str:
    """Return the way to end a claim."""
    name = shlex.quote(_target(claim))
    place = claim.get("place") or "the files in /etc/kerntune"
    ways = {
        Origin.RUNTIME.word: f"kerntune unset {name}",
        Origin.PERSISTENT.word: f"kerntune unset {name} --persist",
        Origin.PROFILE.word: "kerntune profile clear",
        Origin.CONFIG.word: f"take it out of {place}, then kerntune reload",
        Origin.HOLD.word: f"kerntune release {claim.get('hold', 'HOLD')}; it ends with its client too",
        Origin.GUARD.word: "it ends when there is memory again",
    }
    return ways.get(claim["origin"], "kerntune status shows whose it is")


def _target(claim: ClaimRow) -> str:
    return named(claim["tunable"], claim["instances"])
