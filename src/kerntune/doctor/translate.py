"""Translation of a file of the kernel and its value to a setting of kerntune, where a tunable exists for it. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import Final, NamedTuple

from kerntune.patterns import Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable
from kerntune.units import spell_size

OVERCOMMIT: Final = "overcommit"
MODES: Final = {"0": "heuristic", "1": "always", "2": "never"}
ANY_CPU: Final = frozenset({"*", "?", "[0-9]", "[0-9]*", "?*", "*[0-9]", "policy*", "policy[0-9]*", "policy?*"})
KNOBS: Final = tuple((re.compile(pattern), tunable) for tunable in REGISTRY for pattern in tunable.import_patterns)
# The doctor mentions these sysctls if kerntune has no tunable for them; others do not concern kerntune.
SYSCTLS: Final = re.compile(r"proc/sys/(vm/.+|kernel/numa_balancing)")


class Knob(NamedTuple):
    """A tunable and its instances; with a `part`, the value is only one of several that make the setting."""

    tunable: str
    instances: str
    part: str = ""


def knob(path: str, default_page_size: int) -> Knob | None:
    """Return what a path below the root is to kerntune, or None if it is nothing.

    `default_page_size` is in bytes, 0 for none. The function knows symbolic links that everybody uses
    (/sys/class/block). The path may be a glob.
    """
    path = posixpath.normpath(path.strip("/"))
    for pattern, tunable in KNOBS:
        if found := pattern.fullmatch(path):
            return named(tunable, {key: text or "" for key, text in found.groupdict().items()}, default_page_size)
    return None


def named(tunable: Tunable, found: dict[str, str], default_page_size: int) -> Knob | None:
    """Return a tunable and its instance, from what a path says of the instance."""
    match tunable.kind:
        case Kind.POOLS:
            instances = pool(found, default_page_size)
            return Knob(tunable.name, instances) if instances else None
        case Kind.CPUS:
            where = found["cpus"] or found["policy"] or "*"
            return Knob(tunable.name, "*" if where in ANY_CPU else where)
        case Kind.DRIVES:
            return Knob(tunable.name, found["drive"])
        case Kind.NAMES:
            return Knob(tunable.name, found["name"].replace("/", "."))
        case Kind.SINGLE:
            return Knob(tunable.name, "", found.get("part", ""))


def pool(found: dict[str, str], default: int) -> str:
    """Return a pool of huge pages: without a size in the path the pool of the default size, "" without a default."""
    size = int(found["kb"]) << 10 if "kb" in found else default
    node = found.get("node", "")
    node = "*" if node in ("node*", "node[0-9]*") else node
    return spell_size(size) + (f"/{node}" if node else "") if size else ""


def overcommit(mode: str, ratio: str, kbytes: str, *, current_ratio: int) -> tuple[str, str]:
    """Return mode and ratio as one value, and what to know of it; return ("", why) if no value can say them.

    An empty text is a part that nobody sets. `current_ratio` is the kernel's ratio now, for a mode that needs one.
    """
    word = MODES.get(mode)
    if word is None:
        return "", f"vm.overcommit_memory is 0, 1 or 2, not {mode}" if mode else "a ratio is read in mode 2 only"
    if word == "heuristic":
        return word, "the ratio is not read in this mode" if ratio else ""
    if word == "never" and kbytes not in ("", "0"):
        return "", "kerntune takes the limit as a ratio, not in kilobytes: overcommit=never:RATIO"
    if word == "always":
        caps = "the kernel reads the ratio in mode 2 only; as a claim it is what the memory guard lets programs have"
        return (f"{word}:{ratio}", caps) if ratio else (word, "")
    return f"{word}:{ratio or current_ratio}", "" if ratio else "the ratio is the one the kernel has now"
