"""What a verb answers, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kerntune.cli import codes, show
from kerntune.cli.answers import Change
from kerntune.errors import Exit


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
    change: Change, advice: Iterable[Advice] = (), *, code: Exit | None = None, none: str = "Nothing changed."
) -> Answer:
    """What became of an edit; without a `code` the exit status is that of a Set. `none`: what is said of no outcome."""
    data = {"changed": change.changed, "outcomes": [outcome._asdict() for outcome in change.outcomes]}
    code = codes.exit_code(change.outcomes) if code is None else code
    return Answer(data, show.outcomes(change.outcomes, none=none), code, tuple(advice))
