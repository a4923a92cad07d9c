"""The one value for what a file, a profile or all files together say: claims, options, and the problems in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kerntune.config import schema
from kerntune.config.schema import Kind, Option, OptionPath, Options
from kerntune.guard.policy import GuardLimits
from kerntune.model import Claim, ClaimId, Limits

MAX_LISTED_ERRORS: Final = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a file, its line (0: the file as a whole), and what is allowed there."""

    file: str
    line: int
    kind: Kind
    what: str
    allowed: str = ""

    @property
    def is_error(self) -> bool:
        return self.kind is not Kind.WARNING

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        severity = "" if self.is_error else "warning: "
        return f"{where}: {severity}{self.what}" + (f". {self.allowed}" if self.allowed else "")


@dataclass(frozen=True, slots=True)
class Content:
    """The claims, options and problems of files. The later claim is stronger; `why` of each is the reason or its place.

    `name` is the name of a profile, `places` has file and line of each option. Two contents are equal if they say the
    same, wherever they were read.
    """

    claims: tuple[Claim, ...] = ()
    options: Options = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = field(default=(), compare=False)
    places: Mapping[OptionPath, tuple[str, int]] = field(default_factory=dict, compare=False)
    name: str = field(default="", compare=False)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_error)

    @property
    def is_empty(self) -> bool:
        return not (self.claims or self.options)

    @property
    def is_sound(self) -> bool:
        """Return whether these claims may replace those that the file had before."""
        return all(problem.kind not in (Kind.CLAIM, Kind.FILE) for problem in self.problems)

    @property
    def is_parsed(self) -> bool:
        """Return whether anything could be read."""
        return all(problem.kind is not Kind.FILE for problem in self.problems)

    # The options, each with its default if it is not given.

    @property
    def profile(self) -> str:
        """The profile that the configuration names, "" for none."""
        return str(self._value(schema.PROFILE))

    @property
    def limits(self) -> Limits:
        return schema.limits_from(self.options)

    @property
    def guard(self) -> GuardLimits:
        return schema.guard_from(self.options)

    @property
    def drift_interval(self) -> int:
        return int(self._value(schema.DRIFT_INTERVAL))

    @property
    def restores_on_stop(self) -> bool:
        return bool(self._value(schema.RESTORE_ON_STOP))

    @property
    def summary(self) -> str:
        return str(self._value(schema.SUMMARY))

    @property
    def include(self) -> tuple[str, ...]:
        """The profiles that a profile includes."""
        return tuple(self._value(schema.INCLUDE))

    def _value(self, option: Option) -> Any:
        return self.options.get(option.path, option.default)


def listed(errors: Sequence[Problem]) -> str:
    """Return the first errors for a message to a caller, and the number of the others; the journal has all."""
    more = len(errors) - MAX_LISTED_ERRORS
    return "; ".join(map(str, errors[:MAX_LISTED_ERRORS])) + (f"; and {more} more" if more > 0 else "")


def merge(contents: Iterable[Content]) -> Content:
    """Return what several contents say together: the claim and the option of a later one win."""
    found = list(contents)
    return Content(
        numbered(claim for content in found for claim in content.claims),
        {path: value for content in found for path, value in content.options.items()},
        tuple(problem for content in found for problem in content.problems),
        tuple(file for content in found for file in content.files),
        {path: place for content in found for path, place in content.places.items()},
    )


def numbered(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Return the claims numbered, so that the later wins. Of claims with one identity only the last is left."""
    last: dict[ClaimId, Claim] = {}
    for number, claim in enumerate(claims, 1):
        last.pop(claim.id, None)  # the place of a claim in the order is that of the last
        last[claim.id] = replace(claim, seq=number)
    return tuple(last.values())
