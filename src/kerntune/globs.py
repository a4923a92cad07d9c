"""Matches names with globs, without regular expressions: these cache what callers send, and are slow to compile."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Set:
    """Holds what `[...]` or `?` stands for: one of these characters or ranges, or none of them."""

    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


ANY = Set(negated=True)
Part = str | Set  # one character of a name


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob that was parsed: `*`, `?`, `[...]` and `[!...]` as fnmatch(7) has them.

    A comparison takes a step for each character of the name at most, whatever the pattern is: a number has a bit for
    each part up to which the name so far may have come (S. Wu and U. Manber, "Fast Text Searching", 1992). `stars` has
    a bit for each part before which a star stands, `known` those of the parts that a character may be.
    """

    parts: tuple[Part, ...]
    stars: int
    known: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, pattern: str) -> Glob:
        """Return the glob; every text is one."""
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
        """Return whether the glob covers the whole name."""
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
        """Return a bit for each part that this character may be, and know it from then on."""
        fit = (part == char if isinstance(part, str) else part.has(char) for part in self.parts)
        found = sum(1 << number for number, fits in enumerate(fit) if fits)
        self.known[char] = found
        return found


def end_of_set(pattern: str, at: int) -> int:
    """Return where the bracket ends whose inside begins here, or 0: then it stands for itself."""
    begin = at + pattern.startswith("!", at)
    # A bracket that closes at once belongs to the set.
    return max(0, pattern.find("]", begin + 1))


def parse_set(inside: str) -> Set:
    """Return what stands between the brackets; a range that runs backwards is empty."""
    negated = inside.startswith("!")
    ranges, at = [], int(negated)
    while at < len(inside):
        is_range = inside.startswith("-", at + 1) and at + 2 < len(inside)
        ranges.append((inside[at], inside[at + 2] if is_range else inside[at]))
        at += 3 if is_range else 1
    return Set(tuple(ranges), negated)
