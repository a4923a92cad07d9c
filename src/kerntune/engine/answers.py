"""What a caller is told of a pass: the outcomes of its own claims, or the error that they amount to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kerntune import errors
from kerntune.engine.claims import Edit
from kerntune.engine.hung import hangs
from kerntune.engine.passes import Result, nothing_matches
from kerntune.engine.requests import World
from kerntune.engine.resolve import rank, resolve
from kerntune.model import Claim, ClaimId, Origin, Outcome, Reading, Reason, State, Sum, Target, Wish
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
    Reason.PAGES_IN_USE: (
        errors.PartiallyAllocated,
        "Ask again when they have been given back; `kerntune status` names the programs",
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


def outcomes_known(
    claims: Sequence[Claim],
    world: World,
    book: Iterable[Claim],
    baselines: Mapping[Target, str],
    outcomes: Mapping[Target, Outcome],
) -> Sequence[Outcome]:
    """Return the outcomes of claims by what was last read, of all targets of the world, and found."""
    result = Result(readings=dict(world.readings), outcomes=dict(outcomes), missing=dict(world.missing))
    every = tuple(book)
    for name in {claim.tunable for claim in claims}:
        tunable = world.tunables[name]
        result.wishes |= resolve(tunable, every, baselines, world.of(tunable), readings=world.readings)
    return outcomes_of(Edit(put=tuple(claims)), world.tunables, result)


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
    if why_not := result.refused.get((claim.id, claim.seq)):
        state, reason, detail = why_not
        return replace(outcome, requested=spelled(claim), state=state, reason=reason, detail=detail)
    if wish is None or wish.is_baseline:
        return overridden(claim, outcome, "another call withdrew this claim at the same moment")
    if wish.sum:
        if any(is_same(part, claim) for part in wish.sum.parts):
            return part_outcome(claim, wish, wish.sum, outcome)
        if wish.sum.base:  # holds beat nobody here
            wish = replace(wish, value=wish.sum.base.value, winner=wish.sum.base)
    winner = wish.winner
    if is_same(winner, claim):
        return outcome
    own = replace(wish, value=claim.value)
    alike = own == wish or (wish.sum is None and tunable.judge(own, reading, readings).state is State.SATISFIED)
    if alike and not hangs(reading):
        detail = f"the value is that of {described(winner)}"
        return replace(outcome, requested=claim.value, state=State.SATISFIED, reason=Reason.OK, detail=detail)
    if winner.id == claim.id:
        return overridden(claim, outcome, f"a later call replaced this claim: {described(winner)}")
    if winner.origin is Origin.GUARD:
        why = "memory is short and the memory guard holds a limit; this claim is kept and comes into force after it"
        return overridden(claim, outcome, why, Reason.GUARD_LIMIT)
    why = f"{described(winner)} wins; this claim is kept and comes into force when that one goes"
    return overridden(claim, outcome, why)


def overridden(claim: Claim, outcome: Outcome, why: str, reason: Reason = Reason.OVERRIDDEN) -> Outcome:
    """Return the outcome for a claim that was beaten."""
    return replace(outcome, requested=claim.value, state=State.OVERRIDDEN, reason=reason, detail=why)


def is_same(claim: Claim, other: Claim) -> bool:
    """Return whether two claims are one, and neither has replaced the other."""
    return (claim.id, claim.seq) == (other.id, other.seq)


def part_outcome(claim: Claim, wish: Wish, of: Sum, outcome: Outcome) -> Outcome:
    """Return the outcome of one of the claims that make a number together.

    Of a hold it tells what it adds (+N), and the number that there is in all.
    """
    is_hold, base = claim.origin is Origin.HOLD, int(wish.value) - of.held
    told = replace(outcome, requested=spelled(claim))
    if not is_hold and not of.at_least and base != int(claim.value):
        why = f"the claims on single nodes make {base} pages in all"
        return replace(told, state=State.OVERRIDDEN, reason=Reason.OVERRIDDEN, detail=why)
    if outcome.state in (State.SATISFIED, State.PLANNED):
        said = f"{of.held} more are held" if of.held and not is_hold else ""
        return replace(told, detail="; ".join(filter(None, (said, outcome.detail))))
    if outcome.state is not State.PARTIAL or outcome.reason is Reason.PAGES_IN_USE or not outcome.actual:
        return told
    number = int(outcome.actual) if of.foreseen is None else of.foreseen
    share = shares(wish, of, int(outcome.before or 0), number)[claim.id]
    if share == int(claim.value):
        return replace(told, state=State.SATISFIED, reason=Reason.OK, detail="")
    return replace(told, detail=f"{share} of {claim.value} pages had: {outcome.detail}")


def shares(wish: Wish, of: Sum, before: int, number: int) -> Mapping[ClaimId, int]:
    """Return what each part has of a number that is too small; `before` is what there was when the pass began.

    Those that the pass is for share what is new, so nobody loses what he had. The others are served in their order.
    """
    others = [part for part in of.parts if part not in of.asked]
    base = of.base if of.base and int(wish.value) - of.held == int(of.base.value) else None
    left, found = max(0, number - before), dict[ClaimId, int]()
    for part in sorted(of.asked, key=rank):
        value = int(part.value)
        # Who raises his own number needs the rise alone.
        had = max(0, min(value, of.before - sum(int(each.value) for each in others))) if part == of.base else 0
        more = min(left, value - had)
        found[part.id], left = had + more, left - more
    left = number - sum(found.values()) - (0 if base else int(wish.value) - of.held)
    for part in others:
        if part != of.base or base:
            found[part.id] = max(0, min(left, int(part.value)))
            left -= found[part.id]
    return found


def spelled(claim: Claim) -> str:
    """Return what a claim asks for: of a hold where such add up, how much more."""
    return f"{'+' if claim.origin is Origin.HOLD and claim.value.isdecimal() else ''}{claim.value}"


def described(claim: Claim) -> str:
    """A claim in prose."""
    said = f"{claim.id} = {claim.value}"
    if claim.hold:
        said = f"{Target(claim.tunable, claim.instances)} = {claim.value} of hold {claim.hold}"
    return f"{said}, by {claim.who}" if claim.who else said


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
