"""Decisions on whether a script's condition changes its lines at boot: most ask only for the file or for root. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from kerntune.doctor import words
from kerntune.doctor.shell_reader import Condition

# These tests ask whether the file that a line writes exists, or can be written.
ON_FILES: Final = frozenset({"-e", "-a", "-f", "-r", "-w", "-d", "-b", "-L", "-h"})
BRACKETS: Final = {"[": "]", "[[": "]]"}
UID: Final = r"(?:\$\(id -u\)|`id -u`|\$\{?E?UID\}?)"
USER: Final = r"(?:\$\((?:id -un|whoami)\)|`(?:id -un|whoami)`|\$\{?(?:USER|LOGNAME)\}?)"
ROOT: Final = re.compile(rf"{UID} (?:-eq|==?) 0|{USER} ==? root")
NOT_ROOT: Final = re.compile(rf"{UID} (?:-ne|-gt|!=) 0|{USER} != root")
# These commands do something, and their success does not depend on the host.
DOING: Final = frozenset(
    {"echo", "printf", "sleep", "true", ":", "cd", "sync", "export", "logger", "set"}
    | {"sysctl", "tee", "cpupower", "cpufreq-set", "blockdev"}
)


def unmet(conditions: Iterable[Condition], paths: Sequence[str], known: Mapping[str, Sequence[str]]) -> str:
    """Return the first condition that asks for more than root and the existence of these files, or "" if none does."""
    return next((one.what for one in conditions if not meets(one, paths, known)), "")


def meets(condition: Condition, paths: Sequence[str], known: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a condition holds wherever root can write these files (paths below the root)."""
    return condition.plain and all(holds(test, paths, known) for test in condition.tests)


def holds(test: Sequence[str], paths: Sequence[str], known: Mapping[str, Sequence[str]]) -> bool:
    """Return whether one command of a condition holds wherever root can write these files."""
    inner = tested(test)
    if inner is None:
        return does(test)
    if ROOT.fullmatch(" ".join(inner)):
        return True
    if len(inner) != 2 or inner[0] not in ON_FILES or not paths:
        return False
    files = words.expand(inner[1], known) or []
    return all(any(covers(file, path) for file in files) for path in paths)


def never(condition: Condition) -> bool:
    """Return whether a condition never holds at boot, where root runs the script."""
    said = [" ".join(inner) for test in condition.tests if (inner := tested(test)) is not None]
    wanted = ROOT if condition.negated else NOT_ROOT
    return (condition.plain or condition.negated) and any(map(wanted.fullmatch, said))


def tested(test: Sequence[str]) -> list[str] | None:
    """Return the words in the brackets of a test, or None for any other command."""
    rest = list(test)
    if rest and rest[0] == "test":
        return rest[1:]
    if len(rest) > 1 and BRACKETS.get(rest[0]) == rest[-1]:
        return rest[1:-1]
    return None


def does(command: Sequence[str]) -> bool:
    """Return whether a script runs a command for its effect."""
    name = next((word for word in command if not words.ASSIGNED.fullmatch(word) and word != "sudo"), "")
    return not name or name.rsplit("/", 1)[-1] in DOING


def covers(file: str, path: str) -> bool:
    """Return whether an existing file or folder means that the path exists; the path may be a glob that names it."""
    parts = [part for part in file.split("/") if part]
    if parts[:1] == ["dev"]:
        parts[:1] = ["sys", "block"]
    begin = path.split("/")[: len(parts)]
    return bool(parts) and len(begin) == len(parts) and all(map(fnmatchcase, parts, begin))
