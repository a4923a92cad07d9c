"""The configuration files on disk, and the last good claims of those that went wrong; every method blocks.

What a file meant when it was last in order is kept in the runtime directory, so that neither a typo nor a restart
takes away what is in force.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kerntune.daemon import config_text, settings
from kerntune.daemon.config_files import COPY, DRIFT_INTERVAL, DROP_INS, Config, contents_of, listed
from kerntune.daemon.config_text import Content, Kind, Problem
from kerntune.daemon.state import dump_claims, load_claims, replace_file
from kerntune.engine.requests import sound
from kerntune.errors import InvalidValue
from kerntune.model import Claim, ClaimId, Origin
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
FORMAT: Final = 1
STALE: Final = ", as last read without an error"


class Configuration:
    """The files of one directory, and what of each was in force last, by its path."""

    def __init__(self, folder: Path, runtime: Path | None, tunables: Iterable[Tunable]) -> None:
        """Without a runtime directory nothing is kept: for a look at files that are not in force."""
        self._folder, self._tunables = folder, {tunable.name: tunable for tunable in tunables}
        self._copy = runtime / COPY if runtime else None
        self._kept = self._load()

    def read(self) -> Config:
        """All that the files say now; what is wrong with them is a problem, never an exception."""
        paths, unlisted = listed(self._folder)
        contents = {str(path): self._content(path) for path in paths}
        problems = [problem for content in contents.values() for problem in content.problems]
        if unlisted:
            # Its files may still be there.
            drop_ins = self._folder / DROP_INS
            why = f"this folder cannot be listed: {unlisted.strerror}"
            problems.append(Problem(str(drop_ins), 0, Kind.FILE, why))
            contents |= {name: last for name, last in self._kept.items() if Path(name).parent == drop_ins}
        kept = {name: replace(content, problems=()) for name, content in contents.items() if not content.empty}
        if kept != self._kept:
            self._save(kept)
        self._kept = kept
        options = {path: value for content in kept.values() for path, value in content.options.items()}
        claims = in_order(claim for content in kept.values() for claim in content.claims)
        limits, interval = settings.limits_from(options), options.get(("drift", "interval"), DRIFT_INTERVAL)
        guard = settings.guard_from(options)
        return Config(claims, limits, interval, guard, tuple(problems), tuple(paths))

    def _content(self, path: Path) -> Content:
        """What a file says; where that is not in order, its last good claims and what is wrong."""
        name = str(path)
        try:
            now = config_text.read(name, contents_of(path), self._tunables)
        except OSError as error:
            now = Content(problems=(Problem(name, 0, Kind.FILE, f"this file cannot be read: {error.strerror}"),))
        last = self._kept.get(name)
        if last and now.sound:
            now = replace(now, problems=tuple(misspelt(now, last)))
        if now.sound or last is None:
            return now
        claims = tuple(replace(claim, why=f"{claim.why.removesuffix(STALE)}{STALE}") for claim in last.claims)
        return Content(claims or now.claims, now.options if now.parsed else last.options, now.problems)

    def _load(self) -> dict[str, Content]:
        """What is kept of a former start; nothing where that cannot be used."""
        try:
            document = json.loads(self._copy.read_bytes()) if self._copy else {}
            if document and document["format"] != FORMAT:
                raise ValueError("another version wrote it")
            return {name: self._kept_content(row) for name, row in document.get("files", {}).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidValue) as error:
            log.error("%s cannot be used (%s): the last good claims of broken files are lost", self._copy, error)
            return {}

    def _kept_content(self, row: Mapping[str, Any]) -> Content:
        known = settings.by_path()
        claims = [claim for claim in load_claims(row["claims"], Origin.CONFIG) if sound(claim, self._tunables)]
        options = {
            path: known[path].checked(value) for *names, value in row["options"] if (path := tuple(names)) in known
        }
        return Content(tuple(claims), options)

    def _save(self, kept: Mapping[str, Content]) -> None:
        """Without the copy all is well until a file goes wrong, so that it cannot be saved is no failure."""
        if self._copy is None:
            return
        rows = {
            name: {
                "claims": dump_claims(content.claims),
                "options": [[*path, value] for path, value in content.options.items()],
            }
            for name, content in kept.items()
        }
        try:
            replace_file(self._copy, {"format": FORMAT, "files": rows}, durable=False)
        except OSError as error:
            log.error("the last good configuration cannot be saved in %s: %s", self._copy, error.strerror)


def misspelt(now: Content, last: Content) -> Iterator[Problem]:
    """The problems, where a table nobody knows stands for one that is lost: a typo there must not free pages in use."""
    lost = {claim.tunable for claim in last.claims} - {claim.tunable for claim in now.claims}
    for problem in now.problems:
        if problem.kind is Kind.TABLE and lost:
            why = f"{problem.what}, and the claims of {', '.join(sorted(lost))} are gone"
            yield replace(problem, kind=Kind.CLAIM, what=why)
        else:
            yield problem


def in_order(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Numbered, so that the later wins; of claims with one identity only the last is left."""
    last: dict[ClaimId, Claim] = {}
    for number, claim in enumerate(claims, 1):
        last[claim.id] = replace(claim, seq=number)
    return tuple(last.values())
