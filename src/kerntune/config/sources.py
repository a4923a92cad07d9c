"""The configuration files on disk, and the last good claims of files with errors; every method blocks.

When errors appear in a file, its last good content stays in force (last_good.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from kerntune.config import parser as config_text
from kerntune.config import schema as settings
from kerntune.config.config_files import COPY, DRIFT_INTERVAL, DROP_INS, RESTORE, Config, listed
from kerntune.config.last_good import LastGood
from kerntune.config.parser import Content, Kind, Problem, tables_of
from kerntune.model import Claim, ClaimId, Origin
from kerntune.plain_files import contents_of
from kerntune.tunables.base import Tunable

STALE: Final = ", as last read without an error"


class Configuration:
    """The files of one directory, and by path the content of each that was last in force."""

    def __init__(self, folder: Path, runtime: Path | None, tunables: Iterable[Tunable]) -> None:
        """Keep nothing without a runtime directory: this is for a look at files that are not in force."""
        self._folder, self._tunables = folder, {tunable.name: tunable for tunable in tunables}
        self._last = LastGood(runtime / COPY if runtime else None, self._tunables, Origin.CONFIG)

    @property
    def tables(self) -> frozenset[str]:
        """Return the names of the tables that a file may have."""
        return tables_of(self._tunables, settings.by_path())

    @property
    def set_aside(self) -> Path | None:
        """The path of the copy from a former start, if that copy could not be used."""
        return self._last.set_aside

    def read(self) -> Config:
        """Return all that the files say now. A mistake in them is a problem, never an exception."""
        paths, unlisted = listed(self._folder)
        contents = {str(path): self._content(path) for path in paths}
        problems = [problem for content in contents.values() for problem in content.problems]
        if unlisted:
            # The files in this folder may still be there.
            drop_ins = self._folder / DROP_INS
            why = f"this folder cannot be listed: {unlisted.strerror}"
            problems.append(Problem(str(drop_ins), 0, Kind.FILE, why))
            contents |= {name: last for name, last in self._last.contents.items() if Path(name).parent == drop_ins}
        kept = {name: replace(content, problems=()) for name, content in contents.items() if not content.empty}
        self._last.keep(kept)
        options = {path: value for content in kept.values() for path, value in content.options.items()}
        # One file by itself is a part of a configuration: what it does not say another may.
        for path, what, hint in settings.contradictions(options, is_part=self._folder.is_file()):
            name, content = next(pair for pair in reversed(kept.items()) if path in pair[1].options)
            problems.append(Problem(name, content.lines.get(path, 0), Kind.OPTION, what, hint))
            del options[path]
        claims = in_order(claim for content in kept.values() for claim in content.claims)
        limits, interval = settings.limits_from(options), options.get(("drift", "interval"), DRIFT_INTERVAL)
        guard = settings.guard_from(options)
        profile = next((content.profile for content in reversed(kept.values()) if content.profile), "")
        restore = bool(options.get(settings.RESTORE_ON_STOP, RESTORE))
        return Config(claims, limits, interval, guard, profile, tuple(problems), tuple(paths), restore)

    def _content(self, path: Path) -> Content:
        """Return the content of a file; if it has errors, its last good claims and its problems."""
        name = str(path)
        try:
            now = config_text.read(name, contents_of(path), self._tunables)
        except OSError as error:
            now = Content(problems=(Problem(name, 0, Kind.FILE, f"this file cannot be read: {error.strerror}"),))
        last = self._last.contents.get(name)
        if last is None:
            return now
        now = with_lost(now, last)
        if now.sound:
            return now
        said = now if now.parsed else last
        return replace(said, claims=stale(last.claims) or now.claims, problems=now.problems)


def stale(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Return the same claims, marked as those of a file that has had errors since."""
    return tuple(replace(claim, why=f"{claim.why.removesuffix(STALE)}{STALE}") for claim in claims)


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
    profile = now.profile or last.profile
    kept = [f"the claims of {', '.join(sorted({claim.tunable for claim in claims}))}"] if claims else []
    kept += [f"the profile {profile}"] if profile != now.profile else []
    kept += [f"{name} in [{table}]" for table, name in sorted(options)]
    if not kept:
        return now
    stays = "stay" if claims or len(kept) > 1 else "stays"
    what = f"{typo.what}; {' and '.join(kept)} that this file had {stays} in force"
    told = tuple(replace(problem, what=what) if problem is typo else problem for problem in now.problems)
    return replace(
        now,
        claims=(*stale(claims), *now.claims),
        options={**options, **now.options},
        problems=told,
        profile=profile,
        lines={**last.lines, **now.lines},
    )


def in_order(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Return the claims numbered, so that the later wins. Of claims with one identity only the last is left."""
    last: dict[ClaimId, Claim] = {}
    for number, claim in enumerate(claims, 1):
        last[claim.id] = replace(claim, seq=number)
    return tuple(last.values())
