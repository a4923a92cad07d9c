"""The page of `status`: the desired and the actual values, the reasons for a difference, and overridden claims."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kerntune.api.document import ClaimRow, Document, TargetRow, in_order, named, tunable_row, waiting_claims
from kerntune.cli import output
from kerntune.cli.health import HostHealth, judged, judged_claim
from kerntune.cli.output import explained, nothing_managed
from kerntune.cli.rows import cpus_of, pair, target_row, together, waiting_row, why
from kerntune.cli.tables import Page, Prose, Row, Table, short
from kerntune.model import Origin, State
from kerntune.results import IN_FILES, WELL, Condition

COLUMNS: Final = ("", "TARGET", "REQUESTED", "ACTUAL", "STATE", "WANTED BY")
THE_HOST: Final = "the host"
USUAL_OWNER: Final = re.compile(r"root \(|root$|the daemon")
AT_HAND: Final = frozenset({Condition.SATISFIED, Condition.PLANNED, State.UNMANAGED})

Claims = Mapping[str, ClaimRow]


def page(document: Document, health: HostHealth, rows: Sequence[TargetRow]) -> Page:
    """Return the line about the daemon, then the managed targets: those not in the desired state come first."""
    above = [Prose(output.head(document)), *output.guard(document), Prose(health.sentence)]
    above += explained(document["degraded"])
    waiting = waiting_claims(document)
    if not rows and not waiting:
        return [*above, nothing_managed(document["degraded"])]
    return [*above, *_table(document, rows, waiting, full=False)]


def chosen_page(document: Document, health: HostHealth, rows: Sequence[TargetRow], waiting: Sequence[ClaimRow]) -> Page:
    """Return all that is known of some targets, and of some claims that wait for one."""
    return [Prose(health.sentence), *_table(document, rows, waiting, full=True)]


def _table(
    document: Document, rows: Sequence[TargetRow], waiting: Sequence[ClaimRow], *, full: bool
) -> Iterator[Table | Prose]:
    """Yield a table: troubles first, and what needs nobody's attention last. Only with `full` all rows have notes."""
    claims = {claim["id"]: claim for claim in document["claims"]}
    cpus = cpus_of(document)
    lines: dict[int, list[Row]] = {0: [], 1: [], 2: []}
    for row in in_order(document, rows):
        found = judged(row)
        place = 0 if not found.is_well else 1 if found.condition in AT_HAND else 2
        lines[place].append(_row(row, found.condition, claims, full=full))
    table = [line for place in lines.values() for line in together(place, cpus)]
    table += together(_waiting(document, claim, full=full) for claim in waiting)
    yield Table(COLUMNS, tuple(table), same=("REQUESTED", "ACTUAL"))
    winners = {row["claim"] for row in rows if row["beaten"] and judged(row).is_well}
    if winners and not full:
        who = "One claim overrides" if len(winners) == 1 else f"{len(winners)} claims override"
        yield Prose(f"{who} others (kerntune status TARGET shows which)")


def _row(row: TargetRow, condition: str, claims: Claims, *, full: bool) -> Row:
    tunable, instance = row["tunable"], row["instance"]
    # A target that has a requested value but no claim still has to get the host's value back.
    owed = row["claim"] is None and row["requested"]
    wanted_by = THE_HOST if owed else _wanted_by(row["claim"], claims)
    notes: list[str] = []
    if full or condition not in WELL:
        notes = [
            why(row["state"], row["reason"], row["detail"]),
            *_reason(row, claims),
            *_parts(row, claims),
            *_overridden(row, claims),
        ]
    values = pair(tunable, instance, row["requested"], row["value"] or "")
    return target_row(condition, named(tunable, instance), *values, condition, wanted_by, notes=notes)


def _waiting(document: Document, claim: ClaimRow, *, full: bool) -> Row:
    """Return the row of a claim that matches nothing now."""
    tunable, wanted_by = claim["tunable"], _wanted_by(claim["id"], {claim["id"]: claim})
    found = judged_claim(document, claim).condition
    if found == Condition.WAITING:
        notes = ["nothing matches now; the claim waits for a device", *_given_reason(claim)] if full else []
        return waiting_row(tunable, claim["instances"], claim["value"], wanted_by, notes=notes)
    notes = [tunable_row(document, tunable)["detail"], *_given_reason(claim)] if full else []
    return target_row(found, named(tunable, claim["instances"]), claim["value"], "", found, wanted_by, notes=notes)


def _wanted_by(claim_id: str | None, claims: Claims) -> str:
    """Return the origin and the owner of a claim in a few words: `profile show` has the reasons of a profile.

    An owner that most claims have would only fill the row.
    """
    if claim_id is None:
        return ""
    if (claim := claims.get(claim_id)) is None:
        return claim_id
    if claim["origin"] == Origin.PROFILE.word:
        return claim["origin"]  # the first line names the one in force
    if claim["origin"] == Origin.GUARD.word:
        return "memory guard"
    who = "" if USUAL_OWNER.match(claim["who"]) or claim["who"] == claim["origin"] else short(claim["who"])
    return ", ".join(part for part in (_origin(claim), who, _place(claim)) if part)


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


def _parts(row: TargetRow, claims: Claims) -> Iterator[str]:
    """Yield the owner of each part of a number to which holds add up."""
    parts = [claims[name] for name in row.get("parts", ()) if name in claims]
    if len(parts) > 1:
        yield ", and ".join(f"{claim['value']} for {_wanted_by(claim['id'], claims)}" for claim in parts)


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
