"""Owns what people are told of a tunable before they set it: reads tunables/explanations.toml, when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from kerntune.tunables.base import Tunable

# No importlib.resources: it costs the daemon a MiB, and the package is never in an archive.
FILE: Final = Path(__file__).with_name("tunables") / "explanations.toml"


class Grade(StrEnum):
    """How well something is known, best first."""

    MEASURED = "measured"
    VENDOR = "vendor documentation"
    KERNEL = "kernel documentation"
    NONE = "none"


class Evidence(NamedTuple):
    """What is known, and how well."""

    grade: Grade
    said: str


class Example(NamedTuple):
    """A setting as it is typed, and what it is for."""

    setting: str
    about: str


class Explanation(NamedTuple):
    """Of one tunable; `files` are paths on the host, `document` is one of the kernel's sources."""

    what: str
    helps: str
    evidence: tuple[Evidence, ...]
    risk: str
    files: tuple[str, ...]
    document: str
    instances: str
    values: str
    example: Example


class Line(NamedTuple):
    """One line of a tunable's table in kerntune.toml, and what it means."""

    pattern: str
    value: str | int
    about: str


class ConfigTable(NamedTuple):
    """The table of one tunable in kerntune.toml: patterns of instances as keys; the tunable validates both sides."""

    about: str
    patterns: str
    values: str
    examples: tuple[Line, ...]


@cache
def load() -> Mapping[str, Any]:
    """Return what the file says, by the name of the tunable."""
    import tomllib  # noqa: PLC0415  # the command line has no other use for it

    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def explanation(tunable: Tunable) -> Explanation:
    """Return what is known of a tunable."""
    said = load()[tunable.name]
    evidence = [*said["evidence"], *(row for about in names_of(tunable).values() for row in about.get("evidence", ()))]
    return Explanation(
        what=filled(said["what"], tunable),
        helps=said["helps"],
        evidence=tuple(Evidence(Grade(row["grade"]), row["said"]) for row in evidence),
        risk=" ".join((said["risk"], *(about["risk"] for about in names_of(tunable).values() if "risk" in about))),
        files=tuple(f"/{file}" for file in tunable.files),
        document=said["document"],
        instances=filled(said["instances"], tunable),
        values=filled(said["values"], tunable),
        example=Example(**said["example"]),
    )


def config_table(tunable: Tunable) -> ConfigTable:
    """Return what kerntune.toml(5) says of a tunable's table."""
    said = load()[tunable.name]["table"]
    named = (Line(name, **about["example"]) for name, about in names_of(tunable).items() if "example" in about)
    return ConfigTable(
        said["about"],
        filled(said["patterns"], tunable),
        filled(said["values"], tunable),
        (*(Line(**line) for line in said.get("examples", ())), *named),
    )


def known_as(tunable: Tunable) -> Sequence[str]:
    """Return other words for a tunable, beside the names of its files."""
    words: Sequence[str] = load()[tunable.name].get("known-as", ())
    return words


def names_of(tunable: Tunable) -> dict[str, Mapping[str, Any]]:
    """Return what the file says of each name that an instance can have, in the order of the row."""
    said = load()[tunable.name].get("names", {})
    return {name: said[name] for name in tunable.names if said}


def filled(text: str, tunable: Tunable) -> str:
    """Return the text with what the row of the tunable says in place of {names}, {ranges} and {each}."""
    if "{" not in text:
        return text
    each = (f"{name} ({about['what']})" for name, about in names_of(tunable).items())
    ranges = (f"{name} {range_}" for name, range_ in tunable.names.items())
    return text.format(names=either(tunable.names), ranges=", ".join(ranges), each=", ".join(each))


def either(words: Iterable[str]) -> str:
    """Return words as alternatives: `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
