"""The switch of `bench`, which changes the host by a hold of the daemon for each run; and the reach of the change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from kerntune import syntax
from kerntune.api.document import Outcome, named
from kerntune.bench.model import Change
from kerntune.cli.remote import Manager
from kerntune.errors import Failed
from kerntune.holding import hold
from kerntune.model import Setting, State
from kerntune.patterns import HUGE_PAGES
from kerntune.run import allocator
from kerntune.units import parse_size

WHO: Final = "kerntune bench"
WHY: Final = "compare before and after"


class Reach(NamedTuple):
    """The reach of a change: its settings, one by one, and the bytes of huge pages that it adds.

    `default` is the host's own size of huge pages, which glibc takes.
    """

    settings: tuple[Setting, ...] = ()
    pool: int = 0
    default: int = 0

    @property
    def tunables(self) -> tuple[str, ...]:
        """The names of the tunables."""
        return tuple(dict.fromkeys(setting.tunable for setting in self.settings))

    @property
    def malloc(self) -> int:
        """The value of glibc.malloc.hugetlb after the change, or 0 for none."""
        return allocator.hugetlb(self.spelled, self.default)

    @property
    def page_size(self) -> int:
        """The bytes of a page of the pool that malloc takes from, 0 for none."""
        sizes = {allocator.TRANSPARENT: 0, allocator.DEFAULT_SIZE: self.default}
        return sizes.get(self.malloc, self.malloc)

    @property
    def spelled(self) -> Iterator[str]:
        """The settings as on the command line."""
        return (f"{named(each.tunable, each.instances)}={each.value}" for each in self.settings)


class Nothing:
    """The switch of a change in which the daemon has no part."""

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        yield

    async def values(self) -> Mapping[str, str]:
        return {}


class Holds:
    """The switch that has the daemon change the host, by a hold for each run."""

    def __init__(self, manager: Manager, change: Change) -> None:
        self._manager, self._change = manager, change
        self._targets: frozenset[tuple[str, str]] = frozenset()

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        change = self._change
        async with hold(*change.settings, who=WHO, why=WHY, profile=change.profile) as held:
            try:
                self._targets = frozenset(checked(held.outcomes, is_profile=bool(change.profile)))
                yield
            finally:
                # The end of the block does not say when no daemon is there to put the values back.
                await held.release()

    async def values(self) -> Mapping[str, str]:
        rows = self._manager.describe()["targets"]
        found = {(row["tunable"], row["instance"]): row["value"] or "" for row in rows}
        return {named(*target): found.get(target, "") for target in sorted(self._targets)}


def reach_of(manager: Manager, change: Change) -> Reach:
    """Return the reach of a change, before anything is changed. Raise the error of a wrong setting or profile."""
    described = manager.describe()["host"]
    if described["simulated"] or described["root"] != "/":
        raise Failed(
            "kerntuned tunes another host than this one, on which nothing would be different",
            "Start it as root on the host itself, without --demo and --root",
        )
    default = described["default_page_size"]
    asked = [syntax.setting(text) for text in change.settings]
    if change.profile:
        planned = manager.plan([], {"profile": change.profile}).outcomes
        there = [row for row in planned if row.state != State.UNSUPPORTED]
        asked += [Setting(row.tunable, row.instance, row.requested) for row in there]
    pool = sum(_bytes(each, default) for each in asked if each.tunable in HUGE_PAGES)
    return Reach(tuple(asked), pool, default)


def _bytes(pool: Setting, default_page_size: int) -> int:
    """Return the bytes of huge pages that a setting asks for; the daemon judges a setting that asks for none."""
    if pool.value.isdecimal():
        return int(pool.value) * (parse_size(pool.instances.partition("/")[0]) or default_page_size)
    return parse_size(pool.value) or 0


def checked(outcomes: Sequence[Outcome], *, is_profile: bool) -> Iterator[tuple[str, str]]:
    """Yield the targets that a hold has changed. Raise Failed where one is not as asked: nothing would be compared."""
    for outcome in outcomes:
        if outcome.state == State.SATISFIED:
            yield outcome.tunable, outcome.instance
        elif not (is_profile and outcome.state == State.UNSUPPORTED):  # a profile is for many hosts
            what = f"{named(outcome.tunable, outcome.instance)} is {outcome.actual or 'not there'}: {outcome.state}"
            raise Failed(f"{what}, {outcome.detail}" if outcome.detail else what, "Without it nothing is compared")
