"""The check of configuration files and profiles: what they say and what is wrong in them, as the daemon reads them.

`kerntuned --check`, `kerntune config check` and `kerntune profile show` use it. It changes nothing and needs no bus.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from kerntune.config.config_files import DROP_INS, MAIN, Config
from kerntune.config.parser import PROFILE, Kind, Problem, parse
from kerntune.config.profiles import Profile, Profiles
from kerntune.config.sources import Configuration
from kerntune.errors import NoSuchProfile
from kerntune.model import Claim
from kerntune.paths import FOLDER, PROFILE_NAME, files_in, folders, misnamed_in
from kerntune.plain_files import contents_of
from kerntune.tunables import REGISTRY

OF_PROFILES: Final = frozenset({"summary", "include"})


class Report(NamedTuple):
    """The files that were read, all their claims together, and the problems in them."""

    files: Sequence[Path]
    claims: Sequence[Claim]
    problems: Sequence[Problem]

    @property
    def failed(self) -> bool:
        """Return True if a daemon that reads these files would not take all of them."""
        return any(problem.is_error for problem in self.problems)


def check(place: Path, config: Path) -> int:
    """Print the report on a file or folder, and return 0 if it has no error."""
    report = look(place, config)
    sys.stdout.writelines(f"{line}\n" for line in (*report.problems, summary(report)))
    return 1 if report.failed else 0


def look(place: Path, config: Path) -> Report:
    """Return the report on a folder of configuration files, or on one file, which may be a profile.

    `config` is the folder of the daemon's own files. A file from elsewhere may name the profiles in it.
    """
    try:
        place.stat()
    except OSError as error:
        what = "there is no such file or folder"
        if not isinstance(error, FileNotFoundError):
            what = f"this cannot be read: {error.strerror}"
        return Report((), (), [Problem(str(place), 0, Kind.FILE, what)])
    profiles = Profiles(folders(home(place, config)), REGISTRY)
    if place.is_dir() and place.name == FOLDER and (mine := [*files_in(place), *misnamed_in(place)]):
        return of_profiles(profiles, sorted(mine))
    if is_profile(place):
        return of_profiles(profiles, [place])
    return of_config(place, profiles)


def home(place: Path, config: Path) -> Path:
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
    return place.parent.name == FOLDER or bool(OF_PROFILES & top_level(place).keys())


def top_level(file: Path) -> dict[str, tuple[Any, int]]:
    """Return the keys of a file with their values and lines; nothing if it cannot be read as TOML."""
    try:
        parsed = parse(str(file), contents_of(file))
    except OSError:
        return {}
    if isinstance(parsed, Problem):
        return {}
    values, lines = parsed
    return {key: (value, lines.get((key,), 0)) for key, value in values.items()}


def of_profiles(profiles: Profiles, files: Sequence[Path]) -> Report:
    """Return the report on files as profiles, with all that they include; each mistake appears once."""
    found = [profiles.at(file) for file in files]
    problems = [problem for profile in found for problem in (*misnamed(profile.file), *profile.problems)]
    return Report(files, [claim for profile in found for claim in profile.claims], list(dict.fromkeys(problems)))


def misnamed(file: Path) -> Iterator[Problem]:
    """Yield a warning if the file would not be found as a profile."""
    if file.suffix != ".toml" or not PROFILE_NAME.fullmatch(file.stem):
        allowed = "A profile is NAME.toml, with letters, digits, dots, - and _ in its name"
        yield Problem(str(file), 0, Kind.WARNING, "no profile is found under this name", allowed)


def of_config(place: Path, profiles: Profiles) -> Report:
    """Return the report on configuration files, the administrator's profiles beside them, and the profile in force."""
    config = Configuration(place, None, REGISTRY).read()
    beside = [name for name, path in profiles.files().items() if path.is_relative_to(place)]
    wrong = [problem for file in misnamed_in(place / FOLDER) for problem in misnamed(file)]
    wrong += [problem for name in beside for problem in profiles.read(name).problems]
    if config.profile:
        wrong += in_force(config, profiles)
    if not (config.files or beside or config.problems):
        allowed = f"kerntuned reads {MAIN}, and {DROP_INS}/*.toml, in such a folder"
        wrong.append(Problem(str(place), 0, Kind.WARNING, "there is no configuration here", allowed))
    return Report(config.files, config.claims, list(dict.fromkeys((*config.problems, *wrong))))


def in_force(config: Config, profiles: Profiles) -> Iterator[Problem]:
    """Yield the problems of the profile that the files name, or one problem if no profile has that name."""
    try:
        yield from profiles.read(config.profile).problems
    except NoSuchProfile as error:
        said = [(file, *top_level(file).get(PROFILE, ("", 0))) for file in config.files]
        named = ((file, line) for file, name, line in reversed(said) if name == config.profile)
        file, line = next(named, (config.files[-1], 0))
        yield Problem(str(file), line, Kind.OPTION, error.what, error.hint)


def document(report: Report) -> dict[str, Any]:
    """Return the report with the model's field names. Later versions only ever add fields."""
    return {
        "files": [str(path) for path in report.files],
        "claims": [claim_row(claim) for claim in report.claims],
        "problems": [problem_row(problem) for problem in report.problems],
    }


def profile_called(name: str, config: Path) -> Profile:
    """Return the profile of that name, even if it has errors. Raise NoSuchProfile."""
    return Profiles(folders(config), REGISTRY).read(name)


def page_of(profile: Profile) -> dict[str, Any]:
    """Return the content of a profile with all it includes; `who` is the profile that contains the claim."""
    return {
        "name": profile.name,
        "summary": profile.summary,
        "file": str(profile.file),
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


def summary(report: Report) -> str:
    """Return a summary of the report in one line."""
    errors = sum(problem.is_error for problem in report.problems)
    counts = [
        (len(report.files), "file"),
        (len(report.claims), "claim"),
        (errors, "error"),
        (len(report.problems) - errors, "warning"),
    ]
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
