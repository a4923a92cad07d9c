"""`config check` and `profile show`: they read files as the daemon does, in this process; they ask no daemon."""

from __future__ import annotations

import os
from pathlib import Path

from kerntune.cli import output
from kerntune.cli.commands import Namespace
from kerntune.cli.output import Answer
from kerntune.cli.remote import Connect
from kerntune.config import check
from kerntune.paths import CONFIG
from kerntune.results import findings_exit_code


def config(_connect: Connect, args: Namespace) -> Answer:
    """Show what is wrong in a folder or a file; without a name, in the folder that the daemon reads."""
    report = check.look(Path(args.path) if args.path else folder(), folder())
    page = output.checked(report.problems, check.summary(report))
    return Answer(check.document(report), page, findings_exit_code(wrong=len(report.errors)))


def profile(name: str) -> Answer:
    """Show all that a profile says, with the reason of each value. Raise NoSuchProfile."""
    found = check.profile_called(name, folder())
    return Answer(check.page_of(found), output.profile(found), findings_exit_code(wrong=len(found.errors)))


def folder() -> Path:
    """Return the folder that the daemon reads, according to our environment."""
    return Path(os.environ.get("CONFIGURATION_DIRECTORY", CONFIG))
