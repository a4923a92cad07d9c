"""Claims: edits are data, and applying them again without a failed one is safe."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kerntune.engine.claims import Claims, Edit
from kerntune.model import Claim, Origin
from tests.unit.lab import claim

RUNTIME = claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", seq=5)


def test_the_same_identity_is_replaced() -> None:
    newer = replace(RUNTIME, value="bfq", seq=6)
    claims = Claims.of(RUNTIME).apply(Edit(7, put=(newer,)))
    assert dict(claims.by_id) == {RUNTIME.id: newer}


def test_another_origin_is_another_claim() -> None:
    persistent = replace(RUNTIME, origin=Origin.PERSISTENT, seq=6)
    claims = Claims.of(RUNTIME).apply(Edit(7, put=(persistent,)))
    assert claims.by_origin(Origin.RUNTIME) == (RUNTIME,)
    assert claims.by_origin(Origin.PERSISTENT) == (persistent,)
    assert claims.by_origin(Origin.HOLD) == ()


def test_dropping() -> None:
    assert not Claims.of(RUNTIME).apply(Edit(6, drop=(RUNTIME.id,))).by_id
    other = claim(Origin.RUNTIME, "io-scheduler", "sda", "none")
    assert Claims.of(RUNTIME).apply(Edit(6, drop=(other.id,))).by_id == {RUNTIME.id: RUNTIME}


def test_an_edit_does_not_touch_what_is_newer() -> None:
    claims = Claims.of(RUNTIME)
    assert claims.apply(Edit(4, drop=(RUNTIME.id,))).by_id == {RUNTIME.id: RUNTIME}
    assert claims.apply(Edit(4, put=(replace(RUNTIME, value="bfq", seq=3),))).by_id == {RUNTIME.id: RUNTIME}


def test_an_edit_leaves_the_book_before_it_alone() -> None:
    claims = Claims.of(RUNTIME)
    claims.apply(Edit(9, drop=(RUNTIME.id,)))
    assert RUNTIME.id in claims.by_id


def test_without() -> None:
    other = claim(Origin.PERSISTENT, "overcommit", "", "always")
    assert dict(Claims.of(RUNTIME, other).without([RUNTIME]).by_id) == {other.id: other}


def test_the_same_but_for_the_sequence() -> None:
    claims = Claims.of(RUNTIME)
    assert claims.same_as(Claims.of(replace(RUNTIME, seq=99)))
    for other in (
        replace(RUNTIME, value="bfq"),
        replace(RUNTIME, origin=Origin.PERSISTENT),
        replace(RUNTIME, partial=True),
        replace(RUNTIME, instances="*"),
    ):
        assert not claims.same_as(Claims.of(other))
    assert not claims.same_as(Claims())
    assert not claims.same_as(Claims.of(RUNTIME, claim(Origin.RUNTIME, "overcommit", "", "always")))


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
    claims = Claims()
    for edit in numbered(rows):
        claims = claims.apply(edit)
        assert claims.apply(edit) == claims


@given(edits, st.randoms())
def test_edits_that_put_may_be_committed_in_any_order(rows: list[tuple[bool, str, str]], random: object) -> None:
    """A lane that is slower commits later, and must not bring back an older value."""
    puts = numbered([(True, at, value) for _, at, value in rows])
    shuffled = list(puts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as object
    one, other = Claims(), Claims()
    for edit in puts:
        one = one.apply(edit)
    for edit in shuffled:
        other = other.apply(edit)
    assert dict(one.by_id) == dict(other.by_id)


def test_claims_beside_those_it_has() -> None:
    own, other = claim(Origin.CONFIG, "io-scheduler", "*", "bfq"), claim(Origin.CONFIG, "overcommit", "", "always")
    assert Claims.of(RUNTIME).having([own, other]).by_id == {c.id: c for c in (RUNTIME, own, other)}
    assert Claims.of(RUNTIME).having([]) == Claims.of(RUNTIME)
