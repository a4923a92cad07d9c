"""What a verb answers, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kerntune.cli import show
from kerntune.cli.answers import Change, Document, Outcome
from kerntune.errors import Exit
from kerntune.model import State
from kerntune.results import exit_code


class Advice(NamedTuple):
    """A word to the caller beside the answer."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`data` is what --json prints, `page` what people read."""

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
    """What became of an edit; without a `code` the exit status is that of a Set. `none`: what is said of no outcome.

    With a document people are shown what a target would get back, too.
    """
    data = {"changed": change.changed, "outcomes": [outcome._asdict() for outcome in change.outcomes]}
    code = exit_code(change.outcomes) if code is None else code
    outcomes = returning(change.outcomes, document) if document else change.outcomes
    return Answer(data, show.outcomes(outcomes, none=none), code, tuple(advice))


def gives_back(change: Change) -> bool:
    """Whether a plan has targets that nobody would claim any more, which get back what they had."""
    return any(_gets_back(outcome) for outcome in change.outcomes)


def returning(outcomes: Iterable[Outcome], document: Document) -> list[Outcome]:
    """Return the outcomes of a plan, with the original value of each target that nobody would claim any more."""
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
