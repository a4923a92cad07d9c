"""Which exit code outcomes amount to; knows nothing of how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kerntune.cli.answers import ClaimRow, Outcome
from kerntune.errors import Exit, InvalidValue, KernelRejected
from kerntune.model import Origin, Reason, State

CONTENT: Final[frozenset[str]] = frozenset({State.SATISFIED, State.PLANNED, State.UNMANAGED})
# With these a claim stays, also where there is nothing for it to do yet.
TAKEN: Final = CONTENT | {State.PARTIAL, State.OVERRIDDEN}
KEPT: Final = frozenset({Reason.NO_SUCH_TARGET, Reason.CPU_OFFLINE})
LACKING: Final = KEPT | {
    Reason.NO_KERNEL_SUPPORT,
    Reason.VALUE_NOT_OFFERED,
    Reason.DEVICE_GONE,
    Reason.BOOT_PARAMETER_WINS,
}
IN_FILES: Final = frozenset({Origin.CONFIG.word, Origin.PROFILE.word})
GLOB: Final = frozenset("*?[")
# The errors that these are, by the name that set has for them.
ERRORS: Final[dict[str, Exit]] = {
    Reason.VALUE_NOT_OFFERED: InvalidValue.exit_code,
    Reason.OUT_OF_RANGE: InvalidValue.exit_code,
    Reason.READ_ONLY: KernelRejected.exit_code,
}


def exit_code(outcomes: Sequence[Outcome]) -> Exit:
    """0 when all is as asked; 6 when only some is, or a part of it; else 3 when nothing is supported, or 1."""
    states = [outcome.state for outcome in outcomes]
    if all(state in CONTENT for state in states):
        return Exit.OK
    if State.PARTIAL in states or any(state in CONTENT for state in states):
        return Exit.PARTLY
    if all(state == State.UNSUPPORTED for state in states):
        return Exit.NOT_FOUND
    return Exit.FAILED


def foreseen(outcomes: Sequence[Outcome]) -> Exit:
    """The exit code that set would end with, going by its plan.

    A refusal, and a setting that no target takes, is an error of the whole call, whatever else could be done.
    """
    if any(outcome.state == State.REFUSED for outcome in outcomes):
        return Exit.FAILED
    settings: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        settings.setdefault((outcome.tunable, outcome.requested), []).append(outcome)
    for group in settings.values():
        if not any(outcome.state in TAKEN or outcome.reason in KEPT for outcome in group):
            return ERRORS.get(group[0].reason) or exit_code(group)
    return exit_code(outcomes)


def chosen(outcomes: Sequence[Outcome]) -> Exit:
    """The exit code of a profile: what this host lacks is none of its faults."""
    here = [outcome for outcome in outcomes if outcome.state != State.UNSUPPORTED or outcome.reason not in LACKING]
    return exit_code(here)


def is_lacking(outcome: Outcome, claim: ClaimRow | None) -> bool:
    """Whether it is none of the claim's faults: files are for many hosts, and a pattern waits for what comes.

    Who asked for one thing by its name, and has it no more, wants to hear of it.
    """
    if claim is None or outcome.state != State.UNSUPPORTED or outcome.reason not in LACKING:
        return False
    waits = not claim["matches"] or outcome.reason in KEPT
    return claim["origin"] in IN_FILES or (waits and bool(GLOB & set(claim["instances"])))


def verified(*, wrong: int, satisfied: int) -> Exit:
    """0 when nothing that is here is otherwise than wished; else 6 when so many others are as wished, or 1 for none."""
    if not wrong:
        return Exit.OK
    return Exit.PARTLY if satisfied else Exit.FAILED
