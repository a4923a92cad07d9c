"""The claims there are: who wants what. Pure; an edit is data, so that it can be applied again without a failed one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from kerntune.model import Claim, ClaimId, Hold, Origin

FILES: Final = frozenset({Origin.CONFIG, Origin.PROFILE})
SUSPENDED: Final = "config-suspended"
CALLERS: Final = frozenset({Origin.PERSISTENT, Origin.RUNTIME})


@dataclass(frozen=True, slots=True)
class Choice:
    """What callers chose of the files: a profile ("": none), or to suspend them all, the configuration included."""

    profile: str = ""
    suspended: bool = False

    @property
    def troubles(self) -> frozenset[str]:
        """The slugs that Degraded has of it."""
        return frozenset({SUSPENDED} if self.suspended else ())


NOTHING_CHOSEN: Final = Choice()


@dataclass(frozen=True, slots=True)
class Selection:
    """What a caller asks of the files and claims as a whole: another profile ("": none), or a reset.

    A reset drops all that callers asked for; with `baseline` it suspends the files too, with `holds` it ends all holds.
    """

    profile: str | None = None
    reset: bool = False
    baseline: bool = False
    holds: bool = False

    def chosen(self, before: Choice) -> Choice:
        """Return the choice after it. Naming a profile, or a reset to the files, ends their suspension."""
        profile = before.profile if self.profile is None else self.profile
        ends = self.reset or bool(self.profile)
        return Choice(profile, self.baseline or (before.suspended and not ends))


@dataclass(frozen=True, slots=True)
class FilesEdit:
    """All claims of the files from then on, and the choice that makes them so; `gone` are those that end with it.

    `told` are those whose outcomes the caller is answered, beside the targets of what goes.
    """

    claims: tuple[Claim, ...]
    choice: Choice
    told: tuple[Claim, ...] = ()
    gone: tuple[ClaimId, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """Claims to put and claims to drop; `seq` is the place of the edit among all edits.

    `hold` begins with the claims that are put, and the holds with the numbers in `ended` end: `drop` has their claims.
    `is_fact`: nobody asks for it, for these holds are over, whether or not that can be done or saved now.
    """

    seq: int = 0
    put: tuple[Claim, ...] = ()
    drop: tuple[ClaimId, ...] = ()
    files: FilesEdit | None = None
    hold: Hold | None = None
    ended: tuple[int, ...] = ()
    is_fact: bool = False

    @property
    def released(self) -> tuple[ClaimId, ...]:
        """The claims that go with it."""
        return (*self.drop, *(self.files.gone if self.files else ()))

    @property
    def named(self) -> frozenset[ClaimId]:
        """The claims that it puts."""
        return frozenset(claim.id for claim in (*self.put, *(self.files.claims if self.files else ())))


@dataclass(frozen=True, slots=True)
class Claims:
    """Every claim there is, by its identity, what was chosen of the files, and the holds by their numbers.

    `last_hold` is the highest number that a hold of this boot has had: none has it again.
    """

    by_id: Mapping[ClaimId, Claim] = field(default_factory=dict)
    choice: Choice = NOTHING_CHOSEN
    holds: Mapping[int, Hold] = field(default_factory=dict)
    last_hold: int = 0

    @classmethod
    def of(cls, *claims: Claim) -> Claims:
        return cls({claim.id: claim for claim in claims})

    def apply(self, edit: Edit) -> Claims:
        """Return the claims after the edit, which neither drops nor replaces a claim that is newer than itself."""
        by_id = dict(self.by_id)
        for claim_id in edit.drop:
            if claim_id in by_id and by_id[claim_id].seq < edit.seq:
                del by_id[claim_id]
        for claim in edit.put:
            if claim.id not in by_id or by_id[claim.id].seq < claim.seq:
                by_id[claim.id] = claim
        holds = {number: hold for number, hold in self.holds.items() if number not in edit.ended}
        if edit.hold:
            holds[edit.hold.number] = edit.hold
        after = replace(self, by_id=by_id, holds=holds, last_hold=max(self.last_hold, *holds, 0))
        if edit.files is None:
            return after
        others = {claim_id: claim for claim_id, claim in by_id.items() if claim_id.origin not in FILES}
        return replace(after, by_id=others, choice=edit.files.choice).having(edit.files.claims)

    def choosing(self, files: FilesEdit, seq: int, *, reset: bool, holds: bool = False) -> Edit:
        """Return the edit that replaces the claims of the files; `reset` also drops those of all callers.

        `holds`: and ends all holds.
        """
        kept = {claim.id for claim in files.claims}
        gone = tuple(claim_id for claim_id in self.by_id if claim_id.origin in FILES and claim_id not in kept)
        dropped = tuple(claim_id for claim_id in self.by_id if reset and claim_id.origin in CALLERS)
        ending = self.releasing(self.holds if holds else (), seq)
        return replace(ending, drop=(*dropped, *ending.drop), files=replace(files, gone=gone))

    def releasing(self, numbers: Collection[int], seq: int) -> Edit:
        """Return the edit that ends those of these holds that exist."""
        ended = tuple(number for number in numbers if number in self.holds)
        return Edit(seq, drop=tuple(claim_id for claim_id in self.by_id if claim_id.hold in ended), ended=ended)

    def without_files(self) -> Claims:
        """Return what is saved: the files keep their own claims."""
        return replace(self, by_id={i: claim for i, claim in self.by_id.items() if i.origin not in FILES})

    def having(self, claims: Iterable[Claim]) -> Claims:
        """Return these claims beside those there are."""
        return replace(self, by_id={**self.by_id, **{claim.id: claim for claim in claims}})

    def without(self, claims: Iterable[Claim]) -> Claims:
        gone = {claim.id for claim in claims}
        return replace(self, by_id={claim_id: claim for claim_id, claim in self.by_id.items() if claim_id not in gone})

    def by_origin(self, origin: Origin) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.by_id.values() if claim.origin is origin)

    def same_as(self, other: Claims) -> bool:
        """Return whether the claims differ in nothing but sequence numbers."""
        if (self.choice, self.holds) != (other.choice, other.holds) or self.by_id.keys() != other.by_id.keys():
            return False
        return all(replace(claim, seq=0) == replace(other.by_id[i], seq=0) for i, claim in self.by_id.items())
