"""The verbs: each asks the daemon and returns an answer; a verb neither parses nor prints."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kerntune.cli import check, profiles
from kerntune.cli import document as answers
from kerntune.cli import output as show
from kerntune.cli import status as status_page
from kerntune.cli import suggest as telling
from kerntune.cli import syntax as spelling
from kerntune.cli.document import Document, Event, GuardChange, Health, Outcome, TargetRow
from kerntune.cli.remote import Connect, Manager
from kerntune.cli.rows import Advice, Answer, changed, gives_back
from kerntune.cli.withdrawal import nothing_withdrawn
from kerntune.errors import Exit, KerntuneError, NotSupported, Usage
from kerntune.model import Setting, State
from kerntune.patterns import UNSTABLE
from kerntune.results import exit_code, verify_exit_code

NO_CHANGE: Final = "Nothing would change."


async def status(connect: Connect, _args: Namespace) -> Answer:
    """Show what is managed, and for whom."""
    async with connect() as manager:
        document = await manager.describe()
    managed = [row for row in document["targets"] if row["claim"] or row["state"] != State.UNMANAGED]
    return Answer({**document, "targets": managed}, status_page.status(document, managed))


async def list_(connect: Connect, args: Namespace) -> Answer:
    """Show every target."""
    async with connect() as manager:
        document = await manager.describe()
    tunables, targets = document["tunables"], document["targets"]
    if args.tunable:
        tunables = [answers.tunable(document, args.tunable)]
        targets = [row for row in targets if row["tunable"] == args.tunable]
    return Answer({"tunables": tunables, "targets": targets}, show.targets(document, args.tunable))


async def get(connect: Connect, args: Namespace) -> Answer:
    """Show the values in force now."""
    wanted = [spelling.what(text) for text in args.targets]
    async with connect() as manager:
        document = await manager.describe()
    found: dict[tuple[str, str], TargetRow] = {}
    for tunable, instances in wanted:
        rows = answers.find(document, tunable, instances)
        found |= {(row["tunable"], row["instance"]): row for row in rows}
    rows = list(found.values())
    unreadable = [row for row in rows if row["value"] is None]
    if len(unreadable) == len(rows):
        names = ", ".join(answers.named(row["tunable"], row["instance"]) for row in rows)
        raise NotSupported(f"{names} cannot be read", rows[0]["detail"])
    return Answer({"targets": rows}, show.values(rows), Exit.PARTLY if unreadable else Exit.OK)


async def set_(connect: Connect, args: Namespace) -> Answer:
    """Claim values; the answer says what the kernel has afterwards."""
    settings = [spelling.setting(text) for text in args.settings]
    async with connect() as manager:
        change = await manager.set(settings, _options(args, "persist", "allow_partial"))
        advice = await _stable_names(manager, settings) if args.persist else []
    return changed(change, advice)


async def plan(connect: Connect, args: Namespace) -> Answer:
    """Show what set, unset, profile set or reset would do; change nothing."""
    if args.profile is not None or args.reset or args.baseline or args.holds:
        return await profiles.plan(connect, args)
    if not args.settings:
        raise Usage("there is nothing to plan", "Name settings, --unset and what to withdraw, --profile or --reset")
    options = _options(args, "unset", "persist", "allow_partial")
    if args.unset:
        names = [spelling.what(text) for text in args.settings]
        what = [Setting(*name, "") for name in names]
        async with connect() as manager:
            change = await manager.plan(what, options)
            document = await manager.describe() if gives_back(change) or not change.changed else None
        advice = [] if change.changed or not document else [nothing_withdrawn(document, names, persist=args.persist)]
        return changed(change, advice, none=NO_CHANGE, document=document)
    settings = [spelling.setting(text) for text in args.settings]
    async with connect() as manager:
        change = await manager.plan(settings, options)
        advice = await _stable_names(manager, settings) if args.persist else []
        error = None if exit_code(change.outcomes) is Exit.OK else await _foreseen(manager, settings, options)
    if error is None:
        return changed(change, advice, none=NO_CHANGE)
    why, hint = telling.parts(error)
    return changed(change, [*advice, Advice(f"set would fail: {why}", hint)], code=error.exit_code)


async def _foreseen(manager: Manager, settings: Sequence[Setting], options: Mapping[str, bool]) -> KerntuneError | None:
    """Return the error with which set would end, or None."""
    try:
        await manager.plan(settings, {**options, "strict": True})
    except KerntuneError as error:
        return error
    return None


async def verify(connect: Connect, _args: Namespace) -> Answer:
    """Show what is not in the desired state; change nothing."""
    async with connect() as manager:
        outcomes = await manager.verify()
        document = await manager.describe()
    managed = answers.managed(document)
    others = {(row.tunable, row.instance) for row in outcomes}
    claims = answers.claims_behind(document)
    wrong: list[Outcome] = []
    lacking: list[Outcome] = []
    for row in outcomes:
        is_lacking = answers.is_excused(row, claims.get((row.tunable, row.instance)))
        (lacking if is_lacking else wrong).append(row)
    counts = {"managed": len(managed | others), "satisfied": len(managed - others)}
    page = show.verified(wrong, lacking, **counts, degraded=document["degraded"])
    data = {**counts, "lacking": len(lacking), "degraded": document["degraded"], "outcomes": _rows(outcomes)}
    return Answer(data, page, verify_exit_code(wrong=len(wrong), satisfied=counts["satisfied"]))


async def monitor(connect: Connect, _args: Namespace) -> AsyncGenerator[Answer, None]:
    """Yield every change from now on. Raise Unreachable when the daemon goes."""
    async with connect() as manager, manager.watch() as events:
        document = await manager.describe()
        known = {key: document[key] for key in ("version", "generation", "degraded", "host")}
        yield Answer({"event": "watching", **_now(), **known}, show.watching(document))
        async for event in events:
            for data, one in _each(event):
                yield Answer({**data, **_now()}, show.happened(time.strftime("%H:%M:%S"), one))


async def unset(connect: Connect, args: Namespace) -> Answer:
    """Withdraw claims; the answer says what the kernel has afterwards."""
    what = [spelling.what(text) for text in args.targets]
    async with connect() as manager:
        change = await manager.unset(what, _options(args, "persist"))
        document = None if change.changed else await manager.describe()
    return changed(change, [nothing_withdrawn(document, what, persist=args.persist)] if document else [])


async def reload(connect: Connect, _args: Namespace) -> Answer:
    """Have the daemon read the configuration files again; the answer says what is not in the desired state."""
    async with connect() as manager:
        await manager.reload()
        document = await manager.describe()
    return Answer({"degraded": document["degraded"]}, show.reloaded(document))


async def config(_connect: Connect, args: Namespace) -> Answer:
    """Show the contents of the configuration files, and their problems; ask no daemon."""
    return check.configuration(args.path)


def _options(args: Namespace, *names: str) -> dict[str, bool]:
    return {name.replace("_", "-"): True for name in names if getattr(args, name)}


async def _stable_names(manager: Manager, settings: Iterable[Setting]) -> list[Advice]:
    """Return advice about names that may mean other drives after a reboot."""
    unstable = [each for each in settings if UNSTABLE.fullmatch(each.instances)]
    document = await manager.describe() if unstable else None
    return [_stable_name(each, document) for each in unstable if document]


def _stable_name(setting: Setting, document: Document) -> Advice:
    """Return the advice that a persistent claim should follow the drive, and not the slot where it was found."""
    tunable, instance, value = setting
    aliases = [
        alias
        for row in document["targets"]
        if (row["tunable"], row["instance"]) == (tunable, instance)
        for alias in row["aliases"]
        if alias.startswith("by-id/")
    ]
    what = f"{instance} may be another drive after a reboot"
    if aliases:
        return Advice(what, f"To follow the drive: kerntune set {tunable}@{aliases[0]}={value} --persist")
    return Advice(what, f"A name below /dev/disk/by-id would follow the drive: {tunable}@by-id/...={value}")


def _rows(outcomes: Iterable[Outcome]) -> list[dict[str, str]]:
    return [outcome._asdict() for outcome in outcomes]


def _now() -> dict[str, str]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _each(event: Event) -> Iterator[tuple[dict[str, Any], Event]]:
    """Yield one answer for each change, so that each is a line of its own."""
    if isinstance(event, Health):
        yield {"event": "degraded", "degraded": list(event.degraded)}, event
        return
    if isinstance(event, GuardChange):
        yield {"event": "guard", **event._asdict()}, event
        return
    for outcome in event.outcomes:
        said = {"event": "outcome", "generation": event.generation, "cause": event.cause, **outcome._asdict()}
        yield said, event._replace(outcomes=(outcome,))
