"""`kerntuned --check`: what the configuration files say and what is wrong with them; changes nothing, needs no bus."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerntune.daemon.config import Configuration
from kerntune.daemon.config_files import Config
from kerntune.daemon.config_text import Kind, Problem
from kerntune.tunables import REGISTRY


def check(place: Path, *, as_json: bool) -> int:
    """Report on a folder of configuration files, or on one file; 0 when there is no error."""
    config = Configuration(place, None, REGISTRY).read()
    problems = list(config.problems)
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
        "claims": [
            {"tunable": claim.tunable, "instances": claim.instances, "value": claim.value, "why": claim.why}
            for claim in config.claims
        ],
        "problems": [
            {
                "file": problem.file,
                "line": problem.line,
                "severity": "error" if problem.is_error else "warning",
                "what": problem.what,
                "allowed": problem.allowed,
            }
            for problem in problems
        ],
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
