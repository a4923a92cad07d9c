"""How an answer ends, for daemon and command line: which outcomes are errors, of which class, and each exit code.

An error ends with the code of its class (`kerntune.errors`), an answer with that of a function below.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

from kerntune import errors
from kerntune.errors import Exit
from kerntune.model import Origin, Reason, State

CONTENT: Final[frozenset[str]] = frozenset({State.SATISFIED, State.PLANNED, State.UNMANAGED})
# For these reasons a claim stays, and comes into force later.
WAITING_REASONS: Final[frozenset[str]] = frozenset(
    {Reason.NO_SUCH_TARGET, Reason.CPU_OFFLINE, Reason.GOVERNOR_DECIDES, Reason.GUARD_LIMIT}
)
SHORTFALL_REASONS: Final[frozenset[str]] = frozenset({Reason.PARTIALLY_ALLOCATED, Reason.OVER_LIMIT})
ERRORS: Final[Mapping[str, tuple[type[errors.KerntuneError], str]]] = {
    Reason.NO_SUCH_TARGET: (errors.NoSuchTarget, "`kerntune list` shows what there is"),
    Reason.DEVICE_GONE: (errors.NoSuchTarget, "`kerntune list` shows what there is"),
    Reason.DEVICE_HANGS: (
        errors.KernelRejected,
        "Nothing of this call was kept; when the device answers again, or is gone, make the call again",
    ),
    Reason.NO_KERNEL_SUPPORT: (
        errors.NotSupported,
        "It takes another kernel, other firmware settings or other hardware",
    ),
    Reason.VALUE_NOT_OFFERED: (errors.InvalidValue, "`kerntune list` shows what each device offers"),
    Reason.OUT_OF_RANGE: (errors.InvalidValue, "`kerntune list` shows the values there are"),
    Reason.PARTIALLY_ALLOCATED: (
        errors.PartiallyAllocated,
        "The old count was put back; ask for fewer, or keep what can be had (--allow-partial, option allow-partial)",
    ),
    Reason.PAGES_IN_USE: (
        errors.PartiallyAllocated,
        "Ask again when they have been given back; `kerntune status` names the programs",
    ),
    Reason.OVER_LIMIT: (errors.OverLimit, "Nothing was written; ask for less, or stop programs that hold memory"),
    Reason.OVERRIDDEN: (errors.Overridden, "`kerntune status` shows who wants what; withdraw that claim first"),
    Reason.CONFIG_WINS: (errors.Overridden, "The configuration files say otherwise: `kerntune status` names the line"),
    Reason.BOOT_PARAMETER_WINS: (errors.NotSupported, "It takes another kernel command line, and a reboot"),
    Reason.INTERRUPTED: (errors.Failed, "Nothing of this call was kept; try again when kerntuned has started"),
    Reason.READ_ONLY: (errors.KernelRejected, ""),  # the outcome itself says who can set it
}
KERNEL_REJECTED: Final = (
    errors.KernelRejected,
    "Nothing of this call was kept; the kernel's log (dmesg) may say more",
)


IN_FILES: Final[frozenset[str]] = frozenset({Origin.CONFIG.word, Origin.PROFILE.word})


class Condition(StrEnum):
    """The condition of a target, by which the host is well or not: the word in tables and metrics.

    Those of WELL need nobody's attention.
    """

    SATISFIED = "satisfied"
    PLANNED = "planned"
    WAITING = "waiting"
    NOT_APPLICABLE = "not-applicable"
    OVERRIDDEN = "overridden"
    PARTIAL = "partial"
    CONTESTED = "contested"
    OWED = "owed"
    REFUSED = "refused"
    FAILED = "failed"


WELL: Final[frozenset[str]] = frozenset(
    {
        Condition.SATISFIED,
        Condition.PLANNED,
        Condition.WAITING,
        Condition.NOT_APPLICABLE,
        Condition.OVERRIDDEN,
        State.UNMANAGED,
    }
)
# A claim waits for what may come, and does not apply to what this host never has. Other reasons are failures.
UNSUPPORTED: Final[Mapping[str, Condition]] = {
    Reason.NO_SUCH_TARGET: Condition.WAITING,
    Reason.DEVICE_GONE: Condition.WAITING,
    Reason.CPU_OFFLINE: Condition.WAITING,
    Reason.GOVERNOR_DECIDES: Condition.WAITING,
    Reason.NO_KERNEL_SUPPORT: Condition.NOT_APPLICABLE,
    Reason.VALUE_NOT_OFFERED: Condition.NOT_APPLICABLE,
    Reason.BOOT_PARAMETER_WINS: Condition.NOT_APPLICABLE,
    Reason.OUT_OF_RANGE: Condition.REFUSED,
}


class Outcome(Protocol):
    """An outcome to judge: one of the engine, or one that came over the bus with a newer daemon's words."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...


def failure(
    name: str, outcomes: Sequence[Outcome], *, exact: bool, partial: bool, must_win: bool
) -> errors.KerntuneError | None:
    """Return the error for the outcomes of one claim, on `name`; None where the claim stays.

    A shortfall that was not allowed (`partial`) and a refusal are errors, and so is a claim that no target took. An
    overridden claim counts as taken, because it is kept, except for a caller who `must_win`. A pattern that waits for
    later targets counts as taken too, if it does not name one `exact` target.
    """
    kept = WAITING_REASONS - {Reason.NO_SUCH_TARGET} if exact else WAITING_REASONS
    for outcome in outcomes:
        short = outcome.state == State.PARTIAL and outcome.reason in SHORTFALL_REASONS
        short |= outcome.reason == Reason.INTERRUPTED
        if outcome.state == State.REFUSED or (short and not partial):
            return as_error(name, outcome)
    if not any(is_taken(outcome, kept, must_win=must_win) for outcome in outcomes):
        return as_error(name, outcomes[0])
    return None


def is_taken(outcome: Outcome, kept: Collection[str], *, must_win: bool) -> bool:
    """Return True if a claim with this outcome stays; `kept` are the reasons for which it waits."""
    if outcome.state in (State.SATISFIED, State.PLANNED, State.PARTIAL):
        return True
    return outcome.reason in kept or (outcome.state == State.OVERRIDDEN and not must_win)


def as_error(name: str, outcome: Outcome) -> errors.KerntuneError:
    """Return the typed error of an outcome."""
    cls, hint = ERRORS.get(outcome.reason, KERNEL_REJECTED)
    return cls(outcome.detail or f"{name}: {outcome.reason}", hint)


def exit_code(outcomes: Sequence[Outcome]) -> Exit:
    """Return 0 if all is as asked, 6 if only a part is; else 3 if nothing is supported, or 1."""
    states = [outcome.state for outcome in outcomes]
    if all(state in CONTENT for state in states):
        return Exit.OK
    if State.PARTIAL in states or any(state in CONTENT for state in states):
        return Exit.PARTLY
    if all(state == State.UNSUPPORTED for state in states):
        return Exit.NOT_FOUND
    return Exit.FAILED


def profile_exit_code(outcomes: Sequence[Outcome]) -> Exit:
    """Return the exit code of a profile.

    A profile is not to blame for what this host lacks. And the administrator wants what the configuration overrides.
    """
    return exit_code([row for row in outcomes if row.reason != Reason.CONFIG_WINS and not is_absent(row)])


def is_absent(outcome: Outcome) -> bool:
    """Return True if the host does not have the target or value of an outcome, or not now."""
    return condition(outcome.state, outcome.reason) in (Condition.WAITING, Condition.NOT_APPLICABLE)


def condition(state: str, reason: str, *, owed: bool = False) -> str:
    """Return the Condition of an outcome, or the state itself where a newer daemon has one that is not here.

    `owed`: nobody claims the target, and the host's own value is not back yet.
    """
    if state == State.UNSUPPORTED:
        found = UNSUPPORTED.get(reason, Condition.FAILED)
        return found if found in WELL or not owed else Condition.OWED
    return Condition.OWED if owed and state not in CONTENT else state


def health_exit_code(*, well: bool) -> Exit:
    """Return 0 where all is well, else 1: of `status` and `verify`."""
    return Exit.OK if well else Exit.FAILED


def get_exit_code(*, unread: int) -> Exit:
    """Return 6 if some of the values cannot be read now; where none was ever read, `get` raises NotSupported."""
    return Exit.PARTLY if unread else Exit.OK


def findings_exit_code(*, wrong: int) -> Exit:
    """Return 1 if a check has found something wrong: in files, in a profile, on the host."""
    return Exit.FAILED if wrong else Exit.OK


def bench_exit_code(failed: Iterable[errors.KerntuneError], *, invalid: int) -> Exit:
    """Return 3 if a leg has no valid verdict; else the code of the first file that could not be written."""
    return Exit.NOT_FOUND if invalid else first_exit_code(failed)


def first_exit_code(failed: Iterable[errors.KerntuneError]) -> Exit:
    """Return the code of the first of several errors, 0 without one."""
    return next((error.exit_code for error in failed), Exit.OK)
