"""Errors for names that are not there, and suggestions, for the daemon's messages and those of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from kerntune.errors import NoSuchTarget, UnknownTunable
from kerntune.globs import natural_sort_key
from kerntune.model import Target
from kerntune.patterns import OTHER_TUNABLES, Kind, cpus_in, joined
from kerntune.units import CPU_LIST, spell_cpus

MAX_LISTED: Final = 6  # names, or patterns of several, that a message lists; it counts the others


def closest(word: str, names: Iterable[str]) -> str:
    """Return the name that is most like a word, or "" when none is."""
    import difflib  # noqa: PLC0415  (only a typo needs it)

    return next(iter(difflib.get_close_matches(word, list(names), n=1)), "")


def there_are(names: Iterable[str], word: str) -> str:
    """Return the hint for an unknown name: the most similar name, and a few of those that there are."""
    known = sorted(names)
    meant = closest(word, known)
    return (f"Did you mean '{meant}'? " if meant else "") + f"There are {few(known, len(known) - MAX_LISTED) or 'none'}"


def listed(names: Iterable[str]) -> str:
    """Return a few instances as prose, those that are alike as one pattern, and how many more there are."""
    found = joined(sorted(set(names), key=natural_sort_key))
    return few([pattern for pattern, _ in found], sum(len(group) for _, group in found[MAX_LISTED:]))


def few(names: Sequence[str], more: int) -> str:
    """Return the first names as prose, and that there are so many more."""
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def no_such_target(tunable: str, kind: Kind, pattern: str, there: Sequence[Target]) -> NoSuchTarget:
    """Return the error for instances that a tunable does not have, with a few of those that `there` are."""
    if kind is Kind.NAMES and (other := OTHER_TUNABLES.get(pattern)):
        hint = f"kerntune get {other} shows it; to change it: kerntune set {other}=..."
        return NoSuchTarget(f"{pattern} is set by the tunable {other}", hint)
    names = [target.instance for target in there if target.instance]
    numbers = [cpu for target in there for cpu in cpus_in(target.aliases)] if kind is Kind.CPUS else []
    if numbers and CPU_LIST.fullmatch(pattern):
        said = f"CPUs {spell_cpus(numbers)}" if len(numbers) > 1 else f"CPU {numbers[0]} alone"
    else:
        said = listed(names)
    is_one = len(names) == 1 or len(numbers) == 1
    hint = f"There {'is' if is_one else 'are'} {said}" if names else f"This host has no {tunable} now"
    if kind is Kind.NAMES and (meant := closest(pattern, names)):
        hint = f"Did you mean {meant}? {hint}"
    return NoSuchTarget(lacks(tunable, kind, pattern), hint)


def lacks(tunable: str, kind: Kind, pattern: str) -> str:
    """Return what is said of instances that are not there, as prose."""
    if kind is Kind.NAMES and tunable == "sysctl":  # the kernel may well have it
        return f"kerntune tunes no sysctl {pattern!r} here"
    named = f"CPU {pattern}" if kind is Kind.CPUS and CPU_LIST.fullmatch(pattern) else repr(pattern)
    return f"{tunable} has no {named}"


def no_such_tunable(name: str, names: Iterable[str]) -> UnknownTunable:
    """Return the error for a tunable that does not exist, with a few of those that do."""
    known = sorted(names)
    return UnknownTunable(f"there is no tunable {name!r:.80}", f"There are {few(known, len(known) - MAX_LISTED)}")
