"""The reader of profiles: their names, and the content of each with all that it includes. It puts none in force.

Every method blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kerntune.config.content import Content, Problem, listed, merge
from kerntune.config.parser import parse
from kerntune.config.schema import INCLUDE, PROFILE_OPTIONS, Kind, shown
from kerntune.errors import InvalidValue, NoSuchProfile
from kerntune.model import Origin
from kerntune.paths import files_in
from kerntune.plain_files import contents_of
from kerntune.suggest import there_are
from kerntune.tunables.base import Tunable

MAX_DEPTH: Final = 16
READABLE: Final = "kerntuned reads it as root without capabilities, so its mode counts: chown root, and chmod 644"


class Profiles:
    """The profiles of some folders; one in a later folder replaces another of the same name."""

    def __init__(self, folders: Sequence[Path], tunables: Iterable[Tunable]) -> None:
        self._folders, self._tunables = folders, {tunable.name: tunable for tunable in tunables}

    def files(self) -> dict[str, Path]:
        """Return the path of each profile by its name, in the order of the names."""
        found = {path.stem: path for folder in self._folders for path in files_in(folder)}
        return dict(sorted(found.items()))

    def listing(self) -> list[tuple[str, str]]:
        """Return names and summaries; for a profile with errors, the first error in place of the summary."""
        found = ((name, self.read(name)) for name in self.files())
        return [(name, str(content.errors[0]) if content.errors else content.summary) for name, content in found]

    def read(self, name: str) -> Content:
        """Return the content of a profile, with its mistakes as problems. Raise NoSuchProfile if none has that name.

        Claims of a profile that includes others are stronger than theirs; `who` of each is the profile that has it.
        """
        files = self.files()
        if name not in files:
            raise NoSuchProfile(f"there is no profile {shown(name)}", there_are(files, name))
        return self._read(name, files)

    def read_sound(self, name: str) -> Content:
        """Return the content of a profile that a caller selects. Raise NoSuchProfile, or InvalidValue for mistakes."""
        content = self.read(name)
        if content.errors:
            raise InvalidValue(f"profile {name} is not in order: {listed(content.errors)}", "Correct it and try again")
        return content

    def read_file(self, file: Path) -> Content:
        """Return the content of a file as the profile of its name, wherever the file lies."""
        return self._read(file.stem, {**self.files(), file.stem: file})

    def _read(self, name: str, files: Mapping[str, Path]) -> Content:
        walk = _Walk(files, self._tunables)
        walk.visit(name, ())
        own, together = walk.contents[name], merge(walk.contents.values())
        return replace(own, claims=together.claims, problems=(*together.problems, *walk.problems), name=name)


@dataclass(slots=True)
class _Walk:
    """The files that belong to one profile, each read once; included files come before those that include them."""

    files: Mapping[str, Path]
    tunables: Mapping[str, Tunable]
    contents: dict[str, Content] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def visit(self, name: str, way: tuple[str, ...]) -> None:
        """Read a profile and those it includes; `way` has the profiles that led to it."""
        way = (*way, name)
        content = read_alone(name, self.files[name], self.tunables)
        for other in content.include:
            if other in way:
                what = f"profiles include each other: {' -> '.join((*way[way.index(other) :], other))}"
                self._add(content, what, "One of them has to do without")
            elif len(way) == MAX_DEPTH:
                self._add(content, f"profiles include each other {MAX_DEPTH} deep", "Include them side by side")
            elif other not in self.files:
                self._add(content, f"there is no profile {shown(other)}", there_are(self.files, other))
            elif other not in self.contents:
                self.visit(other, way)
        self.contents[name] = content

    def _add(self, content: Content, what: str, allowed: str) -> None:
        """Add a problem with the line that includes another profile."""
        file, line = content.places[INCLUDE.path]
        self.problems.append(Problem(file, line, Kind.CLAIM, what, allowed))


def read_alone(name: str, path: Path, tunables: Mapping[str, Tunable]) -> Content:
    """Return the content of one file, without those that it includes."""
    try:
        data = bytes_of(path)
    except OSError as error:
        return Content(problems=(unreadable(path, error),), files=(path,))
    return parse(path, data, tunables, PROFILE_OPTIONS, origin=Origin.PROFILE, who=name)


def bytes_of(path: Path) -> bytes:
    """Return the bytes of a file. Raise OSError, also if root needs a capability for it: the service has none.

    So a check by root finds what a reload would find.
    """
    data, found = contents_of(path), path.stat()
    needed = stat.S_IROTH if found.st_uid and found.st_gid else stat.S_IRGRP if found.st_uid else stat.S_IRUSR
    if os.geteuid() == 0 and not found.st_mode & needed:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return data


def unreadable(path: Path, error: OSError) -> Problem:
    """Return the problem of a file that cannot be read."""
    hint = READABLE if isinstance(error, PermissionError) else ""
    return Problem(str(path), 0, Kind.FILE, f"this file cannot be read: {error.strerror}", hint)
