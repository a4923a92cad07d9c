"""Which outcomes of a pass or a look are published, and what Verify says of a value that has changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kerntune.engine.passes import WAITS, Result
from kerntune.model import Outcome, Reason, State, Target


def changes_of(old: Mapping[Target, Outcome], result: Result) -> list[Outcome]:
    """Return the outcomes to publish after a pass: what changed, was written, released, or is gone."""
    new = result.outcomes
    changed = [o for t, o in new.items() if t not in old or compared(old[t]) != compared(o) or is_repaired(o, result)]
    # Another drive or driver of that name has an outcome of its own: nobody misses the former one.
    there = {(target.tunable, target.instance) for target in result.readings}
    released, gone = [], []
    for target, outcome in old.items():
        if target in new:
            continue
        if target not in result.readings:
            gone += [lost(outcome)] if (target.tunable, target.instance) not in there else []
        elif outcome.state is not State.UNMANAGED:
            value = result.readings[target].value or ""
            released.append(Outcome(target, "", outcome.actual, value, State.UNMANAGED))
    return [*changed, *released, *(outcome for outcome in gone if outcome.before)]


def is_repaired(outcome: Outcome, result: Result) -> bool:
    """Return whether a value was put back, or set to what it had already; a write in vain is not published."""
    return outcome.state is State.SATISFIED and outcome.target in result.wrote


def compared(outcome: Outcome) -> tuple[str, ...]:
    """Return what is compared of two outcomes: not the figures in their prose."""
    return outcome.requested, outcome.actual, outcome.state, outcome.reason


def lost(outcome: Outcome) -> Outcome:
    """Return the last outcome of a target that has gone; its claims wait for another."""
    then = ", and what was owed to it with it" if outcome.is_owed else "; the claim waits for another"
    detail = f"{outcome.target} has gone{then}"
    return replace(
        outcome,
        before=outcome.actual,
        actual="",
        state=State.UNSUPPORTED,
        reason=Reason.NO_SUCH_TARGET,
        detail=detail,
        is_owed=False,
    )


def changed_since(outcome: Outcome, last: Outcome | None) -> Outcome:
    """Return what is told of a look's outcome after that of the last pass: a value that a pass would write is wrong."""
    if outcome.state is not State.PLANNED:
        return outcome
    if last and last.is_owed:
        return replace(last, actual=outcome.actual)
    if last is None or last.reason in WAITS:
        since = "hung until" if last and last.reason is Reason.DEVICE_HANGS else "came"
        detail = f"{outcome.target} reads {outcome.actual}: it {since} a moment ago, and the next pass sets it"
        return replace(outcome, detail=detail)
    if last.state is not State.SATISFIED and (last.requested, last.actual) == (outcome.requested, outcome.actual):
        return last
    detail = f"{outcome.target} reads {outcome.actual}: something else changed it, and the next pass puts it right"
    return replace(outcome, state=State.FAILED, reason=Reason.CHANGED_BY_OTHERS, detail=detail)


def is_due(outcome: Outcome, last: Outcome | None) -> bool:
    """Return whether a pass should take note of a look's outcome now, and not only when its time comes.

    A value that others changed waits for that time, as the configuration has it.
    """
    if outcome.reason is Reason.DEVICE_HANGS:
        return last is None or last.reason is not Reason.DEVICE_HANGS
    if outcome.state in (State.SATISFIED, State.UNMANAGED):
        return last is not None and last.state is not outcome.state
    return outcome.state is State.PLANNED and (last is None or last.reason in WAITS)
