"""One pass of one lane, in a thread: observe, resolve, plan, write, read back, judge. Knows no asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from kerntune.engine.claims import (
    Covered,
    PassInput,
    asked_now,
    cover,
    desired_states_of,
    stand_in,
    unmatched,
    whom,
    why_not_saved,
)
from kerntune.engine.companion import Companion
from kerntune.engine.hung import Crew, Hung, Reader, hangs, not_answering
from kerntune.engine.results import (
    WAITS,
    Group,
    Result,
    changed,
    coming_back,
    interrupted,
    nothing_matches,
    outcome_of,
    taken_by_others,
)
from kerntune.engine.retry import LATER, SOON, Backoff, DriftLog, Retries, Try, Vain, held
from kerntune.engine.writer import Halt, Progress, Writer
from kerntune.errors import Failed
from kerntune.kernel.files import Kernel
from kerntune.kernel.memory import read_memory
from kerntune.model import (
    NO_MEMORY,
    Baseline,
    Claim,
    DesiredState,
    Lane,
    Limits,
    Memory,
    Origin,
    Outcome,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
)
from kerntune.tunables.base import Tunable, unreadable

RETRY_ACTION_SECONDS = 10.0  # what a lane may spend on making the kernel give more
LATE = (0.005, 0.02, 0.075)  # seconds to wait for a kernel that obeys late, or is busy for a moment
# These values are not the ones asked for, and no work of others: kerntuned itself has made them so.
OURS = frozenset({Reason.GOVERNOR_DECIDES, Reason.PAGES_IN_USE})


@dataclass(frozen=True, slots=True)
class PassRunner:
    """The state and the tools of a lane's passes, which run one at a time.

    `left` is what targets held after a pass that still owes them their baselines: another value is somebody else's.
    `writing` are the groups that a pass writes, until its result is published. `known` is what was last read of
    devices, and serves while they hang.
    """

    kernel: Kernel
    tunables: tuple[Tunable, ...]
    limits: Limits
    threads: Crew
    save_baselines: Callable[[Sequence[Baseline]], None]
    companion: Companion = field(default_factory=Companion)
    drift: DriftLog = field(default_factory=DriftLog)
    backoff: Backoff = field(default_factory=Backoff)
    retries: Retries = field(default_factory=Retries)
    last: dict[Target, Outcome] = field(default_factory=dict)
    left: dict[Target, str] = field(default_factory=dict)
    writing: set[Group] = field(default_factory=set)
    hung: Hung = field(default_factory=Hung)
    known: dict[str, Mapping[Target, Reading]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self, given: PassInput, progress: Progress | None = None, halt: Halt | None = None) -> Result:
        """Run the whole pass. It blocks for as long as the kernel does, and writes until `halt` is requested."""
        result = Result(began=self.clock())
        deadline = result.began + RETRY_ACTION_SECONDS
        if not given.dry:
            self.writing.clear()
        try:
            for tunable in self.tunables:
                _Pass(self, tunable, given, result, deadline, self._writer(tunable, progress, halt)).run()
        except BaseException:
            if not given.dry:
                self.left.clear()  # nobody knows what this pass has written, and what others have
            raise
        if any(tunable.lane is Lane.MEMORY for tunable in self.tunables):
            result.memory = read_memory(self.kernel)
        if not given.dry:
            # The companion's values come and go, so the pass remembers the desired state before.
            caps = {
                t: self.last[t]
                for t, w in result.desired_states.items()
                if w.winner.origin is Origin.GUARD and t in self.last
            }
            self.last.clear()
            self.last.update(result.outcomes | caps)
        return result

    def _writer(self, tunable: Tunable, progress: Progress | None, halt: Halt | None) -> Writer:
        threads = self.threads if self.companion.may_use_threads else None
        return Writer(self.kernel, tunable, threads, progress, halt=halt or Halt(), hung=self.hung)

    @property
    def reader(self) -> Reader:
        """What reads the targets."""
        return Reader(self.kernel, self.threads, self.hung, self.known)


@dataclass(slots=True)
class _Pass:
    """One tunable in one pass."""

    lane: PassRunner
    tunable: Tunable
    given: PassInput
    result: Result
    deadline: float
    writer: Writer
    repaired: set[Target] = field(default_factory=set)
    moved: frozenset[str] = frozenset()  # the instances whose values this pass has changed by another tunable
    named: frozenset[Target] = frozenset()  # what the claims cover that are put or dropped just now
    claims: list[Claim] = field(default_factory=list)  # on this tunable, less those that the host cannot bear
    before: dict[Target, Reading] = field(default_factory=dict)  # what the pass began with
    expected: Mapping[Target, Reading] = field(default_factory=dict)  # what a dry run of an edit comes to
    desired_states: dict[Target, DesiredState] = field(default_factory=dict)
    left_alone: set[Target] = field(default_factory=set)

    def run(self) -> None:
        companion = self.lane.companion
        if companion.tunable != self.tunable.name:
            self._run(self.given.claims)
            return
        # Who only looks does not make the companion wait.
        with nullcontext() if self.given.dry else companion.lock:
            self._run(companion.sync_with_claims(self.given.claims, self.given.released, dry=self.given.dry))
            self._remark(companion)

    def _remark(self, companion: Companion) -> None:
        """Add what the companion has to say of the outcome that it looks after."""
        for target, outcome in self.result.outcomes.items():
            if target.tunable == companion.tunable and outcome.state in (State.SATISFIED, State.PLANNED):
                said = (outcome.detail, companion.remark(outcome.requested, read_memory(self.lane.kernel)))
                self.result.outcomes[target] = replace(outcome, detail="; ".join(filter(None, said)))

    def _run(self, claims: Sequence[Claim]) -> None:
        self.moved = frozenset(t.instance for t in self.result.wrote if t.tunable == self.tunable.moved_by)
        targets, before, missing = self.lane.reader.all(self.tunable)
        self.claims, self.before = [each for each in claims if each.tunable == self.tunable.name], before
        covered = cover(self.tunable, self.claims, targets)
        self.desired_states = self._desired(covered)
        self.named = self._covered_by_name(targets)
        not_owed = self._taken_by_others(before, self.desired_states)
        contested = self._contested(before, self.desired_states)
        # What the companion claims it has written itself.
        self.left_alone = {
            target
            for target, desired in self.desired_states.items()
            if self.tunable.group(target) in contested or desired.winner.origin is Origin.GUARD or target in not_owed
        }
        steps, after = self._reach(before)
        desired_states = self.desired_states
        if self.given.dry:
            desired_states |= {step.desired.target: foreseen(step) for step in steps if step.desired.sum}
        if self.given.foresees:
            self.expected = self.tunable.expected(steps, self._beside(before))
            self.result.expected |= self.expected
        self.result.before |= before
        self.result.readings |= after
        self.result.desired_states |= desired_states
        self._report(before, after, steps, {t: w for t, w in desired_states.items() if t not in not_owed})
        for target, desired in not_owed.items():
            self.result.outcomes[target] = outcome_of(
                desired, before[target], after[target], taken_by_others(desired, after)
            )
            self.result.restored.add(target)
        if not self.given.dry:
            self._note_shortfalls(steps, after)
            self._note_tries(steps, after, desired_states)
        if not targets:
            self.result.missing[self.tunable.name] = missing
        for claim in unmatched(covered):
            outcome = nothing_matches(claim, self.result.missing.get(self.tunable.name, ""))
            self.result.outcomes[outcome.target] = outcome

    def _desired(self, covered: Covered) -> dict[Target, DesiredState]:
        """Return what each target should be, by these claims and what was there before the pass."""
        own = {t: value for t, value in self.given.baselines.items() if t not in self.given.spent}
        named, reserved = self.given.named, self.given.reserved
        found = desired_states_of(
            self.tunable, covered, own, list(self.before), named, readings=self.before, reserved=reserved
        )
        for target, desired in found.items():
            last = self.lane.last.get(target)
            found[target] = asked_now(desired, self.given.asking, last.requested if last else "", self.before[target])
        return found

    def _refuse(self, claim: Claim, why: Verdict) -> None:
        """Go on without a claim that the host cannot bear: what it was to change stays as it is."""
        self.result.refused[claim.id, claim.seq] = why
        mine = self.tunable.matcher(claim.instances)
        others = stand_in(claim, {t: desired for t, desired in self.desired_states.items() if mine(t)}, self.before)
        self.claims = [*(each for each in self.claims if each != claim), *others]
        self.desired_states = self._desired(cover(self.tunable, self.claims, list(self.before)))

    def _taken_by_others(
        self, readings: Mapping[Target, Reading], desired_states: Mapping[Target, DesiredState]
    ) -> Mapping[Target, DesiredState]:
        """Return what is owed no more: since the last pass somebody else wrote another value, and that one stays."""
        owed = (
            (target, desired, self.lane.left.get(target))
            for target, desired in desired_states.items()
            if desired.is_baseline
        )
        return {
            target: desired
            for target, desired, left in owed
            if left is not None
            and readings[target].value is not None
            and not hangs(readings[target])
            and held(readings[target]) not in (left, desired.value)
            and target.instance not in self.moved
        }

    def _contested(self, readings: Mapping[Target, Reading], desired_states: Mapping[Target, DesiredState]) -> set[str]:
        """Return the groups that the pass leaves alone, because others keep changing one of their targets."""
        held = set()
        # Pools of a page size are one plan: who names one of them names the plan.
        named = {self.tunable.group(target) for target, desired in desired_states.items() if self._named(target)}
        for target, desired in desired_states.items():
            if self.tunable.group(target) in named:
                if not self.given.dry:
                    self.lane.drift.forgive([target])
                continue
            last = self.lane.last.get(target)
            if last is None or last.requested != desired.value or last.state not in (State.SATISFIED, State.CONTESTED):
                continue
            if desired.is_baseline:
                continue  # nobody claims it: it is owed, whoever fights over another of the group
            # Nobody changed a target that is away or hangs, and no other changed one that kerntuned moved itself.
            if readings[target].value is None or hangs(readings[target]) or target.instance in self.moved:
                continue
            verdict = self.tunable.assess(desired, readings[target], readings)
            if verdict.state is State.SATISFIED or verdict.reason in OURS:
                continue
            fought_over = last.state is State.CONTESTED or self.lane.drift.contested(target, self.lane.clock())
            if fought_over or self.tunable.report_only(desired, readings[target]):
                held.add(self.tunable.group(target))
            else:
                self.repaired.add(target)
        return held

    def _insists(self, target: Target, desired: DesiredState) -> bool:
        """Return whether the kernel is to be asked as often as it helps: for who waits, and once for a baseline."""
        return self._named(target) or (desired.is_baseline and not self.lane.retries.tried(target))

    def _named(self, target: Target) -> bool:
        """Return whether a caller named the target just now, or the pass enforces every value."""
        return self.given.enforce or target in self.named

    def _covered_by_name(self, targets: Sequence[Target]) -> frozenset[Target]:
        named = self.given.named | self.given.released
        asking = [self.tunable.matcher(each.instances) for each in named if each.tunable == self.tunable.name]
        return frozenset(target for target in targets if any(matches(target) for matches in asking))

    def _reach(self, readings: dict[Target, Reading]) -> tuple[Sequence[Step], dict[Target, Reading]]:
        """Plan and write until the plan is empty or the kernel gives no more; the last plan and the last readings.

        `before` of the steps is the reading of the last plan; the report takes it from the first.
        """
        steps = self._plan(self._beside(readings))
        if self.given.dry:
            self.result.wrote |= written_by(steps)
        if self.given.dry or not any(step.writes for step in steps):
            return steps, readings
        if self.writer.halt.asked:
            self.writer.cut |= {step.desired.target for step in steps if step.writes}
            return steps, readings
        self._save_baselines(readings, steps)
        first, retried = steps, False
        seen: Mapping[Target, Reading] = readings
        while True:
            groups = ((self.tunable.name, self.tunable.group(step.desired.target)) for step in steps if step.writes)
            self.lane.writing.update(groups)
            self._write(steps)
            now = self._read_back(readings, steps)
            self.result.wrote |= {
                target for step in steps for target in written_by([step]) if changed(readings[target], now[target])
            }
            again = self.tunable.elsewhere(steps, seen, now)
            if again and not self.writer.halt.asked:
                readings, seen, steps = now, again, self._plan(again)
                continue
            if not self._worth_another_try(readings, now, steps, retried=retried):
                return first, now
            for write in self.tunable.retry_action:
                self.writer.attempt(write)
            retried, readings, seen = True, now, now
            steps = self._plan(readings)

    def _beside(self, readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
        """Return the readings to plan by: a dry run takes into account what it would write of other tunables."""
        return self.tunable.beside(readings, self.result.expected) if self.given.foresees else readings

    def _write(self, steps: Sequence[Step]) -> None:
        """Write, and write again at once what the kernel refused because it was busy for a moment."""
        self.writer.write(steps)
        for pause in LATE:
            refused = ((step, self.writer.errors.get(step.desired.target)) for step in steps if step.writes)
            busy = [step for step, code in refused if code in self.tunable.transient]
            if not busy:
                return
            self.lane.sleep(pause)
            self.writer.write(busy)

    def _plan(self, readings: Mapping[Target, Reading]) -> Sequence[Step]:
        """Return the steps to the desired state, without the newest claims that ask for more than the host can bear."""
        # The other lanes have no use for it, and a plugged drive waits.
        memory = NO_MEMORY
        if self.tunable.lane is Lane.MEMORY:
            memory = self.result.foreseen or read_memory(self.lane.kernel)
        steps = self._planned(readings, memory)
        while refused := next(((claim, step.verdict) for step in steps if (claim := whom(step))), None):
            claim, why = refused
            assert why
            self._refuse(claim, why)
            steps = self._planned(readings, memory)
        if self.given.dry and self.tunable.lane is Lane.MEMORY:
            self.result.foreseen = self.tunable.foreseen(steps, memory)
        return steps

    def _planned(self, readings: Mapping[Target, Reading], memory: Memory) -> Sequence[Step]:
        desired_states = {
            target: desired for target, desired in self.desired_states.items() if target not in self.left_alone
        }
        hanging = {target: desired for target, desired in desired_states.items() if hangs(readings[target])}
        free = (
            {target: desired for target, desired in desired_states.items() if target not in hanging}
            if hanging
            else desired_states
        )
        planned = [
            *self.tunable.plan(readings, free, memory, self.lane.limits),
            *(Step(desired, readings[t], verdict=not_answering(readings[t])) for t, desired in hanging.items()),
        ]
        if self.given.recalls:
            # The same plan may give back the pages that were missing.
            memory = replace(memory, free=memory.free - sum(min(0, step.grows) for step in planned))
        return [self._later(step, memory) or step for step in planned]

    def _later(self, step: Step, memory: Memory) -> Step | None:
        """Return the step without its writes when they were in vain a while ago and nothing has changed since."""
        desired, now = step.desired, self.lane.clock()
        if step.writes and self.given.recalls:
            return self._recalled(step, memory)
        if not step.writes or self._named(desired.target):
            return None
        tried = self.lane.retries.waiting(desired.target, desired.value, step.before, now)
        if tried and tried.writes == step.writes:
            refusal = self.tunable.explain_errno(step.before, desired.value, tried.code) if tried.code else None
            return replace(step, writes=(), verdict=refusal)
        shortfall = self.tunable.shortfall(desired, step.before)
        if not shortfall or desired.is_baseline:
            return None
        early = self.lane.backoff.is_blocked(desired.target, desired.value, shortfall, now, memory.free)
        return replace(step, writes=()) if early else None

    def _recalled(self, step: Step, memory: Memory) -> Step | None:
        """Return the step without its writes when they were in vain at their last try, and would be so again."""
        desired = step.desired
        tried = self.lane.retries.last(desired.target, desired.value, step.before)
        if tried and tried.writes == step.writes and tried.code not in self.tunable.transient:
            refusal = self.tunable.explain_errno(step.before, desired.value, tried.code) if tried.code else None
            return replace(step, writes=(), verdict=refusal)
        shortfall = self.tunable.shortfall(desired, step.before)
        in_vain = shortfall and self.lane.backoff.is_vain(desired.target, step.writes, shortfall, memory.free)
        return replace(step, writes=()) if in_vain else None

    def _note_shortfalls(self, steps: Sequence[Step], now: Mapping[Target, Reading]) -> None:
        backoff = self.lane.backoff
        for step in steps:
            target, shortfall = step.desired.target, self.tunable.shortfall(step.desired, now[step.desired.target])
            if not shortfall or step.desired.is_baseline or self._named(target):
                backoff.drop(target)
            if step.desired.is_baseline:
                continue  # what is owed has waits of its own
            if shortfall and step.writes:
                free = read_memory(self.lane.kernel).free
                value, clock = step.desired.value, self.lane.clock()
                backoff.fell_short(target, value, shortfall, clock, free, writes=step.writes)
            elif shortfall:
                backoff.looked(target, read_memory(self.lane.kernel).free)

    def _note_tries(
        self, steps: Sequence[Step], now: Mapping[Target, Reading], desired_states: Mapping[Target, DesiredState]
    ) -> None:
        """Remember what was in vain, and what is left where a baseline is owed."""
        retries, clock = self.lane.retries, self.lane.clock()
        planned = {step.desired.target: step for step in steps}
        tries: dict[Target, Try] = {}
        left: dict[Target, str] = {}
        for target, desired in desired_states.items():
            outcome, reading = self.result.outcomes.get(target), now[target]
            # A device that hangs is tried when the kernel returns, and may then hold what we wrote.
            if outcome is None or hangs(reading):
                continue
            if outcome.is_owed and reading.value is not None and outcome.reason is not Reason.GOVERNOR_DECIDES:
                left[target] = held(reading)
            step, code = planned.get(target), self.writer.errors.get(target, 0)
            writes = step.writes if step else ()
            waiting = None if writes else retries.waiting(target, desired.value, reading, clock)
            if not (waiting or code or outcome.is_owed or outcome.reason is Reason.READ_BACK_DIFFERS):
                continue
            soon = outcome.is_owed or outcome.reason in WAITS or code in self.tunable.transient
            vain = Vain(writes, code, clock, SOON if soon else LATER, anew=self._named(target))
            tries[target] = waiting or retries.after(target, desired.value, reading, vain)
        retries.replace(self.tunable.name, tries)
        self.lane.left.update(left)
        for target in [t for t in self.lane.left if t.tunable == self.tunable.name and t not in left]:
            del self.lane.left[target]

    def _save_baselines(self, readings: Mapping[Target, Reading], steps: Iterable[Step]) -> None:
        """Save them before the first write: a crash after it can still be put right."""
        new = [
            Baseline(target, readings[target].restore or readings[target].value or "")
            for step in steps
            if step.writes
            for target in step.touched
            if (target not in self.given.baselines or target in self.given.reserved)
            and readings[target].value is not None
        ]
        try:
            if new:
                self.lane.save_baselines(new)
        except OSError as error:
            raise Failed(
                f"the host's own values cannot be saved: {why_not_saved(error)}",
                "Nothing was written; free space there and try again",
            ) from error

    def _read_back(self, readings: Mapping[Target, Reading], steps: Sequence[Step]) -> dict[Target, Reading]:
        """Read all targets of the written groups back, and once more a little later where the kernel is late."""
        groups = {self.tunable.group(step.desired.target) for step in steps if step.writes}
        written = [target for target in readings if self.tunable.group(target) in groups]
        for pause in (*LATE, 0.0):
            now = {**readings, **self.lane.reader.some(self.tunable, written)}
            if all(self._judge(step, now).reason is not Reason.READ_BACK_DIFFERS for step in steps if step.writes):
                break
            self.lane.sleep(pause)
        return now

    def _worth_another_try(
        self, old: Mapping[Target, Reading], now: Mapping[Target, Reading], steps: Sequence[Step], *, retried: bool
    ) -> bool:
        """Return whether the kernel gave less than asked and may give more after the retry action.

        That action costs time, so it is for callers who wait and for the first try after a start; it goes on while it
        helps and until the lane's time is used up.
        """
        if not self.tunable.retry_action or self.lane.clock() >= self.deadline or self.writer.halt.asked:
            return False
        short = [
            step for step in steps if not step.capped and self._judge(step, now).reason is Reason.PARTIALLY_ALLOCATED
        ]
        if not any(self._insists(step.desired.target, step.desired) for step in short):
            return False
        return not retried or any(now[t].value != old[t].value for step in short for t in step.touched)

    def _judge(self, step: Step, now: Mapping[Target, Reading]) -> Verdict:
        """Return what became of a step, by the reading after it."""
        target = step.desired.target
        if step.verdict is not None:
            return step.verdict
        if hangs(now[target]):
            return not_answering(now[target])
        if target in self.writer.errors:
            return self.tunable.explain_errno(now[target], step.desired.value, self.writer.errors[target])
        verdict = self.tunable.assess(step.desired, now[target], now)
        if target in self.writer.cut and verdict.state is not State.SATISFIED:
            return interrupted(step.desired, now[target], verdict, self.writer.halt.why)
        return step.capped if step.capped and verdict.state is not State.SATISFIED else verdict

    def _report(
        self,
        before: Mapping[Target, Reading],
        after: Mapping[Target, Reading],
        steps: Sequence[Step],
        desired_states: Mapping[Target, DesiredState],
    ) -> None:
        planned = {step.desired.target: step for step in steps}
        written = written_by(steps)
        for target, desired in desired_states.items():
            step = planned.get(target)
            last = self.lane.last.get(target)
            if step is None and desired.is_baseline and not (target in self.left_alone and last and last.is_owed):
                continue  # not its turn: a claim on the pool as a whole settles this node
            if step is None:
                verdict = self._left_alone(desired, after)
            elif self.given.foresees:
                verdict = self._foreseen(step, after, is_written=target in written)
            elif self.given.dry and target in written and step.verdict is None:
                verdict = step.capped or Verdict(State.PLANNED, Reason.OK)
            else:
                verdict = self._judge(step, after)
            if target in self.repaired and verdict.state is State.SATISFIED:
                detail = f"something else had set it to {before[target].value}; it was put back"
                verdict = verdict._replace(detail=detail)
                if not self.given.dry:
                    self.lane.drift.repaired(target, self.lane.clock())
            if desired.is_baseline:
                verdict = self._paid_or_owed(target, verdict)
            outcome = outcome_of(desired, before[target], after[target], verdict)
            if desired.is_baseline and verdict.state is State.PLANNED and self.given.foresees:
                outcome = coming_back(outcome, self.expected[target], desired)
            self.result.outcomes[target] = outcome

    def _foreseen(self, step: Step, now: Mapping[Target, Reading], *, is_written: bool) -> Verdict:
        """Return what will become of a step, by the readings that are expected after it.

        What the kernel may do otherwise is left out: it is planned.
        """
        verdict, target = self._judge(step, self.expected), step.desired.target
        if step.verdict is not None:
            # Others of its group settle it.
            moves = verdict.state is State.SATISFIED and self.expected[target].value != now[target].value
            return verdict._replace(state=State.PLANNED) if moves else verdict
        if verdict.state is State.SATISFIED:
            stays = not is_written and self._judge(step, now).state is State.SATISFIED
            return verdict if stays else verdict._replace(state=State.PLANNED)
        if is_written and verdict.reason is Reason.READ_BACK_DIFFERS:
            return Verdict(State.PLANNED, Reason.OK)
        return verdict

    def _paid_or_owed(self, target: Target, verdict: Verdict) -> Verdict:
        """Return the verdict on a value that nobody claims: its own is back, or owed until it reads so.

        A tunable says itself that it is `unmanaged` where there is no way back.
        """
        if verdict.state in (State.SATISFIED, State.UNMANAGED) and (not self.given.dry or self.given.foresees):
            self.result.restored.add(target)
            return verdict._replace(state=State.UNMANAGED)
        if verdict.state in (State.UNSUPPORTED, State.REFUSED) and verdict.reason not in WAITS:
            return verdict._replace(state=State.FAILED)
        return verdict

    def _left_alone(self, desired: DesiredState, now: Mapping[Target, Reading]) -> Verdict:
        """Return the outcome of a target whose group is contested, or whose value is the companion's."""
        value = now[desired.target].value
        if value is None:
            return unreadable(now[desired.target])
        if desired.winner.origin is Origin.GUARD:
            desired = replace(
                desired, value=value
            )  # it may have written another since it was asked, and looks to it itself
        verdict = self.tunable.assess(desired, now[desired.target], now)
        if verdict.state is State.SATISFIED:
            return verdict
        if desired.is_baseline:
            detail = "something else keeps changing another value that belongs to it"
            return Verdict(State.CONTESTED, Reason.CHANGED_BY_OTHERS, detail)
        return Verdict(
            State.CONTESTED,
            Reason.CHANGED_BY_OTHERS,
            f"something else set {desired.target} to {now[desired.target].value}; it is left so until somebody sets it "
            "again. Likely: another tuning service, a udev rule or a script",
        )


def foreseen(step: Step) -> DesiredState:
    """Return the desired state of a sum with the number that a dry run comes to."""
    assert step.desired.sum
    return replace(step.desired, sum=replace(step.desired.sum, foreseen=step.comes_to))


def written_by(steps: Iterable[Step]) -> set[Target]:
    """Return the targets that the writes of these steps settle."""
    return {target for step in steps if step.writes for target in (step.desired.target, *step.touches)}
