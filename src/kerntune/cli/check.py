"""`kerntune config check` and `kerntune profile show`: they read the files as the daemon does; they ask no daemon.

The check runs in this process, and imports the daemon's modules when it runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kerntune.cli import tables
from kerntune.cli.document import named
from kerntune.cli.rows import Answer
from kerntune.errors import Exit
from kerntune.paths import CONFIG

if TYPE_CHECKING:
    from kerntune.daemon.config_text import Problem


def folder() -> Path:
    """Return the folder that the daemon reads, according to our environment."""
    return Path(os.environ.get("CONFIGURATION_DIRECTORY", CONFIG))


def configuration(place: str | None) -> Answer:
    """Report on a folder or a file; without one, on the folder that the daemon reads."""
    from kerntune.daemon import check  # noqa: PLC0415  # only this verb knows the tunables

    report = check.look(Path(place) if place else folder(), folder())
    files, claims = len(report.files), len(report.claims)
    said = f"{files} file{'' if files == 1 else 's'} with {claims} claim{'' if claims == 1 else 's'}"
    last = f"{said}, nothing wrong" if not report.problems else said
    page = [*wrong(report.problems), last]
    return Answer(check.document(report), page, Exit.FAILED if report.failed else Exit.OK)


def profile(name: str) -> Answer:
    """Show all that a profile says, with the reason of each value. Raise NoSuchProfile."""
    from kerntune.daemon import check  # noqa: PLC0415  # as above

    found = check.profile_called(name, folder())
    rows = [
        tables.row("", (named(claim.tunable, claim.instances), claim.value, claim.who, claim.why))
        for claim in found.claims
    ]
    head = tables.Prose(tables.clean(f"{found.name}: {found.summary or 'no summary'} ({found.file})"))
    claims = [tables.Table(("", "TARGET", "VALUE", "FROM", "WHY"), tuple(rows))] if rows else []
    page = [*wrong(found.problems), head, *claims]
    return Answer(check.page_of(found), page, Exit.FAILED if found.errors else Exit.OK)


def wrong(problems: Sequence[Problem]) -> tables.Page:
    """Return a paragraph for each problem, as the daemon logs it."""
    return [tables.Prose(tables.clean(str(problem))) for problem in problems]
