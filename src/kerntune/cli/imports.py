"""`kerntune import`: it shows hand-made settings as claims; the package kerntune.doctor reads the files."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from kerntune.cli import output as show
from kerntune.cli.doctor import ask, is_tree, tree
from kerntune.cli.remote import Connect
from kerntune.cli.rows import Advice, Answer, changed
from kerntune.errors import Usage

if TYPE_CHECKING:
    from kerntune.doctor.nouns import Left, Place, Proposal

INTRODUCTION: Final = (
    "# What was set by hand, and the claims that would replace it. Nothing was changed: run the lines you want,",
    "# or all of them with kerntune import --apply.",
)
NOTHING: Final = "# Nothing was found that kerntune could take over."


async def import_(connect: Connect, args: Namespace) -> Answer:
    """Show the claims that would replace hand-made settings; change no file, and with --apply make the claims."""
    from kerntune.doctor.examine import look  # noqa: PLC0415  # only these two verbs need to know the kernel

    root = tree(args)
    if args.apply and is_tree(root):
        raise Usage(f"what is found below {root} cannot be applied here", "It is the tree of another host")
    survey = look(root)
    ours = [proposal for proposal in survey.proposals if not proposal.shipped]
    left = [*survey.left, *(packaged(proposal) for proposal in survey.proposals if proposal.shipped)]
    data = {"claims": [row(proposal) for proposal in ours], "left": [remainder(one) for one in left]}
    elsewhere = "" if is_tree(root) else (await ask(connect)).elsewhere
    first = [comment(elsewhere)] if elsewhere else []
    if not args.apply or not ours:
        return Answer(data, [*first, *page(ours, left)])
    options = {"persist": True, **({"allow-partial": True} if args.allow_partial else {})}
    async with connect() as manager:
        change = await manager.set([proposal.setting for proposal in ours], options)
    answer = changed(change, [still_there(ours, left)])
    return Answer({**data, **answer.data}, [*first, *answer.page], answer.exit_code, answer.advice)


def packaged(proposal: Proposal) -> Left:
    """Return the remainder for a proposal that a package ships: it is no hand-made setting."""
    from kerntune.doctor.nouns import Cause, Left  # noqa: PLC0415  # as above

    why = f"a package ships it, nobody made it by hand; to keep it whatever the package says: {command(proposal)}"
    return Left(proposal.places[0], why, Cause.SHIPPED)


def command(proposal: Proposal) -> str:
    """Return the command line for a proposal."""
    tunable, instances, value = proposal.setting
    name = f"{tunable}@{instances}" if instances else tunable
    return f"kerntune set {shlex.quote(f'{name}={value}')} --persist"


def still_there(proposals: Sequence[Proposal], left: Sequence[Left]) -> Advice:
    """Return the advice about the lines: they still stand in their files, and some set more than was taken over."""
    stays = {str(one.place) for one in left}
    places = dict.fromkeys(str(place) for proposal in proposals for place in (*proposal.places, *proposal.overridden))
    whole, more = [place for place in places if place not in stays], [place for place in places if place in stays]
    hints = []
    if whole:
        hints.append(f"Put a # in front of them, so that only kerntuned sets these values: {', '.join(whole)}")
    if more:
        hints.append(f"These set more than that, which would be lost, so take out only that part: {', '.join(more)}")
    return Advice("the lines that were taken over still stand in their files", ". ".join(hints))


def row(proposal: Proposal) -> dict[str, Any]:
    """Return a proposal with the model's field names."""
    return {
        **proposal.setting._asdict(),
        "command": command(proposal),
        "places": [where(place) for place in proposal.places],
        "beaten": [where(place) for place in proposal.overridden],
        "remark": proposal.remark,
    }


def remainder(left: Left) -> dict[str, Any]:
    return {**where(left.place), "cause": left.cause.value, "why": left.why}


def where(place: Place) -> dict[str, Any]:
    return {"file": place.file, "line": place.line, "text": place.text}


def page(proposals: Sequence[Proposal], left: Sequence[Left]) -> show.Page:
    """Return a script that users can read and run: comments say what it replaces."""
    lines = [*INTRODUCTION, ""] if proposals else [NOTHING]
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
    return "# " + "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
