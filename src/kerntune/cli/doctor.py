"""`kerntune doctor`: it shows the findings about this host; the package kerntune.doctor examines the host."""

from __future__ import annotations

import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kerntune.cli import output as show
from kerntune.cli.document import Document
from kerntune.cli.remote import Connect
from kerntune.cli.rows import Answer
from kerntune.errors import Exit, KerntuneError, Usage
from kerntune.model import Origin

if TYPE_CHECKING:
    from kerntune.doctor.nouns import Daemon, Finding

HOST: Final = "/"
MARKS: Final = {"problem": "✘", "warning": "!", "note": "·", "ok": "✔"}
WIDEST: Final = 110  # characters: longer lines of prose are hard to read


async def doctor(connect: Connect, args: Namespace) -> Answer:
    """Show the findings about this host, with evidence and a fix; change nothing, and need no daemon."""
    from kerntune.doctor.examine import examine  # noqa: PLC0415  # only these two verbs need to know the kernel
    from kerntune.doctor.nouns import Severity  # noqa: PLC0415

    root = tree(args)
    document, why, elsewhere = Asked() if is_tree(root) else await ask(connect)
    found = examine(root, daemon_of(document) if document else None)
    problems = sum(finding.severity is Severity.PROBLEM for finding in found)
    data = {"daemon": document is not None, "findings": [row(finding) for finding in found]}
    first = wrapped(elsewhere, "") if elsewhere else []
    return Answer(data, [*first, *page(found, why)], Exit.FAILED if problems else Exit.OK)


def tree(args: Namespace) -> Path:
    """Return the root of the host to examine. Raise Usage when there is no host."""
    root = Path(args.root)
    if not (root / "proc").is_dir():
        raise Usage(f"{root} has no proc directory", "--root takes a tree with the proc, sys and etc of a host in it")
    return root


def is_tree(root: Path) -> bool:
    """Return True if it is another host than this one."""
    return root.resolve() != Path(HOST)


class Asked(NamedTuple):
    """The daemon's document, or why it has none about this host; `elsewhere` describes the host that it works on."""

    document: Document | None = None
    why: str = ""
    elsewhere: str = ""


async def ask(connect: Connect) -> Asked:
    """Ask the daemon, but start none."""
    try:
        async with connect() as manager:
            if not await manager.running():
                return Asked(why="kerntuned is not running")
            document = await manager.describe()
    except KerntuneError as error:
        return Asked(why=error.what)
    root = document["host"]["root"]
    if root.startswith("/") and root != HOST:
        say = (
            f"kerntuned works on the host below {root}, and this is about the machine it runs on; --root {root} looks "
        )
        return Asked(why=f"it works on the host below {root}", elsewhere=f"{say}at that one.")
    if document["host"]["simulated"]:
        say = "kerntuned works on a simulated host, and this is not about that one, but about the machine it runs on."
        return Asked(why="it works on a simulated host", elsewhere=say)
    return Asked(document)


def daemon_of(document: Document) -> Daemon:
    """Return the daemon's document for the checks: only claims that last, because a hold or the guard is soon gone."""
    from kerntune.doctor.nouns import Daemon, Wanted  # noqa: PLC0415  # as above

    origins = {origin.word: origin for origin in Origin}
    lasting = [row for row in document["claims"] if row["origin"] not in (Origin.HOLD.word, Origin.GUARD.word)]
    strongest = sorted(lasting, key=lambda row: (origins.get(row["origin"], 0), row["seq"]), reverse=True)
    claims = [
        Wanted(row["tunable"], row["instances"], row["value"], row["origin"], tuple(row["matches"]))
        for row in strongest
    ]
    return Daemon(tuple(claims), document["guard"]["state"])


def row(finding: Finding) -> dict[str, Any]:
    """Return a finding with the model's field names."""
    return {
        "severity": finding.severity.value,
        "topic": finding.topic,
        "what": finding.what,
        "evidence": list(finding.evidence),
        "fix": finding.fix,
    }


def page(findings: Sequence[Finding], no_daemon: str) -> show.Page:
    """Return the findings, one paragraph each, and the number of problems, warnings and notes."""
    lines: list[str] = []
    for finding in findings:
        lines += wrapped(f"{MARKS[finding.severity]} {finding.topic}: {finding.what}", "  ")
        for evidence in finding.evidence:
            lines += wrapped(f"    {evidence}", "      ")
        if finding.fix:
            lines += wrapped(f"  → {finding.fix}", "    ")
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in MARKS}
    said = [f"{counts[word]} {word}{'' if counts[word] == 1 else 's'}" for word in ("problem", "warning", "note")]
    lines += ["", ", ".join(said)]
    if no_daemon:
        lines += wrapped(f"The claims of kerntuned are not known: {no_daemon}.", "")
    return lines


def wrapped(text: str, indent: str) -> list[str]:
    """Return lines that fit the terminal, if there is one; words stay whole, as they may be commands to copy."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    if not sys.stdout.isatty():
        return [clean]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.wrap(clean, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
