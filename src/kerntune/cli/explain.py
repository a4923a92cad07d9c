"""`kerntune explain`: what is known of a tunable; reads no file of the kernel and asks no daemon."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from kerntune import syntax
from kerntune.cli import tables
from kerntune.cli.commands import Namespace
from kerntune.cli.output import Answer
from kerntune.cli.remote import Connect
from kerntune.cli.tables import Page, Prose
from kerntune.explained import Explanation, Grade, explanation
from kerntune.patterns import GLOB
from kerntune.suggest import no_such_tunable

if TYPE_CHECKING:
    from kerntune.tunables.base import Tunable

INDENT: Final = 12  # as wide as the longest heading


def explain(_connect: Connect, args: Namespace) -> Answer:
    """Explain a tunable: its effect, its use, the evidence and the cost; without a name, list all in a line each."""
    known = registered()
    if args.tunable is None:
        rows = tuple(tables.Row((one.name, one.summary, grades(explanation(one)))) for one in known)
        table = tables.Table(("TUNABLE", "WHAT IT IS", "EVIDENCE"), rows, frozenset(), wraps=True)
        return Answer({"tunables": [data(one) for one in known]}, [table])
    # What is known is of the tunable, whichever instance or value somebody thinks of.
    name, instances = syntax.what(args.tunable.partition("=")[0])
    for one in known:
        if one.name == name:
            if one.names and not GLOB.search(instances):
                one.normal(instances)  # names of a list are the same on every host
            return Answer(data(one), page(one))
    raise no_such_tunable(name, [one.name for one in known])


def registered() -> tuple[Tunable, ...]:
    """Return the tunables, in their order."""
    from kerntune.tunables import REGISTRY  # noqa: PLC0415  # only what they say of themselves, and only here

    return REGISTRY


def grades(one: Explanation) -> str:
    """Return how well a tunable is known; the grade none counts only where there is no other."""
    known = [evidence.grade for evidence in one.evidence if evidence.grade is not Grade.NONE]
    return ", ".join(dict.fromkeys(known)) or Grade.NONE


def command(one: Explanation) -> str:
    """Return the example as a line for a shell."""
    return f"kerntune set {shlex.quote(one.example.setting)}"


def data(tunable: Tunable) -> dict[str, Any]:
    """Return an explanation as JSON data."""
    one = explanation(tunable)
    return {
        "tunable": tunable.name,
        **one._asdict(),
        "evidence": [evidence._asdict() for evidence in one.evidence],
        "example": {"command": command(one), "about": one.example.about},
    }


def page(tunable: Tunable) -> Page:
    """Return a paragraph for each thing to know."""
    one = explanation(tunable)
    paragraphs = [
        ("helps", one.helps),
        *(("evidence" if i == 0 else "", f"{said.grade}: {said.said}") for i, said in enumerate(one.evidence)),
        ("risk", one.risk),
        ("instances", one.instances),
        ("values", one.values),
        *(("kernel file" if i == 0 else "", file) for i, file in enumerate(one.files)),
        ("document", one.document),
        ("example", command(one)),
        ("", one.example.about),
    ]
    rest = " " * (INDENT + 2)
    return [
        Prose(f"{tunable.name}: {one.what}"),
        *(Prose(text, f"  {heading:{INDENT}}", rest) for heading, text in paragraphs),
    ]
