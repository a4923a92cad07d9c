"""Suggestions for an unknown name, for the daemon's messages and those of the command line."""

from __future__ import annotations

from collections.abc import Iterable

from kerntune.errors import UnknownTunable


def closest(word: str, names: Iterable[str]) -> str:
    """Return the name that is most like a word, or "" when none is."""
    import difflib  # noqa: PLC0415  (only a typo needs it)

    return next(iter(difflib.get_close_matches(word, list(names), n=1)), "")


def there_are(names: Iterable[str], word: str) -> str:
    """Return the hint for an unknown name: the most similar name, and the list of names."""
    known = sorted(names)
    meant = closest(word, known)
    return (f"Did you mean '{meant}'? " if meant else "") + f"There are {', '.join(known) or 'none'}"


def no_such_tunable(name: str, names: Iterable[str]) -> UnknownTunable:
    """Return the error for a tunable that does not exist, with the names of those that do."""
    return UnknownTunable(f"there is no tunable {name!r}", f"There are {', '.join(names)}")
