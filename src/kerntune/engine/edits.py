"""An edit from its beginning to its commit, and which targets it is about meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kerntune.engine.claims import Edit
from kerntune.engine.workers import PassRequest
from kerntune.model import Lane, Target
from kerntune.patterns import Matcher
from kerntune.tunables.base import Tunable


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
    """An edit that is in force but not yet committed. `changes` says whether it changes the claims.

    `earlier` are set when those that began before it, and share a lane with it, are over.
    """

    edit: Edit
    lanes: frozenset[Lane]
    named: Named
    requests: Mapping[Lane, PassRequest]
    changes: bool = False
    earlier: tuple[asyncio.Event, ...] = ()
    saving: bool = False  # from now on it is finished, whatever comes
    done: asyncio.Event = field(default_factory=asyncio.Event)
