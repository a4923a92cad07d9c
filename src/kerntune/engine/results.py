"""The answers to callers of a pass: the outcomes of its own claims, or the error that they amount to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kerntune.engine.claims import Edit
from kerntune.engine.hung import hangs
from kerntune.engine.passes import Result, nothing_matches
from kerntune.engine.requests import World
from kerntune.engine.resolve import rank, resolve
from kerntune.errors import KerntuneError
from kerntune.model import Claim, ClaimId, DesiredState, Origin, Outcome, Reading, Reason, State, Sum, Target
from kerntune.results import failure
from kerntune.tunables.base import Tunable

Readings = Mapping[Target, Reading]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a caller: whether anything changed, and the outcomes of its own targets."""

    changed: bool
    outcomes: tuple[Outcome, ...]


class Judged(NamedTuple):
    """The outcomes of an edit's own targets, and the error that they amount to for its caller, if they do."""

    outcomes: Sequence[Outcome]
    error: KerntuneError | None = None

    def checked(self) -> Sequence[Outcome]:
        """Return the outcomes. Raise the error."""
        if self.error:
            raise self.error
        return self.outcomes


def judge(edit: Edit, tunables: Mapping[str, Tunable], result: Result, *, must_win: bool = False) -> Judged:
    """Return what an edit has come to; with `must_win` an overridden claim is an error."""
    if not edit.put:
        there = by_tunable(result)
        found = {outcome.target: outcome for outcome in released_outcomes(edit.released, tunables, result, there)}
        # Of two claims on a target the stronger has the last word.
        for claim in sorted(edit.files.told if edit.files else (), key=rank):
            found |= {
                outcome.target: outcome for outcome in own_outcomes(claim, tunables[claim.tunable], result, there)
            }
        return Judged(list(found.values()))
    own: list[Outcome] = []
    error: KerntuneError | None = None
    there = by_tunable(result)
    for claim in edit.put:
        tunable = tunables[claim.tunable]
        outcomes = own_outcomes(claim, tunable, result, there)
        name, exact = str(Target(claim.tunable, claim.instances)), tunable.exact(claim.instances)
        error = error or failure(name, outcomes, exact=exact, partial=claim.partial, must_win=must_win)
        own += outcomes
    return Judged(own, error)


def outcomes_known(
    claims: Sequence[Claim],
    world: World,
    in_force: Iterable[Claim],
    baselines: Mapping[Target, str],
    outcomes: Mapping[Target, Outcome],
) -> Sequence[Outcome]:
    """Return the outcomes of claims by what was last read, of all targets of the world, and found."""
    result = Result(readings=dict(world.readings), outcomes=dict(outcomes), missing=dict(world.missing))
    every = tuple(in_force)
    for name in {claim.tunable for claim in claims}:
        tunable = world.tunables[name]
        result.desired_states |= resolve(tunable, every, baselines, world.of(tunable), readings=world.readings)
    return judge(Edit(put=tuple(claims)), world.tunables, result).outcomes


def by_tunable(result: Result) -> Mapping[str, Readings]:
    """Return the readings by the names of the tunables: the instances of several may have the same names."""
    found: dict[str, dict[Target, Reading]] = {}
    for target, reading in result.readings.items():
        found.setdefault(target.tunable, {})[target] = reading
    return found


def own_outcomes(claim: Claim, tunable: Tunable, result: Result, there: Mapping[str, Readings]) -> list[Outcome]:
    """Return the outcomes of one claim: one for each target it covers, or one for a pattern that covers nothing."""
    readings, matches = there.get(claim.tunable, {}), tunable.matcher(claim.instances)
    covered = [target for target in readings if matches(target)]
    if not covered:
        return [nothing_matches(claim, result.missing.get(claim.tunable, ""))]
    return [own_outcome(claim, target, tunable, result, readings) for target in covered]


def own_outcome(
    claim: Claim, target: Target, tunable: Tunable, result: Result, readings: Mapping[Target, Reading]
) -> Outcome:
    """Return the outcome of the claim that won, or of an overridden claim, with what is in force instead.

    `readings` are those of its tunable.
    """
    reading, desired = readings[target], result.desired_states.get(target)
    actual = reading.value or ""
    outcome = result.outcomes.get(target, Outcome(target, "", actual, actual, State.UNMANAGED))
    if why_not := result.refused.get((claim.id, claim.seq)):
        state, reason, detail = why_not
        return replace(outcome, requested=spelled(claim), state=state, reason=reason, detail=detail)
    if desired is None or desired.is_baseline:
        return overridden(claim, outcome, "another call withdrew this claim at the same moment")
    if desired.sum:
        if any(is_same(part, claim) for part in desired.sum.parts):
            return part_outcome(claim, desired, desired.sum, outcome)
        if desired.sum.base:  # holds override nobody here
            desired = replace(desired, value=desired.sum.base.value, winner=desired.sum.base)
    winner = desired.winner
    if is_same(winner, claim):
        return outcome
    own = replace(desired, value=claim.value)
    alike = own == desired or (desired.sum is None and tunable.assess(own, reading, readings).state is State.SATISFIED)
    if alike and not hangs(reading):
        detail = f"the value is that of {described(winner)}"
        return replace(outcome, requested=claim.value, state=State.SATISFIED, reason=Reason.OK, detail=detail)
    if winner.id == claim.id:
        return overridden(claim, outcome, f"a later call replaced this claim: {described(winner)}")
    if winner.origin is Origin.GUARD:
        why = "memory is short and the memory guard holds a limit; this claim is kept and comes into force after it"
        return overridden(claim, outcome, why, Reason.GUARD_LIMIT)
    why = f"{described(winner)} wins; this claim is kept and comes into force when that one goes"
    wins = (claim.origin, winner.origin) == (Origin.PROFILE, Origin.CONFIG)
    return overridden(claim, outcome, why, Reason.CONFIG_WINS if wins else Reason.OVERRIDDEN)


def overridden(claim: Claim, outcome: Outcome, why: str, reason: Reason = Reason.OVERRIDDEN) -> Outcome:
    """Return the outcome for a claim that was overridden."""
    return replace(outcome, requested=claim.value, state=State.OVERRIDDEN, reason=reason, detail=why)


def is_same(claim: Claim, other: Claim) -> bool:
    """Return whether two claims are one, and neither has replaced the other."""
    return (claim.id, claim.seq) == (other.id, other.seq)


def part_outcome(claim: Claim, desired: DesiredState, of: Sum, outcome: Outcome) -> Outcome:
    """Return the outcome of one of the claims that make a number together.

    Of a hold it tells what it adds (+N), and the number that there is in all.
    """
    is_hold, base = claim.origin is Origin.HOLD, int(desired.value) - of.held
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
    share = shares(desired, of, int(outcome.before or 0), number)[claim.id]
    if share == int(claim.value):
        return replace(told, state=State.SATISFIED, reason=Reason.OK, detail="")
    return replace(told, detail=f"{share} of {claim.value} pages had: {outcome.detail}")


def shares(desired: DesiredState, of: Sum, before: int, number: int) -> Mapping[ClaimId, int]:
    """Return what each part has of a number that is too small; `before` is what there was when the pass began.

    Those that the pass is for share what is new, so nobody loses what he had. The others are served in their order.
    """
    others = [part for part in of.parts if part not in of.asked]
    base = of.base if of.base and int(desired.value) - of.held == int(of.base.value) else None
    left, found = max(0, number - before), dict[ClaimId, int]()
    for part in sorted(of.asked, key=rank):
        value = int(part.value)
        # Who raises his own number needs the rise alone.
        had = max(0, min(value, of.before - sum(int(each.value) for each in others))) if part == of.base else 0
        more = min(left, value - had)
        found[part.id], left = had + more, left - more
    left = number - sum(found.values()) - (0 if base else int(desired.value) - of.held)
    for part in others:
        if part != of.base or base:
            found[part.id] = max(0, min(left, int(part.value)))
            left -= found[part.id]
    return found


def spelled(claim: Claim) -> str:
    """Return what a claim asks for: of a hold where such add up, how much more."""
    return f"{'+' if claim.origin is Origin.HOLD and claim.value.isdecimal() else ''}{claim.value}"


def described(claim: Claim) -> str:
    """Return a claim in prose, with who made it or the file and line that do."""
    said = f"{claim.id} = {claim.value}"
    if claim.hold:
        said = f"{Target(claim.tunable, claim.instances)} = {claim.value} of hold {claim.hold}"
    if claim.origin is Origin.CONFIG and claim.place:
        return f"{said} ({claim.place})"
    return f"{said}, by {claim.who}" if claim.who else said


def released_outcomes(
    dropped: Iterable[ClaimId], tunables: Mapping[str, Tunable], result: Result, there: Mapping[str, Readings]
) -> list[Outcome]:
    """Return the outcomes of withdrawn claims: their targets have the next claim's value, or the host's own.

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
