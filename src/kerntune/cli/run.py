"""`run`: it holds values, starts a command behind a shield, stays beside it, and tells what became of it.

Standard output is the command's, and so is the exit status. What kerntune says goes to standard error.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kerntune import streams
from kerntune.api.document import Outcome, named
from kerntune.cli import power_profiles, tables
from kerntune.cli.commands import Namespace
from kerntune.cli.held import Held
from kerntune.cli.output_file import PRIVATE, check_writable, replace_file
from kerntune.cli.progress import Bar
from kerntune.cli.remote import Connect
from kerntune.cli.run_plan import AUTO, BORROWED, Plan, plan_of, shield_of, transparent
from kerntune.cli.run_summary import Summary, say
from kerntune.errors import KerntuneError
from kerntune.model import Setting, State
from kerntune.patterns import EVERY, HUGE_PAGES, parse_pool
from kerntune.results import is_absent
from kerntune.run import allocator, free_cpus, parent, prefault, ready, shield
from kerntune.run.memory import MemoryWatch
from kerntune.run.memory_warnings import Expected, killed
from kerntune.run.parent import Beside
from kerntune.run.shield import Shield, in_force
from kerntune.run.signals import Signals, held_back

WHY: Final = "kerntune run"
INTERRUPTED: Final = "The command was not started, and what was held for it ends"
MAX_WHO: Final = 64  # characters of a command's name that others see
GOVERNOR: Final = "cpu-governor"
# PyTorch asks for transparent huge pages where this is 1 (c10/core/impl/alloc_cpu.cpp).
TORCH: Final = "THP_MEM_ALLOC_ENABLE"
# One that came before the command was started is for kerntune, and cannot be passed on.
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
UNKNOWN: Final = 0  # in place of the process id of a command that has not started
BEGIN: Final = b"{"  # of a file that --output may write over


def run(connect: Connect, args: Namespace) -> int:
    """Run the command to its end, and return the exit status. Raise what is refused before the command starts."""
    with streams.own_stderr():
        summary = Summary(args.command, args.profile or "")
        try:
            _run(connect, args, summary)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(INTERRUPTED) from None
        tell(summary, args)
    return summary.exit_code


def _run(connect: Connect, args: Namespace, summary: Summary) -> None:
    plan = plan_of(args)
    if args.output:
        check_writable(Path(args.output), BEGIN)
    check_there(args.command[0])
    behind, words = shield_of(args)
    shield.try_out(behind)
    summary.notes += words
    with ExitStack() as stack:
        work = Work(plan, args, summary)
        if plan.needs_daemon:
            work.hold(connect, stack)
        work.prefault()
        if args.cpus == AUTO:
            found = free_cpus.look(behind.cpus or frozenset(os.sched_getaffinity(0)))
            behind = replace(behind, cpus=found.pinned or behind.cpus)
            summary.notes.append(found.sentence)
        work.attend(behind)


def check_there(name: str) -> None:
    """Raise NotStarted for a command that is not there: huge pages may take minutes, and would be for nothing."""
    folders = [""] if "/" in name else os.get_exec_path()
    if not name or not any(os.path.lexists(os.path.join(folder, name)) for folder in folders):
        raise parent.not_started(name, errno.ENOENT)


class Work:
    """The work for one command, in its order: hold, touch, and attend."""

    def __init__(self, plan: Plan, args: Namespace, summary: Summary) -> None:
        self._plan, self._args, self._summary = plan, args, summary
        self._held: Held | None = None
        self._profile: power_profiles.Held | None = None
        self._is_here = True  # the daemon tunes this very host
        self._loading = 0  # the hold that ends when the server is ready
        self._environment = dict(os.environ)

    def hold(self, connect: Connect, stack: ExitStack) -> None:
        """Hold what is asked for; the stack releases it, if `attend` has not done so before."""
        plan, summary = self._plan, self._summary
        manager = stack.enter_context(connect())
        described = manager.describe()
        if described["host"]["simulated"] or described["host"]["root"] != "/":
            summary.warn("kerntuned tunes another host than this one", "What is held changes nothing here")
            self._is_here = False
        settings = list(plan.settings)
        if plan.governor:
            found = stack.enter_context(power_profiles.held(plan.governor, WHY))
            if isinstance(found, power_profiles.Held):
                self._profile, summary.power_profile = found, str(found)
                if found.degraded:
                    summary.warn(f"{found}, and the hardware gives less: {found.degraded}", "")
            else:
                settings.append(Setting(GOVERNOR, EVERY, plan.governor))
            if isinstance(found, power_profiles.NotHeld):
                summary.warn(found.what, f"{found.hint}. kerntuned sets the governor, against that service")
        if plan.thp:
            settings.append(transparent(described))
        self._held = Held(manager, who_of(self._args.command), summary.warn)
        stack.callback(self._held.release_all)
        options = {"profile": plan.profile, "allow-partial": self._args.allow_partial}
        if settings or plan.profile:
            self._begin(settings, options)
        if plan.loading:
            self._loading, summary.loading = self._begin(plan.loading, {})
        self._tell_malloc(summary.outcomes, described["host"]["default_page_size"])

    def _begin(self, settings: Sequence[Setting], options: Mapping[str, bool | str]) -> tuple[int, tuple[Outcome, ...]]:
        """Make a hold, and warn of what is not as asked; return its number and its outcomes."""
        assert self._held is not None
        number, outcomes = self._held.hold(settings, WHY, options)
        self._summary.outcomes = (*self._summary.outcomes, *outcomes)
        for row in outcomes:
            # A profile is for many hosts, and one that lacks a target is not to blame.
            if row.state != State.SATISFIED and not (self._plan.profile and is_absent(row)):
                what = f"{named(row.tunable, row.instance)} is {row.actual or 'not there'}: {row.state}"
                self._summary.warn(what, row.detail)
        return number, outcomes

    def _tell_malloc(self, outcomes: Sequence[Outcome], default_page_size: int) -> None:
        """Find out which huge pages malloc(3) can take, and how it is told."""
        settings = [f"{named(row.tunable, row.instance)}={row.requested}" for row in outcomes if is_there(row)]
        environ = self._environment
        told = allocator.environment(environ, settings, default_page_size=default_page_size)
        asked = allocator.hugetlb(settings, default_page_size)
        said = allocator.told(environ) if asked else None
        # Pages that malloc is told not to take are held all the same: the command may map them itself.
        value = said if said and said > allocator.TRANSPARENT else asked
        size = {0: 0, allocator.TRANSPARENT: 0, allocator.DEFAULT_SIZE: default_page_size}.get(value, value)
        rows = [row for row in outcomes if row.tunable in HUGE_PAGES and parse_pool(row.instance).size == size]
        borrowed = bool(rows) and all(row.tunable == BORROWED for row in rows)
        self._summary.expected = Expected(asked if said is None else said, size, sum(map(added, rows)), borrowed)
        if self._plan.thp:
            told = {TORCH: "1", **told}
        self._environment = told

    def prefault(self) -> None:
        """Touch the pages that were added, if asked, or if the first touch is slow in this virtual machine."""
        expected = self._summary.expected
        if expected.borrowed or not expected.pages:
            if self._args.prefault:
                self._summary.warn("--prefault touches nothing", "It is for pages that a hold adds: --hugepages SIZE")
            return
        if not (self._is_here and (self._args.prefault or prefault.free_page_reporting())):
            return
        with Bar(sys.stderr) as bar:
            for done in prefault.touched(expected.pages, expected.page_size):
                bar.draw("touching", done, expected.pages, "pages", "")
                self._summary.prefaulted = done * expected.page_size

    def attend(self, behind: Shield) -> None:
        """Start the command, stay beside it to its end, and release what is held."""
        summary, args = self._summary, self._args
        with held_back(parent.HELD_BACK) as signals, ExitStack() as stack:
            stack.callback(forget, signals)
            # The end of a process, or a terminal that is resized, is nobody's wish to go.
            asked_to_end = stack.enter_context(held_back(ENDING))
            passed_on = stack.enter_context(held_back(parent.PASSED_ON))
            stack.callback(self._release, signals, asked_to_end)
            beside = []
            if args.wait_ready:
                waiting = stack.enter_context(
                    ready.awaited(args.wait_ready, signals, lambda: self._is_ready(passed_on))
                )
                self._environment |= waiting.environment()
                beside.append(Beside(waiting.look, 0.0, waiting.descriptor))
            summary.environment = differing(parent.addressed(self._environment, os.getpid(), UNKNOWN))
            if not args.json:
                say(summary.beginning())
            if any(came.number in ENDING for came in signals.take()):
                raise KeyboardInterrupt
            child = parent.start(args.command, self._environment, behind, signals, outlives=args.detach)
            self._began = time.monotonic()
            with suppress(ProcessLookupError):  # it has ended already
                summary.shield = in_force(child)
            # The addressee of some variables is known only now.
            summary.environment = differing(parent.addressed(self._environment, os.getpid(), child))
            watch = MemoryWatch(child, summary.expected)
            beside.append(Beside(lambda now: self._look(watch, now), watch.next_look))
            if held := self._held:
                beside.append(Beside(lambda now: held.look(now, [signals.fileno()]), 0.0, held.fileno()))
            if self._profile:
                beside.append(Beside(self._look_at_profile, 0.0, self._profile.fileno()))
            for each in beside:
                each.work = harmless(each.work, summary.warn)
            summary.status = parent.attend(child, signals, beside)
            summary.seconds = time.monotonic() - self._began
            if came := killed(summary.status, summary.expected):
                summary.warn(came.what, came.hint)
            if args.wait_ready and summary.ready_seconds is None:
                summary.warn("the command ended before it was ready", f"It was waited for {args.wait_ready}")
            summary.memory = watch.peak

    def _look(self, watch: MemoryWatch, now: float) -> float:
        for found in watch.look(now):
            self._summary.warn(found.what, found.hint)
        return watch.next_look

    def _look_at_profile(self, _now: float) -> float | None:
        assert self._profile is not None
        if lost := self._profile.take():
            self._summary.warn(lost.what, lost.hint)
            return None
        return math.inf

    def _release(self, signals: Signals, asked_to_end: Signals) -> None:
        """Release what is held. Who has asked for an end since that of the command does not wait for it."""
        if self._held:
            if any(came.number in ENDING for came in signals.take()):
                self._held.leave()
            else:
                self._held.release_all([asked_to_end.fileno()])

    def _is_ready(self, passed_on: Signals) -> None:
        """End what only loading needs; a signal for the command does not wait for it."""
        summary = self._summary
        summary.ready_seconds = time.monotonic() - self._began
        if self._held and self._loading:
            self._held.release(self._loading, [passed_on.fileno()])
        if not self._args.json:
            say([f"ready after {summary.ready_seconds:.1f} s"])


def harmless(
    work: Callable[[float], float | None], warn: Callable[[str, str], None]
) -> Callable[[float], float | None]:
    """Return work beside a command that ends where it fails: no error of ours may end a command that runs."""

    def tried(now: float) -> float | None:
        try:
            return work(now)
        except (KerntuneError, OSError, ValueError) as error:
            warn(f"kerntune watches the command less from now on: {error}", "The command goes on")
            return None

    return tried


def tell(summary: Summary, args: Namespace) -> None:
    """Tell how the command ended. What cannot be written is said; the exit status stays the command's."""
    if args.output:
        try:
            # The words of a command may hold secrets.
            replace_file(Path(args.output), json.dumps(summary.data()) + "\n", PRIVATE)
        except KerntuneError as error:
            tables.error(error.what, error.hint, sys.stderr)
    if not args.json:
        say(summary.end())
    elif not args.output:
        write_json(summary.data())


def write_json(data: Mapping[str, Any]) -> None:
    """Write a line of JSON to standard error, unless --quiet asks for nothing but errors; nobody need read it."""
    if streams.is_quiet():
        return
    with suppress(streams.Unwritten), streams.written(sys.stderr):
        print(json.dumps(data), file=sys.stderr)


def forget(signals: Signals) -> None:
    """Drop the signals that came meanwhile: they were for the command, and it has ended."""
    for _ in signals.take():
        pass


def who_of(command: Sequence[str]) -> str:
    """Return the name of a command as others may see it; its arguments may hold secrets."""
    name = "".join(char if char.isascii() and char.isprintable() else "?" for char in os.path.basename(command[0]))
    return name[:MAX_WHO]


def is_there(row: Outcome) -> bool:
    """Return True if a hold has given what an outcome is about, or a part of it."""
    return row.state in (State.SATISFIED, State.PARTIAL)


def added(row: Outcome) -> int:
    """Return by how many pages a hold has made a pool larger."""
    if not (row.before.isdecimal() and row.actual.isdecimal()):
        return 0
    return max(0, int(row.actual) - int(row.before))


def differing(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables in which the command differs from kerntune itself; None for those that it does not get."""
    return {
        name: environment.get(name)
        for name in [*environment, *(os.environ.keys() - environment.keys())]
        if os.environ.get(name) != environment.get(name)
    }
