"""What a caller is told of a pass: the outcomes of its own claims, or the error that they amount to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kerntune import errors
from kerntune.engine.claims import Edit
from kerntune.engine.hung import hangs
from kerntune.engine.passes import Result, nothing_matches
from kerntune.engine.resolve import rank
from kerntune.model import Claim, ClaimId, Origin, Outcome, Reading, Reason, State, Target
from kerntune.tunables.base import Tunable

ERRORS: Mapping[Reason, tuple[type[errors.KerntuneError], str]] = {
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
    Reason.OVER_LIMIT: (errors.OverLimit, "Nothing was written; ask for less, or stop programs that hold memory"),
    Reason.OVERRIDDEN: (errors.Overridden, "`kerntune status` shows who wants what; withdraw that claim first"),
    Reason.BOOT_PARAMETER_WINS: (errors.NotSupported, "It takes another kernel command line, and a reboot"),
    Reason.INTERRUPTED: (errors.Failed, "Nothing of this call was kept; try again when kerntuned has started"),
    Reason.READ_ONLY: (errors.KernelRejected, "In a container, run kerntuned on the host itself, as root"),
}
Readings = Mapping[Target, Reading]
KERNEL_REJECTED = (errors.KernelRejected, "Nothing of this call was kept; the kernel's log (dmesg) may say more")
KEPT = frozenset({Reason.NO_SUCH_TARGET, Reason.CPU_OFFLINE, Reason.GOVERNOR_DECIDES, Reason.GUARD_LIMIT})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller is told: whether anything changed, and the outcomes of its own targets."""

    changed: bool
    outcomes: tuple[Outcome, ...]


def outcomes_of(
    edit: Edit, tunables: Mapping[str, Tunable], result: Result, *, must_win: bool | None = None
) -> list[Outcome]:
    """The outcomes for an edit's own targets; with `must_win` given, raises the error that they amount to."""
    if not edit.put:
        there = by_tunable(result)
        found = {outcome.target: outcome for outcome in released_outcomes(edit.released, tunables, result, there)}
        # Of two claims on a target the stronger has the last word.
        for claim in sorted(edit.files.told if edit.files else (), key=rank):
            found |= {
                outcome.target: outcome for outcome in own_outcomes(claim, tunables[claim.tunable], result, there)
            }
        return list(found.values())
    own: list[Outcome] = []
    there = by_tunable(result)
    for claim in edit.put:
        tunable = tunables[claim.tunable]
        outcomes = own_outcomes(claim, tunable, result, there)
        if must_win is not None and (error := failure(claim, tunable, outcomes, must_win=must_win)):
            raise error
        own += outcomes
    return own


def by_tunable(result: Result) -> Mapping[str, Readings]:
    """Return the readings by the names of the tunables: the instances of several may have the same names."""
    found: dict[str, dict[Target, Reading]] = {}
    for target, reading in result.readings.items():
        found.setdefault(target.tunable, {})[target] = reading
    return found


def own_outcomes(claim: Claim, tunable: Tunable, result: Result, there: Mapping[str, Readings]) -> list[Outcome]:
    """The outcomes of one claim: for each target it covers, or one for a pattern that covers nothing."""
    readings, matches = there.get(claim.tunable, {}), tunable.matcher(claim.instances)
    covered = [target for target in readings if matches(target)]
    if not covered:
        return [nothing_matches(claim, result.missing.get(claim.tunable, ""))]
    return [own_outcome(claim, target, tunable, result, readings) for target in covered]


def own_outcome(
    claim: Claim, target: Target, tunable: Tunable, result: Result, readings: Mapping[Target, Reading]
) -> Outcome:
    """The outcome for the claim that won; for one that was beaten, what is there instead of it.

    `readings` are those of its tunable.
    """
    reading, wish = readings[target], result.wishes.get(target)
    actual = reading.value or ""
    outcome = result.outcomes.get(target, Outcome(target, "", actual, actual, State.UNMANAGED))
    if wish is None or wish.is_baseline:
        why = "another call withdrew this claim at the same moment"
    elif (wish.winner.id, wish.winner.seq) == (claim.id, claim.seq):
        return outcome
    elif (
        not hangs(reading)
        and tunable.judge(replace(wish, value=claim.value), reading, readings).state is State.SATISFIED
    ):
        detail = f"the value is that of {described(wish.winner)}"
        return replace(outcome, requested=claim.value, state=State.SATISFIED, reason=Reason.OK, detail=detail)
    elif wish.winner.id == claim.id:
        why = f"a later call replaced this claim: {described(wish.winner)}"
    elif wish.winner.origin is Origin.GUARD:
        why = "memory is short and the memory guard holds a limit; this claim is kept and comes into force after it"
        return replace(outcome, requested=claim.value, state=State.OVERRIDDEN, reason=Reason.GUARD_LIMIT, detail=why)
    else:
        why = f"{described(wish.winner)} wins; this claim is kept and comes into force when that one goes"
    return replace(outcome, requested=claim.value, state=State.OVERRIDDEN, reason=Reason.OVERRIDDEN, detail=why)


def described(claim: Claim) -> str:
    """A claim in prose."""
    return f"{claim.id} = {claim.value}" + (f", by {claim.who}" if claim.who else "")


def released_outcomes(
    dropped: Iterable[ClaimId], tunables: Mapping[str, Tunable], result: Result, there: Mapping[str, Readings]
) -> list[Outcome]:
    """What the targets of withdrawn claims are now: what the next claim wishes, or their own value.

    In a plan, what others of the same group get back changes a target that has nothing of its own to get back: the
    total of pools on several nodes.
    """
    found = {}
    planned = {target for target, outcome in result.outcomes.items() if outcome.state is State.PLANNED}
    for claim_id in dropped:
        tunable = tunables[claim_id.tunable]
        matches = tunable.matcher(claim_id.instances)
        moving = {tunable.group(target) for target in planned if target.tunable == claim_id.tunable}
        for target, reading in there.get(claim_id.tunable, {}).items():
            if matches(target):
                state = State.PLANNED if tunable.group(target) in moving else State.UNMANAGED
                own = Outcome(target, "", result.before[target].value or "", reading.value or "", state)
                found[target] = result.outcomes.get(target, own)
    return list(found.values())


def failure(
    claim: Claim, tunable: Tunable, outcomes: Sequence[Outcome], *, must_win: bool
) -> errors.KerntuneError | None:
    """The error that the outcomes of one claim amount to, if they do.

    A shortfall that was not allowed and a refusal are errors, and so is a claim that no target took. A beaten claim
    counts as taken (it is kept), except for a caller who `must_win`; so does a pattern that waits for what comes.
    """
    kept = KEPT - {Reason.NO_SUCH_TARGET} if tunable.exact(claim.instances) else KEPT
    for outcome in outcomes:
        short = outcome.state is State.PARTIAL and outcome.reason in (Reason.PARTIALLY_ALLOCATED, Reason.OVER_LIMIT)
        short |= outcome.reason is Reason.INTERRUPTED
        if outcome.state is State.REFUSED or (short and not claim.partial):
            return as_error(outcome)
    if not any(taken(outcome, kept, must_win=must_win) for outcome in outcomes):
        return as_error(outcomes[0])
    return None


def taken(outcome: Outcome, kept: Collection[Reason], *, must_win: bool) -> bool:
    """Whether a claim with this outcome stays in the book; `kept` are the reasons for which it waits there."""
    if outcome.state in (State.SATISFIED, State.PLANNED, State.PARTIAL):
        return True
    return outcome.reason in kept or (outcome.state is State.OVERRIDDEN and not must_win)


def as_error(outcome: Outcome) -> errors.KerntuneError:
    """The typed error for an outcome."""
    cls, hint = ERRORS.get(outcome.reason, KERNEL_REJECTED)
    return cls(outcome.detail or f"{outcome.target}: {outcome.reason}", hint)
