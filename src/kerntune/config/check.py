"""The check of configuration files and profiles: what they say and what is wrong in them, as the daemon reads them.

`kerntuned --check`, `kerntune config check` and `kerntune profile show` use it. It changes nothing and needs no bus.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kerntune.config.content import Content, Problem
from kerntune.config.parser import load_toml
from kerntune.config.profiles import Profiles
from kerntune.config.schema import PROFILE, PROFILE_OPTIONS, Kind
from kerntune.config.sources import DROP_INS, MAIN, ConfigFiles
from kerntune.errors import NoSuchProfile
from kerntune.model import Claim
from kerntune.paths import FOLDER, PROFILE_NAME, files_in, folders, misnamed_in
from kerntune.plain_files import contents_of
from kerntune.tunables import REGISTRY

OF_PROFILES: Final = frozenset(name for (name,) in PROFILE_OPTIONS)


def check(place: Path, config: Path) -> int:
    """Print the report on a file or folder. Return 0 if a daemon would take all of it, else 1."""
    report = look(place, config)
    sys.stdout.writelines(f"{line}\n" for line in (*report.problems, summary(report)))
    return 1 if report.errors else 0


def look(place: Path, config: Path) -> Content:
    """Return the report on a folder of configuration files, or on one file, which may be a profile.

    `config` is the folder of the daemon's own files. A file from elsewhere may name the profiles in it.
    """
    try:
        place.stat()
    except OSError as error:
        what = "there is no such file or folder"
        if not isinstance(error, FileNotFoundError):
            what = f"this cannot be read: {error.strerror}"
        return Content(problems=(Problem(str(place), 0, Kind.FILE, what),))
    profiles = Profiles(folders(profile_base(place, config)), REGISTRY)
    if place.is_dir() and place.name == FOLDER and (mine := [*files_in(place), *misnamed_in(place)]):
        return of_profiles(profiles, sorted(mine))
    if is_profile(place):
        return of_profiles(profiles, [place])
    return of_config(place, profiles)


def profile_base(place: Path, config: Path) -> Path:
    """Return the folder whose profiles count for a place: its own folder, if that has profiles."""
    if place.is_dir() and place.name != FOLDER:
        return place
    of_file = place.parent.parent if place.parent.name in (DROP_INS, FOLDER) else place.parent
    own = place.parent if place.is_dir() else of_file
    return own if (own / FOLDER).is_dir() else config


def is_profile(place: Path) -> bool:
    """Return whether a file is a profile: it lies in their folder, or has keys that only profiles have."""
    if not place.is_file() or place.name == MAIN or place.parent.name == DROP_INS:
        return False
    return place.parent.name == FOLDER or not OF_PROFILES.isdisjoint(keys_of(place))


def keys_of(file: Path) -> Iterable[str]:
    """Return the keys and tables of a file; none if it cannot be read as TOML."""
    try:
        document = load_toml(file, contents_of(file))
    except OSError:
        return ()
    return () if isinstance(document, Problem) else document.values


def of_profiles(profiles: Profiles, files: Sequence[Path]) -> Content:
    """Return the report on files as profiles, with all that they include; each mistake appears once."""
    found = [profiles.read_file(file) for file in files]
    problems = [problem for profile in found for problem in (*misnamed(profile.files[0]), *profile.problems)]
    claims = [claim for profile in found for claim in profile.claims]
    return Content(tuple(claims), problems=tuple(dict.fromkeys(problems)), files=tuple(files))


def misnamed(file: Path) -> Iterator[Problem]:
    """Yield a warning if the file would not be found as a profile."""
    if file.suffix != ".toml" or not PROFILE_NAME.fullmatch(file.stem):
        allowed = "A profile is NAME.toml, with letters, digits, dots, - and _ in its name"
        yield Problem(str(file), 0, Kind.WARNING, "no profile is found under this name", allowed)


def of_config(place: Path, profiles: Profiles) -> Content:
    """Return the report on configuration files, the profile that they name, and the administrator's profiles beside.

    A mistake in any of these profiles is an error: a caller may have selected it, so that a reload would refuse it.
    """
    config = ConfigFiles(place, None, REGISTRY).read()
    beside = [name for name, path in profiles.files().items() if path.is_relative_to(place)]
    wrong = [problem for file in misnamed_in(place / FOLDER) for problem in misnamed(file)]
    wrong += [problem for name in beside for problem in profiles.read(name).problems]
    wrong += named_profile(config, profiles)
    if not (config.files or beside or config.problems):
        allowed = f"kerntuned reads {MAIN}, and {DROP_INS}/*.toml, in such a folder"
        wrong.append(Problem(str(place), 0, Kind.WARNING, "there is no configuration here", allowed))
    return replace(config, problems=tuple(dict.fromkeys((*config.problems, *wrong))))


def named_profile(config: Content, profiles: Profiles) -> Sequence[Problem]:
    """Return the problems of the profile that the files name, or one problem if no profile has that name."""
    if not config.profile:
        return ()
    try:
        return profiles.read(config.profile).problems
    except NoSuchProfile as error:
        return (Problem(*config.places[PROFILE.path], Kind.UNKNOWN, error.what, error.hint),)


def document(report: Content) -> dict[str, Any]:
    """Return the report with the model's field names. Later versions only ever add fields."""
    return {
        "files": [str(path) for path in report.files],
        "claims": [claim_row(claim) for claim in report.claims],
        "problems": [problem_row(problem) for problem in report.problems],
    }


def profile_called(name: str, config: Path) -> Content:
    """Return the profile of that name, even if it has errors. Raise NoSuchProfile."""
    return Profiles(folders(config), REGISTRY).read(name)


def page_of(profile: Content) -> dict[str, Any]:
    """Return the content of a profile with all it includes; `who` is the profile that contains the claim."""
    return {
        "name": profile.name,
        "summary": profile.summary,
        "file": str(profile.files[0]),
        "claims": [claim_row(claim) | {"who": claim.who} for claim in profile.claims],
        "problems": [problem_row(problem) for problem in profile.problems],
    }


def claim_row(claim: Claim) -> dict[str, str]:
    return {"tunable": claim.tunable, "instances": claim.instances, "value": claim.value, "why": claim.why}


def problem_row(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "severity": "error" if problem.is_error else "warning",
        "what": problem.what,
        "allowed": problem.allowed,
    }


def summary(report: Content) -> str:
    """Return a summary of the report in one line, for `kerntuned --check` and `kerntune config check`."""
    errors, warnings = len(report.errors), len(report.problems) - len(report.errors)
    found = [counted(count, noun) for count, noun in ((errors, "error"), (warnings, "warning")) if count]
    head = f"{counted(len(report.files), 'file')} with {counted(len(report.claims), 'claim')}"
    return ", ".join([head, *(found or ["nothing wrong"])])


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
