"""The results of passes and looks: the answers to callers, and the outcomes to publish. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from kerntune.engine.claims import Edit, rank, resolve
from kerntune.engine.hung import hangs
from kerntune.engine.requests import World
from kerntune.errors import KerntuneError
from kerntune.model import (
    Claim,
    ClaimId,
    DesiredState,
    Memory,
    Origin,
    Outcome,
    Reading,
    Reason,
    State,
    Sum,
    Target,
    Verdict,
)
from kerntune.results import CONTENT, failure
from kerntune.tunables.base import Tunable

# Why a value waits for what is away or decided elsewhere: there is nothing wrong with it.
WAITS = frozenset(
    {
        Reason.CPU_OFFLINE,
        Reason.GOVERNOR_DECIDES,
        Reason.DEVICE_GONE,
        Reason.DEVICE_HANGS,
        Reason.NO_SUCH_TARGET,
    }
)
Group = tuple[str, str]  # a tunable's name and a group of its targets
Readings = Mapping[Target, Reading]


@dataclass(slots=True)
class Result:
    """The findings and writes of a pass; for a dry run `wrote` is what it would have written.

    `readings` are those after the writes, `before` those it began with. `restored` are the targets whose baselines are
    of no use any more. `refused` are claims that the host cannot bear, by their identity and place. `foreseen` is the
    memory that a dry run leaves to the next tunable's plan, and `expected` are the readings that it comes to.
    """

    began: float = 0.0
    before: dict[Target, Reading] = field(default_factory=dict)
    readings: dict[Target, Reading] = field(default_factory=dict)
    desired_states: dict[Target, DesiredState] = field(default_factory=dict)
    outcomes: dict[Target, Outcome] = field(default_factory=dict)
    wrote: set[Target] = field(default_factory=set)
    restored: set[Target] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[ClaimId, int], Verdict] = field(default_factory=dict)
    memory: Memory | None = None
    foreseen: Memory | None = None
    expected: dict[Target, Reading] = field(default_factory=dict)


def merge(results: Iterable[Result]) -> Result:
    """Return the results of several lanes as one."""
    whole = Result()
    for result in results:
        whole.before |= result.before
        whole.readings |= result.readings
        whole.desired_states |= result.desired_states
        whole.outcomes |= result.outcomes
        whole.wrote |= result.wrote
        whole.restored |= result.restored
        whole.missing |= result.missing
        whole.refused |= result.refused
        whole.expected |= result.expected
        whole.memory = result.memory or whole.memory
    return whole


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
        for claim in sorted(edit.files.answered if edit.files else (), key=rank):
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
    """Return the outcomes of claims by the last readings and the last outcomes of all targets."""
    result = Result(readings=dict(world.readings), outcomes=dict(outcomes), missing=dict(world.missing))
    every = tuple(in_force)
    for name in {claim.tunable for claim in claims}:
        tunable = world.tunables[name]
        result.desired_states |= resolve(tunable, every, baselines, world.of(tunable), readings=world.readings)
    return judge(Edit(put=tuple(claims)), world.tunables, result).outcomes


class Found(NamedTuple):
    """The readings of one tunable, and for a dry run those that it comes to."""

    readings: Readings
    expected: Readings


NOTHING_FOUND: Final = Found({}, {})


def by_tunable(result: Result) -> Mapping[str, Found]:
    """Return the readings by the names of the tunables: the instances of several may have the same names."""
    found: dict[str, dict[Target, Reading]] = {}
    for target, reading in result.readings.items():
        found.setdefault(target.tunable, {})[target] = reading
    if not result.expected:
        return {name: Found(readings, readings) for name, readings in found.items()}
    expected = {name: {t: result.expected.get(t, r) for t, r in readings.items()} for name, readings in found.items()}
    return {name: Found(readings, expected[name]) for name, readings in found.items()}


def own_outcomes(claim: Claim, tunable: Tunable, result: Result, there: Mapping[str, Found]) -> list[Outcome]:
    """Return the outcomes of one claim: one for each target it covers, or one for a pattern that covers nothing."""
    found, matches = there.get(claim.tunable, NOTHING_FOUND), tunable.matcher(claim.instances)
    covered = [target for target in found.readings if matches(target)]
    if not covered:
        return [nothing_matches(claim, result.missing.get(claim.tunable, ""))]
    return [own_outcome(claim, target, tunable, result, found) for target in covered]


def own_outcome(claim: Claim, target: Target, tunable: Tunable, result: Result, found: Found) -> Outcome:
    """Return the outcome of the claim that won, or of an overridden claim, with what is in force instead.

    `found` has the readings of its tunable.
    """
    reading, desired = found.readings[target], result.desired_states.get(target)
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
    held = found.expected
    if own == desired and outcome.state not in CONTENT and not hangs(reading):
        said = "; ".join(filter(None, (f"the claim in force is {described(winner)}", outcome.detail)))
        return replace(outcome, detail=said)
    alike = own == desired or (desired.sum is None and tunable.assess(own, held[target], held).state is State.SATISFIED)
    if alike and not hangs(reading):
        state = State.PLANNED if outcome.state is State.PLANNED else State.SATISFIED
        detail = f"the value is that of {described(winner)}"
        return replace(outcome, requested=claim.value, state=state, reason=Reason.OK, detail=detail)
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

    The outcome of a hold has the number that it adds (+N), and the number in all.
    """
    is_hold, base = claim.origin is Origin.HOLD, int(desired.value) - of.held
    own = replace(outcome, requested=spelled(claim))
    if not is_hold and not of.at_least and base != int(claim.value):
        why = f"the claims on single nodes make {base} pages in all"
        return replace(own, state=State.OVERRIDDEN, reason=Reason.OVERRIDDEN, detail=why)
    if outcome.state in (State.SATISFIED, State.PLANNED):
        said = f"{of.held} more are held" if of.held and not is_hold else ""
        return replace(own, detail="; ".join(filter(None, (said, outcome.detail))))
    if outcome.state is not State.PARTIAL or outcome.reason is Reason.PAGES_IN_USE or not outcome.actual:
        return own
    number = int(outcome.actual) if of.foreseen is None else of.foreseen
    share = shares(desired, of, int(outcome.before or 0), number)[claim.id]
    if share == int(claim.value):
        return replace(own, state=State.SATISFIED, reason=Reason.OK, detail="")
    return replace(own, detail=f"{share} of {claim.value} pages had: {outcome.detail}")


def shares(desired: DesiredState, of: Sum, before: int, number: int) -> Mapping[ClaimId, int]:
    """Return what each part has of a number that is too small; `before` is what there was when the pass began.

    Claims that the pass serves share what is new, so no other claim loses what it had. Then come the others, in order.
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
    """Return the value that a claim asks for; that of a hold, where holds add up, as +N."""
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
    dropped: Iterable[ClaimId], tunables: Mapping[str, Tunable], result: Result, there: Mapping[str, Found]
) -> list[Outcome]:
    """Return the outcomes of withdrawn claims: their targets have the next claim's value, or the host's own.

    In a plan, what others of the same group get changes a target that has nothing of its own to get back: the total of
    pools on several nodes, and those nodes with their total, of which only the kernel knows how.
    """
    found = {}
    planned = [target for target, outcome in result.outcomes.items() if outcome.state is State.PLANNED]
    moving = {(target.tunable, target.instance) for target in planned}
    groups = {(target.tunable, tunables[target.tunable].group(target)) for target in planned}
    for claim_id in dropped:
        tunable = tunables[claim_id.tunable]
        matches, (readings, held) = tunable.matcher(claim_id.instances), there.get(claim_id.tunable, NOTHING_FOUND)
        for target, reading in readings.items():
            if matches(target):
                own = Outcome(target, "", result.before[target].value or "", reading.value or "", State.UNMANAGED)
                if held[target].value != reading.value and not tunable.moved_by:
                    own = coming_back(
                        replace(own, state=State.PLANNED), held[target], result.desired_states.get(target)
                    )
                elif (tunable.moved_by, target.instance) in moving:
                    own = replace(own, detail=f"it changes with {tunable.moved_by}")
                elif (tunable.name, tunable.group(target)) in groups:
                    own = replace(own, detail=f"it may change with others of {tunable.group(target)}")
                found[target] = result.outcomes.get(target, own)
    return list(found.values())


def coming_back(outcome: Outcome, expected: Reading, desired: DesiredState | None) -> Outcome:
    """Return the outcome of a plan for a value that nobody will claim: what there will be then, and whose it is."""
    is_own = desired is None or desired.value in (expected.value, expected.restore)
    detail = "the host's own value comes back" if is_own else f"it changes with others of {outcome.target}"
    return replace(outcome, requested=expected.value or "", detail=detail)


def repaired(result: Result) -> list[Outcome]:
    """Return the outcomes of what a pass has put back, and of what is not in the desired state after it."""
    found = []
    for target, outcome in result.outcomes.items():
        if outcome.state not in (State.SATISFIED, State.UNMANAGED):
            found.append(outcome)
        elif target in result.wrote:
            said = "; ".join(filter(None, (f"put back, it was {outcome.before}", outcome.detail)))
            found.append(replace(outcome, detail=said))
    return found


def changes_of(old: Mapping[Target, Outcome], result: Result) -> list[Outcome]:
    """Return the outcomes to publish after a pass: what changed, was written, released, or is gone."""
    new = result.outcomes
    changed = [o for t, o in new.items() if t not in old or compared(old[t]) != compared(o) or is_repaired(o, result)]
    # Another drive or driver of that name has an outcome of its own: the former one is not missed.
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
    """Return the fields by which outcomes are compared: not the figures in their prose."""
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
    """Return the outcome of a look as Verify has it, by that of the last pass: what a pass would write is wrong."""
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


def changed(before: Reading, now: Reading) -> bool:
    """Return whether a target holds another value, or one that a baseline would save otherwise."""
    return (before.value, before.restore) != (now.value, now.restore)


def taken_by_others(desired: DesiredState, now: Mapping[Target, Reading]) -> Verdict:
    """Return the verdict, published once, when a debt ends without having been paid."""
    detail = (
        f"something else set {desired.target} to {now[desired.target].value}, and that stays; the host's own value was "
        f"{desired.value}"
    )
    return Verdict(State.UNMANAGED, Reason.CHANGED_BY_OTHERS, detail)


def outcome_of(desired: DesiredState, before: Reading, after: Reading, verdict: Verdict) -> Outcome:
    """Return an outcome; a value that cannot be read is empty. A baseline is `requested` until it is back."""
    owed = desired.is_baseline and verdict.state not in (State.UNMANAGED, State.SATISFIED, State.PLANNED)
    if owed:
        again = "the host's own value is owed, and tried again until it is back"
        verdict = verdict._replace(detail="; ".join(filter(None, (verdict.detail, again))))
    requested = desired.value if owed or not desired.is_baseline else ""
    return Outcome(desired.target, requested, before.value or "", after.value or "", *verdict, is_owed=owed)


def interrupted(desired: DesiredState, reading: Reading, verdict: Verdict, why: str) -> Verdict:
    """Return the verdict on writes that were not all made: the value that was reached, and why it is no other."""
    state = State.PARTIAL if verdict.state is State.PARTIAL else State.FAILED
    detail = f"{why} when {desired.target} was {reading.value or 'unknown'}, not yet {desired.value}"
    return Verdict(state, Reason.INTERRUPTED, detail)


def nothing_matches(claim: Claim, missing: str) -> Outcome:
    """Return the outcome of a claim that covers nothing now, and is kept."""
    reason = Reason.NO_KERNEL_SUPPORT if missing else Reason.NO_SUCH_TARGET
    detail = missing or f"nothing matches {claim.instances!r} now; the claim waits for a device"
    return Outcome(Target(claim.tunable, claim.instances), claim.value, "", "", State.UNSUPPORTED, reason, detail)
