"""Globs of our own: the same answers as fnmatch gives, without its cache, and never slow."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kerntune.globs import Glob, Set
from kerntune.model import Target
from kerntune.tunables.knobs import IO_SCHEDULER

SCHEDULERS = IO_SCHEDULER
NAMES = st.text("ab-!^[]n01", max_size=9)
PATTERNS = st.text("ab-!^[]n01*?", max_size=12)
# After an empty range fnmatch takes what is left of the set for its beginning: [b-a!c] is [!c] to it.
MISREAD = re.compile(r"\[(.-.)+!")


@given(PATTERNS, NAMES)
@example("[]a]", "]")
@example("[!]a]", "b")
@example("[a-", "[a-")
@example("[--0]", ".")
@example("[b-a]", "a")
@example("[!b-a]", "a")
@example("a**?*b", "axb")
def test_it_says_what_fnmatch_says(pattern: str, name: str) -> None:
    assume(not MISREAD.search(pattern))
    assert Glob.parse(pattern).matches(name) is fnmatch.fnmatchcase(name, pattern)


class Counted(str):
    """A name that counts how often one of its characters is looked at."""

    steps = 0

    def __iter__(self) -> Iterator[str]:
        for char in str(self):
            self.steps += 1
            yield char


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 127 + "b",
        "*" * 255 + "b",
        "*?" * 127 + "b",
        "*" + "a" * 49 + "b",
        "*" + "?" * 49 + "b*",
        "[a-b" * 63,
        f"*[{'b' * 250}]*",
        f"*{'[!b-zA-Z]' * 27}b*",
    ],
)
def test_the_work_is_bounded_by_the_length_of_the_name(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is asked about a character once, however often the name has it."""
    sets, inner = Counter[str](), Set.has

    def counted(self: Set, char: str) -> bool:
        sets[char] += 1
        return inner(self, char)

    monkeypatch.setattr(Set, "has", counted)
    name = Counted("a" * 99)
    glob = Glob.parse(pattern)
    for _ in range(2):
        assert not glob.matches(name)
    assert name.steps <= 2 * len(name)
    assert sets["a"] <= len(glob.parts)


def test_patterns_of_callers_are_kept_nowhere() -> None:
    drive = Target("io-scheduler", "nvme0n1", aliases=("by-id/nvme-First",))
    before = fnmatch._compile_pattern.cache_info().misses  # type: ignore[attr-defined]
    for number in range(100):
        assert not SCHEDULERS.matches(f"*no{number}*such?drive*", drive)
    assert fnmatch._compile_pattern.cache_info().misses == before  # type: ignore[attr-defined]
