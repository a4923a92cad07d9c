"""The verbs for all claims at once, profile and reset, and the form of their answers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Final

from kerntune.cli import check, tables
from kerntune.cli import commands as grammar
from kerntune.cli import output as show
from kerntune.cli.document import Change, Document
from kerntune.cli.remote import Connect
from kerntune.cli.rows import Answer, changed, gives_back
from kerntune.errors import Usage
from kerntune.results import profile_exit_code

NAMING: Final = frozenset(grammar.PROFILE_NAME.after)


async def profile(connect: Connect, args: Namespace) -> Answer:
    """Show, choose and end profiles."""
    if args.action in NAMING and args.name is None:
        raise Usage(f"profile {args.action} takes the name of a profile", "kerntune profile list shows those there are")
    if args.action not in NAMING and args.name is not None:
        raise Usage(f"profile {args.action} takes no name", "profile set NAME puts one in force, profile show NAME ...")
    if args.action == "show":
        return check.profile(args.name)
    async with connect() as manager:
        if args.action == "set":
            return _chosen(await manager.set_profile(args.name))
        if args.action == "clear":
            return _done(await manager.clear_profile())
        found, active = await manager.profiles(), (await manager.describe())["profile"]
    rows = [{"name": name, "summary": summary} for name, summary in found]
    page = listed(found, active) if found else ["There are no profiles."]
    return Answer({"active": active, "profiles": rows}, page)


def listed(profiles: Sequence[tuple[str, str]], active: str) -> show.Page:
    """Return a table of the profiles; a mark, or a word where there are no marks, shows the one in force."""
    rows = []
    for name, summary in profiles:
        mark, word, style = ("→", "in force", tables.GOOD) if name == active else ("", "", "")
        rows.append(tables.row(mark, (name, word, summary), style))
    return [tables.Table(("", "PROFILE", "STATE", "SUMMARY"), tuple(rows), frozenset({"", "PROFILE", "STATE"}))]


async def reset(connect: Connect, args: Namespace) -> Answer:
    """Put back the values of the files, or with --baseline the host's own values."""
    async with connect() as manager:
        return _done(await manager.reset(_options(args)))


async def plan(connect: Connect, args: Namespace) -> Answer:
    """Show what `profile set` or `reset` would do; change nothing."""
    one_thing = args.reset != (args.profile is not None)
    if not one_thing or args.settings or args.unset or args.persist or args.allow_partial:
        hint = "kerntune plan --profile NAME, or kerntune plan --reset [--baseline] [--holds], without anything else"
        raise Usage("a plan is of one thing at a time", hint)
    if (extra := next(iter(_options(args)), None)) and not args.reset:
        raise Usage(f"--{extra} belongs to --reset", f"kerntune plan --reset --{extra}")
    asked: dict[str, bool | str] = {"reset": True} if args.reset else {"profile": args.profile}
    async with connect() as manager:
        change = await manager.plan((), asked | _options(args))
        document = await manager.describe() if gives_back(change) else None
    return _chosen(change, none="Nothing would change.", document=document)


def _options(args: Namespace) -> dict[str, bool]:
    """Return the options by which a reset goes beyond the claims of callers."""
    return {name: True for name in ("baseline", "holds") if getattr(args, name)}


def _done(change: Change) -> Answer:
    """Return the answer to a profile's end or a reset; without outcomes its claims had no target."""
    return _chosen(change, none="Done; no target is concerned." if change.changed else "Nothing changed.")


def _chosen(change: Change, *, none: str = "Nothing changed.", document: Document | None = None) -> Answer:
    """Return the answer for a profile that was chosen or is in force again: what this host lacks is no failure."""
    return changed(change, code=profile_exit_code(change.outcomes), none=none, document=document)
