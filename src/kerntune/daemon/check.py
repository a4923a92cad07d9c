"""`kerntuned --check` and `--profile`: what files say and what is wrong with them; changes nothing, needs no bus."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerntune.daemon.config import Configuration
from kerntune.daemon.config_files import Config
from kerntune.daemon.config_text import Kind, Problem
from kerntune.daemon.profiles import Profiles
from kerntune.errors import NoSuchProfile
from kerntune.model import Claim
from kerntune.places import folders
from kerntune.tunables import REGISTRY


def check(place: Path, *, as_json: bool) -> int:
    """Report on a folder of configuration files, or on one file; 0 when there is no error."""
    config = Configuration(place, None, REGISTRY).read()
    problems = [*config.problems, *of_profiles(place)]
    if not place.exists():
        problems.append(Problem(str(place), 0, Kind.FILE, "there is no such file or folder"))
    errors = [problem for problem in problems if problem.is_error]
    if as_json:
        sys.stdout.write(json.dumps(document(config, problems), indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in (*problems, summary(config, problems)))
    return 1 if errors else 0


def document(config: Config, problems: Sequence[Problem]) -> dict[str, Any]:
    """The report with the model's field names, which only ever grow."""
    return {
        "files": [str(path) for path in config.files],
        "claims": [claim_row(claim) for claim in config.claims],
        "problems": [problem_row(problem) for problem in problems],
    }


def of_profiles(place: Path) -> list[Problem]:
    """What is wrong with the administrator's profiles, each mistake once."""
    profiles = Profiles(folders(place), REGISTRY)
    mine = [name for name, path in profiles.files().items() if path.is_relative_to(place)]
    return list(dict.fromkeys(problem for name in mine for problem in profiles.read(name).problems))


def show_profile(name: str, config: Path, *, as_json: bool) -> int:
    """Print what a profile says; 0 when it is in order. In JSON an unknown name is an answer too."""
    try:
        profile = Profiles(folders(config), REGISTRY).read(name)
    except NoSuchProfile as error:
        unknown = {"error": {"name": error.dbus_name, "what": error.what, "hint": error.hint}}
        sys.stdout.write(json.dumps(unknown) + "\n" if as_json else f"{error}\n")
        return 1
    if as_json:
        page = {
            "name": profile.name,
            "summary": profile.summary,
            "file": str(profile.file),
            "claims": [claim_row(claim) | {"who": claim.who} for claim in profile.claims],
            "problems": [problem_row(problem) for problem in profile.problems],
        }
        sys.stdout.write(json.dumps(page, indent=2) + "\n")
    else:
        claims = (f"{claim.tunable}@{claim.instances} = {claim.value}: {claim.why}" for claim in profile.claims)
        sys.stdout.writelines(f"{line}\n" for line in (*profile.problems, profile.summary, *claims))
    return 1 if profile.errors else 0


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


def summary(config: Config, problems: Sequence[Problem]) -> str:
    """All of it in a line."""
    errors = sum(problem.is_error for problem in problems)
    counts = [
        (len(config.files), "file"),
        (len(config.claims), "claim"),
        (errors, "error"),
        (len(problems) - errors, "warning"),
    ]
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
