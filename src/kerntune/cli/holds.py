"""`hold`, `holds` and `release`: they hold values while a program needs them, list the holds, and end them.

As the main process of a service, such as kerntune-hold@.service, `hold` tells the service manager what becomes of it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

from kerntune import sd_notify, syntax
from kerntune.api.document import ClaimRow, Document, HoldRow, Outcome, named
from kerntune.cli import output
from kerntune.cli.commands import Namespace
from kerntune.cli.held import release as release_now
from kerntune.cli.output import Advice, Answer
from kerntune.cli.remote import Connect, Manager
from kerntune.cli.rows import shown
from kerntune.cli.signals import Caught, caught
from kerntune.cli.suggest import parts
from kerntune.cli.tables import Page, Prose, Row, Table, row, short
from kerntune.errors import Exit, KerntuneError, Usage
from kerntune.patterns import HUGE_PAGES
from kerntune.results import WELL, condition, exit_code, first_exit_code
from kerntune.units import MAX_HOLD, MICROSECONDS, parse_duration

COLUMNS: Final = ("HOLD", "BY", "SINCE", "ENDS", "WHAT")
MANAGER_SECONDS: Final = 5.0  # seconds to wait for a service manager that does not read


def hold(connect: Connect, args: Namespace) -> Generator[Answer, None, None]:
    """Hold values until a signal, or the end of a process; with --detach return at once, and hold for their time."""
    try:
        yield from _hold(connect, args)
    except KerntuneError as error:
        _tell(sd_notify.status(str(error)))
        raise


def _hold(connect: Connect, args: Namespace) -> Generator[Answer, None, None]:
    ttl = 0 if args.ttl is None else ttl_of(args.ttl)
    if args.profile == "":
        raise Usage("--profile is empty", "Name a profile: kerntune profile list shows those there are")
    if not args.settings and not args.profile:
        raise Usage("there is nothing to hold", "Name settings, such as hugepages=64G, or --profile NAME")
    if args.detach and not ttl:
        raise Usage("a hold that is detached needs its time", "Say when it ends: --ttl 2h")
    if args.detach and args.pid is not None:
        raise Usage("a hold that is detached ends with no process", "Leave out --pid, or --detach")
    settings = [syntax.setting(text) for text in args.settings]
    names = ("who", "why", "profile")
    who, why, profile = (syntax.in_utf8(f"--{name}", getattr(args, name) or "") for name in names)
    options = {"profile": profile, "allow-partial": args.allow_partial, "detached": args.detach}
    process = None if args.pid is None else process_of(args.pid)
    try:
        with connect() as manager:
            number, rows = manager.hold(settings, who, why, {**options, "ttl-usec": ttl})
            data = {"event": "held", "hold": number, "outcomes": [output.outcome_data(row) for row in rows]}
            page = [*output.outcomes(rows), Prose(_granted(number, args))]
            # A service that has held what it could has not failed when it is stopped.
            code = Exit.OK if sd_notify.is_service() else exit_code(rows)
            answer = Answer(data, page, code)
            if args.detach:
                yield answer
                return
            with caught(signal.SIGINT, signal.SIGTERM) as signals:
                try:
                    yield answer
                except GeneratorExit:  # nobody reads the answer
                    release_now(manager, number, ())
                    raise
                _tell(f"READY=1\n{sd_notify.status(_in_force(number, rows))}")
                yield _ended(number, by_now=_end(manager, number, signals, process))
    finally:
        if process is not None:
            os.close(process)


def _tell(text: str) -> None:
    """Tell the service manager, where this process is the main process of a service."""
    if sd_notify.is_service():
        sd_notify.sent(text, wait=MANAGER_SECONDS)


def _in_force(number: int, rows: Sequence[Outcome]) -> str:
    """Return a line for systemctl status: a hold may be granted where not every value is in force."""
    well = sum(condition(row.state, row.reason) in WELL for row in rows)
    return f"Hold {number}: " + ("all is in force" if well == len(rows) else f"{well} of {len(rows)} values in force")


def _granted(number: int, args: Namespace) -> str:
    ends = [f"for {args.ttl}{'s' if args.ttl.isdecimal() else ''}"] if args.ttl else []
    ends += [f"until process {args.pid} ends"] if args.pid is not None else []
    sentence = ", ".join([f"Hold {number}", *ends])
    return f"{sentence}; Ctrl-C ends it" if sys.stdout.isatty() and not args.detach else sentence


def _ended(number: int, *, by_now: bool) -> Answer:
    if by_now:
        return Answer({"event": "ended", "hold": number}, [Prose(f"Hold {number} has ended.")])
    return Answer({"event": "ending", "hold": number}, [Prose(f"Hold {number} ends; kerntuned is still at it.")])


def _end(manager: Manager, number: int, signals: Caught, process: int | None) -> bool:
    """Wait for the end of a hold, or end it at a signal or the end of a process (pidfd_open(2)).

    Return True if the kernel has the values without it; else they come when this connection has ended. A second signal
    ends the wait for that.
    """
    beside = (signals.fileno(),) if process is None else (signals.fileno(), process)
    over = manager.wait_for_end(number, beside)
    signals.take()
    _tell(f"STOPPING=1\n{sd_notify.status(f'Hold {number} has ended' if over else f'Hold {number} ends')}")
    return over or release_now(manager, number, [signals.fileno()]) is None


def process_of(pid: int) -> int:
    """Return a descriptor that is readable when the process has ended. Raise Usage."""
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        raise Usage(f"there is no process {pid}", "Give that of a process that runs: --pid $$") from error


def holds(connect: Connect, _args: Namespace) -> Answer:
    """Show the holds and their owners."""
    with connect() as manager:
        document = manager.describe()
    return Answer({"holds": list(rows_of(document))}, listed(document))


def release(connect: Connect, args: Namespace) -> Answer:
    """End holds one by one: the exit status is that of the first that could not be ended."""
    released: list[int] = []
    failed: dict[int, KerntuneError] = {}
    with connect() as manager:
        for number in dict.fromkeys(args.holds):
            try:
                manager.release(number)
                released.append(number)
            except KerntuneError as error:
                failed[number] = error
    if len(args.holds) == len(failed) == 1:
        raise next(iter(failed.values()))
    rows = [
        {"hold": number, "error": {"name": error.dbus_name, "message": str(error)}} for number, error in failed.items()
    ]
    page = [f"Released: {', '.join(map(str, released))}"] if released else []
    advice = tuple(map(_failure, failed.items()))
    return Answer({"released": released, "failed": rows}, page, first_exit_code(failed.values()), advice)


def _failure(failed: tuple[int, KerntuneError]) -> Advice:
    number, error = failed
    what, hint = parts(error)
    return Advice(what if f"hold {number}" in what else f"hold {number}: {what}", hint)


def ttl_of(text: str) -> int:
    """Return the microseconds of `90`, `30s`, `15m`, `2h` or `1d`. Raise Usage."""
    found = None if text.endswith(("us", "ms")) else parse_duration(text)
    if not found:
        raise Usage(f"{text!r} is no time", "Write 90s, 15m, 2h or 1d")
    if found > MAX_HOLD:
        raise Usage(f"{text} is too long", f"A hold may last {MAX_HOLD // MICROSECONDS['d']}d")
    return found


def rows_of(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the holds, each with its claims."""
    for each in document.get("holds", ()):
        yield {**each, "claims": [claim for claim in document["claims"] if claim.get("hold") == each["hold"]]}


def listed(document: Document) -> Page:
    """Return a table with a row for each hold."""
    found = document.get("holds", ())
    if not found:
        return ["Nobody holds anything."]
    return [Table(COLUMNS, tuple(_row(each, document) for each in found), wraps=True)]


def _row(hold: HoldRow, document: Document) -> Row:
    claims = [claim for claim in document["claims"] if claim.get("hold") == hold["hold"]]
    ends = clock(hold["expires_usec"]) if hold["expires_usec"] else ""
    ends = ends if hold["detached"] else " or ".join(filter(None, ("with its client", ends)))
    cells = (
        f"{short(hold['who'])}, uid {hold['uid']}",
        clock(hold["since_usec"]),
        ends,
        ", ".join(map(spelled, claims)),
    )
    return row(str(hold["hold"]), cells, "", hold["why"])


def spelled(claim: ClaimRow) -> str:
    """Return the setting that a claim of a hold asks for."""
    added = "+" if claim["value"].isdecimal() and claim["tunable"] in HUGE_PAGES else ""
    value = shown(claim["tunable"], claim["instances"], added + claim["value"], brief=True)
    return f"{named(claim['tunable'], claim['instances'])}={value}"


def clock(usec: int) -> str:
    """Return a time of day, with its date when it is another day."""
    moment, now = time.localtime(usec / MICROSECONDS["s"]), time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == now[:3] else "%Y-%m-%d %H:%M", moment)
