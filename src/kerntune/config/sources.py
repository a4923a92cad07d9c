"""The sources of configured values. This module reads the files, each once a reload; every method blocks.

1. `ConfigFiles`: kerntune.toml, then kerntune.d/*.toml in the order of their names. Of two claims on one target, and of
   two values of one option, the later file and line wins. An option that no file gives has its default (schema.py).
2. `ActiveProfile`: below all of these files the profile in force, which is the one that a caller selected, or else the
   one that the files name. Its claims have the origin `profile`, which is weaker than `config` (model.py).
   profiles.py reads it together with the profiles that it includes.
3. `LastGood`: where a file has errors, its last good content stays in force as far as the kind of the error demands
   (`Kind` in schema.py). A profile with errors takes the place of none that the files had named: that one stays.
   The runtime directory has copies, so that neither a typo nor a restart of the daemon frees pages in use.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kerntune.config import schema
from kerntune.config.content import Content, Problem, merge, numbered
from kerntune.config.parser import parse
from kerntune.config.profiles import Profiles, bytes_of, unreadable
from kerntune.config.schema import CONFIG_OPTIONS, PROFILE, Kind, OptionPath
from kerntune.engine.requests import sound
from kerntune.errors import NoSuchProfile
from kerntune.model import Claim, Origin
from kerntune.plain_files import put_aside, replace_file
from kerntune.store import Document, dump_claims, load, load_claims
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
MAIN: Final = "kerntune.toml"
DROP_INS: Final = "kerntune.d"
CONFIG_COPY: Final = "config.json"  # in the runtime directory
PROFILE_COPY: Final = "profile.json"
FORMAT: Final = 1
STALE: Final = ", as last read without an error"


class ConfigFiles:
    """The configuration files of one directory, with the last good content of each."""

    def __init__(self, folder: Path, runtime: Path | None, tunables: Iterable[Tunable]) -> None:
        """Save nothing without a runtime directory: this is for a look at files that are not in force.

        `folder` may also be a file: then it is the only one.
        """
        self._folder, self._tunables = folder, {tunable.name: tunable for tunable in tunables}
        self._last = LastGood(runtime / CONFIG_COPY if runtime else None, self._tunables, Origin.CONFIG)

    @property
    def set_aside(self) -> Path | None:
        """The path of the copy from a former start, if that copy could not be used."""
        return self._last.set_aside

    def read(self) -> Content:
        """Return all that the files say now, and save what is good of them.

        A mistake in them is a problem, never an exception.
        """
        contents, together = self._look()
        self._last.save(contents)
        return together

    def look(self) -> Content:
        """Return all that the files say now, and save nothing."""
        return self._look()[1]

    def _look(self) -> tuple[dict[str, Content], Content]:
        """Return the content of each file, and that of all together."""
        paths, unlisted = self._list()
        contents = {str(path): self._read(path) for path in paths}
        if unlisted:
            # The files in this folder may still be there.
            drop_ins = self._folder / DROP_INS
            why = f"this folder cannot be listed: {unlisted.strerror}"
            last = {name: last for name, last in self._last.contents.items() if Path(name).parent == drop_ins}
            contents |= {str(drop_ins): Content(problems=(Problem(str(drop_ins), 0, Kind.FILE, why),)), **last}
        together = merge(contents.values())
        options, problems = dict(together.options), list(together.problems)
        # One file by itself is a part of a configuration: what it does not say another may.
        for path, what, hint in schema.contradictions(options, is_part=self._folder.is_file()):
            problems.append(Problem(*together.places[path], Kind.OPTION, what, hint))
            del options[path]
        return contents, replace(together, options=options, problems=tuple(problems), files=tuple(paths))

    def _read(self, path: Path) -> Content:
        """Return what is in force of a file; if it has errors, this may be its last good content."""
        try:
            now = parse(path, bytes_of(path), self._tunables)
        except OSError as error:
            now = Content(problems=(unreadable(path, error),), files=(path,))
        return with_last(now, self._last.contents.get(str(path)))

    def _list(self) -> tuple[list[Path], OSError | None]:
        """Return the files in the order in which they count, and the error if the drop-in folder cannot be listed."""
        folder = self._folder
        if folder.is_file():
            return [folder], None
        paths = [] if is_absent(folder / MAIN) else [folder / MAIN]
        try:
            names = sorted(os.listdir(folder / DROP_INS))
        except FileNotFoundError:
            return paths, None
        except OSError as error:
            return paths, error
        # Editors mark a file that they work on with a leading dot.
        return paths + [folder / DROP_INS / name for name in names if name.endswith(".toml") and name[0] != "."], None


class ActiveProfile:
    """The reader of the profile in force, with the last good claims of the profile that was in force last."""

    def __init__(self, profiles: Profiles, runtime: Path, tunables: Mapping[str, Tunable]) -> None:
        self.profiles, self._last = profiles, LastGood(runtime / PROFILE_COPY, tunables, Origin.PROFILE)

    @property
    def set_aside(self) -> Path | None:
        """The path of the copy from a former start, if that copy could not be used."""
        return self._last.set_aside

    def load(self, name: str, *, is_selected: bool) -> Content:
        """Put in force the profile that is named, as far as `read` finds it good, and save its claims."""
        content = self.read(name)
        self.save(content, is_selected=is_selected)
        return content

    def read(self, name: str) -> Content:
        """Return what would be in force if this profile was named ("": none). Its mistakes are problems.

        If it has errors, another profile that the files have named stays in force. One that a caller had selected ends.
        A profile that does not exist, and of which nothing is known, is not in force: the content has no name then.
        """
        if not name:
            return Content()
        try:
            now = self.profiles.read(name)
        except NoSuchProfile as error:
            now = Content(problems=(Problem(f"profile {name}", 0, Kind.FILE, error.what, error.hint),))
        # Another thread may save meanwhile: look at one state of it.
        former, last = next(iter(self._last.contents.items()), (name, None))
        if former == name or last is None:
            both = with_last(now, last)
            return replace(both, claims=numbered(both.claims), name=name if last else now.name)
        is_selected = PROFILE.path not in last.options
        if is_selected or not now.errors:
            return now
        first = now.errors[0]
        explained = replace(first, what=f"{first.what}; the claims of profile {former} stay in force")
        problems = tuple(explained if problem is first else problem for problem in now.problems)
        return Content(stale(last.claims), problems=problems, name=former)

    def save(self, content: Content, *, is_selected: bool) -> None:
        """Save the claims of the profile that is in force from now on, and whether a caller or the files named it."""
        options = {} if is_selected else {PROFILE.path: content.name}
        self._last.save({content.name: Content(content.claims, options)} if content.name else {})


class LastGood:
    """A copy of each file's content, by name; `set_aside` is the copy of a former start that could not be used."""

    def __init__(self, copy: Path | None, tunables: Mapping[str, Tunable], origin: Origin) -> None:
        """Load the `copy` of a former start. Without one, no content outlives the process."""
        self._copy, self._tunables, self._origin = copy, tunables, origin
        self.set_aside: Path | None = None
        self.contents = self._load()

    def save(self, contents: Mapping[str, Content]) -> None:
        """Save what is in force. A copy that cannot be written is no failure: only a later error needs it."""
        good = {name: replace(content, problems=()) for name, content in contents.items() if not content.is_empty}
        if good == self.contents:
            return
        self.contents = good
        if self._copy is None:
            return
        rows = {
            name: {
                "claims": dump_claims(content.claims),
                "options": [[*path, value] for path, value in content.options.items() if path != PROFILE.path],
                **({"profile": content.profile} if PROFILE.path in content.options else {}),
            }
            for name, content in good.items()
        }
        try:
            replace_file(self._copy, {"format": FORMAT, "files": rows}, durable=False)
        except OSError as error:
            log.error("what was last in order cannot be saved in %s: %s", self._copy, error.strerror)

    def _load(self) -> dict[str, Content]:
        """Return the contents saved by a former start; nothing if they cannot be used."""
        if self._copy is None:
            return {}
        found: dict[str, Content] = {}

        def check(document: Any) -> Document:
            if document["format"] != FORMAT:
                raise ValueError("another version wrote it")
            found.update({name: self._content(name, row) for name, row in document["files"].items()})
            return {}

        try:
            _, self.set_aside = load(self._copy, check)
        except OSError as error:
            # The copy is written again as soon as the files have no errors.
            log.error("%s cannot be read (%s)", self._copy, error)
            self.set_aside = self._copy
            with contextlib.suppress(OSError):
                self.set_aside = put_aside(self._copy, "bad")
        return {} if self.set_aside else found

    def _content(self, name: str, row: Mapping[str, Any]) -> Content:
        """Return the content in a row of the copy, without what this version does not know."""
        claims = [claim for claim in load_claims(row["claims"], self._origin) if sound(claim, self._tunables)]
        options: dict[OptionPath, Any] = {}
        if "profile" in row:
            options[PROFILE.path] = PROFILE.checked(row["profile"])
        for *names, value in row["options"]:
            if option := CONFIG_OPTIONS.get(tuple(names)):
                options[option.path] = option.checked(value)
        return Content(tuple(claims), options, places=dict.fromkeys(options, (name, 0)))


def with_last(now: Content, last: Content | None) -> Content:
    """Return what is in force of a file: its content now, and what its errors would lose of its last good content."""
    if last is None:
        return now
    now = with_lost(now, last)
    if now.is_sound:
        return now
    return replace(now if now.is_parsed else last, claims=stale(last.claims) or now.claims, problems=now.problems)


def with_lost(now: Content, last: Content) -> Content:
    """Return the content of a file; while it has an unknown name, add the earlier content that it no longer has.

    The unknown name may be a typo for just that content, and a typo must not free pages in use.
    """
    typo = next((problem for problem in now.problems if problem.kind is Kind.UNKNOWN), None)
    if typo is None:
        return now
    there = {(claim.tunable, claim.who) for claim in now.claims}
    claims = [claim for claim in last.claims if (claim.tunable, claim.who) not in there]
    options = {path: value for path, value in last.options.items() if path not in now.options}
    lost = [f"the claims of {', '.join(sorted({claim.tunable for claim in claims}))}"] if claims else []
    lost += [in_prose(path, options[path]) for path in sorted(options, key=lambda path: (len(path), path))]
    if not lost:
        return now
    stays = "stay" if claims or len(lost) > 1 else "stays"
    what = f"{typo.what}; {' and '.join(lost)} that this file had {stays} in force"
    return replace(
        now,
        claims=(*stale(claims), *now.claims),
        options={**options, **now.options},
        problems=tuple(replace(problem, what=what) if problem is typo else problem for problem in now.problems),
        places={**last.places, **now.places},
    )


def in_prose(path: OptionPath, value: object) -> str:
    """Return an option for a message: `calm in [guard]`, `the profile balanced`."""
    if path[1:]:
        return f"{path[1]} in [{path[0]}]"
    return f"the {path[0]} {value}" if value else f"the choice of no {path[0]}"


def stale(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Return the same claims, marked as those of a file that has had errors since."""
    return tuple(replace(claim, why=f"{claim.why.removesuffix(STALE)}{STALE}") for claim in claims)


def is_absent(path: Path) -> bool:
    """Return True if the file surely does not exist. A file that we may not see could exist."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
