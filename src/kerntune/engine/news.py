"""What is news of a pass, and what Verify says of a value that is not what it was. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kerntune.engine.passes import Result
from kerntune.model import Outcome, Reason, State, Target


def news(old: Mapping[Target, Outcome], result: Result) -> list[Outcome]:
    """What is told to everybody of a pass, by the outcomes before it: what changed, was written, released, or went."""
    new = result.outcomes
    changed = [o for t, o in new.items() if t not in old or told(old[t]) != told(o) or t in result.wrote]
    released, gone = [], []
    for target, outcome in old.items():
        if target in new:
            continue
        if target not in result.readings:
            gone.append(lost(outcome))
        elif outcome.state is not State.UNMANAGED:
            value = result.readings[target].value or ""
            released.append(Outcome(target, "", outcome.actual, value, State.UNMANAGED))
    return [*changed, *released, *(outcome for outcome in gone if outcome.before)]


def told(outcome: Outcome) -> tuple[str, ...]:
    """What makes an outcome news: figures in its prose do not."""
    return outcome.requested, outcome.actual, outcome.state, outcome.reason


def lost(outcome: Outcome) -> Outcome:
    """What is told once of a target that has gone; its claims wait for what comes."""
    detail = f"{outcome.target} has gone; the claim is kept for what comes"
    return replace(
        outcome,
        before=outcome.actual,
        actual="",
        state=State.UNSUPPORTED,
        reason=Reason.NO_SUCH_TARGET,
        detail=detail,
    )


def changed_since(outcome: Outcome, last: Outcome | None) -> Outcome:
    """What Verify says of a value that a pass would write: it is not what it should be, and since when."""
    if outcome.state is not State.PLANNED:
        return outcome
    if (
        last
        and last.state is not State.SATISFIED
        and (last.requested, last.actual) == (outcome.requested, outcome.actual)
    ):
        return last
    detail = f"{outcome.target} reads {outcome.actual}: something else changed it, and the next pass puts it right"
    return replace(outcome, state=State.FAILED, reason=Reason.CHANGED_BY_OTHERS, detail=detail)
