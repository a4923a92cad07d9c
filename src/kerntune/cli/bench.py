"""`bench`: it times the loading of a model before and after a change; holds switch the host between the runs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Final, NamedTuple

from kerntune import syntax
from kerntune.bench import experiment, figures, host, legs, page, picture, report, statistics
from kerntune.bench.experiment import Bench, Command, Switch
from kerntune.bench.file import ModelFile, open_model, synthetic
from kerntune.bench.legs import Workload
from kerntune.bench.model import Change, Leg, Look, Report, Verdict
from kerntune.bench.runs import Arm
from kerntune.cli import suggest, tables
from kerntune.cli.commands import Namespace
from kerntune.cli.output import Advice, Answer
from kerntune.cli.output_file import check_writable, replace_file
from kerntune.cli.progress import Bar
from kerntune.cli.remote import Connect
from kerntune.cli.shield_options import cpus_of, slice_of
from kerntune.cli.switch import Holds, Nothing, Reach, reach_of
from kerntune.cli.tables import BAD, GOOD, MIXED, QUIET, Page, Row, Table, clean, row
from kerntune.errors import KerntuneError, Usage
from kerntune.results import bench_exit_code
from kerntune.run import allocator, prefault
from kerntune.run.shield import Shield
from kerntune.units import parse_size, spell_cpus

SIZE: Final = "1G"
FOLDER: Final = "/var/tmp"  # /tmp may lie in memory
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
COLUMNS: Final = ("LEG", "BEFORE", "AFTER", "RATIO", "INTERVAL", "VERDICT")
STYLES: Final = {Verdict.FASTER: GOOD, Verdict.SLOWER: BAD, Verdict.SAME: QUIET, Verdict.INVALID: MIXED}
# Figures that answer the same question as the time, or that only the page has.
LEFT_OUT: Final = frozenset(
    {figures.SPEED, "user_seconds", "system_seconds", "loaded_bytes", "others_cpus", "throttled"}
)
LABELS: Final = frozenset(figures.figure(name).label for name in LEFT_OUT)
STOPPED: Final = "Nothing was found out, and the host is as it was"


class Plan(NamedTuple):
    """The request on the command line, as far as it can be known without the daemon."""

    change: Change
    looks: tuple[Look, ...]
    command: Command | None
    legs: tuple[str, ...]


def bench(connect: Connect, args: Namespace) -> Answer:
    """Measure before and after, until each leg has a verdict."""
    plan = plan_of(args)
    for name, begins in ((args.html, page.BEGIN), (args.png, picture.BEGIN)):
        if name:
            check_writable(Path(name), begins)
    if args.png:
        picture.check()
    found = asyncio.run(_in_order(_measured(plan, args, connect)))
    failed = list(_save(found, args))
    code = bench_exit_code(failed, invalid=sum(leg.verdict == Verdict.INVALID for leg in found.legs))
    advice = tuple(Advice(*suggest.parts(error)) for error in failed)
    return Answer(report.document(found, command=not args.no_command), table_of(found), code, advice)


def plan_of(args: Namespace) -> Plan:
    """Return the plan of the measurement. Raise Usage for arguments without a meaning."""
    for name in ("file", "profile", "until", "size", "dir", "html", "png"):
        if getattr(args, name) == "":
            raise Usage(f"{name} is empty", "Leave it out, or give it a value: is a variable of the shell not set?")
    for text in args.set or ():
        syntax.setting(text)
    change = Change(tuple(args.set or ()), args.profile or "", Shield(cpus_of(args.cpus), slice_of(args.slice)))
    if not (change.settings or change.profile or change.shield):
        raise Usage("there is nothing to compare", "Say what is otherwise after: --set hugepages=640, --slice 100us")
    if args.until and not args.command:
        raise Usage("--until names no command", "Write it at the end: -- python serve.py")
    if args.command and args.file:
        raise Usage("a file and a command are measured apart", "Leave out one of them")
    command = Command(tuple(args.command), args.until or "", not args.no_command) if args.command else None
    return Plan(change, statistics.planned(args.pairs), command, tuple(args.leg or ()))


def where_of(cpu: int, change: Change) -> str:
    """Return, as text, the CPUs of the cpu leg and its busy loops. Raise Usage where after would be like before."""
    allowed, cpus = os.sched_getaffinity(0), change.shield.cpus
    if cpus and cpus >= allowed and not change.shield.slice_us and not change.settings and not change.profile:
        raise Usage(f"on CPU {spell_cpus(cpus)} it may run already", "Name fewer CPUs: before is with all of them")
    return f"are on CPU {cpu}, and it is" + (f" on CPU {spell_cpus(cpus)} after" if cpus else " too")


def size_of(text: str) -> int:
    """Return the bytes of `512M` or `1G`. Raise Usage."""
    size = parse_size(text)
    if size is None:
        raise Usage(f"{text!r} is no size", "Write 512M or 1G")
    return size


async def _measured(plan: Plan, args: Namespace, connect: Connect) -> Report:
    with ExitStack() as stack:
        return await _measured_with(plan, args, connect, stack)


async def _measured_with(plan: Plan, args: Namespace, connect: Connect, stack: ExitStack) -> Report:
    change, command = plan.change, plan.command
    switch: Switch = Nothing()
    reach = Reach()
    if change.settings or change.profile:
        manager = stack.enter_context(connect())
        switch, reach = Holds(manager, change), reach_of(manager, change)
    names, file = await _chosen(plan, args, reach, stack)
    cpu = min(os.sched_getaffinity(0))
    words, where = " ".join(args.command), where_of(cpu, change)
    loads = [
        legs.workload(name, file, reach.tunables, malloc=reach.malloc, command=words, cpus=where) for name in names
    ]
    values, notes = await _tried(switch, loads, file, reach)
    environment = dict(os.environ)
    after = allocator.environment(environment, reach.spelled, default_page_size=reach.default)
    touched = max(file.size if file else 0, reach.pool) if prefault.free_page_reporting() else 0
    notes += _remarks(environment, after, values, touched)
    for note in notes:
        tables.error(note, "", sys.stderr)
    bar = Bar(sys.stderr)
    shared = Bench(
        before=Arm(Shield(), environment),
        after=Arm(change.shield, after),
        switch=switch,
        values=values,
        file=file,
        command=command,
        cpu=cpu,
        page_size=reach.page_size,
        touched=touched,
        looks=plan.looks,
        has_control=not args.no_control,
        random=random.Random(),
        warn=_once(bar),
    )
    with bar:

        def draw(leg: Workload, done: int, planned: int, seconds: float) -> None:
            bar.draw(leg.name, done, planned, "runs", time_left((planned - done) * seconds))

        found = [await experiment.measure(load, shared, draw) for load in loads]
    place = {**host.environment(), **(_where(file) if file else {}), "settings": _settings(values)}
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Report(change, tuple(found), place, tuple(notes), tuple(args.command), date)


def _once(bar: Bar) -> Callable[[str], None]:
    """Return a function that shows only the first warning, in place of the bar: a late command is late in each run."""
    shown: list[str] = []

    def warn(note: str) -> None:
        if not shown:
            bar.erase()
            hint = "Is it written as the command prints it? Ctrl-C ends the measurement"
            tables.error(note, hint, sys.stderr)
        shown.append(note)

    return warn


async def _chosen(
    plan: Plan, args: Namespace, reach: Reach, stack: ExitStack
) -> tuple[Sequence[str], ModelFile | None]:
    """Return the names of the legs, and the file they load: the user's, or one that is made up if it fits."""
    file = stack.enter_context(open_model(args.file)) if args.file else None
    names = legs.chosen(
        plan.legs,
        reach.tunables,
        has_shield=bool(plan.change.shield),
        has_command=bool(plan.command),
        for_torch=bool(file and legs.loads_with_torch(file)),
    )
    size = file.size if file else size_of(args.size or SIZE)
    needs_file = bool(legs.READ_A_FILE & set(names))
    legs.check_room(names, size if needs_file else 0, pool=reach.pool, available=host.available_memory())
    if needs_file:
        file = file or stack.enter_context(await _made(args.dir or FOLDER, size))
        legs.check_disk(names, file)
        legs.check_torch(names, file)
    return names, file


async def _made(folder: str, size: int) -> ModelFile:
    """Make up a file with a bar, in a thread, so that a cancellation ends this work too."""
    began, stopped = time.monotonic(), Event()
    with Bar(sys.stderr) as bar:

        def draw(done: int) -> None:
            if stopped.is_set():
                raise asyncio.CancelledError
            left = (time.monotonic() - began) * (size - done) / done if done >> 20 else 0.0
            bar.draw("random data", done >> 20, size >> 20, "MiB", time_left(left))

        try:
            return await asyncio.to_thread(synthetic, folder, size, draw)
        finally:
            stopped.set()


def _remarks(
    before: Mapping[str, str], after: Mapping[str, str], values: Mapping[bool, Mapping[str, str]], touched: int
) -> Iterator[str]:
    """Yield the other differences after the change, and the work that the bench does beside it."""
    if after != before:
        yield f"After, programs run with {allocator.VARIABLE}={after[allocator.VARIABLE]}."
    elif values[True] and values[True] == values[False]:
        yield "The host has these values already: before and after are the same."
    if touched:
        yield "The host of this virtual machine takes back free memory, so memory is touched before each run."


async def _tried(
    switch: Switch, loads: Sequence[Workload], file: ModelFile | None, reach: Reach
) -> tuple[Mapping[bool, Mapping[str, str]], list[str]]:
    """Change the host once; return the kernel's values without and with the change, and the remarks known by then."""
    notes = []
    with Bar(sys.stderr) if reach.settings else nullcontext() as bar:
        if bar:
            bar.draw("the change", 0, 1, "tries", "")  # huge pages can take long
        async with switch.on():
            after = await switch.values()
            free = host.free_pages(reach.page_size) if reach.page_size else 0
    before = await switch.values()
    if file and reach.page_size and "hugepages-overcommit" not in reach.tunables:
        notes += [legs.foreseen(load, file, page_size=reach.page_size, free=free) for load in loads]
    return {False: before, True: after}, [note for note in notes if note]


def _where(file: ModelFile) -> Mapping[str, object]:
    """Return the report's facts about the file."""
    return {"file_bytes": file.size, "file_system": file.disk.file_system, "drives": list(file.disk.drives)}


def _settings(values: Mapping[bool, Mapping[str, str]]) -> Mapping[str, Mapping[str, str]]:
    """Return each target's values before and after."""
    return {name: {"before": values[False].get(name, ""), "after": value} for name, value in values[True].items()}


def _save(found: Report, args: Namespace) -> Iterator[KerntuneError]:
    """Write the page and the picture, and yield errors: the measurement is shown all the same."""
    if args.no_command:
        found = report.without_command(found)
    for name, content in ((args.html, page.page), (args.png, picture.drawn)):
        if name:
            try:
                replace_file(Path(name), content(found))
            except KerntuneError as error:
                yield error


async def _in_order(work: Coroutine[Any, Any, Report]) -> Report:
    """Have signals end the measurement in order: started processes end, and the hold is released."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def end() -> None:
        if not task.cancelling():  # a second signal would stop the cleanup
            task.cancel()

    ending = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    for number in ending:
        loop.add_signal_handler(number, end)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt(STOPPED) from None
    finally:
        for number in ending:
            loop.remove_signal_handler(number)


def table_of(report: Report) -> Page:
    """Return a table with a row for each leg."""
    return [Table(COLUMNS, tuple(map(_leg_row, report.legs)), frozenset({"VERDICT"}))]


def _leg_row(leg: Leg) -> Row:
    found = ("", "", "", "")
    if leg.looks:
        time = figures.lines(leg)[0]
        found = (time.before, time.after, *figures.estimated(figures.effect(leg)))
    cells = (*found, str(leg.verdict))
    return row(leg.name, tuple(map(_plain, cells)), STYLES[leg.verdict], *map(_plain, _notes(leg)))


def _notes(leg: Leg) -> Iterator[str]:
    yield f"{leg.what}, {len(leg.rounds)} pair{'s' if len(leg.rounds) != 1 else ''}"
    yield leg.reason
    yield from leg.notes
    if not leg.looks:
        return
    shown = (line for line in figures.lines(leg)[1:] if line.label not in LABELS and line.before != line.after)
    yield "; ".join(f"{line.label} {line.before} to {line.after}" for line in shown)
    yield _control(leg)


def _control(leg: Leg) -> str:
    control = leg.looks[-1].control if leg.looks else None
    if control is None:
        return ""
    found = ""
    if leg.verdict is Verdict.SAME and leg.detectable is not None:
        found = f"; a gain of {figures.percent(leg.detectable)} would have been found"
    return f"before beside itself: {' '.join(figures.estimated(control))}{found}"


def _plain(text: str) -> str:
    """Return the text without the spaces that keep a page together: a terminal may not have them."""
    return clean(text.replace(figures.THIN, " ").replace(figures.GAP, " "))


def time_left(seconds: float) -> str:
    """Return the remaining time as text, as far as it is known."""
    if not seconds:
        return ""
    return f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
