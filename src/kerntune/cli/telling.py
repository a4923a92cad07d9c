"""How an error is told: what happened, then what to try, and what was meant where a name is none; asks nobody."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kerntune.errors import KerntuneError, UnknownTunable, Usage
from kerntune.explained import EXPLAINED

# The daemon's texts have both parts in one, and what to try is the last sentence. No path or figure begins one.
SENTENCES: Final = re.compile(r"\. (?=[A-Za-z`])", re.ASCII)
NO_TUNABLE: Final = re.compile(r"there is no tunable '(.+)'")
THERE_ARE: Final = "There are "
SYSCTLS: Final = "/proc/sys/"


def parts(error: KerntuneError) -> tuple[str, str]:
    """What happened, and the likely cause and what to try."""
    what, hint = error.what, error.hint
    if not hint:
        *first, hint = SENTENCES.split(what) if SENTENCES.search(what) else (what, "")
        what = ". ".join(first)
    if isinstance(error, UnknownTunable) and (found := NO_TUNABLE.fullmatch(what)):
        names = hint.removeprefix(THERE_ARE).split(", ") if hint.startswith(THERE_ARE) else []
        if meant := tunable(found[1], names):
            hint = f"Did you mean {meant}? {hint}"
    return what, hint


def tunable(word: str, names: Sequence[str]) -> str:
    """One of these names that may be meant by a word: a part of it, a file of the kernel or a sysctl, or misspelt."""
    known = {spelt: target for spelt, target in spellings() if target.partition("@")[0] in names}
    for spelt in (word, word.replace("_", "-"), word.rpartition(".")[2]):
        if spelt in known:
            return known[spelt]
    return known.get(closest(word.replace("_", "-"), known), "")


def spellings() -> Iterator[tuple[str, str]]:
    """What people write, with what it is called here; the names themselves last, for they win."""
    for one in EXPLAINED:
        for file in one.files:
            dotted = file.removeprefix(SYSCTLS).replace("/", ".")
            target = f"sysctl@{dotted}" if one.tunable == "sysctl" else one.tunable
            yield file.rpartition("/")[2], target
            yield from ((dotted, target),) if file.startswith(SYSCTLS) else ()
    for one in EXPLAINED:
        yield from ((part, one.tunable) for part in one.tunable.split("-")[1:])
    for one in EXPLAINED:
        yield one.tunable, one.tunable


def no_verb(word: str, verbs: Sequence[str]) -> Usage:
    """There is no such verb."""
    if "=" in word:
        return Usage(f"{word} is no verb", f"To set it: kerntune set {word}")
    meant = closest(word, verbs)
    suggestion = f"Did you mean {meant}? " if meant else ""
    return Usage(f"there is no verb {word!r}", f"{suggestion}kerntune --help shows those there are")


def closest(word: str, names: Iterable[str]) -> str:
    """The name that is most like a word, or "" when none is."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1)), "")
