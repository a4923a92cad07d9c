"""How `status` looks: what is wished, what is, what is not and why, and which claims were beaten by which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from kerntune.cli import show
from kerntune.cli.answers import ClaimRow, Document, TargetRow, named
from kerntune.cli.codes import CONTENT
from kerntune.cli.show import Page, Row, Table
from kerntune.model import Origin, Reason, State

COLUMNS: Final = ("", "TARGET", "WISHED", "IS", "STATE", "WANTED BY")
ALIKE: Final = 4  # targets with nothing to tell them apart share a line from so many on
IN_FILES: Final = frozenset({Origin.CONFIG.word, Origin.PROFILE.word})

Claims = Mapping[str, ClaimRow]


def status(document: Document, managed: Sequence[TargetRow]) -> Page:
    """The daemon in a line, then what is managed: what is not as wished comes first."""
    above = [show.head(document), *show.guard(document)]
    claims = {claim["id"]: claim for claim in document["claims"]}
    waiting = [claim for claim in document["claims"] if not claim["matches"]]
    if not managed and not waiting:
        return [*above, show.NOTHING_MANAGED]
    table = [
        *_together(row for row in _rows(managed, claims) if row.cells[4] not in CONTENT),
        *map(_waiting, waiting),
        *_together(row for row in _rows(managed, claims) if row.cells[4] in CONTENT),
    ]
    return [*above, _summary(managed, len(waiting)), Table(COLUMNS, tuple(table))]


def _summary(managed: Sequence[TargetRow], waiting: int) -> str:
    """How much is as wished, and what the rest is."""
    counts = Counter(row["state"] for row in managed if row["state"] not in CONTENT)
    others = [f"{count} {show.clean(state)}" for state, count in counts.most_common()]
    others += [f"{waiting} kept for what comes"] if waiting else []
    satisfied = len(managed) - sum(counts.values())
    return f"As wished: {'; '.join([f'{satisfied} of {len(managed) + waiting}', *others])}"


def _rows(managed: Sequence[TargetRow], claims: Claims) -> Iterator[Row]:
    for row in managed:
        name = named(row["tunable"], row["instance"])
        cells = (name, row["requested"], row["value"] or "", row["state"], _wanted_by(row["claim"], claims))
        note = [show.why(row["state"], row["reason"], row["detail"]), *_beaten(row, claims)]
        yield show.state_row(row["state"], cells, *note)


def _together(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows in their order; neighbours that differ in the instance only share one when they are many."""

    def all_but_instance(row: Row) -> tuple[object, ...]:
        mark, name, *cells = row.cells
        return mark, name.partition("@")[0], cells, row.note

    for _, group in groupby(rows, all_but_instance):
        alike = list(group)
        if len(alike) < ALIKE:
            yield from alike
            continue
        mark, first, *cells = alike[0].cells
        last = alike[-1].cells[1].partition("@")[2]
        yield Row((mark, f"{first} to {last} ({len(alike)})", *cells), alike[0].style, alike[0].note)


def _waiting(claim: ClaimRow) -> Row:
    """A claim that is kept for targets to come."""
    name = named(claim["tunable"], claim["instances"])
    cells = (name, claim["value"], "", State.UNSUPPORTED, _wanted_by(claim["id"], {claim["id"]: claim}))
    why = f"{Reason.NO_SUCH_TARGET}: nothing matches now; kept for what comes"
    return show.state_row(State.UNSUPPORTED, cells, why)


def _wanted_by(claim_id: str | None, claims: Claims) -> str:
    if claim_id is None:
        return ""
    if (claim := claims.get(claim_id)) is None:
        return claim_id
    # A claim of the configuration is by nobody else.
    return ", ".join(dict.fromkeys(part for part in (claim["origin"], claim["who"], claim["why"]) if part))


def _beaten(row: TargetRow, claims: Claims) -> Iterator[str]:
    """The claims that another one beat, and the rule by which it did."""
    beaten = [claims[name] for name in row["beaten"] if name in claims]
    unknown = [name for name in row["beaten"] if name not in claims]
    if not beaten and not unknown:
        return
    yield f"beats {'; '.join([*(_loser(claim, row['instance']) for claim in beaten), *unknown])}"
    winner = claims.get(row["claim"] or "")
    if winner:
        yield from _rules(winner, beaten)


def _loser(claim: ClaimRow, instance: str) -> str:
    """A claim with its value, and its pattern where that is not the target's own name."""
    pattern = f" for {claim['instances']}" if claim["instances"] != instance else ""
    parts = (part for part in (claim["who"], claim["why"]) if part and part != claim["origin"])
    by = ", ".join(parts)
    return f"{claim['origin']} {claim['value']}{pattern}{f' ({by})' if by else ''}"


def _rules(winner: ClaimRow, beaten: Sequence[ClaimRow]) -> Iterator[str]:
    """Why it won, in words."""
    ours = winner["origin"]
    weaker = list(dict.fromkeys(claim["origin"] for claim in beaten if claim["origin"] != ours))
    rules = [f"{ours} wins over {_listed(weaker)}"] if weaker else []
    if any(claim["origin"] == ours for claim in beaten):
        rules.append(f"of {ours} the {'later line' if ours in IN_FILES else 'newest'} wins")
    if rules:
        yield f"because {', and '.join(rules)}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
