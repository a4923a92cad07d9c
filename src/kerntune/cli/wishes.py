"""How `status` looks: what is wished, what is, what is not and why, and which claims were beaten by which rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kerntune.cli import show
from kerntune.cli.answers import ClaimRow, Document, TargetRow, in_order, named
from kerntune.cli.codes import CONTENT, IN_FILES
from kerntune.cli.health import explained, nothing_managed
from kerntune.cli.tables import Page, Prose, Row, Table, clean, together
from kerntune.model import Origin, Reason, State

COLUMNS: Final = ("", "TARGET", "REQUESTED", "ACTUAL", "STATE", "WANTED BY")
THE_HOST: Final = "the host"
PLACE: Final = re.compile(r"/.+:\d+", re.ASCII)

Claims = Mapping[str, ClaimRow]


def status(document: Document, managed: Sequence[TargetRow]) -> Page:
    """The daemon in a line, then what is managed: what is not as wished comes first."""
    above = [Prose(show.head(document)), *explained(document["degraded"]), *show.guard(document)]
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
    return [*above, Prose(_summary(managed, len(waiting))), Table(COLUMNS, tuple(table), spare="STATE")]


def _summary(managed: Sequence[TargetRow], waiting: int) -> str:
    """How much is as wished, and what the rest is."""
    counts = Counter(row["state"] for row in managed if row["state"] not in CONTENT)
    others = [f"{count} {clean(state)}" for state, count in counts.most_common()]
    others += [f"{waiting} kept for what comes"] if waiting else []
    satisfied = len(managed) - sum(counts.values())
    return f"As wished: {'; '.join([f'{satisfied} of {len(managed) + waiting}', *others])}"


def _row(row: TargetRow, claims: Claims, profile: str) -> Row:
    # A target that nobody claims and that has a requested value is owed to the host.
    owed = row["claim"] is None and row["requested"]
    wanted_by = THE_HOST if owed else _wanted_by(row["claim"], claims, profile)
    cells = (named(row["tunable"], row["instance"]), row["requested"], row["value"] or "", row["state"], wanted_by)
    note = [show.why(row["state"], row["reason"], row["detail"]), *_beaten(row, claims)]
    return show.state_row(row["state"], cells, *note)


def _waiting(claim: ClaimRow, profile: str) -> Row:
    """A claim that is kept for targets to come."""
    wanted_by = _wanted_by(claim["id"], {claim["id"]: claim}, profile)
    cells = (named(claim["tunable"], claim["instances"]), claim["value"], "", State.UNSUPPORTED, wanted_by)
    why = f"{Reason.NO_SUCH_TARGET}: nothing matches now; kept for what comes"
    return show.state_row(State.UNSUPPORTED, cells, why)


def _wanted_by(claim_id: str | None, claims: Claims, profile: str) -> str:
    """The origin and whose it is, in a few words: `profile show` has the reasons of a profile."""
    if claim_id is None:
        return ""
    if (claim := claims.get(claim_id)) is None:
        return claim_id
    if claim["origin"] == Origin.PROFILE.word:
        return f"{claim['origin']} {profile or claim['who']}"
    # A claim of the configuration is by nobody else.
    places = [claim["why"]] if PLACE.fullmatch(claim["why"]) else []
    return ", ".join(dict.fromkeys(part for part in (claim["origin"], claim["who"], *places) if part))


def _beaten(row: TargetRow, claims: Claims) -> Iterator[str]:
    """The claims that another one beat, and the rule by which it did."""
    beaten = [claims[name] for name in row["beaten"] if name in claims]
    unknown = [name for name in row["beaten"] if name not in claims]
    if not beaten and not unknown:
        return
    said = f"beats {'; '.join([*(_loser(claim, row['instance']) for claim in beaten), *unknown])}"
    winner = claims.get(row["claim"] or "")
    yield ", because ".join([said, *(_rules(winner, beaten) if winner else ())])


def _loser(claim: ClaimRow, instance: str) -> str:
    """A claim with its value, and its pattern where that is not the target's own name; `profile show` has reasons."""
    said = f"{claim['origin']} {claim['value']}"
    if claim["instances"] != instance:
        said += f" for {claim['instances']}"
    if claim["origin"] == Origin.PROFILE.word:
        return f"{said}, in {claim['who']}"
    if claim["who"] and claim["who"] != claim["origin"]:
        said += f", by {claim['who']}"
    return f"{said}: {claim['why']}" if claim["why"] else said


def _rules(winner: ClaimRow, beaten: Sequence[ClaimRow]) -> Iterator[str]:
    """Why it won, in words."""
    ours = winner["origin"]
    weaker = list(dict.fromkeys(claim["origin"] for claim in beaten if claim["origin"] != ours))
    rules = [f"{ours} wins over {_listed(weaker)}"] if weaker else []
    if any(claim["origin"] == ours for claim in beaten):
        rules.append(f"of {ours} the {'later line' if ours in IN_FILES else 'newest'} wins")
    if rules:
        yield ", and ".join(rules)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
