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
from kerntune.errors import Exit, KerntuneError, NotSupported
from kerntune.model import Setting, State

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


async def status(connect: Connect, args: Namespace) -> Answer:
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
    unstable = [request for request in asked if args.persist and _has_unstable_name(request)]
    # What can be refused unasked is: without the host's page size most settings are complete.
    ready = {request: spelling.setting(request) for request in asked if not spelling.needs_default_page_size(request)}
    async with connect() as manager:
        document = await manager.describe() if unstable or len(ready) < len(set(asked)) else None
        settings = [ready.get(request) or _with_host(request, document) for request in asked]
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
    other = "without --persist the runtime" if args.persist else "with --persist the persistent"
    hint = f"`kerntune status` shows who wants what; {other} claims are withdrawn."
    return _changed(change, [Advice("There was no such claim to withdraw", hint)])


def _options(args: Namespace, *names: str) -> dict[str, bool]:
    return {name.replace("_", "-"): True for name in names if getattr(args, name)}


def _with_host(request: spelling.Asked, document: Document | None) -> Setting:
    return spelling.setting(request, default_page_size=document["host"]["default_page_size"] if document else 0)
