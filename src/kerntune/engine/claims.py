"""The claim book: who wants what. Pure; an edit is data, so that it can be applied again without a failed one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from kerntune.model import Claim, ClaimId, Origin


@dataclass(frozen=True, slots=True)
class Edit:
    """Claims to put and claims to drop; `seq` is the place of the edit among all edits."""

    seq: int = 0
    put: tuple[Claim, ...] = ()
    drop: tuple[ClaimId, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimBook:
    """Every claim there is, by its identity."""

    claims: Mapping[ClaimId, Claim] = field(default_factory=dict)

    @classmethod
    def of(cls, *claims: Claim) -> ClaimBook:
        return cls({claim.id: claim for claim in claims})

    def apply(self, edit: Edit) -> ClaimBook:
        """The book after the edit. A claim that is newer than the edit is neither dropped nor replaced by it."""
        book = dict(self.claims)
        for claim_id in edit.drop:
            if claim_id in book and book[claim_id].seq < edit.seq:
                del book[claim_id]
        for claim in edit.put:
            if claim.id not in book or book[claim.id].seq < claim.seq:
                book[claim.id] = claim
        return ClaimBook(book)

    def having(self, claims: Iterable[Claim]) -> ClaimBook:
        """The book with these beside those it has."""
        return ClaimBook({**self.claims, **{claim.id: claim for claim in claims}})

    def without(self, claims: Iterable[Claim]) -> ClaimBook:
        gone = {claim.id for claim in claims}
        return ClaimBook({claim_id: claim for claim_id, claim in self.claims.items() if claim_id not in gone})

    def by_origin(self, origin: Origin) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims.values() if claim.origin is origin)

    def same_as(self, other: ClaimBook) -> bool:
        """Whether the books differ in nothing but sequence numbers."""
        return self.claims.keys() == other.claims.keys() and all(
            replace(claim, seq=0) == replace(other.claims[claim_id], seq=0) for claim_id, claim in self.claims.items()
        )
