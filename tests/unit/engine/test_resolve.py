"""Desired state as a function of the claims: who wins, in whatever order they came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kerntune.engine.resolve import cover, resolve, unmatched
from kerntune.model import Claim, Origin, Target
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import claim

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
def test_any_order_of_the_same_claims_gives_the_same_wishes(
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
def test_a_claim_is_either_in_a_wish_or_unmatched(claims: list[Claim]) -> None:
    desired_states = resolve(SCHEDULERS, claims, {}, DRIVES).values()
    heard = {claim for desired in desired_states for claim in (desired.winner, *desired.overridden)}
    left = set(unmatched(cover(SCHEDULERS, claims, DRIVES)))
    assert heard | left == set(claims)
    assert not heard & left
