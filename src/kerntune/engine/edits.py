"""The claims in force, each edit of them from its queue to its commit, and the baselines: the input of passes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Protocol, TypeVar

from kerntune.engine.claims import Claims, Edit, PassInput, StateStore, why_not_saved
from kerntune.engine.companion import Companion
from kerntune.engine.requests import sound
from kerntune.engine.results import Result
from kerntune.engine.workers import PassRequest
from kerntune.errors import Failed
from kerntune.model import Claim, ClaimId, Hold, Lane, Target
from kerntune.patterns import Matcher
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
Saved = TypeVar("Saved")


class Named:
    """The targets that an edit names. Each is compared with its patterns once, however often they are asked for."""

    def __init__(self, edit: Edit, tunables: Mapping[str, Tunable]) -> None:
        named = (*edit.named, *edit.released)
        self.ids = [claim_id for claim_id in named if claim_id.tunable in tunables]
        self._tunables = tunables
        self._known: dict[tuple[Target, tuple[str, ...]], bool] = {}

    @cached_property
    def _matchers(self) -> Mapping[str, Sequence[Matcher]]:
        found: dict[str, list[Matcher]] = {}
        for claim_id in self.ids:
            matcher = self._tunables[claim_id.tunable].matcher(claim_id.instances)
            found.setdefault(claim_id.tunable, []).append(matcher)
        return found

    def among(self, targets: Mapping[str, Sequence[Target]]) -> Iterator[Target]:
        """Yield those of the targets, which are given by their tunables, that the edit names."""
        for name, matchers in self._matchers.items():
            for target in targets.get(name, ()):
                # Names come and go while the target stays.
                key = target, target.aliases
                if key not in self._known:
                    self._known[key] = any(matches(target) for matches in matchers)
                if self._known[key]:
                    yield target

    def learn(self, targets: Mapping[str, Sequence[Target]]) -> None:
        """Compare all targets now: for many patterns that takes long, and is for another thread."""
        for _ in self.among(targets):
            pass


@dataclass(slots=True)
class Pending:
    """An edit that is in force but not yet committed, and the pass of each lane that it has asked for.

    `changes` says whether it changes the claims. `earlier` are the ends of the edits that began before it and share a
    lane with it.
    """

    edit: Edit
    named: Named
    requests: Mapping[Lane, PassRequest]
    changes: bool = False
    earlier: tuple[asyncio.Event, ...] = ()
    saving: bool = False  # from now on it is finished, whatever comes
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lanes(self) -> Collection[Lane]:
        return self.requests.keys()


class Save(Protocol):
    """Runs what writes to disk in a thread, one after the other."""

    def __call__(self, work: Callable[[Saved], None], what: Saved, /) -> Awaitable[None]: ...


class Edits:
    """The claims in force: committed, configured and the companion's, with the edits that callers wait for.

    It also drops baselines. Those that are of no use any more are hidden from passes until that has succeeded.

    An edit gets its numbers where it is queued (`begin`). Of two claims of one origin the newer wins, so a later edit
    wins over an earlier one, however long the check or the passes of either take.
    """

    def __init__(self, store: StateStore, tunables: Mapping[str, Tunable], companion: Companion, save: Save) -> None:
        self.store, self._companion, self._save = store, companion, save
        self.unsound = [claim for claim in store.claims.by_id.values() if not sound(claim, tunables)]
        self.committed = store.claims.without(self.unsound)
        self.configured: tuple[Claim, ...] = ()
        self.pending: list[Pending] = []
        self.version = 0  # another one after each change of the claims in force
        self.ended = False  # no claim is in force any more: what is committed is for the next start
        self.last = max((claim.seq for claim in self.committed.by_id.values()), default=0)  # the last number given
        self._holds = count(self.committed.last_hold + 1)
        self._committing = asyncio.Lock()
        self._spent: set[Target] = set()

    @property
    def claims(self) -> Claims:
        """The claims in force."""
        if self.ended:
            return Claims(choice=self.committed.choice)
        others = (*self.configured, *self._companion.claims)
        claims = self.committed.having(others) if others else self.committed
        for pending in self.pending:
            claims = claims.apply(pending.edit)
        return claims

    def configure(self, claims: Iterable[Claim]) -> None:
        """Have these claims of the files in force from now on."""
        self.configured = tuple(claims)
        self.version += 1

    def number_for_a_hold(self) -> int:
        """Return a number that no hold of this boot has had."""
        return next(self._holds)

    def foreseen(self, edit: Edit) -> Edit:
        """Return the edit with the numbers that it would get now."""
        return edit.numbered(self.last)

    def begin(self, edit: Edit, named: Named, requests: Mapping[Lane, PassRequest]) -> Pending:
        """Have the edit in force from now on."""
        before, edit = self.claims, edit.numbered(self.last)
        self.last = edit.seq
        pending = Pending(
            edit,
            named,
            requests,
            changes=not before.same_as(before.apply(edit)),
            earlier=tuple(other.done for other in self.pending if not requests.keys().isdisjoint(other.lanes)),
        )
        self.pending.append(pending)
        self.version += 1
        return pending

    def withdraw(self, pending: Pending) -> None:
        """Have the edit in force no more; one that is committed stays."""
        if pending in self.pending:
            self.pending.remove(pending)
            self.version += 1

    async def commit(self, pending: Pending) -> bool:
        """Save the edit, then count it as committed; one at a time, so that none is lost.

        Return whether holds have begun or ended with it.
        """
        async with self._committing:
            pending.saving = True
            if pending.edit.hold:
                pending.edit = replace(pending.edit, hold=granted(pending.edit.hold))
            claims = self.committed.apply(pending.edit)
            if pending.edit.files:
                claims = claims.without_files()
            if not claims.same_as(self.committed) or pending.edit.put:
                await self._save_edit(pending.edit, claims)
            before, self.committed = self.committed, claims
            if pending.edit.files:
                self.configured = pending.edit.files.claims
            self.pending.remove(pending)
        return claims.holds != before.holds

    async def _save_edit(self, edit: Edit, claims: Claims) -> None:
        try:
            await self._save(self.store.commit, claims)
        except (OSError, MemoryError, RuntimeError) as error:
            if edit.is_fact:
                log.error("that holds are over cannot be saved: %s", error or type(error).__name__)
            elif isinstance(error, OSError):
                raise not_saved(edit, error) from error
            else:
                raise

    async def drop_holds(self, numbers: Collection[int]) -> None:
        """Drop holds whose clients have gone before the boot pass, which makes it so.

        Where that cannot be saved now, the next commit saves it.
        """
        edit = self.foreseen(self.committed.releasing(numbers))
        self.last, self.committed = edit.seq, self.committed.apply(edit)
        self.version += 1
        try:
            await self._save(self.store.commit, self.committed)
        except OSError as error:
            log.error("that holds are over cannot be saved: %s", why_not_saved(error))

    def given(self, requests: Collection[PassRequest]) -> PassInput:
        """Return the input of a pass that starts now for these callers."""
        asking = (each.edit for each in self.pending if any(request in requests for request in each.requests.values()))
        return replace(
            self.looking(),
            # Every caller who still waits, also those whose other lane is slower: theirs is all or nothing.
            named=put_by(each.edit for each in self.pending),
            asking=put_by(asking),
            released=frozenset().union(*(request.released for request in requests)),
            enforce=any(request.enforce for request in requests),
            dry=False,
        )

    def looking(self) -> PassInput:
        """Return the input of a look: it shows what a pass would find."""
        claims, baselines = tuple(self.claims.by_id.values()), dict(self.store.baselines)
        return PassInput(
            claims, baselines, dry=True, spent=frozenset(self._spent), reserved=frozenset(self.store.reserved)
        )

    def foreseeing(self, edit: Edit, *, recalls: bool = False) -> PassInput:
        """Return the input of a dry run that shows what would become of an edit.

        A pass may be writing meanwhile for claims newer than these; that is no drift, and none is looked for.
        """
        named = put_by([edit])
        return replace(
            self.looking(),
            claims=tuple(self.claims.apply(edit).by_id.values()),
            named=named,
            asking=named,
            released=frozenset(edit.released),
            enforce=True,
            foresees=True,
            recalls=recalls,
        )

    async def drop_baselines(self, result: Result) -> None:
        """Drop the baselines that are of no use after a pass; where that fails a later pass does it."""
        # A target that is claimed again goes back to the same value.
        self._spent -= {target for target, desired in result.desired_states.items() if not desired.is_baseline}
        self._spent = (self._spent | self._gone(result) | result.restored) & self.store.baselines.keys()
        if not self._spent:
            return
        try:
            await self._save(self.store.drop_baselines, frozenset(self._spent))
        except (OSError, MemoryError, RuntimeError) as error:
            log.error("baselines that were put back cannot be dropped: %s", error or type(error).__name__)
        else:
            self._spent.clear()

    def _gone(self, result: Result) -> set[Target]:
        """Return the baselines of what was replaced: with another key, the former one never comes back.

        While a key cannot be read (the CPUs of every policy are offline), it may be the same one.
        """
        names = {target.tunable for target in result.readings}
        keyed = (t for t in self.store.baselines if t.key and t.tunable in names)
        return {t for t in keyed if t not in result.readings and replace(t, key="") not in result.readings}

    def being_set(self, targets: Mapping[str, Sequence[Target]]) -> Iterator[Target]:
        """Yield those of the targets, which are given by their tunables, that pending edits name."""
        for pending in self.pending:
            yield from pending.named.among(targets)


def put_by(edits: Iterable[Edit]) -> frozenset[ClaimId]:
    """Return the claims that edits put."""
    return frozenset(claim.id for edit in edits for claim in edit.put)


def granted(hold: Hold) -> Hold:
    """Return the hold with its time beginning now, whatever it has waited for before."""
    return replace(hold, since=time.time_ns() // 1000, ends_boottime=boottime() + hold.ttl if hold.ttl else 0)


def boottime() -> int:
    """Return CLOCK_BOOTTIME in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def not_saved(edit: Edit, error: OSError) -> Failed:
    """Return the error for the caller of an edit that cannot be saved."""
    if edit.put:
        what, left = "the claim cannot be saved", "It was withdrawn"
    else:
        what, left = "what was asked cannot be saved", "Nothing was changed"
    return Failed(f"{what}: {why_not_saved(error)}", f"{left}; free space there and try again")
