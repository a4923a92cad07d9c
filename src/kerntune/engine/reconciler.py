"""The one loop: edits in, passes of the lanes, outcomes out; the only place that decides when the kernel is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Protocol, TypeVar, TypeVarTuple

from kerntune.engine.changes import changed_since, changes_of, compared, is_due
from kerntune.engine.claims import Claims, Edit, FilesEdit
from kerntune.engine.companion import Companion
from kerntune.engine.dry_runs import DryRuns, Shared
from kerntune.engine.edits import Named, Pending
from kerntune.engine.halt import Halt
from kerntune.engine.hung import Bounds, Hung
from kerntune.engine.lasting import granted
from kerntune.engine.observed import Observed
from kerntune.engine.passes import Group, PassInput, PassRunner, Result
from kerntune.engine.progress import Progress, only_for
from kerntune.engine.requests import (
    Request,
    World,
    comparisons,
    edit_for,
    sound,
    too_much,
    within_limits,
    within_reason,
    work_of,
)
from kerntune.engine.results import Answer, Judged, judge, outcomes_known
from kerntune.engine.retry import LONGEST_WAIT, SOON
from kerntune.engine.state_store import StateStore, why_not_saved
from kerntune.engine.threads import Threads
from kerntune.engine.workers import LaneQueue, PassRequest, merge
from kerntune.errors import Failed, NoSuchTarget, NotOffered, NotSupported
from kerntune.kernel.files import Kernel
from kerntune.kernel.memory import default_page_size
from kerntune.model import (
    NO_MEMORY,
    Claim,
    ClaimId,
    Lane,
    Limits,
    Memory,
    Origin,
    Outcome,
    Reading,
    Reason,
    Report,
    State,
    Target,
)
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
Found = TypeVar("Found")
Given = TypeVarTuple("Given")
SMALL = 1000  # patterns times targets: less is compared on the event loop, in some milliseconds
OVERTAKEN = 3  # passes that may end while Verify looks, before it answers all the same
GRACE = 0.3  # seconds in which passes may still end by themselves when we are told to stop
LAST = 0.4  # seconds before the end in which no write begins any more
STEP = 0.02  # seconds between two signals to threads that are inside a write
TROUBLE = frozenset({State.FAILED, State.REFUSED, State.CONTESTED, State.PARTIAL})
DryRun = Callable[[PassRunner, PassInput], Result]


class Run(Protocol):
    """Runs something that only looks in some thread."""

    def __call__(self, work: Callable[[*Given], Found], *given: *Given) -> Awaitable[Found]: ...


class Reconciler:
    """Owns the claims and what was last read; run `work()` beside everything else."""

    def __init__(
        self,
        kernel: Kernel,
        tunables: Sequence[Tunable],
        store: StateStore,
        *,
        limits: Limits | None = None,
        companion: Companion | None = None,
        clock: Callable[[], float] = time.monotonic,
        bounds: Bounds | None = None,
    ) -> None:
        self.tunables = {tunable.name: tunable for tunable in tunables}
        self.limits, self.store, self.companion = limits or Limits(), store, companion or Companion()
        self.observed = Observed(self._read_lane, self._seen, clock)
        self.outcomes: dict[Target, Outcome] = {}
        self.generation = 0
        self._device_events = 0
        self.listeners: list[Callable[[Report], None]] = []
        self.unsound = [claim for claim in store.claims.by_id.values() if not sound(claim, self.tunables)]
        self.committed = store.claims.without(self.unsound)
        self.configured: tuple[Claim, ...] = ()
        self._pending: list[Pending] = []
        self._page_size = default_page_size(kernel)
        self._ending = self._stopping = False
        seqs = [claim.seq for claim in self.committed.by_id.values()]
        self._sequence = count(max(seqs, default=0) + 1)
        self._numbers = count(self.committed.last_hold + 1)
        self._committing = asyncio.Lock()
        self._clock, self._bounds = clock, bounds
        self._loop: asyncio.AbstractEventLoop | None = None  # while there is one
        self._retries: dict[Lane, asyncio.TimerHandle] = {}
        self._failures: Counter[Lane] = Counter()  # passes that failed in a row
        self._unforgotten: set[Target] = set()  # whose baselines are of no use, and could not be dropped
        self._edits: set[asyncio.Task[Answer]] = set()
        self.threads = Threads()
        self._lanes = {lane: self._lane(lane, kernel, clock) for lane in Lane}
        self._dry_runs, self._verifying = DryRuns(kernel, self._how_far), Shared(self._verify)

    def _lane(self, lane: Lane, kernel: Kernel, clock: Callable[[], float]) -> LaneQueue:
        own = tuple(tunable for tunable in self.tunables.values() if tunable.lane is lane)
        hung = Hung(partial(self._hangs_no_more, lane), self._bounds)
        runner = PassRunner(
            kernel,
            own,
            self.limits,
            self.threads.crews[lane],
            self.store.save_baselines,
            self.companion,
            hung=hung,
            clock=clock,
        )
        told = partial(self._publish, lane), partial(self._failed, lane)
        return LaneQueue(runner, self.threads.passes, self._input, *told)

    @property
    def readings(self) -> Mapping[Target, Reading]:
        """The value of every target when it was read last."""
        return self.observed.readings

    @property
    def missing(self) -> Mapping[str, str]:
        """The tunables that this host lacks, and why."""
        return self.observed.missing

    @property
    def memory(self) -> Memory | None:
        """The host's memory when it was read last."""
        return self.observed.memory

    @property
    def claims(self) -> Claims:
        """The claims in force: committed, configured and the companion's, with the edits that callers wait for."""
        if self._ending:
            return Claims(choice=self.committed.choice)
        others = (*self.configured, *self.companion.claims)
        claims = self.committed.having(others) if others else self.committed
        for pending in self._pending:
            claims = claims.apply(pending.edit)
        return claims

    @property
    def world(self) -> World:
        owed = frozenset(target for target, outcome in self.outcomes.items() if outcome.is_owed)
        return World(self.tunables, self.readings, self.missing, owed, self.memory or NO_MEMORY, self._page_size)

    @property
    def troubles(self) -> set[Reason]:
        """The reasons for which something that is managed is not as it should be."""
        return {outcome.reason for outcome in self.outcomes.values() if outcome.state in TROUBLE}

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been counted since the daemon started."""
        return {
            "hotplug_events": self._device_events,
            "drift_repairs": sum(queue.runner.drift.total for queue in self._lanes.values()),
            **self.companion.counters,
        }

    async def work(self) -> None:
        """Run the passes of each lane until cancelled."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for lane, queue in self._lanes.items():
                group.create_task(queue.work(), name=f"lane {lane}")

    async def end_writes(self, seconds: float, grace: float = GRACE) -> list[str]:
        """Come to rest in that time, and return the paths of writes that cannot be ended. No edit is taken any more.

        Passes that run end by themselves or, after `grace`, early. What a caller did not get whole is withdrawn, and
        put back by another pass, which may write until LAST seconds before the end.
        """
        self._stop_taking()
        now, queues = asyncio.get_running_loop().time(), self._lanes.values()
        end = now + seconds
        if await self._rest(min(now + grace, end)):
            return self._left_behind()
        for queue in queues:
            queue.end()
        if await self._rest(end - LAST):
            return self._left_behind()
        for queue in queues:
            queue.close()
        await self._rest(end)
        return sorted({*self._left_behind(), *(path for queue in queues for path in queue.interrupt())})

    def _left_behind(self) -> list[str]:
        """Return the paths of writes that devices hang in: no pass waits for them any more."""
        return [path for queue in self._lanes.values() for path in queue.runner.hung.writes]

    def _hangs_no_more(self, lane: Lane, wait: float) -> None:
        """Have a pass look at a device after `wait` seconds; called in the thread that the kernel has returned to."""
        if self._loop:
            # There is nobody to ask when the loop is closed.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answers_again, lane, wait)

    def _answers_again(self, lane: Lane, wait: float) -> None:
        if wait:
            asyncio.get_running_loop().call_later(wait, self.look_again, "retry", [lane])
            return
        # The boot pass is the first; one that runs has left the device out.
        if any(self.observed.passes([lane])) or not self._lanes[lane].idle:
            self.look_again("retry", [lane])

    async def _rest(self, until: float) -> bool:
        """Wait until no caller waits and no pass runs, or until that time of the loop; return whether all rests."""
        while self._edits or not all(queue.idle for queue in self._lanes.values()):
            for queue in self._lanes.values():
                queue.interrupt()
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(STEP)
        return True

    def _stop_taking(self) -> None:
        """Refuse every edit from now on, and request no pass that nobody waits for."""
        self._stopping = True
        for timer in self._retries.values():
            timer.cancel()

    async def put_back(self, seconds: float) -> bool:
        """Put the host's own values back in one pass of each lane, and return whether all are back in time.

        No edit is accepted any more.

        What is saved stays: the next start applies the claims again.
        """
        self._stop_taking()
        self._ending = True
        requests = [PassRequest("stop", enforce=True) for _ in self._lanes]
        for queue, request in zip(self._lanes.values(), requests, strict=True):
            queue.closed = False
            queue.put(request)
        _, late = await asyncio.wait([request.result for request in requests], timeout=seconds)
        return not late and not self.outcomes

    async def observe(self) -> None:
        """Read everything, however long that takes, and write nothing."""
        await self.observed.fresh(Lane, 0, None)

    def refresh(self, *lanes: Lane) -> Awaitable[None] | None:
        """Read the targets of these lanes again, of all where none is named: what to await for it.

        Return None when they were read just now: most of those who poll need not wait.
        """
        wanted = lanes or tuple(Lane)
        return None if self.observed.is_fresh(wanted) else self.observed.fresh(wanted)

    async def reconcile(self, cause: str, *, enforce: bool = False) -> None:
        """Make a pass of every lane; `enforce` also where drift would only be reported (at boot).

        Raise the first error after all of them have ended.
        """
        passes = [queue.result(PassRequest(cause, enforce=enforce)) for queue in self._lanes.values()]
        found = await asyncio.gather(*passes, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error

    def configure(self, claims: Sequence[Claim], limits: Limits) -> None:
        """Take over the configuration for the next pass; a pass that runs now ends with the old one.

        These claims are the files': no StateStore saves them, and no Unset withdraws them.
        """
        self.configured, self.limits = tuple(claims), limits
        for queue in self._lanes.values():
            queue.runner = replace(queue.runner, limits=limits)

    async def reload(self, claims: Sequence[Claim], limits: Limits) -> None:
        """Configure, and a pass that puts everything right that the configuration names, or has named until now."""
        if self._stopping:
            raise stopping()
        # As with what is released, nobody waits for exactly these: less than asked is no error.
        named = {claim.id for claim in (*self.configured, *claims)}
        self.configure(claims, limits)
        requests = [(queue, PassRequest("reload", released=named)) for queue in self._lanes.values()]
        await asyncio.gather(*(queue.result(request) for queue, request in requests))

    def announce(self, cause: str) -> None:
        """Tell the listeners that something beside the outcomes is different."""
        self._tell(Report(self.generation, cause, ()))

    def look_again(self, cause: str, lanes: Iterable[Lane] = Lane, *, events: int = 0) -> None:
        """Ask for a pass of these lanes and do not wait for it: something came, went, or may have changed.

        `events` of devices, which are counted, were the reason.
        """
        self._device_events += events
        if self._stopping:
            return
        for lane in lanes:
            self._lanes[lane].put(PassRequest(cause))

    def is_large(self, request: Request) -> bool:
        """Return whether it takes long to check the request; raise LimitsExceeded for one that takes too long."""
        return self._takes_long(request, self.world, self.claims)

    def _takes_long(self, request: Request, world: World, claims: Claims) -> bool:
        within_reason(request, world, self.limits)
        return work_of(request, world, claims) > SMALL

    async def check(self, request: Request, run: Run | None = None) -> Edit:
        """Return the edit that the request would be, or raise the error that refuses it.

        What is not there is looked for once: it may have come a moment ago. A large request is checked where `run` runs
        it, or where those are that were authorised.
        """
        run = run or self.threads.read
        # What one user may hold is a part of what the host has left.
        if request.hold and (read := self.refresh(Lane.MEMORY)):
            await read
        try:
            return await self._checked(request, run)
        except (NoSuchTarget, NotSupported, NotOffered):
            names = {setting.tunable for setting in request.settings} & self.tunables.keys()
            await self.observed.fresh({self.tunables[name].lane for name in names}, 0)
            return await self._checked(request, run)

    async def _checked(self, request: Request, run: Run) -> Edit:
        """Check the request against what is known now; in a thread when it is large."""
        world, claims = self.world, self.claims
        if not self._takes_long(request, world, claims):
            return edit_for(request, world, claims, self._sequence, self.limits)
        # Its place is that of now: what is asked for while it is checked is newer.
        numbers = islice(self._sequence, len(request.settings) + 1)
        edit = await run(edit_for, request, world, claims, iter([*numbers]), self.limits)
        self._check_number(edit)
        return edit

    def _check_number(self, edit: Edit) -> None:
        """Raise LimitsExceeded where others have made too many claims or holds while this large edit was looked at."""
        within_limits(edit, self.world, self.claims, self.limits)

    async def change(
        self, request: Request, cause: str, progress: Progress | None = None, *, endable: bool = False
    ) -> Answer:
        """Carry out a request: the first pass that starts after it, commit, and what the kernel really did."""
        edit = await self.check(request)
        if len(edit.put) > 1 or (edit.put and Lane.MEMORY in self._lanes_of(edit)):
            # What can be foreseen (limits are memory's) refuses the call before any lane has written its part.
            foreseen = await self._rehearse(edit, self.threads.read)
            (await self._judge(edit, foreseen, self.threads.read, must_win=request.must_win)).checked()
            edit = await self.check(request)
        return await self.carry_out(edit, cause, progress, must_win=request.must_win, endable=endable)

    async def _judge(self, edit: Edit, result: Result, run: Run, *, must_win: bool = False) -> Judged:
        """Return what an edit has come to; of a large one in a thread."""
        told = partial(judge, edit, self.tunables, result, must_win=must_win)
        return await run(told) if self._is_large(edit) else told()

    def _is_large(self, edit: Edit) -> bool:
        named = [claim_id.tunable for claim_id in (*edit.named, *edit.released)]
        return len(named) * len(self.readings) > SMALL and comparisons(named, self.world) > SMALL

    def number_for_a_hold(self) -> int:
        """Return a number that no hold of this boot has had."""
        return next(self._numbers)

    async def drop_holds(self, numbers: Collection[int]) -> None:
        """Drop holds whose clients have gone before the boot pass, which makes it so.

        Where that cannot be saved now, the next commit saves it.
        """
        self.committed = self.committed.apply(self.committed.releasing(numbers, next(self._sequence)))
        try:
            await self.threads.save(self.store.commit, self.committed)
        except OSError as error:
            log.error("that holds are over cannot be saved: %s", why_not_saved(error))

    def looking_up(self, claims: Sequence[Claim]) -> Callable[[], Sequence[Outcome]]:
        """Return what returns the outcomes of these claims by what is known now; any thread may call it."""
        world = replace(self.world, readings=dict(self.readings))
        known = tuple(self.claims.by_id.values()), dict(self.store.baselines), dict(self.outcomes_now())
        return partial(outcomes_known, claims, world, *known)

    async def release(self, numbers: Collection[int], cause: str, *, is_fact: bool = False) -> Answer:
        """End these holds, as far as there are such: what is claimed without them is in force again.

        Where another edit is ending one of them, wait for what becomes of that. With `is_fact` they are over: where a
        pass fails a later one puts right what it leaves, and where it cannot be saved the next commit saves it.
        """
        while ending := [other for other in self._pending if not set(other.edit.ended).isdisjoint(numbers)]:
            await ending[0].done.wait()
        edit = self.committed.releasing(numbers, next(self._sequence))
        return await self.carry_out(replace(edit, is_fact=is_fact), cause)

    def choosing(self, files: FilesEdit, *, reset: bool = False, holds: bool = False) -> Edit:
        """Return the edit that makes the files' claims these; `reset`: drops all that callers asked for.

        A reset also names what is owed to the host, which is tried again at once; with `holds` it ends all holds.
        """
        edit = self.claims.choosing(files, next(self._sequence), reset=reset, holds=holds)
        owed = [ClaimId(Origin.RUNTIME, t.tunable, t.instance) for t in self.world.owed] if reset else []
        return replace(edit, drop=(*edit.drop, *owed))

    async def carry_out(
        self,
        edit: Edit,
        cause: str,
        progress: Progress | None = None,
        *,
        must_win: bool = False,
        endable: bool = False,
    ) -> Answer:
        """Carry out an edit that was checked: run a pass of its lanes, commit it, and return the outcomes.

        An error leaves no claim: the edit is withdrawn and its lanes run again before it is raised. With `endable` a
        cancellation does that as well, and does not wait; an edit that is being saved is finished all the same.
        """
        named = Named(edit, self.tunables)
        if self._is_large(edit):
            await self.threads.read(named.learn, self.world.targets)
            self._check_number(edit)
        if self._stopping:
            raise stopping()
        # An edit that has begun is finished, also when its caller goes: half of it would be on disk, or in the kernel.
        pending = self._begin(edit, named, cause, progress)
        carrying = asyncio.create_task(self._carry_out(pending, cause, must_win=must_win), name=cause)
        self._edits.add(carrying)
        carrying.add_done_callback(self._carried_out)
        try:
            return await asyncio.shield(carrying)
        except asyncio.CancelledError:
            if not endable:
                raise
            if pending.saving:
                return await asyncio.shield(carrying)
            self._end_passes(pending, f"the caller of {cause} left")
            carrying.cancel()
            raise

    def _begin(self, edit: Edit, named: Named, cause: str, progress: Progress | None) -> Pending:
        """Have the edit in force from now on, and ask for its passes: the first that sees it is its own."""
        before, lanes = self.claims, self._lanes_of(edit)
        # Of the files nobody waits for exactly these: as with what is released, less than asked is no error.
        released = {*edit.released, *(edit.named if edit.files else ())}
        told = only_for(edit, self.tunables, progress) if progress else None
        pending = Pending(
            edit,
            lanes,
            named,
            {lane: PassRequest(cause, released, progress=told, waited=True) for lane in lanes},
            changes=not before.same_as(before.apply(edit)),
            earlier=tuple(other.done for other in self._pending if other.lanes & lanes),
        )
        self._pending.append(pending)
        for lane, request in pending.requests.items():
            self._lanes[lane].put(request)
        return pending

    def _end_passes(self, pending: Pending, why: str) -> None:
        """Have the passes that run for this edit write nothing more, where nobody else is served by them."""
        for lane, request in pending.requests.items():
            shared = any(lane in other.lanes for other in self._pending if other is not pending)
            if not shared and (halt := self._lanes[lane].end_for(request, why)):
                self._interrupt(self._lanes[lane], halt)

    def _interrupt(self, queue: LaneQueue, halt: Halt) -> None:
        """Signal the threads that are inside a write, again and again until that pass is over."""
        if queue.halt is halt:
            halt.interrupt()
            asyncio.get_running_loop().call_later(STEP, self._interrupt, queue, halt)

    def _carried_out(self, task: asyncio.Task[Answer]) -> None:
        self._edits.discard(task)
        if not task.cancelled():
            task.exception()  # seen, for its caller may be gone

    async def _carry_out(self, pending: Pending, cause: str, *, must_win: bool) -> Answer:
        edit, lanes = pending.edit, pending.lanes
        try:
            passes = (asyncio.shield(request.result) for request in pending.requests.values())
            # A lane makes a pass that has failed again by itself.
            found = await asyncio.gather(*passes, return_exceptions=edit.is_fact)
            for done in pending.earlier:
                await done.wait()
            result = merge(each for each in found if isinstance(each, Result))
            outcomes = (await self._judge(edit, result, self.threads.read, must_win=must_win)).checked()
            await self._commit(pending, cause)
        except BaseException as error:
            # Whatever went wrong, nobody may wait for this edit for ever.
            if pending in self._pending:
                self._pending.remove(pending)
            pending.done.set()
            await self._withdrawn(lanes, cause, edit, wait=isinstance(error, Exception))
            raise
        pending.done.set()
        wrote = bool({outcome.target for outcome in outcomes} & result.wrote)
        return Answer(pending.changes or wrote, tuple(outcomes))

    async def plan(self, request: Request, *, strict: bool = False) -> Answer:
        """Return what `change` would do, limits included; write nothing, and wait for no lane.

        With `strict` raise the error that it would end with. Without, the answer has the outcomes, and no change.
        """
        if len(request.settings) > self.limits.planned:
            raise too_much(f"a plan of {len(request.settings)} settings is too long, {self.limits.planned} are allowed")
        return await self.foresee(await self.check(request, self.threads.open), strict=strict)

    async def foresee(self, edit: Edit, *, strict: bool = False) -> Answer:
        """Return what `carry_out` would do."""
        claims = self.claims
        with self._dry_runs.asking() as dry_run:
            result = await self._rehearse(edit, self.threads.open, dry_run)
        judged = await self._judge(edit, result, self.threads.open)
        outcomes = judged.checked() if strict else judged.outcomes
        would_write = bool({outcome.target for outcome in outcomes} & result.wrote)
        would_change = would_write or not claims.same_as(claims.apply(edit))
        return Answer(would_change and judged.error is None, tuple(outcomes))

    async def _rehearse(self, edit: Edit, run: Run, dry_run: DryRun = PassRunner.run) -> Result:
        """Return the result of a dry run of the lanes that an edit touches.

        A pass may be writing meanwhile for claims newer than these; that is no drift, and none is looked for.
        """
        claims = tuple(self.claims.apply(edit).by_id.values())
        named = frozenset(claim.id for claim in edit.put)
        released = frozenset(edit.released)
        given = replace(self._dry_input(), claims=claims, named=named, asking=named, released=released, enforce=True)
        return merge(await self._look(given, self._lanes_of(edit), run, dry_run))

    async def verify(self) -> tuple[Outcome, ...]:
        """Return everything managed that is not satisfied, read again; change nothing.

        What a call or a pass is just setting is left out: its caller is told what becomes of it. Who asks before the
        look begins shares it.
        """
        return await self._verifying()

    async def _verify(self) -> tuple[Outcome, ...]:
        busy: set[Group] = set()
        for _ in range(OVERTAKEN):
            passes = self.observed.passes(Lane)
            busy |= self._being_set()
            result = merge(await self._look(self._dry_input(), Lane, self.threads.open))
            busy |= self._being_set()
            if passes == self.observed.passes(Lane):
                break
        settled = [outcome for target, outcome in result.outcomes.items() if self._group(target) not in busy]
        now = [changed_since(outcome, self.outcomes.get(outcome.target)) for outcome in settled]
        return tuple(outcome for outcome in now if outcome.state not in (State.SATISFIED, State.UNMANAGED))

    def outcomes_now(self) -> Mapping[Target, Outcome]:
        """Return the outcomes of the last passes, and what Verify would say where a look has found something since."""
        found, busy = dict(self.outcomes), self._being_set()
        for target, outcome in (row for lane in Lane for row in self.observed.seen(lane).items()):
            last = self.outcomes.get(target)
            if self._group(target) in busy or (last and compared(last) == compared(outcome)):
                continue
            if outcome.requested:
                found[target] = changed_since(outcome, last)
            else:
                found.pop(target, None)  # what was owed is back, or is somebody else's
        return found

    def _group(self, target: Target) -> Group:
        return target.tunable, self.tunables[target.tunable].group(target)

    def _being_set(self) -> set[Group]:
        """Return the groups that uncommitted edits name, and those that passes are writing."""
        targets = self.world.targets
        found = {self._group(target) for pending in self._pending for target in pending.named.among(targets)}
        return found.union(*(queue.runner.writing for queue in self._lanes.values()))

    def _lanes_of(self, edit: Edit) -> frozenset[Lane]:
        if edit.files:
            return frozenset(Lane)
        names = {claim.tunable for claim in edit.put} | {claim_id.tunable for claim_id in edit.drop}
        return frozenset(self.tunables[name].lane for name in names)

    async def _commit(self, pending: Pending, cause: str) -> None:
        """Save the edit, then count it as committed; one at a time, so that none is lost."""
        async with self._committing:
            pending.saving = True
            if pending.edit.hold:
                pending.edit = replace(pending.edit, hold=granted(pending.edit.hold))
            claims = self.committed.apply(pending.edit)
            if pending.edit.files:
                claims = claims.without_files()
            if not claims.same_as(self.committed) or pending.edit.put:
                try:
                    await self.threads.save(self.store.commit, claims)
                except (OSError, MemoryError, RuntimeError) as error:
                    if pending.edit.is_fact:
                        log.error("that holds are over cannot be saved: %s", error or type(error).__name__)
                    elif isinstance(error, OSError):
                        raise not_saved(pending.edit, error) from error
                    else:
                        raise
            before, self.committed = self.committed, claims
            if pending.edit.files:
                self.configured = pending.edit.files.claims
            self._pending.remove(pending)
        if claims.holds != before.holds:
            self.announce(cause)

    async def _withdrawn(self, lanes: Collection[Lane], cause: str, edit: Edit, *, wait: bool) -> None:
        """Have what the edit had overridden come into force again; a pass that fails now does not hide the error."""
        # No other edit that is ended takes this pass along, whether or not somebody waits for it.
        requests = [PassRequest(f"{cause} withdrawn", released=edit.named, waited=True) for _ in lanes]
        for lane, request in zip(lanes, requests, strict=True):
            self._lanes[lane].put(request)
        if wait:
            await asyncio.gather(*(asyncio.shield(request.result) for request in requests), return_exceptions=True)

    def _input(self, requests: Sequence[PassRequest]) -> PassInput:
        """Return the input of a pass that starts now for these callers."""
        return PassInput(
            tuple(self.claims.by_id.values()),
            dict(self.store.baselines),
            # Every caller who still waits, also those whose other lane is slower: theirs is all or nothing.
            frozenset(claim.id for pending in self._pending for claim in pending.edit.put),
            frozenset().union(*(request.released for request in requests)),
            enforce=any(request.enforce for request in requests),
            spent=frozenset(self._unforgotten),
            reserved=frozenset(self.store.reserved),
            asking=frozenset(
                claim.id
                for pending in self._pending
                if any(request in requests for request in pending.requests.values())
                for claim in pending.edit.put
            ),
        )

    def _dry_input(self) -> PassInput:
        """Return the input of a look: it shows what a pass would find."""
        claims, baselines = tuple(self.claims.by_id.values()), dict(self.store.baselines)
        spent, reserved = frozenset(self._unforgotten), frozenset(self.store.reserved)
        return PassInput(claims, baselines, dry=True, spent=spent, reserved=reserved)

    def _gone(self, result: Result) -> set[Target]:
        """Return the baselines of what was replaced: with another key, the former one never comes back.

        While a key cannot be read (the CPUs of every policy are offline), it may be the same one.
        """
        names = {target.tunable for target in result.readings}
        keyed = (t for t in self.store.baselines if t.key and t.tunable in names)
        return {t for t in keyed if t not in result.readings and replace(t, key="") not in result.readings}

    def _how_far(self) -> object:
        """Return what is otherwise when a pass has begun to write, or has ended."""
        return self.observed.passes(Lane), [bool(queue.runner.writing) for queue in self._lanes.values()]

    async def _look(
        self,
        given: PassInput,
        lanes: Iterable[Lane],
        run: Run,
        dry_run: DryRun = PassRunner.run,
    ) -> list[Result]:
        jobs = [run(dry_run, self._lanes[lane].runner, given) for lane in lanes]
        return list(await asyncio.gather(*jobs))

    async def _read_lane(self, lane: Lane) -> Result:
        return await self.threads.look(lane, self._lanes[lane].runner.run, self._dry_input())

    def _seen(self, lane: Lane) -> None:
        """Announce what a look has found, and have a pass take note of what has become right, or can be set now."""
        self.announce("look")
        if not any(self.observed.passes([lane])):
            return  # the boot pass is to come
        busy = self._being_set()
        if any(
            is_due(outcome, self.outcomes.get(target))
            for target, outcome in self.observed.seen(lane).items()
            if self._group(target) not in busy
        ):
            self.look_again("look", [lane])

    async def _publish(self, lane: Lane, result: Result, requests: Sequence[PassRequest]) -> None:
        """Take over what a pass found, and tell everybody what is news."""
        runner = self._lanes[lane].runner
        await self._forget(result)
        self.observed.learn(lane, result, [t for t in result.readings if self._group(t) in runner.writing])
        runner.writing.clear()
        own = {name for name, tunable in self.tunables.items() if tunable.lane is lane}
        old = {t: o for t, o in self.outcomes.items() if t.tunable in own}
        managed = {t: o for t, o in result.outcomes.items() if o.state is not State.UNMANAGED}
        self.outcomes = {t: o for t, o in self.outcomes.items() if t.tunable not in own} | managed
        changed = changes_of(old, result)
        if changed:
            self.generation += 1
        del self._failures[lane]
        self._retry_at(lane, runner.retries.due)
        self._tell(Report(self.generation, ", ".join(dict.fromkeys(t.cause for t in requests)), tuple(changed)))

    async def _forget(self, result: Result) -> None:
        """Drop the baselines that are of no use any more; where that fails they are passed over, and dropped later."""
        # A target that is claimed again goes back to the same value.
        self._unforgotten -= {target for target, desired in result.desired_states.items() if not desired.is_baseline}
        self._unforgotten = (self._unforgotten | self._gone(result) | result.restored) & self.store.baselines.keys()
        if not self._unforgotten:
            return
        try:
            await self.threads.save(self.store.drop_baselines, frozenset(self._unforgotten))
        except (OSError, MemoryError, RuntimeError) as error:
            log.error("baselines that were put back cannot be dropped: %s", error or type(error).__name__)
        else:
            self._unforgotten.clear()

    def _failed(self, lane: Lane) -> None:
        """Handle a pass that raised: a later pass does its work."""
        self._lanes[lane].runner.writing.clear()
        self._retry_at(lane, self._clock() + min(SOON * 2 ** self._failures[lane], LONGEST_WAIT))
        self._failures[lane] = min(self._failures[lane] + 1, 12)

    def _retry_at(self, lane: Lane, due: float | None) -> None:
        """Ask for a pass of the lane when the next write that was in vain is worth another try."""
        if timer := self._retries.pop(lane, None):
            timer.cancel()
        if due is not None and not self._stopping:
            wait = max(SOON, due - self._clock())
            self._retries[lane] = asyncio.get_running_loop().call_later(wait, self.look_again, "retry", [lane])

    def _tell(self, report: Report) -> None:
        """Tell every listener; one that fails costs the others nothing, nor the pass, nor who waits for it."""
        for listener in self.listeners:
            try:
                listener(report)
            except Exception:
                log.exception("a listener failed on the report of %s", report.cause)


def not_saved(edit: Edit, error: OSError) -> Failed:
    """Return what the caller of an edit is told that cannot be saved."""
    if edit.put:
        what, left = "the claim cannot be saved", "It was withdrawn"
    else:
        what, left = "what was asked cannot be saved", "Nothing was changed"
    return Failed(f"{what}: {why_not_saved(error)}", f"{left}; free space there and try again")


def stopping() -> Failed:
    """Return the error for edits that come too late."""
    return Failed("kerntuned is stopping", "Try again when it has started")
