"""`hold`, `holds` and `release`: they hold values while a program needs them, list the holds, and end them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kerntune import holding
from kerntune.cli import output as show
from kerntune.cli.document import ClaimRow, Document, HoldRow, named
from kerntune.cli.remote import Connect, Held
from kerntune.cli.rows import Advice, Answer
from kerntune.cli.suggest import parts
from kerntune.cli.tables import Page, Prose, Row, Table, row, short
from kerntune.errors import Exit, KerntuneError, Unreachable, Usage
from kerntune.patterns import HUGE_PAGES
from kerntune.results import exit_code

COLUMNS: Final = ("HOLD", "BY", "SINCE", "ENDS", "WHAT")
DURATION: Final = re.compile(r"([0-9]{1,9})([smhd]?)", re.ASCII)
SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MICRO: Final = 1_000_000
RELEASE_SECONDS: Final = 5.0  # seconds to wait for the end of a hold after Ctrl-C


async def hold(connect: Connect, args: Namespace) -> AsyncGenerator[Answer, None]:
    """Hold values until a signal, or the end of a process; with --detach return at once, and hold for their time."""
    ttl = 0 if args.ttl is None else duration(args.ttl)
    if args.profile == "":
        raise Usage("--profile is empty", "Name a profile: kerntune profile list shows those there are")
    if not args.settings and not args.profile:
        raise Usage("there is nothing to hold", "Name settings, such as hugepages=64G, or --profile NAME")
    if args.detach and not ttl:
        raise Usage("a hold that is detached needs its time", "Say when it ends: --ttl 2h")
    if args.detach and args.pid is not None:
        raise Usage("a hold that is detached ends with no process", "Leave out --pid, or --detach")
    names = ("who", "why", "profile")
    who, why, profile = (holding.fit_for_the_bus(f"--{name}", getattr(args, name) or "") for name in names)
    options = {"profile": profile, "allow-partial": args.allow_partial, "detached": args.detach}
    process = None if args.pid is None else process_of(args.pid)
    try:
        async with connect() as manager:
            held = await manager.hold(args.settings, who, why, {**options, "ttl-usec": ttl * MICRO})
            rows = held.outcomes
            data = {"event": "held", "hold": held.number, "outcomes": [outcome._asdict() for outcome in rows]}
            answer = Answer(data, [*show.outcomes(rows), Prose(_granted(held.number, args))], exit_code(rows))
            if args.detach:
                yield answer
                return
            with _told(process) as told:
                yield answer
                yield _ended(held.number, by_now=await _end(held, told))
    finally:
        if process is not None:
            os.close(process)


def _granted(number: int, args: Namespace) -> str:
    ends = [f"for {args.ttl}{'s' if args.ttl.isdecimal() else ''}"] if args.ttl else []
    ends += [f"until process {args.pid} ends"] if args.pid is not None else []
    said = ", ".join([f"Hold {number}", *ends])
    return f"{said}; Ctrl-C ends it" if sys.stdout.isatty() and not args.detach else said


def _ended(number: int, *, by_now: bool) -> Answer:
    if by_now:
        return Answer({"event": "ended", "hold": number}, [Prose(f"Hold {number} has ended.")])
    return Answer({"event": "ending", "hold": number}, [Prose(f"Hold {number} ends; kerntuned is still at it.")])


async def _end(held: Held, told: asyncio.Event) -> bool:
    """Wait for the end of a hold, or end it when `told` is set; return True if the kernel has the values without it."""
    ended, telling = asyncio.ensure_future(held.ended()), asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait([ended, telling], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
            return True
        async with asyncio.timeout(RELEASE_SECONDS):
            await held.release()
    except TimeoutError:
        return False
    except Unreachable:
        if not told.is_set():
            raise
        return False  # the hold ends with the connection
    finally:
        ended.cancel()
        telling.cancel()
    return True


@contextmanager
def _told(process: int | None) -> Iterator[asyncio.Event]:
    """Give an event that SIGINT, SIGTERM or the end of a process (pidfd_open(2)) sets."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    # A command that a script starts in the background ignores SIGINT.
    ending = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    for number in ending:
        loop.add_signal_handler(number, told.set)
    if process is not None:
        loop.add_reader(process, told.set)
    try:
        yield told
    finally:
        for number in ending:
            loop.remove_signal_handler(number)
        if process is not None:
            loop.remove_reader(process)


def process_of(pid: int) -> int:
    """Return a descriptor that is readable when the process has ended. Raise Usage."""
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        raise Usage(f"there is no process {pid}", "Give that of a process that runs: --pid $$") from error


async def holds(connect: Connect, _args: Namespace) -> Answer:
    """Show the holds and their owners."""
    async with connect() as manager:
        document = await manager.describe()
    return Answer({"holds": list(rows_of(document))}, listed(document))


async def release(connect: Connect, args: Namespace) -> Answer:
    """End holds one by one: the exit status is that of the first that could not be ended."""
    released: list[int] = []
    failed: dict[int, KerntuneError] = {}
    async with connect() as manager:
        for number in dict.fromkeys(args.holds):
            try:
                await manager.release(number)
                released.append(number)
            except KerntuneError as error:
                failed[number] = error
    if len(args.holds) == len(failed) == 1:
        raise next(iter(failed.values()))
    told = [
        {"hold": number, "error": {"name": error.dbus_name, "message": str(error)}} for number, error in failed.items()
    ]
    page = [f"Released: {', '.join(map(str, released))}"] if released else []
    code = next((error.exit_code for error in failed.values()), Exit.OK)
    return Answer({"released": released, "failed": told}, page, code, tuple(map(_failure, failed.items())))


def _failure(failed: tuple[int, KerntuneError]) -> Advice:
    number, error = failed
    what, hint = parts(error)
    return Advice(what if f"hold {number}" in what else f"hold {number}: {what}", hint)


def duration(text: str) -> int:
    """Return the seconds of `90`, `30s`, `15m`, `2h` or `1d`. Raise Usage."""
    found = DURATION.fullmatch(text)
    if not found or not int(found[1]):
        raise Usage(f"{text!r} is no time", "Write 90s, 15m, 2h or 1d")
    seconds = int(found[1]) * SECONDS[found[2]]
    if seconds > holding.LONGEST_TTL:
        raise Usage(f"{text} is too long", f"A hold may last {holding.LONGEST_TTL // SECONDS['d']}d")
    return seconds


def rows_of(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the holds, each with its claims."""
    for each in document.get("holds", ()):
        yield {**each, "claims": [claim for claim in document["claims"] if claim.get("hold") == each["hold"]]}


def listed(document: Document) -> Page:
    """Return a table with a row for each hold."""
    found = document.get("holds", ())
    if not found:
        return ["Nobody holds anything."]
    return [Table(COLUMNS, tuple(_row(each, document) for each in found))]


def _row(hold: HoldRow, document: Document) -> Row:
    claims = [claim for claim in document["claims"] if claim.get("hold") == hold["hold"]]
    ends = clock(hold["expires_usec"]) if hold["expires_usec"] else ""
    ends = ends if hold["detached"] else " or ".join(filter(None, ("with its client", ends)))
    cells = (
        f"{short(hold['who'])}, uid {hold['uid']}",
        clock(hold["since_usec"]),
        ends,
        " ".join(map(spelled, claims)),
    )
    return row(str(hold["hold"]), cells, "", hold["why"])


def spelled(claim: ClaimRow) -> str:
    """Return the setting that a claim of a hold asks for."""
    added = "+" if claim["value"].isdecimal() and claim["tunable"] in HUGE_PAGES else ""
    return f"{named(claim['tunable'], claim['instances'])}={added}{claim['value']}"


def clock(usec: int) -> str:
    """Return a time of day, with its date when it is another day."""
    moment, now = time.localtime(usec / MICRO), time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == now[:3] else "%Y-%m-%d %H:%M", moment)
