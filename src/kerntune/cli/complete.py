"""`kerntune complete KIND WORD`: the possible completions of a word, for the shells; people do not type this verb.

The verb reads files of the kernel and folders that everybody may read. It asks no daemon, and prints nothing when it
fails: a shell waits for it at a key press.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kerntune.errors import InvalidValue, KerntuneError
from kerntune.paths import CONFIG, files_in, folders
from kerntune.patterns import EVERY, Kind, left_out_word
from kerntune.streams import written

if TYPE_CHECKING:
    from kerntune.kernel.files import KernelView
    from kerntune.tunables.base import Tunable

# Names come from devices and folders: no other character may get onto the user's command line.
SAFE: Final = re.compile(r"[A-Za-z0-9_.:@=/+-]*", re.ASCII)
OPEN: Final = "@=:"  # at the end of a word that continues
RATIO: Final = "50"  # an example: any ratio would do


def main(words: Sequence[str], *, root: Path = Path("/")) -> int:
    """Print the possible replacements of the word, one to a line. Raise Unwritten."""
    kind, word = (*words, "", "")[:2]
    try:
        found = [text for text in KINDS[kind](word, root) if is_next(text, word)]
    except (KeyError, KerntuneError, OSError):
        found = []
    with written(sys.stdout):
        sys.stdout.write("".join(f"{text}\n" for text in dict.fromkeys(found)))
    return 0


def is_next(text: str, word: str) -> bool:
    """Return True if the word may become that; a complete text stays, so that the shell goes on to the next word."""
    rest = text.removeprefix(word)
    return text.startswith(word) and bool(SAFE.fullmatch(rest)) and (rest != "" or text[-1:] not in OPEN)


def profiles(_word: str, _root: Path) -> Iterator[str]:
    """Yield the names of the shipped profiles and the administrator's."""
    config = Path(os.environ.get("CONFIGURATION_DIRECTORY", CONFIG))
    return iter(sorted(path.stem for folder in folders(config) for path in files_in(folder)))


def tunables(_word: str, _root: Path) -> Iterator[str]:
    """Yield the names of all tunables, also of those that this host does not support."""
    return (tunable.name for tunable in registry())


def targets(word: str, root: Path) -> Iterator[str]:
    """Yield `TUNABLE`, then `TUNABLE@INSTANCE`."""
    name, at, _ = word.partition("@")
    for tunable in registry():
        if at and tunable.name == name:
            yield from (f"{name}@{instance}" for instance in instances(tunable, host(root), word))
        elif not at:
            yield tunable.name
            if tunable.name.startswith(word) and tunable.kind is not Kind.SINGLE:
                yield f"{tunable.name}@"


def settings(word: str, root: Path) -> Iterator[str]:
    """Yield `TUNABLE@` or `TUNABLE=`, then `TUNABLE@INSTANCE=`, then its values; names by-id may have a `=` in them."""
    tunable = next((one for one in registry() if one.name == re.split("[@=]", word)[0]), None)
    if tunable is None or not {"@", "="} & set(word):
        for one in registry():
            yield from (f"{one.name}@",) if one.kind is not Kind.SINGLE else ()
            yield from (f"{one.name}=",) if takes_no_instance(one) else ()
        return
    kernel = host(root)
    yield from (f"{tunable.name}@{instance}=" for instance in instances(tunable, kernel, word))
    target, equals, _ = word.rpartition("=")
    if equals:
        pattern = target.partition("@")[2]
        yield from (f"{target}={value}" for value in values(tunable, kernel, pattern))


def registry() -> tuple[Tunable, ...]:
    from kerntune.tunables import REGISTRY  # noqa: PLC0415  # completion of profiles does without them

    return REGISTRY


def host(root: Path) -> KernelView:
    from kerntune.kernel.files import HostKernel  # noqa: PLC0415  # as above

    return HostKernel(root)


def takes_no_instance(tunable: Tunable) -> bool:
    """Return True if `TUNABLE=VALUE` has a meaning."""
    return tunable.kind is Kind.POOLS or is_good(tunable.normal, EVERY)


def instances(tunable: Tunable, kernel: KernelView, word: str) -> Iterator[str]:
    """Yield the names of the present targets, also their other names, as far as they may be patterns.

    Devices that `*` leaves out are offered when the word has begun to name them.
    """
    begun = word.partition("@")[2]
    for target in tunable.targets(kernel):
        if tunable.kind is Kind.DRIVES and left_out_word(target.instance) and not begun:
            continue
        yield from (name for name in (target.instance, *target.aliases) if name and is_good(tunable.normal, name))


def values(tunable: Tunable, kernel: KernelView, pattern: str) -> Iterator[str]:
    """Yield the values that the targets offer; a word that takes an argument ends in a colon."""
    from kerntune.kernel.modules import loadable  # noqa: PLC0415  # as above

    targets = tunable.targets(kernel)
    matching = filter(tunable.matcher(tunable.normal(pattern)), targets) if pattern else targets
    readings = tunable.read_all(kernel, list(matching))
    loads = loadable(kernel, tunable.modules) if tunable.modules else ()
    offered = (
        choice for reading in readings.values() for choice in (*reading.choices, *tunable.choices(reading, loads))
    )
    for choice in dict.fromkeys(offered):
        if is_good(tunable.normal_value, choice):
            yield choice
        if is_good(tunable.normal_value, f"{choice}:{RATIO}"):
            yield f"{choice}:"


def is_good(normal: Callable[[str], str], text: str) -> bool:
    try:
        normal(text)
    except InvalidValue:
        return False
    return True


def texts(_word: str, _root: Path) -> Iterator[str]:
    """Yield nothing: only the user knows such a text."""
    return iter(())


KINDS: Final[dict[str, Callable[[str, Path], Iterator[str]]]] = {
    "profiles": profiles,
    "tunables": tunables,
    "targets": targets,
    "settings": settings,
    "texts": texts,
}
