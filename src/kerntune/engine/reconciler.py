"""The one loop: edits in, passes of the lanes, outcomes out; the only place that decides when the kernel is written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from kerntune.engine.answers import Answer, outcomes_of
from kerntune.engine.claims import ClaimBook, Edit, FilesEdit
from kerntune.engine.guard import Guard
from kerntune.engine.lanes import LaneQueue, Ticket, merge
from kerntune.engine.ledger import Ledger, why_not_saved
from kerntune.engine.news import changed_since, news
from kerntune.engine.passes import Order, Result, Worker
from kerntune.engine.progress import Progress, of_its_own
from kerntune.engine.requests import Request, World, edit_for, sound
from kerntune.engine.threads import Threads
from kerntune.errors import Failed, KerntuneError, NoSuchTarget, NotSupported
from kerntune.kernel.files import Kernel
from kerntune.model import Claim, Lane, Limits, Memory, Outcome, Reading, Reason, Report, State, Target
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
REFRESH = 0.1  # seconds
TROUBLE = frozenset({State.FAILED, State.REFUSED, State.CONTESTED, State.PARTIAL})


@dataclass(slots=True)
class Pending:
    """An edit that is in force but not yet committed."""

    edit: Edit
    lanes: frozenset[Lane]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Reconciler:
    """Owns the claim book and what was last read; run `work()` beside everything else."""

    def __init__(
        self,
        kernel: Kernel,
        tunables: Sequence[Tunable],
        ledger: Ledger,
        *,
        limits: Limits | None = None,
        guard: Guard | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tunables = {tunable.name: tunable for tunable in tunables}
        self.limits, self.ledger, self.guard = limits or Limits(), ledger, guard
        self.readings: dict[Target, Reading] = {}
        self.outcomes: dict[Target, Outcome] = {}
        self.missing: dict[str, str] = {}
        self.memory: Memory | None = None
        self.generation = 0
        self._device_events = 0
        self.listeners: list[Callable[[Report], None]] = []
        self.unsound = [claim for claim in ledger.book.claims.values() if not sound(claim, self.tunables)]
        self.committed = ledger.book.without(self.unsound)
        self.configured: tuple[Claim, ...] = ()
        self._pending: list[Pending] = []
        self._ending = False
        seqs = [claim.seq for claim in self.committed.claims.values()]
        self._sequence = count(max(seqs, default=0) + 1)
        self._committing, self._refreshing = asyncio.Lock(), asyncio.Lock()
        self._clock = clock
        self._read_at: dict[Lane, float] = {}
        self.threads = Threads()
        self._lanes = {lane: self._lane(lane, kernel, clock) for lane in Lane}

    def _lane(self, lane: Lane, kernel: Kernel, clock: Callable[[], float]) -> LaneQueue:
        own = tuple(tunable for tunable in self.tunables.values() if tunable.lane is lane)
        worker = Worker(kernel, own, self.limits, self.threads.writers[lane], self.ledger.keep, self.guard, clock=clock)
        return LaneQueue(worker, self.threads.passes, self._order, partial(self._publish, lane))

    @property
    def book(self) -> ClaimBook:
        """The claims in force: those committed, configured and the guard's, with the edits that callers wait for."""
        if self._ending:
            return ClaimBook(choice=self.committed.choice)
        others = (*self.configured, *(self.guard.claims if self.guard else ()))
        book = self.committed.having(others) if others else self.committed
        for pending in self._pending:
            book = book.apply(pending.edit)
        return book

    @property
    def world(self) -> World:
        return World(self.tunables, self.readings, self.missing)

    @property
    def troubles(self) -> set[Reason]:
        """The reasons for which something that is managed is not as it should be."""
        return {outcome.reason for outcome in self.outcomes.values() if outcome.state in TROUBLE}

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been counted since the daemon started."""
        return {
            "hotplug_events": self._device_events,
            "drift_repairs": sum(queue.worker.drift.total for queue in self._lanes.values()),
            "guard_caps": self.guard.times_capped if self.guard else 0,
            "guard_refusals": self.guard.times_refused if self.guard else 0,
        }

    async def work(self) -> None:
        """One worker a lane, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane, queue in self._lanes.items():
                group.create_task(queue.work(), name=f"lane {lane}")

    async def settle(self, seconds: float) -> None:
        """Wait until no caller waits for an edit any more, but not longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pending:
                    await self._pending[0].done.wait()

    async def put_back(self, seconds: float) -> bool:
        """The host's own values, in one pass of every lane; whether it ended in time. No edit is taken any more.

        What is saved stays: the next start applies the claims again.
        """
        self._ending = True
        tickets = [Ticket("stop", enforce=True) for _ in self._lanes]
        for queue, ticket in zip(self._lanes.values(), tickets, strict=True):
            queue.put(ticket)
        _, late = await asyncio.wait([ticket.result for ticket in tickets], timeout=seconds)
        return not late

    async def observe(self) -> None:
        """Read everything, write nothing."""
        for result in await self._look(Order((), {}, dry=True), Lane):
            self._learn(result)

    async def refresh(self, lane: Lane) -> None:
        """Read a lane's targets again when that was done more than REFRESH seconds ago."""
        async with self._refreshing:
            if self._clock() - self._read_at.get(lane, -REFRESH) >= REFRESH:
                for result in await self._look(Order((), {}, dry=True), [lane]):
                    self._learn(result)
                self._read_at[lane] = self._clock()

    async def reconcile(self, cause: str, *, enforce: bool = False) -> None:
        """A pass of every lane; `enforce` also where drift would only be reported (at boot)."""
        await asyncio.gather(*(queue.result(Ticket(cause, enforce=enforce)) for queue in self._lanes.values()))

    def configure(self, claims: Sequence[Claim], limits: Limits) -> None:
        """What the configuration says from the next pass on; a pass that runs ends as it began.

        These claims are the files': no Ledger saves them, and no Unset withdraws them.
        """
        self.configured, self.limits = tuple(claims), limits
        for queue in self._lanes.values():
            queue.worker = replace(queue.worker, limits=limits)

    async def reload(self, claims: Sequence[Claim], limits: Limits) -> None:
        """Configure, and a pass that puts everything right that the configuration names, or has named until now."""
        # As with what is released, nobody waits for exactly these: less than asked is no error.
        named = {claim.id for claim in (*self.configured, *claims)}
        self.configure(claims, limits)
        tickets = [(queue, Ticket("reload", released=named)) for queue in self._lanes.values()]
        await asyncio.gather(*(queue.result(ticket) for queue, ticket in tickets))

    def announce(self, cause: str) -> None:
        """Tell the listeners that something beside the outcomes is different."""
        for listener in self.listeners:
            listener(Report(self.generation, cause, ()))

    def look_again(self, cause: str, lanes: Iterable[Lane] = Lane, *, events: int = 0) -> None:
        """Ask for a pass of these lanes and do not wait for it: something came, went, or may have changed.

        `events` of devices, which are counted, were the reason.
        """
        self._device_events += events
        for lane in lanes:
            self._lanes[lane].put(Ticket(cause))

    async def check(self, request: Request) -> Edit:
        """The edit that the request would be, or the error that refuses it; what is not there is looked for once."""
        try:
            return edit_for(request, self.world, self.book, self._sequence, self.limits)
        except (NoSuchTarget, NotSupported):
            await self.observe()
            return edit_for(request, self.world, self.book, self._sequence, self.limits)

    async def change(self, request: Request, cause: str, progress: Progress | None = None) -> Answer:
        """Carry out a request: the first pass that starts after it, commit, and what the kernel really did."""
        edit = await self.check(request)
        if len(edit.put) > 1 or (edit.put and Lane.MEMORY in self._lanes_of(edit)):
            # What can be foreseen (limits are memory's) refuses the call before any lane has written its part.
            outcomes_of(edit, self.tunables, await self._rehearse(edit), must_win=request.must_win)
            edit = await self.check(request)
        return await self.carry_out(edit, cause, progress, must_win=request.must_win)

    def choosing(self, files: FilesEdit, *, reset: bool = False) -> Edit:
        """The edit that makes the files' claims these; `reset`: and drops all that callers asked for."""
        return self.book.choosing(files, next(self._sequence), reset=reset)

    async def carry_out(
        self, edit: Edit, cause: str, progress: Progress | None = None, *, must_win: bool = False
    ) -> Answer:
        """An edit that was checked: a pass of its lanes, commit, and the outcomes.

        An error leaves no claim: the edit is withdrawn and its lanes run again before it is raised.
        """
        if self._ending:
            raise Failed("kerntuned is stopping, and puts the host's own values back", "Try again when it has started")
        lanes, before = self._lanes_of(edit), self.book
        pending = Pending(edit, lanes)
        earlier = [other for other in self._pending if other.lanes & lanes]
        self._pending.append(pending)
        changed = not before.same_as(before.apply(edit))
        # Of the files nobody waits for exactly these: as with what is released, less than asked is no error.
        released = {*edit.released, *(edit.named if edit.files else ())}
        told = of_its_own(edit, self.tunables, progress) if progress else None
        try:
            passes = [self._lanes[lane].result(Ticket(cause, released, progress=told)) for lane in lanes]
            results = await asyncio.gather(*passes)
            for other in earlier:
                await other.done.wait()
            result = merge(results)
            outcomes = outcomes_of(edit, self.tunables, result, must_win=must_win)
            await self._commit(pending)
        except KerntuneError:
            self._pending.remove(pending)
            pending.done.set()
            await self._again(lanes, f"{cause} withdrawn", edit)
            raise
        pending.done.set()
        wrote = bool({outcome.target for outcome in outcomes} & result.wrote)
        return Answer(changed or wrote, tuple(outcomes))

    async def plan(self, request: Request) -> Answer:
        """What `change` would do, limits included; writes nothing and waits for no lane."""
        return await self.foresee(await self.check(request))

    async def foresee(self, edit: Edit) -> Answer:
        """What `carry_out` would do."""
        book, result = self.book, await self._rehearse(edit)
        outcomes = outcomes_of(edit, self.tunables, result)
        would_write = bool({outcome.target for outcome in outcomes} & result.wrote)
        return Answer(would_write or not book.same_as(book.apply(edit)), tuple(outcomes))

    async def _rehearse(self, edit: Edit) -> Result:
        """A dry run of the lanes that an edit touches.

        A pass may be writing meanwhile for claims newer than these; that is no drift, and none is looked for.
        """
        claims = tuple(self.book.apply(edit).claims.values())
        named = frozenset(claim.id for claim in edit.put)
        order = Order(claims, dict(self.ledger.baselines), named, frozenset(edit.released), enforce=True, dry=True)
        return merge(await self._look(order, self._lanes_of(edit)))

    async def verify(self) -> tuple[Outcome, ...]:
        """Everything managed that is not satisfied, read again; changes nothing."""
        order = Order(tuple(self.book.claims.values()), dict(self.ledger.baselines), dry=True)
        result = merge(await self._look(order, Lane))
        now = [changed_since(outcome, self.outcomes.get(outcome.target)) for outcome in result.outcomes.values()]
        return tuple(outcome for outcome in now if outcome.state not in (State.SATISFIED, State.UNMANAGED))

    def _lanes_of(self, edit: Edit) -> frozenset[Lane]:
        if edit.files:
            return frozenset(Lane)
        names = {claim.tunable for claim in edit.put} | {claim_id.tunable for claim_id in edit.drop}
        return frozenset(self.tunables[name].lane for name in names)

    async def _commit(self, pending: Pending) -> None:
        """Save the edit, then count it as committed; one at a time, so that none is lost."""
        async with self._committing:
            book = self.committed.apply(pending.edit)
            if pending.edit.files:
                book = book.without_files()
            if not book.same_as(self.committed) or pending.edit.put:
                try:
                    await self.threads.save(self.ledger.commit, book)
                except OSError as error:
                    raise Failed(
                        f"the claim cannot be saved: {why_not_saved(error)}",
                        "It was withdrawn; free space there and try again",
                    ) from error
            self.committed = book
            if pending.edit.files:
                self.configured = pending.edit.files.claims
            self._pending.remove(pending)

    async def _again(self, lanes: Iterable[Lane], cause: str, edit: Edit) -> None:
        """After a withdrawal: what the edit had beaten comes into force again."""
        await asyncio.gather(*(self._lanes[lane].result(Ticket(cause, released=edit.named)) for lane in lanes))

    def _order(self, tickets: Sequence[Ticket]) -> Order:
        """What a pass works on that starts now for these callers."""
        return Order(
            tuple(self.book.claims.values()),
            dict(self.ledger.baselines),
            # Every caller who still waits, also those whose other lane is slower: theirs is all or nothing.
            frozenset(claim.id for pending in self._pending for claim in pending.edit.put),
            frozenset().union(*(ticket.released for ticket in tickets)),
            enforce=any(ticket.enforce for ticket in tickets),
        )

    def _gone(self, result: Result) -> set[Target]:
        """Baselines of devices that were replaced: another diskseq means that this one never comes back."""
        names = {target.tunable for target in result.readings}
        return {t for t in self.ledger.baselines if t.key and t.tunable in names and t not in result.readings}

    async def _look(self, order: Order, lanes: Iterable[Lane]) -> list[Result]:
        jobs = [self.threads.read(self._lanes[lane].worker.run, order) for lane in lanes]
        return list(await asyncio.gather(*jobs))

    def _learn(self, result: Result) -> None:
        """Take over what was read."""
        names = {target.tunable for target in result.readings} | result.missing.keys()
        self.readings = {t: r for t, r in self.readings.items() if t.tunable not in names} | result.readings
        self.missing = {n: why for n, why in self.missing.items() if n not in names} | result.missing
        self.missing = {name: why for name, why in self.missing.items() if why}
        self.memory = result.memory or self.memory

    async def _publish(self, lane: Lane, result: Result, tickets: Sequence[Ticket]) -> None:
        """Take over what a pass found, and tell everybody what is news."""
        if gone := self._gone(result) | result.restored:
            try:
                await self.threads.save(self.ledger.forget, gone)
            except OSError as error:
                # They stay wished, and the next pass tries again.
                log.error("baselines that were put back cannot be dropped: %s", error)
        self._learn(result)
        own = {name for name, tunable in self.tunables.items() if tunable.lane is lane}
        old = {t: o for t, o in self.outcomes.items() if t.tunable in own}
        managed = {t: o for t, o in result.outcomes.items() if o.state is not State.UNMANAGED}
        self.outcomes = {t: o for t, o in self.outcomes.items() if t.tunable not in own} | managed
        changed = news(old, result)
        if changed:
            self.generation += 1
        report = Report(self.generation, ", ".join(dict.fromkeys(t.cause for t in tickets)), tuple(changed))
        for listener in self.listeners:
            listener(report)
