"""Errors for people: what happened, what to try, and the name that was meant; this module asks nobody."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Final

from kerntune.errors import KerntuneError, UnknownTunable
from kerntune.suggest import closest

# The daemon's texts have both parts in one, and what to try is the last sentence. No path or figure begins one.
SENTENCES: Final = re.compile(r"\. (?=[A-Za-z`])", re.ASCII)
NO_TUNABLE: Final = re.compile(r"there is no tunable '(.+)'")


def parts(error: KerntuneError) -> tuple[str, str]:
    """Return what happened, and the hint: the likely cause and what to try."""
    what, hint = error.what, error.hint
    if not hint:
        *first, hint = SENTENCES.split(what) if SENTENCES.search(what) else (what, "")
        what = ". ".join(first)
    if isinstance(error, UnknownTunable) and (found := NO_TUNABLE.fullmatch(what)):
        from kerntune.tunables import REGISTRY  # noqa: PLC0415  # as in known_as()

        if meant := tunable(found[1], [each.name for each in REGISTRY]):
            hint = f"Did you mean {meant}? {hint}"
    return what, hint


def tunable(word: str, names: Sequence[str]) -> str:
    """Return which of these names a word may mean: another name of it, a part of it, or a misspelt one."""
    known = {other: name for other, name in known_as().items() if name.partition("@")[0] in names}
    known |= {part: name for name in names for part in name.split("-")[1:]} | {name: name for name in names}
    for spelt in (word, word.replace("_", "-"), word.rpartition(".")[2]):
        if spelt in known:
            return known[spelt]
    near = (closest(spelt, known) for spelt in (word.replace("_", "-"), word.rpartition(".")[2]))
    return known.get(next(filter(None, near), ""), "")


def known_as() -> dict[str, str]:
    """Return what people call the tunables: by the names of files and sysctls, and by other words.

    It imports all of them, which only an error may take the time for.
    """
    from kerntune.explained import known_as as other_words  # noqa: PLC0415
    from kerntune.tunables import REGISTRY  # noqa: PLC0415

    found: dict[str, str] = {}
    for tunable in REGISTRY:
        found |= dict.fromkeys((file.rpartition("/")[2] for file in tunable.files), tunable.name)
        found |= {name.rpartition(".")[2]: f"{tunable.name}@{name}" for name in tunable.names}
        # An upgrade may be replacing the file that has them.
        with contextlib.suppress(OSError, ValueError, KeyError):
            found |= dict.fromkeys(other_words(tunable), tunable.name)
    return found
