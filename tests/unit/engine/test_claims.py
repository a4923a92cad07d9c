"""Claims: edits are data, and the desired state is a function of the claims, in whatever order they came."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kerntune.engine.claims import Claims, Edit, cover, resolve, unmatched
from kerntune.model import Claim, Origin, Target
from kerntune.tunables.knobs import IO_SCHEDULER
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


def test_an_edit_leaves_the_claims_before_it_alone() -> None:
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


def test_each_claim_of_an_edit_has_a_number_and_the_edit_the_highest() -> None:
    first, second = (claim(Origin.RUNTIME, "io-scheduler", at, "none", seq=0) for at in ("sda", "sdb"))
    edit = Edit(put=(first, second), drop=(RUNTIME.id,)).numbered(7)
    assert ([each.seq for each in edit.put], edit.seq) == ([8, 9], 10)
    assert list(Claims.of(RUNTIME).apply(edit).by_id) == [first.id, second.id]
    assert RUNTIME.id in Claims.of(replace(RUNTIME, seq=11)).apply(edit).by_id


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


# Who wins


SCHEDULERS = IO_SCHEDULER
DRIVES = tuple(Target("io-scheduler", name) for name in ("nvme0n1", "nvme1n1", "sda"))
FIRST = DRIVES[0]
PATTERNS = ("*", "nvme*", "nvme0n1", "nvme1n1", "sda", "sd?", "vd*")
ORIGINS = [origin for origin in Origin if origin is not Origin.BASELINE]


@st.composite
def many_claims(draw: st.DrawFn) -> list[Claim]:
    """Claims: each identity once, each with a place of its own."""
    ids = draw(st.lists(st.tuples(st.sampled_from(ORIGINS), st.sampled_from(PATTERNS)), unique=True, max_size=12))
    places = draw(st.permutations(range(len(ids))))
    values = draw(st.lists(st.sampled_from(["none", "bfq", "kyber"]), min_size=len(ids), max_size=len(ids)))
    return [
        claim(origin, "io-scheduler", pattern, value, seq=seq)
        for (origin, pattern), seq, value in zip(ids, places, values, strict=True)
    ]


baselines = st.dictionaries(st.sampled_from(DRIVES), st.sampled_from(["none", "mq-deadline"]))


@given(many_claims().flatmap(lambda claims: st.tuples(st.just(claims), st.permutations(claims))), baselines)
def test_any_order_of_the_same_claims_gives_the_same_desired_states(
    claims: tuple[list[Claim], list[Claim]], own: dict[Target, str]
) -> None:
    one, other = claims
    assert resolve(SCHEDULERS, one, own, DRIVES) == resolve(SCHEDULERS, other, own, DRIVES[::-1])


@given(many_claims(), baselines)
def test_the_winner_is_the_highest_origin_and_then_the_newest(claims: list[Claim], own: dict[Target, str]) -> None:
    desired_states = resolve(SCHEDULERS, claims, own, DRIVES)
    for target in DRIVES:
        asking = [claim for claim in claims if SCHEDULERS.matches(claim.instances, target)]
        if not asking:
            assert (target in desired_states) is (target in own)
            continue
        desired = desired_states[target]
        highest = max(claim.origin for claim in asking)
        newest = max(claim.seq for claim in asking if claim.origin is highest)
        assert (desired.winner.origin, desired.winner.seq, desired.value) == (highest, newest, desired.winner.value)
        assert {desired.winner, *desired.overridden} == set(asking)
        assert list(desired.overridden) == sorted(desired.overridden, key=lambda c: (-c.origin, -c.seq))


@given(many_claims(), st.sampled_from(DRIVES))
def test_a_target_that_appears_changes_nothing_for_the_others(claims: list[Claim], late: Target) -> None:
    before = resolve(SCHEDULERS, claims, {}, [target for target in DRIVES if target != late])
    after = resolve(SCHEDULERS, claims, {}, DRIVES)
    assert {target: desired for target, desired in after.items() if target != late} == before


def test_a_claim_of_another_tunable_says_nothing() -> None:
    assert resolve(SCHEDULERS, [claim(Origin.RUNTIME, "overcommit", "*", "always")], {}, DRIVES) == {}


def test_where_nobody_claims_the_baseline_is_desired() -> None:
    (desired,) = resolve(SCHEDULERS, [], {FIRST: "none"}, DRIVES).values()
    assert (desired.target, desired.value, desired.is_baseline, desired.strict) == (FIRST, "none", True, False)


def test_a_baseline_of_another_drive_of_that_name_is_not_desired() -> None:
    replaced = Target("io-scheduler", "nvme0n1", key="2")
    assert resolve(SCHEDULERS, [], {Target("io-scheduler", "nvme0n1", key="1"): "none"}, [replaced]) == {}


def test_strict_is_who_waits_and_allows_no_less() -> None:
    exact = claim(Origin.RUNTIME, "io-scheduler", "nvme0n1", "none")
    lenient = Claim(Origin.RUNTIME, "io-scheduler", "nvme1n1", "none", partial=True)
    unheard = claim(Origin.RUNTIME, "io-scheduler", "sda", "none")
    desired_states = resolve(SCHEDULERS, [exact, lenient, unheard], {}, DRIVES, strict={exact.id, lenient.id})
    assert [desired_states[target].strict for target in DRIVES] == [True, False, False]


@given(many_claims())
def test_a_claim_is_either_in_a_desired_state_or_unmatched(claims: list[Claim]) -> None:
    desired_states = resolve(SCHEDULERS, claims, {}, DRIVES).values()
    heard = {claim for desired in desired_states for claim in (desired.winner, *desired.overridden)}
    left = set(unmatched(cover(SCHEDULERS, claims, DRIVES)))
    assert heard | left == set(claims)
    assert not heard & left
