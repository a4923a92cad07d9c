"""The page of `status`: the desired and the actual values, the reasons for a difference, and overridden claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kerntune.api.document import ClaimRow, Document, TargetRow, in_order, named
from kerntune.cli import output
from kerntune.cli.output import explained, nothing_managed
from kerntune.cli.tables import Page, Prose, Row, Table, clean, short, together
from kerntune.model import Origin, Reason, State
from kerntune.results import CONTENT, IN_FILES

COLUMNS: Final = ("", "TARGET", "REQUESTED", "ACTUAL", "STATE", "WANTED BY")
THE_HOST: Final = "the host"

Claims = Mapping[str, ClaimRow]


def page(document: Document, managed: Sequence[TargetRow]) -> Page:
    """Return the line about the daemon, then the managed targets: those not in the desired state come first."""
    above = [Prose(output.head(document)), *explained(document["degraded"]), *output.guard(document)]
    waiting = [claim for claim in document["claims"] if not claim["matches"]]
    if not managed and not waiting:
        return [*above, nothing_managed(document["degraded"])]
    claims = {claim["id"]: claim for claim in document["claims"]}
    profile = document["profile"]
    rows = [(row["state"] in CONTENT, _row(row, claims, profile)) for row in in_order(document, managed)]
    table = [
        *together(row for content, row in rows if not content),
        *(_waiting(claim, profile) for claim in waiting),
        *together(row for content, row in rows if content),
    ]
    return [*above, Prose(_summary(managed, len(waiting))), Table(COLUMNS, tuple(table), same=("REQUESTED", "ACTUAL"))]


def _summary(managed: Sequence[TargetRow], waiting: int) -> str:
    """Return how many targets are in the desired state, and the states of the others."""
    counts = Counter(row["state"] for row in managed if row["state"] not in CONTENT)
    others = [f"{count} {clean(state)}" for state, count in counts.most_common()]
    others += [f"{waiting} waiting for a device"] if waiting else []
    satisfied = len(managed) - sum(counts.values())
    return "; ".join([f"{satisfied} of {len(managed) + waiting} in the desired state", *others])


def _row(row: TargetRow, claims: Claims, profile: str) -> Row:
    # A target that has a requested value but no claim still has to get the host's value back.
    owed = row["claim"] is None and row["requested"]
    wanted_by = THE_HOST if owed else _wanted_by(row["claim"], claims, profile)
    cells = (named(row["tunable"], row["instance"]), row["requested"], row["value"] or "", row["state"], wanted_by)
    note = [
        output.why(row["state"], row["reason"], row["detail"]),
        *_reason(row, claims),
        *_parts(row, claims, profile),
        *_overridden(row, claims),
    ]
    return output.state_row(row["state"], cells, *note)


def _waiting(claim: ClaimRow, profile: str) -> Row:
    """Return the row of a claim that is kept for later targets."""
    wanted_by = _wanted_by(claim["id"], {claim["id"]: claim}, profile)
    cells = (named(claim["tunable"], claim["instances"]), claim["value"], "", State.UNSUPPORTED, wanted_by)
    why = f"{Reason.NO_SUCH_TARGET}: nothing matches now; the claim waits for a device"
    return output.state_row(State.UNSUPPORTED, cells, why, *_given_reason(claim))


def _wanted_by(claim_id: str | None, claims: Claims, profile: str) -> str:
    """Return the origin and the owner of a claim in a few words: `profile show` has the reasons of a profile."""
    if claim_id is None:
        return ""
    if (claim := claims.get(claim_id)) is None:
        return claim_id
    if claim["origin"] == Origin.PROFILE.word:
        return f"{claim['origin']} {profile or claim['who']}"
    # In a claim of the configuration the owner is the origin's own word, so equal words stand once.
    return ", ".join(dict.fromkeys(part for part in (_origin(claim), _who(claim), _place(claim)) if part))


def _reason(row: TargetRow, claims: Claims) -> Iterator[str]:
    """Yield the reason that the file gives for the claim that won."""
    if claim := claims.get(row["claim"] or ""):
        yield from _given_reason(claim)


def _given_reason(claim: ClaimRow) -> Iterator[str]:
    """Yield the reason of a claim of the configuration, without its place; `profile show` has those of a profile."""
    if claim["origin"] == Origin.CONFIG.word and (sentence := _without_place(claim)):
        yield f"{claim['origin']}: {sentence}"


def _place(claim: ClaimRow) -> str:
    """Return the file and line of a claim, without the folder of the configuration: all fits in one line."""
    *_, folder, name = ["", *claim.get("place", "").split("/")]
    return f"{folder}/{name}" if folder.endswith(".d") else name


def _without_place(claim: ClaimRow) -> str:
    """Return the reason of a claim without the place; a claim without a reason of its own has only the place there."""
    return claim["why"].removeprefix(claim.get("place", "")).removeprefix(", ")


def _origin(claim: ClaimRow) -> str:
    """Return the origin of a claim, and for a hold its number."""
    return f"{claim['origin']} {number}" if (number := claim.get("hold")) else claim["origin"]


def _who(claim: ClaimRow) -> str:
    return short(claim["who"]) if claim.get("hold") else claim["who"]


def _parts(row: TargetRow, claims: Claims, profile: str) -> Iterator[str]:
    """Yield the owner of each part of a number to which holds add up."""
    parts = [claims[name] for name in row.get("parts", ()) if name in claims]
    if len(parts) > 1:
        yield ", and ".join(f"{claim['value']} for {_wanted_by(claim['id'], claims, profile)}" for claim in parts)


def _overridden(row: TargetRow, claims: Claims) -> Iterator[str]:
    """Yield the claims that another one overrides, and the rule by which it does."""
    losers = [claims[name] for name in row["beaten"] if name in claims]
    unknown = [name for name in row["beaten"] if name not in claims]
    if not losers and not unknown:
        return
    winner = claims.get(row["claim"] or "")
    rules = _rules(winner, losers) if winner else ""
    sentence = f"overrides {'; '.join([*(_loser(claim, row['instance']) for claim in losers), *unknown])}"
    yield f"{sentence} ({rules})" if rules else sentence


def _loser(claim: ClaimRow, instance: str) -> str:
    """Return a claim as text: its value, its owner, and its pattern if that is not the target's own name."""
    sentence = f"{claim['value']} of {_origin(claim)}"
    # `profile show` has the reasons and places of a profile.
    is_profile = claim["origin"] == Origin.PROFILE.word
    if is_profile:
        sentence += f" {claim['who']}"
    if claim["instances"] != instance:
        sentence += f" for {claim['instances']}"
    if is_profile:
        return sentence
    if claim["who"] and claim["who"] != claim["origin"]:
        sentence += f", {_who(claim)}"
    notes = ", ".join(filter(None, (claim.get("place", ""), _without_place(claim))))
    return f"{sentence}: {notes}" if notes else sentence


def _rules(winner: ClaimRow, losers: Sequence[ClaimRow]) -> str:
    """Return the rules by which the winner wins."""
    ours = winner["origin"]
    weaker = list(dict.fromkeys(claim["origin"] for claim in losers if claim["origin"] != ours))
    rules = [f"{ours} wins over {_listed(weaker)}"] if weaker else []
    if any(claim["origin"] == ours for claim in losers):
        rules.append(f"of {_same(winner)} wins")
    return "; ".join(rules)


def _same(winner: ClaimRow) -> str:
    """Return which of several claims of one origin wins."""
    ours = winner["origin"]
    if ours == Origin.HOLD.word:
        return "holds the fastest" if winner["tunable"] == "cpu-governor" else "holds the newest"
    return f"{ours} the {'later line' if ours in IN_FILES else 'newest'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
