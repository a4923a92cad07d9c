"""What each verb asks and answers, and the rows the parser is made of; a verb neither parses nor prints.

A new verb is a coroutine and a row in VERBS.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kerntune.cli import answers, show, spelling
from kerntune.cli.answers import Change, Document, Outcome, TargetRow
from kerntune.cli.manager import Connect
from kerntune.errors import Exit, NotSupported
from kerntune.model import State

# Names the kernel gives in the order it finds the drives.
UNSTABLE_NAME: Final = re.compile(r"nvme\d+n\d+|sd[a-z]+", re.ASCII)
ON_BLOCK_DEVICES: Final = frozenset({"io-scheduler"})


class Advice(NamedTuple):
    """A word to the caller beside the answer."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`data` is what --json prints, `page` what people read."""

    data: Any
    page: show.Page
    exit_code: Exit = Exit.OK
    advice: tuple[Advice, ...] = ()


class Argument(NamedTuple):
    """One call of argparse's add_argument."""

    names: tuple[str, ...]
    how: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the parser, and what it runs."""

    name: str
    summary: str
    run: Callable[[Connect, Namespace], Awaitable[Answer]]
    arguments: tuple[Argument, ...] = ()


async def status(connect: Connect, _args: Namespace) -> Answer:
    """What is managed, and for whom."""
    async with connect() as manager:
        document = await manager.describe()
    managed = [row for row in document["targets"] if row["claim"] or row["state"] != State.UNMANAGED]
    return Answer({**document, "targets": managed}, show.status(document, managed))


async def list_(connect: Connect, args: Namespace) -> Answer:
    """Every target there is."""
    async with connect() as manager:
        document = await manager.describe()
    tunables, targets = document["tunables"], document["targets"]
    if args.tunable:
        tunables = [answers.tunable(document, args.tunable)]
        targets = [row for row in targets if row["tunable"] == args.tunable]
    return Answer({"tunables": tunables, "targets": targets}, show.targets(tunables, targets))


async def get(connect: Connect, args: Namespace) -> Answer:
    """The values in force now."""
    wanted = [spelling.what(text) for text in args.targets]
    async with connect() as manager:
        document = await manager.describe()
    found: dict[tuple[str, str], TargetRow] = {}
    for tunable, instances in wanted:
        rows = answers.find(document, tunable, instances or "")
        found |= {(row["tunable"], row["instance"]): row for row in rows}
    rows = list(found.values())
    unreadable = [row for row in rows if row["value"] is None]
    if len(unreadable) == len(rows):
        names = ", ".join(answers.named(row["tunable"], row["instance"]) for row in rows)
        raise NotSupported(f"{names} cannot be read", rows[0]["detail"])
    return Answer({"targets": rows}, show.values(rows), Exit.PARTLY if unreadable else Exit.OK)


async def set_(connect: Connect, args: Namespace) -> Answer:
    """Claim values; the answer is what the kernel then holds."""
    asked = [spelling.asked(text) for text in args.settings]
    incomplete = [request for request in asked if spelling.needs_default_page_size(request)]
    for request in asked:
        if request not in incomplete:
            spelling.setting(request)  # what is a usage error without the daemon should not need it
    unstable = [request for request in asked if args.persist and _has_unstable_name(request)]
    async with connect() as manager:
        document = await manager.describe() if incomplete or unstable else None
        page_size = document["host"]["default_page_size"] if document else 0
        settings = [spelling.setting(request, default_page_size=page_size) for request in asked]
        change = await manager.set(settings, _options(args, "persist", "allow_partial"))
    return _changed(change, [_stable_name(request, document) for request in unstable if document])


async def unset(connect: Connect, args: Namespace) -> Answer:
    """Withdraw claims; the answer is what the kernel then holds."""
    what = [
        (tunable, spelling.everything(tunable) if instances is None else instances)
        for tunable, instances in map(spelling.what, args.targets)
    ]
    async with connect() as manager:
        change = await manager.unset(what, _options(args, "persist"))
    if change.changed or change.outcomes:
        return _changed(change)
    kind, how = ("runtime", "without") if args.persist else ("persistent", "with")
    hint = f"kerntune status shows who wants what; {kind} claims are withdrawn {how} --persist"
    return _changed(change, [Advice("there was no such claim to withdraw", hint)])


def _options(args: Namespace, *names: str) -> dict[str, bool]:
    return {name.replace("_", "-"): True for name in names if getattr(args, name)}


def _has_unstable_name(request: spelling.Asked) -> bool:
    tunable, instances = request.what
    return tunable in ON_BLOCK_DEVICES and bool(UNSTABLE_NAME.fullmatch(instances or ""))


def _stable_name(request: spelling.Asked, document: Document) -> Advice:
    """A persistent claim should follow the drive, not the slot it was found in."""
    tunable, instance = request.what
    aliases = [
        alias
        for row in document["targets"]
        if (row["tunable"], row["instance"]) == (tunable, instance)
        for alias in row["aliases"]
        if alias.startswith("by-id/")
    ]
    what = f"{instance} may be another drive after a reboot"
    if aliases:
        return Advice(what, f"To follow the drive: kerntune set {tunable}@{aliases[0]}={request.value} --persist")
    return Advice(what, f"A name below /dev/disk/by-id would follow the drive: {tunable}@by-id/...={request.value}")


def _changed(change: Change, advice: Iterable[Advice] = ()) -> Answer:
    data = {"changed": change.changed, "outcomes": [outcome._asdict() for outcome in change.outcomes]}
    return Answer(data, show.outcomes(change.outcomes), exit_code(change.outcomes), tuple(advice))


def exit_code(outcomes: Sequence[Outcome]) -> Exit:
    """0 when all is as asked; 6 when only some is, or a part of it; else 3 when nothing is supported, or 1."""
    states = [outcome.state for outcome in outcomes]
    if all(state in show.CONTENT for state in states):
        return Exit.OK
    if State.PARTIAL in states or any(state in show.CONTENT for state in states):
        return Exit.PARTLY
    if all(state == State.UNSUPPORTED for state in states):
        return Exit.NOT_FOUND
    return Exit.FAILED


SETTINGS: Final = Argument(
    ("settings",),
    {
        "nargs": "+",
        "metavar": "TUNABLE[@INSTANCES]=VALUE",
        "help": "for example hugepages=64G, io-scheduler@nvme*=none",
    },
)
TARGETS: Final = Argument(
    ("targets",),
    {"nargs": "+", "metavar": "TUNABLE[@INSTANCES]", "help": "without instances: all of the tunable's"},
)
TUNABLE: Final = Argument(("tunable",), {"nargs": "?", "metavar": "TUNABLE", "help": "only this tunable"})
ALLOW_PARTIAL: Final = Argument(
    ("--allow-partial",), {"action": "store_true", "help": "keep fewer huge pages than asked when there are no more"}
)

VERBS: Final = (
    Verb("status", "what is managed, for whom, and what is not as wished (the default)", status),
    Verb("list", "every target with its value and its choices", list_, (TUNABLE,)),
    Verb("get", "print values in force now", get, (TARGETS,)),
    Verb(
        "set",
        "claim values",
        set_,
        (
            SETTINGS,
            Argument(("--persist",), {"action": "store_true", "help": "also after a reboot"}),
            ALLOW_PARTIAL,
        ),
    ),
    Verb(
        "unset",
        "withdraw claims",
        unset,
        (
            TARGETS,
            Argument(("--persist",), {"action": "store_true", "help": "the persistent claims, not the runtime ones"}),
        ),
    ),
)
