"""The answer of a verb, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kerntune.cli import output as show
from kerntune.cli.document import Change, Document, Outcome
from kerntune.errors import Exit
from kerntune.model import State
from kerntune.results import exit_code


class Advice(NamedTuple):
    """Advice to the caller beside the answer."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a verb: `data` is for --json, `page` is for people."""

    data: Any
    page: show.Page
    exit_code: Exit = Exit.OK
    advice: tuple[Advice, ...] = ()


def changed(
    change: Change,
    advice: Iterable[Advice] = (),
    *,
    code: Exit | None = None,
    none: str = "Nothing changed.",
    document: Document | None = None,
) -> Answer:
    """Return the answer to an edit; without a `code` the exit status is that of a Set.

    `none` is the text for an answer without outcomes. With a document people also see what a target would get back.
    """
    data = {"changed": change.changed, "outcomes": [outcome._asdict() for outcome in change.outcomes]}
    code = exit_code(change.outcomes) if code is None else code
    outcomes = returning(change.outcomes, document) if document else change.outcomes
    return Answer(data, show.outcomes(outcomes, none=none), code, tuple(advice))


def gives_back(change: Change) -> bool:
    """Return True if a plan has targets that would lose their last claim and so get back their own values."""
    return any(_gets_back(outcome) for outcome in change.outcomes)


def returning(outcomes: Iterable[Outcome], document: Document) -> list[Outcome]:
    """Return the outcomes of a plan, with the original value of each target that would have no claim any more."""
    own = {(row["tunable"], row["instance"]): row["baseline"] for row in document["targets"]}
    found = []
    for outcome in outcomes:
        value = own.get((outcome.tunable, outcome.instance))
        if value is not None and _gets_back(outcome):
            detail = "; ".join(filter(None, ("the host's own value comes back", outcome.detail)))
            outcome = outcome._replace(requested=value, detail=detail)  # noqa: PLW2901
        found.append(outcome)
    return found


def _gets_back(outcome: Outcome) -> bool:
    return not outcome.requested and outcome.state != State.UNMANAGED
