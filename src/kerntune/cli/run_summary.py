"""The report of `kerntune run` on a command: a sentence or two at its start, warnings, and the summary at its end.

All of it goes to standard error, because standard output is the command's.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from kerntune import streams
from kerntune.api.document import Outcome, named
from kerntune.cli import tables
from kerntune.cli.output import outcome_data
from kerntune.cli.rows import shown
from kerntune.model import State
from kerntune.patterns import joined
from kerntune.run.memory_warnings import Expected, Heap, held_peak
from kerntune.run.parent import ADDRESSED
from kerntune.run.shield import InForce
from kerntune.units import spell_cpus

FORMAT: Final = 1  # of the JSON

SIGNALLED: Final = 128  # the exit status of a shell for a command that a signal has killed is this and the signal


@dataclass(slots=True)
class Summary:
    """The facts of one run; None and 0 stand for what did not happen."""

    command: Sequence[str]
    profile: str = ""
    outcomes: Sequence[Outcome] = ()
    loading: Sequence[Outcome] = ()  # of these, what is held until the command is ready
    power_profile: str = ""
    environment: Mapping[str, str | None] = field(default_factory=dict)  # None: it does not get this one
    shield: InForce | None = None
    notes: list[str] = field(default_factory=list)
    prefaulted: int = 0
    status: int = 0
    seconds: float = 0.0
    ready_seconds: float | None = None
    expected: Expected = field(default_factory=Expected)
    memory: Heap = field(default_factory=Heap)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The exit status of `kerntune run`: that of the command, or 128 and the signal that killed it."""
        return self.status if self.status >= 0 else SIGNALLED - self.status

    def warn(self, what: str, hint: str) -> None:
        """Keep a warning, and show it now: a server may run for weeks."""
        self.warnings.append((what, hint))
        if not streams.is_quiet():
            tables.error(what, hint, sys.stderr)

    def data(self) -> dict[str, Any]:
        """Return the summary for programs."""
        return {
            "format": FORMAT,
            "command": list(self.command),
            "exit_code": self.exit_code,
            "signal": signal_name(-self.status) if self.status < 0 else "",
            "seconds": round(self.seconds, 3),
            "ready_seconds": None if self.ready_seconds is None else round(self.ready_seconds, 3),
            "outcomes": [outcome_data(row) for row in self.outcomes],
            "profile": self.profile,
            "power_profile": self.power_profile,
            "environment": dict(self.environment),
            "shield": None if self.shield is None else shield_data(self.shield),
            "notes": self.notes,
            "prefaulted_bytes": self.prefaulted,
            "memory": self.memory.figures(),
            "warnings": [{"what": what, "hint": hint} for what, hint in self.warnings],
        }

    def beginning(self) -> Iterator[str]:
        """Yield sentences about what is in force when the command starts."""
        to_the_end = [row for row in self.outcomes if row not in self.loading]
        if held := [*held_words(to_the_end), *filter(None, [self.power_profile])]:
            profile = f" (profile {self.profile})" if self.profile else ""
            yield f"held while it runs{profile}: {', '.join(held)}"
        if held := list(held_words(self.loading)):
            yield f"held until it is ready: {', '.join(held)}"
        yield from self.notes
        if self.environment:
            yield f"it gets {environment_words(self.environment)}"

    def end(self) -> Iterator[str]:
        """Yield sentences about how it ended."""
        name = self.command[0]
        how = f"was killed by {signal_name(-self.status)}" if self.status < 0 else f"ended with status {self.status}"
        ready = "" if self.ready_seconds is None else f", ready after {self.ready_seconds:.1f} s"
        yield f"{name} {how} after {self.seconds:.1f} s{ready}"
        if self.expected.hugetlb:
            yield str(self.memory)
            if size := held_peak(self.memory, self.expected):
                yield f"{size} would have held all of it"


def shield_data(shield: InForce) -> dict[str, Any]:
    """Return the shield that the command started with, for programs."""
    return {
        "cpus": spell_cpus(shield.cpus),
        **asdict(shield.scheduling),
        "lockable_bytes": shield.lockable_bytes,
    }


def environment_words(environment: Mapping[str, str | None]) -> str:
    """Return the variables that the command gets otherwise than kerntune, before its process id is known."""
    words = [
        f"{name} with its own number" if name in ADDRESSED else f"{name}={text}"
        for name, text in environment.items()
        if text is not None
    ]
    return ", ".join([*words, *(f"no {name}" for name, text in environment.items() if text is None)])


def held_words(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield what is held as settings, one for all targets that differ in the instance only."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for row in outcomes:
        if row.state in (State.SATISFIED, State.PARTIAL):
            found.setdefault((row.tunable, row.requested), []).append(row)
    for (tunable, requested), rows in found.items():
        value = shown(tunable, rows[0].instance, requested)
        for pattern, _ in joined([row.instance for row in rows]):
            yield f"{named(tunable, pattern)}={value}"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def say(sentences: Iterable[str]) -> None:
    """Write sentences to standard error; nobody need read them."""
    if streams.is_quiet():
        return
    for sentence in sentences:
        tables.error(sentence, "", sys.stderr)
