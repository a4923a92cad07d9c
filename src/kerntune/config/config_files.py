"""The list of configuration files, and a test whether they say anything: on most hosts they do not."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kerntune.guard.policy import GuardLimits
from kerntune.model import Claim, Limits
from kerntune.plain_files import contents_of

if TYPE_CHECKING:
    from kerntune.config.parser import Problem

MAIN: Final = "kerntune.toml"
DROP_INS: Final = "kerntune.d"
COPY: Final = "config.json"  # in the runtime directory, see config.py
DEFAULT: Final = Limits()
DRIFT_INTERVAL: Final = 60  # seconds
GUARD: Final = GuardLimits()
RESTORE: Final = False  # on stop
HEADER: Final = re.compile(rb"\[([a-z0-9-]+)\]")


@dataclass(frozen=True, slots=True)
class Config:
    """The content of all files together; the later file and line wins."""

    claims: tuple[Claim, ...] = ()
    limits: Limits = DEFAULT
    drift_interval: int = DRIFT_INTERVAL
    guard: GuardLimits = GUARD
    profile: str = ""
    problems: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = ()
    restore_on_stop: bool = RESTORE

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_error)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The content of the profile in force."""

    claims: tuple[Claim, ...] = ()
    problems: tuple[Problem, ...] = ()


def silent(folder: Path, runtime: Path, tables: Collection[str]) -> bool:
    """Return True if no file says anything and none did before: then the daemon need not parse or keep anything."""
    paths, unlisted = listed(folder)
    if unlisted or (runtime / COPY).exists():
        return False
    try:
        return all(says_nothing(contents_of(path), tables) for path in paths)
    except OSError:
        return False


def says_nothing(data: bytes, tables: Collection[str]) -> bool:
    """Return True if `data` has only comments, blank lines and headers of known tables, as in the shipped file."""
    left = [line for line in (line.partition(b"#")[0].strip() for line in data.split(b"\n")) if line]
    headers = [header for header in map(HEADER.fullmatch, left) if header and header[1].decode() in tables]
    return len(set(left)) == len(left) == len(headers)


def listed(folder: Path) -> tuple[list[Path], OSError | None]:
    """Return the files in the order in which they count, and the error if the drop-in folder cannot be listed.

    `folder` may also be a file: then it is the only one.
    """
    if folder.is_file():
        return [folder], None
    paths = [] if absent(folder / MAIN) else [folder / MAIN]
    try:
        names = sorted(os.listdir(folder / DROP_INS))
    except FileNotFoundError:
        return paths, None
    except OSError as error:
        return paths, error
    # Editors mark a file that they work on with a leading dot.
    return paths + [folder / DROP_INS / name for name in names if name.endswith(".toml") and name[0] != "."], None


def absent(path: Path) -> bool:
    """Return True if the file surely does not exist. A file that we may not see could exist."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
