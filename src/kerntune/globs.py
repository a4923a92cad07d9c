"""Names: their order, and the globs that match them.

A glob is matched without regular expressions, which cache what callers send and compile slowly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

DIGITS: Final = re.compile("([0-9]+)")


@dataclass(frozen=True, slots=True)
class Set:
    """The characters for which `[...]` or `?` stands: one of these characters or ranges, or none of them."""

    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


ANY = Set(negated=True)
Part = str | Set  # one character of a name


@dataclass(frozen=True, slots=True)
class Glob:
    """A parsed glob: `*`, `?`, `[...]` and `[!...]` as fnmatch(7) has them.

    A comparison takes at most one step for each character of the name, whatever the pattern is. A number has a bit for
    each part up to which the name so far may have come (S. Wu and U. Manber, "Fast Text Searching", 1992). `stars` has
    a bit for each part that follows a star. `known` has, for a character, the bits of the parts that it may be.
    """

    parts: tuple[Part, ...]
    stars: int
    known: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, pattern: str) -> Glob:
        """Return the glob of a text; every text is a glob."""
        parts: list[Part] = []
        at = stars = 0
        while at < len(pattern):
            char, at = pattern[at], at + 1
            if char == "*":
                stars |= 1 << len(parts)
            elif char == "?":
                parts.append(ANY)
            elif char == "[" and (end := end_of_set(pattern, at)):
                parts.append(parse_set(pattern[at:end]))
                at = end + 1
            else:
                parts.append(char)
        return cls(tuple(parts), stars)

    def matches(self, name: str) -> bool:
        """Return True if the glob covers the whole name."""
        if len(name) < len(self.parts):
            return False
        stars, known, every = self.stars, self.known, 1 << len(self.parts)
        the_rest = every & stars
        bits = 1
        for char in name:
            if bits & the_rest:
                return True
            fitting = known[char] if char in known else self._fitting(char)
            bits = (bits & fitting) << 1 | (bits & stars)
            if not bits:
                return False
        return bool(bits & every)

    def _fitting(self, char: str) -> int:
        """Return a bit for each part that this character may be, and remember them."""
        fit = (part == char if isinstance(part, str) else part.has(char) for part in self.parts)
        found = sum(1 << number for number, fits in enumerate(fit) if fits)
        self.known[char] = found
        return found


def end_of_set(pattern: str, at: int) -> int:
    """Return the end of the bracket whose inside begins at `at`, or 0: then the bracket stands for itself."""
    begin = at + pattern.startswith("!", at)
    # A bracket that closes at once belongs to the set.
    return max(0, pattern.find("]", begin + 1))


def parse_set(inside: str) -> Set:
    """Return the set between the brackets; a range that runs backwards is empty."""
    negated = inside.startswith("!")
    ranges, at = [], int(negated)
    while at < len(inside):
        is_range = inside.startswith("-", at + 1) and at + 2 < len(inside)
        ranges.append((inside[at], inside[at + 2] if is_range else inside[at]))
        at += 3 if is_range else 1
    return Set(tuple(ranges), negated)


def natural_sort_key(name: str) -> list[str | int]:
    """Return a sort key that takes digits as numbers."""
    return [int(part) if index % 2 else part for index, part in enumerate(DIGITS.split(name))]
