"""Matches names with globs, without regular expressions: these cache what callers send, and are slow to compile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Set:
    """Holds what `[...]` or `?` stands for: one of these characters or ranges, or none of them."""

    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


ANY = Set(negated=True)
Part = str | Set  # one character of a name
Run = tuple[Part, ...]  # what stands between two stars


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob that was parsed: `*`, `?`, `[...]` and `[!...]` as fnmatch(7) has them.

    A comparison takes as many steps as the square of the name's length at most, whatever the pattern is.
    """

    runs: tuple[Run, ...]
    length: int

    @classmethod
    def parse(cls, pattern: str) -> Glob:
        """Return the glob; every text is one."""
        runs: list[list[Part]] = [[]]
        at = 0
        while at < len(pattern):
            char, at = pattern[at], at + 1
            if char == "*":
                # A star after a star adds nothing.
                if runs[-1] or len(runs) == 1:
                    runs.append([])
            elif char == "?":
                runs[-1].append(ANY)
            elif char == "[" and (end := end_of_set(pattern, at)):
                runs[-1].append(parse_set(pattern[at:end]))
                at = end + 1
            else:
                runs[-1].append(char)
        return cls(tuple(map(tuple, runs)), sum(map(len, runs)))

    def matches(self, name: str) -> bool:
        """Return whether the glob covers the whole name."""
        if self.length > len(name):
            return False
        first, *others = self.runs
        if not fits(first, name, 0):
            return False
        if not others:
            return len(first) == len(name)
        at, last = len(first), others.pop()
        for run in others:
            # The leftmost place is as good as any: it leaves most to the runs that follow.
            found = next((place for place in range(at, len(name) - len(run) + 1) if fits(run, name, place)), None)
            if found is None:
                return False
            at = found + len(run)
        return len(name) - len(last) >= at and fits(last, name, len(name) - len(last))


def fits(run: Run, name: str, at: int) -> bool:
    """Return whether the characters from a place on are those of the run; the name is long enough."""
    for part in run:
        char = name[at]
        if part != char if isinstance(part, str) else not part.has(char):
            return False
        at += 1
    return True


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
