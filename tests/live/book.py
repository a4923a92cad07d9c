"""What the claims must be by what was answered, worked out without the daemon's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations

Key = tuple[str, str]
"""A tunable and an instance."""

ORIGINS = ("runtime", "persistent")  # the stronger first


@dataclass(frozen=True, slots=True)
class Operation:
    """A Set or an Unset: (tunable, instances, value) each."""

    rows: tuple[tuple[str, str, str], ...]
    unset: bool
    persist: bool

    @property
    def origin(self) -> str:
        return "persistent" if self.persist else "runtime"


@dataclass(frozen=True, slots=True)
class Book:
    """The claims of a host with these targets, in the order in which they were made."""

    targets: tuple[Key, ...]
    claims: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def after(self, operation: Operation) -> Book:
        claims = dict(self.claims)
        for tunable, instances, value in operation.rows:
            if operation.unset:
                for claim in [claim for claim in claims if claim[:2] == (operation.origin, tunable)]:
                    if instances in ("*", claim[2]):
                        del claims[claim]
                continue
            if operation.persist:
                for claim in [claim for claim in claims if claim[:2] == ("runtime", tunable)]:
                    if claim[2] == instances or self.covered(tunable, claim[2]) & self.covered(tunable, instances):
                        del claims[claim]
            claims.pop((operation.origin, tunable, instances), None)
            claims[operation.origin, tunable, instances] = value
        return Book(self.targets, claims)

    def possible(self, unanswered: Sequence[Operation]) -> Iterator[Book]:
        """This book with each of the operations wholly in or wholly out; they touch different tunables."""
        for number in range(len(unanswered) + 1):
            for done in combinations(unanswered, number):
                book = self
                for operation in done:
                    book = book.after(operation)
                yield book

    def covered(self, tunable: str, instances: str) -> set[Key]:
        return {(name, it) for name, it in self.targets if name == tunable and fnmatchcase(it, instances)}

    def desired(self, target: Key) -> str | None:
        """The value of the strongest and newest claim on the target."""
        for origin in ORIGINS:
            for (of, tunable, instances), value in reversed(list(self.claims.items())):
                if of == origin and target in self.covered(tunable, instances):
                    return value
        return None

    def ids(self) -> dict[str, str]:
        """The claims as the daemon describes them."""
        return {
            f"{origin}:{tunable}" + (f"@{instances}" if instances else ""): value
            for (origin, tunable, instances), value in self.claims.items()
        }
