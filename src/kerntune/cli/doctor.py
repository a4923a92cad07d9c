"""`kerntune doctor` and `kerntune import`: what was found on this host, and hand-made settings as claims.

The package kerntune.doctor examines the host and reads the files; these verbs ask the daemon, and show the answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from kerntune.api.document import Document, named
from kerntune.cli.commands import Namespace
from kerntune.cli.output import Advice, Answer, changed
from kerntune.cli.remote import Connect
from kerntune.cli.tables import Page, Prose, clean
from kerntune.doctor.examine import examine, look
from kerntune.doctor.types import Cause, Daemon, Finding, Left, Place, Proposal, Severity, Wanted
from kerntune.errors import KerntuneError, Usage
from kerntune.model import Origin
from kerntune.results import findings_exit_code

HOST: Final = "/"
MARKS: Final = {"problem": "✘", "warning": "!", "note": "·", "ok": "✔"}
INTRODUCTION: Final = (
    "# What was set by hand, and the claims that would replace it. Nothing was changed: run the lines you want,",
    "# or all of them with kerntune import --apply.",
)
UNREADABLE: Final = "{} cannot be read, so what it sets is not known: run kerntune import as root"
HIDDEN: Final = "{}, which a package ships, sets it again later: translate it by hand"
NOTHING: Final = "# Nothing was found that kerntune could take over."


def doctor(connect: Connect, args: Namespace) -> Answer:
    """Show the findings about this host, with evidence and a fix; change nothing, and need no daemon."""
    root = tree(args)
    document, why, elsewhere = Asked() if is_tree(root) else ask(connect)
    found = examine(root, daemon_of(document) if document else None)
    problems = sum(finding.severity is Severity.PROBLEM for finding in found)
    data = {"daemon": document is not None, "findings": [finding_row(finding) for finding in found]}
    first = [Prose(elsewhere, rest="")] if elsewhere else []
    return Answer(data, [*first, *findings_page(found, why)], findings_exit_code(wrong=problems))


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


def ask(connect: Connect) -> Asked:
    """Ask the daemon, but start none."""
    try:
        with connect() as manager:
            if not manager.running():
                return Asked(why="kerntuned is not running")
            document = manager.describe()
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
    origins = {origin.word: origin for origin in Origin}
    lasting = [row for row in document["claims"] if row["origin"] not in (Origin.HOLD.word, Origin.GUARD.word)]
    strongest = sorted(lasting, key=lambda row: (origins.get(row["origin"], 0), row["seq"]), reverse=True)
    claims = [
        Wanted(row["tunable"], row["instances"], row["value"], row["origin"], tuple(row["matches"]))
        for row in strongest
    ]
    return Daemon(tuple(claims), document["guard"]["state"])


def finding_row(finding: Finding) -> dict[str, Any]:
    """Return a finding with the model's field names."""
    return {
        "severity": finding.severity.value,
        "topic": finding.topic,
        "what": finding.what,
        "evidence": list(finding.evidence),
        "fix": finding.fix,
    }


def findings_page(findings: Sequence[Finding], no_daemon: str) -> Page:
    """Return the findings, one paragraph each, and the number of problems, warnings and notes."""
    page: list[str | Prose] = []
    for finding in findings:
        page.append(Prose(f"{MARKS[finding.severity]} {finding.topic}: {finding.what}"))
        page += [Prose(evidence, "    ", "      ") for evidence in finding.evidence]
        page += [Prose(f"→ {finding.fix}", "  ", "    ")] if finding.fix else []
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in MARKS}
    totals = [f"{counts[word]} {word}{'' if counts[word] == 1 else 's'}" for word in ("problem", "warning", "note")]
    page += ["", ", ".join(totals)]
    if no_daemon:
        page.append(Prose(f"The claims of kerntuned are not known: {no_daemon}.", rest=""))
    return page


def import_(connect: Connect, args: Namespace) -> Answer:
    """Show the claims that would replace hand-made settings; change no file, and with --apply make the claims."""
    root = tree(args)
    if args.apply and is_tree(root):
        raise Usage(f"what is found below {root} cannot be applied here", "It is the tree of another host")
    survey = look(root)
    ours = [proposal for proposal in survey.proposals if not proposal.shipped]
    left = [*survey.left, *(one for proposal in survey.proposals if proposal.shipped for one in packaged(proposal))]
    data = {"claims": [proposal_row(proposal) for proposal in ours], "left": [left_row(one) for one in left]}
    elsewhere = "" if is_tree(root) else (ask(connect)).elsewhere
    first = [comment(elsewhere)] if elsewhere else []
    first += [comment(UNREADABLE.format(path)) for path in survey.unreadable]
    if not args.apply or not ours:
        return Answer(data, [*first, *script(ours, left, all_read=not survey.unreadable)])
    options = {"persist": True, **({"allow-partial": True} if args.allow_partial else {})}
    with connect() as manager:
        change = manager.set([proposal.setting for proposal in ours], options)
    answer = changed(change, [still_there(ours, left)])
    return Answer({**data, **answer.data}, [*first, *answer.page], answer.exit_code, answer.advice)


def packaged(proposal: Proposal) -> Iterator[Left]:
    """Yield the remainder for a proposal that a package ships: it is no hand-made setting, but it may hide some."""
    why = f"a package ships it, nobody made it by hand; to keep it whatever the package says: {command(proposal)}"
    yield Left(proposal.places[0], why, Cause.SHIPPED)
    for place in proposal.overridden:
        if not place.shipped:
            yield Left(place, HIDDEN.format(proposal.places[0]))


def command(proposal: Proposal) -> str:
    """Return the command line for a proposal."""
    tunable, instances, value = proposal.setting
    return f"kerntune set {shlex.quote(f'{named(tunable, instances)}={value}')} --persist"


def still_there(proposals: Sequence[Proposal], left: Sequence[Left]) -> Advice:
    """Return the advice about the lines: they still stand in their files, and some set more than was taken over."""
    stays = {str(one.place) for one in left} | {one.place.unit for one in left}
    found = dict.fromkeys(place for proposal in proposals for place in (*proposal.places, *proposal.overridden))
    boot = [str(place) for place in found if place.is_boot_parameter]
    places = [str(place) for place in found if not place.is_boot_parameter]
    units = dict.fromkeys(place.unit for place in found if place.unit and not place.shipped and place.unit not in stays)
    whole, more = [place for place in places if place not in stays], [place for place in places if place in stays]
    hints = []
    if whole:
        hints.append(f"Put a # in front of them, so that only kerntuned sets these values: {', '.join(whole)}")
    if more:
        hints.append(f"These set more than that, which would be lost, so take out only that part: {', '.join(more)}")
    if units:
        hints.append(f"Where a unit does nothing else, disable it: sudo systemctl disable {shlex.join(units)}")
    if boot:
        hints.append(f"The parameter of the kernel may stay, with the same number: {', '.join(boot)}")
    return Advice("the lines that were taken over still stand in their files", ". ".join(hints))


def proposal_row(proposal: Proposal) -> dict[str, Any]:
    """Return a proposal with the model's field names."""
    return {
        **proposal.setting._asdict(),
        "command": command(proposal),
        "places": [place_row(place) for place in proposal.places],
        "beaten": [place_row(place) for place in proposal.overridden],
        "remark": proposal.remark,
    }


def left_row(left: Left) -> dict[str, Any]:
    return {**place_row(left.place), "cause": left.cause.value, "why": left.why}


def place_row(place: Place) -> dict[str, Any]:
    return {"file": place.file, "line": place.line, "text": place.text}


def script(proposals: Sequence[Proposal], left: Sequence[Left], *, all_read: bool) -> Page:
    """Return a script that users can read and run: comments say what it replaces."""
    lines = [*INTRODUCTION, ""] if proposals else [NOTHING] * all_read
    for proposal in proposals:
        lines += [comment(place.quoted) for place in proposal.places]
        lines += [comment(f"(it overrides {place.quoted})") for place in proposal.overridden]
        lines += [comment(proposal.remark)] if proposal.remark else []
        lines += [command(proposal), ""]
    if left:
        lines += ["# Not taken over:"]
        for one in left:
            lines += [comment(one.place.quoted), comment(f"  {one.why}")]
    return lines if left or not proposals else lines[:-1]


def comment(text: str) -> str:
    """Return one line that a shell ignores, for any text."""
    return f"# {clean(text)}"
