"""One pass of one lane, in a worker thread: observe, resolve, plan, write, read back, judge. Knows no asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from kerntune.engine.drift import DriftLog
from kerntune.engine.guard import Guard
from kerntune.engine.ledger import why_not_saved
from kerntune.engine.patience import Patience
from kerntune.engine.progress import Progress
from kerntune.engine.resolve import resolve, unmatched
from kerntune.engine.writing import Writer
from kerntune.errors import Failed
from kerntune.kernel.files import Kernel
from kerntune.kernel.memory import read_memory
from kerntune.model import (
    NO_MEMORY,
    Baseline,
    Claim,
    ClaimId,
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
    Wish,
)
from kerntune.tunables.base import Tunable

REMEDY_SECONDS = 10.0  # what a lane may spend on making the kernel give more
LATE = (0.005, 0.02, 0.075)  # seconds to wait for a kernel that obeys late
# Why a baseline cannot be put back yet, but may be later.
LATER = frozenset({Reason.OVER_LIMIT, Reason.CPU_OFFLINE, Reason.GOVERNOR_DECIDES})


@dataclass(frozen=True, slots=True)
class Order:
    """What a pass works on. `named` are the claims a caller waits for; `enforce` overrules drift (boot, reload)."""

    claims: tuple[Claim, ...]
    baselines: Mapping[Target, str]
    named: frozenset[ClaimId] = frozenset()
    released: frozenset[ClaimId] = frozenset()
    enforce: bool = False
    dry: bool = False


@dataclass(slots=True)
class Result:
    """What a pass found and did; for a dry run `wrote` is what it would have written.

    `readings` are those after the writes, `before` those it began with.
    """

    before: dict[Target, Reading] = field(default_factory=dict)
    readings: dict[Target, Reading] = field(default_factory=dict)
    wishes: dict[Target, Wish] = field(default_factory=dict)
    outcomes: dict[Target, Outcome] = field(default_factory=dict)
    wrote: set[Target] = field(default_factory=set)
    restored: set[Target] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """What a lane's passes need beside their orders, and what they remember; one pass at a time."""

    kernel: Kernel
    tunables: tuple[Tunable, ...]
    limits: Limits
    writers: ThreadPoolExecutor
    keep: Callable[[Sequence[Baseline]], None]
    guard: Guard | None = None
    drift: DriftLog = field(default_factory=DriftLog)
    patience: Patience = field(default_factory=Patience)
    last: dict[Target, Outcome] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self, order: Order, progress: Progress | None = None) -> Result:
        """The whole pass; blocks for as long as the kernel does."""
        result = Result()
        deadline = self.clock() + REMEDY_SECONDS
        for tunable in self.tunables:
            _Pass(self, tunable, order, result, deadline, self._writer(tunable, progress)).run()
        if any(tunable.lane is Lane.MEMORY for tunable in self.tunables):
            result.memory = read_memory(self.kernel)
        if not order.dry:
            # What the guard has written itself comes and goes: what is remembered is the wish before.
            caps = {
                t: self.last[t] for t, w in result.wishes.items() if w.winner.origin is Origin.GUARD and t in self.last
            }
            self.last.clear()
            self.last.update(result.outcomes | caps)
        return result

    def _writer(self, tunable: Tunable, progress: Progress | None) -> Writer:
        # While the guard caps there may be no room for a thread.
        alone = self.guard is not None and self.guard.verdict.caps
        return Writer(self.kernel, tunable, None if alone else self.writers, progress)


@dataclass(slots=True)
class _Pass:
    """One tunable in one pass."""

    lane: Worker
    tunable: Tunable
    order: Order
    result: Result
    deadline: float
    writer: Writer
    repaired: set[Target] = field(default_factory=set)

    def run(self) -> None:
        guard = self.lane.guard
        if guard is None or guard.tunable != self.tunable.name:
            self._run(self.order.claims)
            return
        # Who only looks does not make the guard wait.
        with nullcontext() if self.order.dry else guard.lock:
            self._run(guard.follow(self.order.claims, self.order.released, dry=self.order.dry))
            self._remark(guard)

    def _remark(self, guard: Guard) -> None:
        """What the guard has to say of the outcome that it looks after."""
        for target, outcome in self.result.outcomes.items():
            if target.tunable == guard.tunable and outcome.state in (State.SATISFIED, State.PLANNED):
                said = (outcome.detail, guard.remark(outcome.requested, read_memory(self.lane.kernel)))
                self.result.outcomes[target] = replace(outcome, detail="; ".join(filter(None, said)))

    def _run(self, claims: Sequence[Claim]) -> None:
        targets = self.tunable.targets(self.lane.kernel)
        before = self.tunable.read_all(self.lane.kernel, targets)
        wishes = resolve(self.tunable, claims, self.order.baselines, targets, self.order.named)
        contested = self._contested(before, wishes)
        # What the guard claims it has written itself.
        free = {
            target: wish
            for target, wish in wishes.items()
            if self.tunable.group(target) not in contested and wish.winner.origin is not Origin.GUARD
        }
        steps, after = self._reach(before, free)
        if not self.order.dry:
            self._note_shortfalls(steps, after)
        self.result.before |= before
        self.result.readings |= after
        self.result.wishes |= wishes
        self._report(before, after, steps, wishes)
        if not targets:
            self.result.missing[self.tunable.name] = self.tunable.missing(self.lane.kernel)
        for claim in unmatched(self.tunable, claims, targets):
            outcome = nothing_matches(claim, self.result.missing.get(self.tunable.name, ""))
            self.result.outcomes[outcome.target] = outcome

    def _contested(self, readings: Mapping[Target, Reading], wishes: Mapping[Target, Wish]) -> set[str]:
        """The groups that are left alone because others keep changing a target of theirs."""
        held = set()
        # Pools of a page size are one plan: who names one of them names the plan.
        named = {self.tunable.group(target) for target, wish in wishes.items() if self._named(target, wish)}
        for target, wish in wishes.items():
            if self.tunable.group(target) in named:
                if not self.order.dry:
                    self.lane.drift.forgive([target])
                continue
            last = self.lane.last.get(target)
            if last is None or last.requested != wish.value or last.state not in (State.SATISFIED, State.CONTESTED):
                continue
            verdict = self.tunable.judge(wish, readings[target], readings)
            if verdict.state is State.SATISFIED or verdict.reason is Reason.GOVERNOR_DECIDES:
                continue
            fought_over = last.state is State.CONTESTED or self.lane.drift.contested(target, self.lane.clock())
            if fought_over or self.tunable.drifted(wish, readings[target]):
                held.add(self.tunable.group(target))
            elif not self.order.dry:
                self.lane.drift.repaired(target, self.lane.clock())
                self.repaired.add(target)
        return held

    def _insists(self, target: Target, wish: Wish) -> bool:
        """Whether the kernel is to be asked as often as it helps."""
        return wish.is_baseline or self._named(target, wish)

    def _named(self, target: Target, wish: Wish) -> bool:
        """Whether somebody named the target just now, or everything is to be put right."""
        named = self.order.named | self.order.released
        return (
            self.order.enforce
            or wish.winner.id in named
            or any(claim.id in named for claim in wish.beaten)
            or any(i.tunable == self.tunable.name and self.tunable.matches(i.instances, target) for i in named)
        )

    def _reach(
        self, readings: dict[Target, Reading], wishes: Mapping[Target, Wish]
    ) -> tuple[Sequence[Step], dict[Target, Reading]]:
        """Plan and write until the plan is empty or the kernel gives no more; the last plan and the last readings.

        `before` of the steps is the reading of the last plan; the report takes it from the first.
        """
        steps = self._plan(readings, wishes)
        if self.order.dry or not any(step.writes for step in steps):
            return steps, readings
        self._keep_baselines(readings, steps)
        first, remedied = steps, False
        while True:
            self.writer.write(steps)
            now = self._read_back(readings, steps)
            if not self._worth_another_try(readings, now, steps, remedied=remedied):
                return first, now
            for write in self.tunable.remedy:
                self.writer.attempt(write)
            remedied, readings = True, now
            steps = self._plan(readings, wishes)

    def _plan(self, readings: Mapping[Target, Reading], wishes: Mapping[Target, Wish]) -> Sequence[Step]:
        # The other lanes have no use for it, and a plugged drive waits.
        memory = read_memory(self.lane.kernel) if self.tunable.lane is Lane.MEMORY else NO_MEMORY
        planned = self.tunable.plan(readings, wishes, memory, self.lane.limits)
        steps = [replace(step, writes=()) if self._too_early(step, memory) else step for step in planned]
        self.result.wrote |= {t for step in steps if step.writes for t in (step.wish.target, *step.touches)}
        return steps

    def _too_early(self, step: Step, memory: Memory) -> bool:
        """Whether the kernel had not enough for this a while ago, and has hardly more now."""
        wish, lacking = step.wish, self.tunable.lacking(step.wish, step.before)
        if not (lacking and step.writes) or self._insists(wish.target, wish):
            return False
        return self.lane.patience.waits(wish.target, wish.value, lacking, self.lane.clock(), memory.free)

    def _note_shortfalls(self, steps: Sequence[Step], now: Mapping[Target, Reading]) -> None:
        patience = self.lane.patience
        for step in steps:
            target, lacking = step.wish.target, self.tunable.lacking(step.wish, now[step.wish.target])
            if not lacking or self._insists(target, step.wish):
                patience.forget(target)
            if lacking and step.writes:
                free = read_memory(self.lane.kernel).free
                patience.fell_short(target, step.wish.value, lacking, self.lane.clock(), free)
            elif lacking:
                patience.looked(target, read_memory(self.lane.kernel).free)

    def _keep_baselines(self, readings: Mapping[Target, Reading], steps: Iterable[Step]) -> None:
        """Saved before the first write: a crash after it can still be put right."""
        new = [
            Baseline(target, readings[target].restore or readings[target].value or "")
            for step in steps
            if step.writes
            for target in step.touched
            if target not in self.order.baselines and readings[target].value is not None
        ]
        try:
            if new:
                self.lane.keep(new)
        except OSError as error:
            raise Failed(
                f"the host's own values cannot be saved: {why_not_saved(error)}",
                "Nothing was written; free space there and try again",
            ) from error

    def _read_back(self, readings: Mapping[Target, Reading], steps: Sequence[Step]) -> dict[Target, Reading]:
        """Every target of the groups that were written, a little later again where the kernel seems to be late."""
        groups = {self.tunable.group(step.wish.target) for step in steps if step.writes}
        written = [target for target in readings if self.tunable.group(target) in groups]
        for pause in (*LATE, 0.0):
            now = {**readings, **self.tunable.read_all(self.lane.kernel, written)}
            if all(self._judge(step, now).reason is not Reason.READ_BACK_DIFFERS for step in steps if step.writes):
                break
            self.lane.sleep(pause)
        return now

    def _worth_another_try(
        self, old: Mapping[Target, Reading], now: Mapping[Target, Reading], steps: Sequence[Step], *, remedied: bool
    ) -> bool:
        """Whether the kernel gave less than asked and may give more after the remedy.

        The remedy costs time, so it is for callers who wait and for the first try after a start; it goes on while it
        helps and until the lane's time is used up.
        """
        if not self.tunable.remedy or self.lane.clock() >= self.deadline:
            return False
        short = [
            step for step in steps if not step.capped and self._judge(step, now).reason is Reason.PARTIALLY_ALLOCATED
        ]
        if not any(self._insists(step.wish.target, step.wish) for step in short):
            return False
        return not remedied or any(now[t].value != old[t].value for step in short for t in step.touched)

    def _judge(self, step: Step, now: Mapping[Target, Reading]) -> Verdict:
        """What became of a step, by what is read now."""
        target = step.wish.target
        if step.verdict is not None:
            return step.verdict
        if target in self.writer.errors:
            return self.tunable.rejected(now[target], step.wish.value, self.writer.errors[target])
        verdict = self.tunable.judge(step.wish, now[target], now)
        return step.capped if step.capped and verdict.state is not State.SATISFIED else verdict

    def _report(
        self,
        before: Mapping[Target, Reading],
        after: Mapping[Target, Reading],
        steps: Sequence[Step],
        wishes: Mapping[Target, Wish],
    ) -> None:
        planned = {step.wish.target: step for step in steps}
        for target, wish in wishes.items():
            step = planned.get(target)
            if step is None and wish.is_baseline:
                continue  # not its turn: a claim on the pool as a whole settles this node, or the group is contested
            if step is None:
                verdict = self._left_alone(wish, after)
            elif self.order.dry and step.writes:
                verdict = step.capped or Verdict(State.PLANNED, Reason.OK)
            else:
                verdict = self._judge(step, after)
            if target in self.repaired and verdict.state is State.SATISFIED:
                detail = f"something else had set it to {before[target].value}; it was put back"
                verdict = verdict._replace(detail=detail)
            if wish.is_baseline and verdict.reason not in LATER:
                self.result.restored.add(target)
                verdict = verdict._replace(state=State.UNMANAGED) if not self.order.dry else verdict
            self.result.outcomes[target] = outcome_of(wish, before[target], after[target], verdict)

    def _left_alone(self, wish: Wish, now: Mapping[Target, Reading]) -> Verdict:
        """A target of a group that is contested."""
        verdict = self.tunable.judge(wish, now[wish.target], now)
        if verdict.state is State.SATISFIED:
            return verdict
        return Verdict(
            State.CONTESTED,
            Reason.CHANGED_BY_OTHERS,
            f"something else set {wish.target} to {now[wish.target].value}; it is left so until somebody sets it "
            "again. Likely: another tuning service, a udev rule or a script",
        )


def outcome_of(wish: Wish, before: Reading, after: Reading, verdict: Verdict) -> Outcome:
    """An outcome in words; what cannot be read is empty."""
    requested = "" if wish.is_baseline else wish.value
    return Outcome(wish.target, requested, before.value or "", after.value or "", *verdict)


def nothing_matches(claim: Claim, missing: str) -> Outcome:
    """A claim that covers nothing now: kept, and answered with one outcome."""
    reason = Reason.NO_KERNEL_SUPPORT if missing else Reason.NO_SUCH_TARGET
    detail = missing or f"nothing matches {claim.instances!r} now; the claim is kept for what comes later"
    return Outcome(Target(claim.tunable, claim.instances), claim.value, "", "", State.UNSUPPORTED, reason, detail)
