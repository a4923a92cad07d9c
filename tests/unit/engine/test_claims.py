"""The claim book: edits are data, and applying them again without a failed one is safe."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kerntune.engine.claims import ClaimBook, Edit
from kerntune.model import Claim, Origin
from tests.unit.lab import claim

RUNTIME = claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", seq=5)


def test_the_same_identity_is_replaced() -> None:
    newer = replace(RUNTIME, value="bfq", seq=6)
    book = ClaimBook.of(RUNTIME).apply(Edit(7, put=(newer,)))
    assert dict(book.claims) == {RUNTIME.id: newer}


def test_another_origin_is_another_claim() -> None:
    persistent = replace(RUNTIME, origin=Origin.PERSISTENT, seq=6)
    book = ClaimBook.of(RUNTIME).apply(Edit(7, put=(persistent,)))
    assert book.by_origin(Origin.RUNTIME) == (RUNTIME,)
    assert book.by_origin(Origin.PERSISTENT) == (persistent,)
    assert book.by_origin(Origin.HOLD) == ()


def test_dropping() -> None:
    assert not ClaimBook.of(RUNTIME).apply(Edit(6, drop=(RUNTIME.id,))).claims
    other = claim(Origin.RUNTIME, "io-scheduler", "sda", "none")
    assert ClaimBook.of(RUNTIME).apply(Edit(6, drop=(other.id,))).claims == {RUNTIME.id: RUNTIME}


def test_an_edit_does_not_touch_what_is_newer() -> None:
    book = ClaimBook.of(RUNTIME)
    assert book.apply(Edit(4, drop=(RUNTIME.id,))).claims == {RUNTIME.id: RUNTIME}
    assert book.apply(Edit(4, put=(replace(RUNTIME, value="bfq", seq=3),))).claims == {RUNTIME.id: RUNTIME}


def test_an_edit_leaves_the_book_before_it_alone() -> None:
    book = ClaimBook.of(RUNTIME)
    book.apply(Edit(9, drop=(RUNTIME.id,)))
    assert RUNTIME.id in book.claims


def test_without() -> None:
    other = claim(Origin.PERSISTENT, "overcommit", "", "always")
    assert dict(ClaimBook.of(RUNTIME, other).without([RUNTIME]).claims) == {other.id: other}


def test_the_same_but_for_the_sequence() -> None:
    book = ClaimBook.of(RUNTIME)
    assert book.same_as(ClaimBook.of(replace(RUNTIME, seq=99)))
    for other in (
        replace(RUNTIME, value="bfq"),
        replace(RUNTIME, origin=Origin.PERSISTENT),
        replace(RUNTIME, partial=True),
        replace(RUNTIME, instances="*"),
    ):
        assert not book.same_as(ClaimBook.of(other))
    assert not book.same_as(ClaimBook())
    assert not book.same_as(ClaimBook.of(RUNTIME, claim(Origin.RUNTIME, "overcommit", "", "always")))


names = st.sampled_from(["a", "b", "c"])
edits = st.lists(st.tuples(st.booleans(), names, st.sampled_from(["none", "bfq"])), max_size=12)


def numbered(rows: list[tuple[bool, str, str]]) -> list[Edit]:
    """Edits in the order in which they were made, each with its place."""
    found = []
    for seq, (put, at, value) in enumerate(rows, 1):
        one = Claim(Origin.RUNTIME, "io-scheduler", at, value, seq=2 * seq)
        found.append(Edit(2 * seq + 1, put=(one,)) if put else Edit(2 * seq + 1, drop=(one.id,)))
    return found


@given(edits)
def test_applying_an_edit_twice_is_applying_it_once(rows: list[tuple[bool, str, str]]) -> None:
    book = ClaimBook()
    for edit in numbered(rows):
        book = book.apply(edit)
        assert book.apply(edit) == book


@given(edits, st.randoms())
def test_edits_that_put_may_be_committed_in_any_order(rows: list[tuple[bool, str, str]], random: object) -> None:
    """A lane that is slower commits later, and must not bring back an older value."""
    puts = numbered([(True, at, value) for _, at, value in rows])
    shuffled = list(puts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as object
    one, other = ClaimBook(), ClaimBook()
    for edit in puts:
        one = one.apply(edit)
    for edit in shuffled:
        other = other.apply(edit)
    assert dict(one.claims) == dict(other.claims)


def test_claims_beside_those_it_has() -> None:
    own, other = claim(Origin.CONFIG, "io-scheduler", "*", "bfq"), claim(Origin.CONFIG, "overcommit", "", "always")
    assert ClaimBook.of(RUNTIME).having([own, other]).claims == {c.id: c for c in (RUNTIME, own, other)}
    assert ClaimBook.of(RUNTIME).having([]) == ClaimBook.of(RUNTIME)
