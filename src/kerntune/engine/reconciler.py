"""The one loop: edits in, passes of the lanes, outcomes out; the only place that decides when the kernel is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from kerntune.engine.claims import Claims, Edit, FilesEdit, StateStore
from kerntune.engine.companion import Companion
from kerntune.engine.dry_runs import DryRuns, Shared, seen
from kerntune.engine.edits import Edits, Named, Pending
from kerntune.engine.hung import Bounds, Hung
from kerntune.engine.observed import Observed
from kerntune.engine.passes import PassRunner
from kerntune.engine.requests import (
    Request,
    World,
    comparisons,
    edit_for,
    too_much,
    within_limits,
    within_reason,
    work_of,
)
from kerntune.engine.results import (
    Answer,
    Group,
    Judged,
    Result,
    changed_since,
    judge,
    merge,
    outcomes_known,
    repaired,
)
from kerntune.engine.workers import LaneQueue, PassRequest, Run, Threads
from kerntune.engine.writer import Halt, Progress, only_for
from kerntune.errors import Failed, NoSuchTarget, NotOffered, NotSupported
from kerntune.kernel.files import Kernel
from kerntune.kernel.memory import default_page_size
from kerntune.model import Claim, ClaimId, Lane, Limits, Origin, Outcome, Reading, State, Target
from kerntune.tunables.base import Tunable

SMALL = 1000  # patterns times targets: less is compared on the event loop, in some milliseconds
OVERTAKEN = 3  # passes that may end while Verify looks, before it answers all the same
GRACE = 0.3  # seconds in which passes may still end by themselves when we are told to stop
LAST = 0.4  # seconds before the end in which no write begins any more
STEP = 0.02  # seconds between two signals to threads that are inside a write


class Facts(NamedTuple):
    """The facts that the check of a request goes by."""

    version: int  # of the claims in force
    limits: Limits
    readings: Mapping[Target, Reading]


class Reconciler:
    """Owns the lanes, the claims in force and what is observed; run `work()` beside everything else."""

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
        self.limits, self.threads, companion = limits or Limits(), Threads(), companion or Companion()
        self.edits = Edits(store, self.tunables, companion, self.threads.save)
        self.observed = Observed(
            self.tunables,
            default_page_size(kernel),
            look=self._read,
            being_set=self._being_set,
            due=lambda lane: self.look_again("look", [lane]),
            clock=clock,
        )
        self.lanes = {
            lane: LaneQueue(
                PassRunner(
                    kernel,
                    tuple(tunable for tunable in tunables if tunable.lane is lane),
                    self.limits,
                    self.threads.crews[lane],
                    store.save_baselines,
                    companion,
                    hung=Hung(bounds=bounds),
                    clock=clock,
                ),
                self.threads.passes,
                self.edits.given,
                partial(self._publish, lane),
            )
            for lane in Lane
        }
        self._stopping = False
        self._carrying: set[asyncio.Task[Answer]] = set()  # the edits that are carried out
        self._dry_runs = DryRuns(kernel, self.lanes, self.edits, self.threads, self.observed.passes)
        self._verifying = Shared(self._verify)

    async def work(self) -> None:
        """Run the passes of each lane until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane, queue in self.lanes.items():
                group.create_task(queue.work(), name=f"lane {lane}")

    async def end_writes(self, seconds: float, grace: float = GRACE) -> list[str]:
        """Come to rest in that time, and return the paths of writes that cannot be ended. No edit is taken any more.

        Passes that run end by themselves or, after `grace`, early. What a caller did not get whole is withdrawn, and
        put back by another pass, which may write until LAST seconds before the end.
        """
        self._stop_taking()
        now, queues = asyncio.get_running_loop().time(), self.lanes.values()
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
        return [path for queue in self.lanes.values() for path in queue.runner.hung.writes]

    async def _rest(self, until: float) -> bool:
        """Wait until no caller waits and no pass runs, or until that time of the loop; return whether all rests."""
        while self._carrying or not all(queue.idle for queue in self.lanes.values()):
            for queue in self.lanes.values():
                queue.interrupt()
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(STEP)
        return True

    def _stop_taking(self) -> None:
        """Refuse every edit from now on, and request no pass that nobody waits for."""
        self._stopping = True
        for queue in self.lanes.values():
            queue.stop()

    async def put_back(self, seconds: float) -> bool:
        """Put the host's own values back in one pass of each lane, and return whether all are back in time.

        No edit is accepted any more.

        What is saved stays: the next start applies the claims again.
        """
        self._stop_taking()
        self.edits.ended = True
        requests = [PassRequest("stop", enforce=True) for _ in self.lanes]
        for queue, request in zip(self.lanes.values(), requests, strict=True):
            queue.closed = False
            queue.put(request)
        _, late = await asyncio.wait([request.result for request in requests], timeout=seconds)
        return not late and not self.observed.outcomes

    async def reconcile(self, cause: str, *, enforce: bool = False) -> None:
        """Make a pass of every lane; `enforce` also where drift would only be reported (at boot).

        Raise the first error after all of them have ended.
        """
        passes = [queue.result(PassRequest(cause, enforce=enforce)) for queue in self.lanes.values()]
        found = await asyncio.gather(*passes, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error

    def configure(self, claims: Sequence[Claim], limits: Limits) -> None:
        """Take over the configuration for the next pass; a pass that runs now ends with the old one.

        These claims are the files': no StateStore saves them, and no Unset withdraws them.
        """
        self.edits.configure(claims)
        self.limits = limits
        for queue in self.lanes.values():
            queue.runner = replace(queue.runner, limits=limits)

    async def reload(self, claims: Sequence[Claim], limits: Limits) -> None:
        """Configure, and a pass that puts everything right that the configuration names, or has named until now."""
        if self._stopping:
            raise stopping()
        # As with what is released, nobody waits for exactly these: less than asked is no error.
        named = {claim.id for claim in (*self.edits.configured, *claims)}
        self.configure(claims, limits)
        requests = [(queue, PassRequest("reload", released=named)) for queue in self.lanes.values()]
        await asyncio.gather(*(queue.result(request) for queue, request in requests))

    def look_again(self, cause: str, lanes: Iterable[Lane] = Lane) -> None:
        """Ask for a pass of these lanes and do not wait for it: something came, went, or may have changed."""
        for lane in lanes:
            self.lanes[lane].look_again(cause)

    def is_large(self, request: Request) -> bool:
        """Return whether it takes long to check the request; raise LimitsExceeded for one that takes too long."""
        return self._takes_long(request, self.observed.world, self.edits.claims)

    def _takes_long(self, request: Request, world: World, claims: Claims) -> bool:
        within_reason(request, world, self.limits)
        return work_of(request, world, claims) > SMALL

    async def check(self, request: Request, run: Run | None = None) -> Edit:
        """Return the edit that the request would be, without numbers, or raise the error that refuses it.

        What is not there is looked for once: it may have come a moment ago. A large request is checked where `run` runs
        it, or where those are that were authorised.
        """
        edit, _ = await self._check(request, run or self.threads.read)
        return edit

    async def _check(self, request: Request, run: Run) -> tuple[Edit, Facts]:
        # What one user may hold is a part of what the host has left.
        if request.hold and (read := self.observed.refresh(Lane.MEMORY)):
            await read
        try:
            return await self._checked(request, run)
        except (NoSuchTarget, NotSupported, NotOffered):
            names = {setting.tunable for setting in request.settings} & self.tunables.keys()
            await self.observed.fresh({self.tunables[name].lane for name in names}, 0)
            return await self._checked(request, run)

    async def _checked(self, request: Request, run: Run) -> tuple[Edit, Facts]:
        """Check the request against what is known now, and return that too; in a thread when it is large."""
        world, claims, facts = self.observed.world, self.edits.claims, self._facts()
        if not self._takes_long(request, world, claims):
            return edit_for(request, world, claims, self.limits), facts
        edit = await run(edit_for, request, world, claims, self.limits)
        self._check_number(edit)
        return edit, facts

    def _facts(self) -> Facts:
        """Return what a check goes by."""
        return Facts(self.edits.version, self.limits, self.observed.readings)

    def _check_number(self, edit: Edit) -> None:
        """Raise LimitsExceeded where others have made too many claims or holds while this large edit was looked at."""
        within_limits(edit, self.observed.world, self.edits.claims, self.limits)

    async def change(
        self, request: Request, cause: str, progress: Progress | None = None, *, endable: bool = False
    ) -> Answer:
        """Carry out a request: the first pass that starts after it, commit, and what the kernel really did."""
        edit, facts = await self._check(request, self.threads.read)
        if len(edit.put) > 1 or (edit.put and Lane.MEMORY in self._lanes_of(edit)):
            # What can be foreseen (limits are memory's) refuses the call before any lane has written its part.
            rehearsed = self.edits.foreseen(edit)
            result = await self._dry_runs.rehearse(rehearsed, self._lanes_of(edit))
            (await self._judge(rehearsed, result, self.threads.read, must_win=request.must_win)).checked()
            if self._facts() != facts:
                # The limits count the new claims, and the request may replace them, or name a device that has gone.
                edit = await self.check(request)
        return await self.carry_out(edit, cause, progress, must_win=request.must_win, endable=endable)

    async def _judge(self, edit: Edit, result: Result, run: Run, *, must_win: bool = False) -> Judged:
        """Return what an edit has come to; of a large one in a thread."""
        judging = partial(judge, edit, self.tunables, result, must_win=must_win)
        return await run(judging) if self._is_large(edit) else judging()

    def _is_large(self, edit: Edit) -> bool:
        named = [claim_id.tunable for claim_id in (*edit.named, *edit.released)]
        return len(named) * len(self.observed.readings) > SMALL and comparisons(named, self.observed.world) > SMALL

    def looking_up(self, claims: Sequence[Claim]) -> Callable[[], Sequence[Outcome]]:
        """Return what returns the outcomes of these claims by what is known now; any thread may call it."""
        world = replace(self.observed.world, readings=dict(self.observed.readings))
        claims_in_force, baselines = tuple(self.edits.claims.by_id.values()), dict(self.edits.store.baselines)
        known = claims_in_force, baselines, dict(self.observed.outcomes_now())
        return partial(outcomes_known, claims, world, *known)

    async def release(self, numbers: Collection[int], cause: str, *, is_fact: bool = False) -> Answer:
        """End these holds, as far as there are such: what is claimed without them is in force again.

        Where another edit is ending one of them, wait for what becomes of that. With `is_fact` they are over: where a
        pass fails a later one puts right what it leaves, and where it cannot be saved the next commit saves it.
        """
        while ending := [other for other in self.edits.pending if not set(other.edit.ended).isdisjoint(numbers)]:
            await ending[0].done.wait()
        edit = self.edits.committed.releasing(numbers)
        return await self.carry_out(replace(edit, is_fact=is_fact), cause)

    def files_edit(self, files: FilesEdit, *, reset: bool = False, holds: bool = False) -> Edit:
        """Return the edit that makes the files' claims these; `reset`: drops all that callers asked for.

        A reset also names what is owed to the host, which is tried again at once; with `holds` it ends all holds.
        """
        edit = self.edits.claims.files_edit(files, reset=reset, holds=holds)
        owed = [ClaimId(Origin.RUNTIME, t.tunable, t.instance) for t in self.observed.world.owed] if reset else []
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
            await self.threads.read(named.learn, self.observed.world.targets)
            self._check_number(edit)
        if self._stopping:
            raise stopping()
        # An edit that has begun is finished, also when its caller goes: half of it would be on disk, or in the kernel.
        pending = self._begin(edit, named, cause, progress)
        carrying = asyncio.create_task(self._carry_out(pending, cause, must_win=must_win), name=cause)
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)
        carrying.add_done_callback(seen)  # its caller may be gone
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
        # Of the files nobody waits for exactly these: as with what is released, less than asked is no error.
        released = {*edit.released, *(edit.named if edit.files else ())}
        own = only_for(edit, self.tunables, progress) if progress else None
        requests = {lane: PassRequest(cause, released, progress=own, waited=True) for lane in self._lanes_of(edit)}
        pending = self.edits.begin(edit, named, requests)
        for lane, request in requests.items():
            self.lanes[lane].put(request)
        return pending

    def _end_passes(self, pending: Pending, why: str) -> None:
        """Have the passes that run for this edit write nothing more, where nobody else is served by them."""
        for lane, request in pending.requests.items():
            if not any(lane in other.lanes for other in self.edits.pending if other is not pending):
                self._end_pass(lane, request, why)

    def _end_pass(self, lane: Lane, request: PassRequest, why: str) -> None:
        """Have the pass that runs for this request write nothing more, unless somebody else waits for it."""
        if halt := self.lanes[lane].end_for(request, why):
            self._interrupt(self.lanes[lane], halt)

    def _interrupt(self, queue: LaneQueue, halt: Halt) -> None:
        """Signal the threads that are inside a write, again and again until that pass is over."""
        if queue.halt is halt:
            halt.interrupt()
            asyncio.get_running_loop().call_later(STEP, self._interrupt, queue, halt)

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
            if await self.edits.commit(pending):
                self.observed.notify(cause)
        except BaseException as error:
            # Whatever went wrong, nobody may wait for this edit for ever.
            self.edits.withdraw(pending)
            pending.done.set()
            await self._withdrawn(lanes, cause, edit, wait=isinstance(error, Exception))
            raise
        pending.done.set()
        wrote = bool({outcome.target for outcome in outcomes} & result.wrote)
        return Answer(pending.changes or wrote, tuple(outcomes))

    async def repair(self, cause: str, progress: Progress | None = None, *, endable: bool = False) -> Answer:
        """Put right what is managed, also what waits for another try and what is contested.

        Return the outcomes of what was put back, and of what is not in the desired state after it. As with Verify, what
        a call is just setting is left out. With `endable` a cancellation ends it; what is put back by then stays so.
        """
        if self._stopping:
            raise stopping()
        requests = {lane: PassRequest(cause, enforce=True, progress=progress, waited=True) for lane in self.lanes}
        busy: set[Group] = set()
        for lane, request in requests.items():
            # A call that has shared the pass is still pending at this moment.
            request.result.add_done_callback(lambda _: busy.update(self._named_by_edits()))
            self.lanes[lane].put(request)
        try:
            passes = (asyncio.shield(request.result) for request in requests.values())
            found = await asyncio.gather(*passes, return_exceptions=True)
        except asyncio.CancelledError:
            for lane, request in requests.items() if endable else ():
                request.enforce = request.waited = False  # its pass may not have begun
                self._end_pass(lane, request, f"the caller of {cause} left")
            raise
        if error := next((each for each in found if isinstance(each, BaseException)), None):
            raise error
        result = merge(each for each in found if isinstance(each, Result))
        wrote = any(self.observed.group(target) not in busy for target in result.wrote)
        return Answer(wrote, tuple(each for each in repaired(result) if self.observed.group(each.target) not in busy))

    async def plan(self, request: Request, *, strict: bool = False) -> Answer:
        """Return what `change` would do, limits included; write nothing, and wait for no lane.

        With `strict` raise the error that it would end with. Without, the answer has the outcomes, and no change.
        """
        if len(request.settings) > self.limits.planned:
            raise too_much(f"a plan of {len(request.settings)} settings is too long, {self.limits.planned} are allowed")
        return await self.foresee(await self.check(request, self.threads.open), strict=strict)

    async def foresee(self, edit: Edit, *, strict: bool = False, limits: Limits | None = None) -> Answer:
        """Return what `carry_out` would do, with the `limits` that there would be then."""
        claims, edit = self.edits.claims, self.edits.foreseen(edit)
        result = await self._dry_runs.foresee(edit, self._lanes_of(edit), limits)
        judged = await self._judge(edit, result, self.threads.open)
        outcomes = judged.checked() if strict else judged.outcomes
        would_write = bool({outcome.target for outcome in outcomes} & result.wrote)
        would_change = would_write or not claims.same_as(claims.apply(edit))
        return Answer(would_change and judged.error is None, tuple(outcomes))

    async def verify(self) -> tuple[Outcome, ...]:
        """Return everything managed that is not satisfied, read again; change nothing.

        What a call or a pass is just setting is left out: its caller is answered what becomes of it. All who ask
        before the look begins share it.
        """
        return await self._verifying()

    async def _verify(self) -> tuple[Outcome, ...]:
        busy: set[Group] = set()
        for _ in range(OVERTAKEN):
            passes = self.observed.passes()
            busy |= self._being_set()
            result = await self._dry_runs.read_all()
            busy |= self._being_set()
            if passes == self.observed.passes():
                break
        settled = [outcome for target, outcome in result.outcomes.items() if self.observed.group(target) not in busy]
        now = [changed_since(outcome, self.observed.outcomes.get(outcome.target)) for outcome in settled]
        return tuple(outcome for outcome in now if outcome.state not in (State.SATISFIED, State.UNMANAGED))

    async def _read(self, lane: Lane) -> Result:
        return await self._dry_runs.read(lane)

    def _being_set(self) -> set[Group]:
        """Return the groups that uncommitted edits name, and those that passes are writing."""
        return self._named_by_edits().union(*(queue.runner.writing for queue in self.lanes.values()))

    def _named_by_edits(self) -> set[Group]:
        """Return the groups that uncommitted edits name."""
        return {self.observed.group(target) for target in self.edits.being_set(self.observed.world.targets)}

    def _lanes_of(self, edit: Edit) -> frozenset[Lane]:
        if edit.files:
            return frozenset(Lane)
        names = {claim.tunable for claim in edit.put} | {claim_id.tunable for claim_id in edit.drop}
        return frozenset(self.tunables[name].lane for name in names)

    async def _withdrawn(self, lanes: Collection[Lane], cause: str, edit: Edit, *, wait: bool) -> None:
        """Have what the edit had overridden come into force again; a pass that fails now does not hide the error."""
        # No other edit that is ended takes this pass along, whether or not somebody waits for it.
        requests = [PassRequest(f"{cause} withdrawn", released=edit.named, waited=True) for _ in lanes]
        for lane, request in zip(lanes, requests, strict=True):
            self.lanes[lane].put(request)
        if wait:
            await asyncio.gather(*(asyncio.shield(request.result) for request in requests), return_exceptions=True)

    async def _publish(self, lane: Lane, result: Result, requests: Sequence[PassRequest]) -> None:
        """Take over what a pass found, and publish what has changed."""
        writing = self.lanes[lane].runner.writing
        await self.edits.drop_baselines(result)
        written = [target for target in result.readings if self.observed.group(target) in writing]
        self.observed.learn(lane, result, written)
        self.observed.counters["drift_repairs"] = sum(queue.runner.drift.total for queue in self.lanes.values())
        writing.clear()
        self.observed.publish(lane, result, ", ".join(dict.fromkeys(request.cause for request in requests)))


def stopping() -> Failed:
    """Return the error for edits that come too late."""
    return Failed("kerntuned is stopping", "Try again when it has started")
