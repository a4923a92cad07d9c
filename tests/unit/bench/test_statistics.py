"""What pairs prove: intervals that are exact, looks that were planned, and the least gain that could be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest

from kerntune.bench import statistics
from kerntune.bench.model import Estimate, Look, Round, Sample, Verdict
from kerntune.errors import Usage

EXPERIMENTS = 1000
LOOKS = statistics.planned(None)
Noise = Callable[[Random], float]  # the logarithm of what a run takes, beside 0


def even(random: Random) -> float:
    """A quiet machine: 10 % up and down."""
    return random.gauss(0, 0.1)


def wild(random: Random) -> float:
    """A machine with others on it: one run in ten takes much longer."""
    return random.gauss(0, 0.1) + (random.expovariate(2) if random.random() < 0.1 else 0.0)


def heavy(random: Random) -> float:
    """Tails as of Student's t with 3 degrees of freedom."""
    chi = sum(random.gauss(0, 1) ** 2 for _ in range(3))
    return 0.1 * random.gauss(0, 1) / math.sqrt(chi / 3)


NOISES: Sequence[Noise] = (even, wild, heavy)


def experiment(
    random: Random, noise: Noise, looks: Sequence[Look] = LOOKS, *, effect: float = 0.0, has_control: bool = True
) -> Verdict:
    """Run to a verdict; the machine becomes slower and faster meanwhile, by the hour and not by the run."""
    rounds: list[Round] = []
    drift = 0.0
    while True:
        drift += random.gauss(0, 0.05)
        logs = [drift + noise(random) for _ in range(3)]
        before, after, control = (Sample(math.exp(log)) for log in (logs[0], logs[1] + effect, logs[2]))
        rounds.append(Round(before, after, control if has_control else None))
        if conclusion := statistics.conclude(looks, rounds):
            return conclusion.verdict


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("has_control", [True, False])
def test_of_a_thousand_changes_without_an_effect_few_are_called_one(noise: Noise, has_control: bool) -> None:
    random = Random(1)
    found = [experiment(random, noise, has_control=has_control) for _ in range(EXPERIMENTS)]
    assert sum(verdict != Verdict.SAME for verdict in found) <= 0.05 * EXPERIMENTS


@pytest.mark.parametrize("pairs", [6, 10, 25])
def test_one_look_is_no_worse(pairs: int) -> None:
    random, looks = Random(2), statistics.planned(pairs)
    found = [experiment(random, wild, looks, has_control=False) for _ in range(EXPERIMENTS)]
    assert sum(verdict != Verdict.SAME for verdict in found) <= 0.05 * EXPERIMENTS


def test_who_looks_after_each_pair_finds_what_is_not_there() -> None:
    """This is why looks are planned."""
    random, looks = Random(3), [Look(pairs, statistics.ALPHA) for pairs in range(6, 31)]
    found = [experiment(random, even, looks, has_control=False) for _ in range(EXPERIMENTS)]
    assert sum(verdict != Verdict.SAME for verdict in found) > 0.1 * EXPERIMENTS


@pytest.mark.parametrize("noise", [even, heavy])
def test_a_fifth_less_time_is_found_in_nine_of_ten(noise: Noise) -> None:
    random = Random(4)
    found = [experiment(random, noise, effect=math.log(0.8)) for _ in range(300)]
    assert found.count(Verdict.FASTER) >= 0.9 * 300
    assert Verdict.SLOWER not in found


def test_a_fifth_more_time_is_found_too() -> None:
    random = Random(5)
    found = [experiment(random, even, effect=math.log(1.25)) for _ in range(300)]
    assert found.count(Verdict.SLOWER) >= 0.9 * 300


def test_the_first_look_finds_what_is_large() -> None:
    random = Random(6)
    rounds = [Round(Sample(math.exp(even(random))), Sample(0.5 * math.exp(even(random)))) for _ in range(10)]
    assert statistics.conclude(LOOKS, rounds[:9]) is None
    assert statistics.conclude(LOOKS, rounds) == (Verdict.FASTER, "")


# Ranks of the sign test (Conover, Practical Nonparametric Statistics, 3rd edition, table A3), at 5 % and at a third.
@pytest.mark.parametrize(
    ("pairs", "whole", "third"),
    [(5, 0, 0), (6, 1, 0), (7, 1, 1), (8, 1, 1), (9, 2, 1), (10, 2, 1), (20, 6, 5), (30, 10, 9)],
)
def test_the_ranks_that_bound_a_median(pairs: int, whole: int, third: int) -> None:
    assert statistics.rank_of(pairs, 0.05) == whole
    assert statistics.rank_of(pairs, 0.05 / 3) == third


@pytest.mark.parametrize("pairs", range(1, 41))
def test_an_interval_is_as_short_as_its_chance_allows(pairs: int) -> None:
    """By counting: of all ways in which coins fall, those with fewer than `rank` on one side."""

    def missed(rank: int) -> float:
        return float(2 * sum(math.comb(pairs, count) for count in range(rank)) / 2**pairs)

    rank = statistics.rank_of(pairs, 0.05)
    assert missed(rank) <= 0.05 < missed(rank + 1)


def test_the_median_and_its_bounds() -> None:
    pairs = [(1.0, ratio) for ratio in (0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)]
    found = statistics.estimate(pairs, 0.05)
    assert found.low == pytest.approx(0.2)
    assert found.high == pytest.approx(0.9)
    assert found.ratio == pytest.approx(math.sqrt(0.5 * 0.6))


def test_before_and_after_exchanged_is_one_over_it() -> None:
    random = Random(7)
    pairs = [(math.exp(wild(random)), math.exp(wild(random))) for _ in range(13)]
    there, back = statistics.estimate(pairs, 0.05), statistics.estimate([(b, a) for a, b in pairs], 0.05)
    assert (back.ratio, back.low, back.high) == pytest.approx((1 / there.ratio, 1 / there.high, 1 / there.low))


def test_pairs_that_are_too_few_prove_nothing() -> None:
    found = statistics.estimate([(1.0, 0.1)] * 5, 0.05)
    assert found.ratio == pytest.approx(0.1)
    assert (found.low, found.high) == (0.0, math.inf)
    for pairs in (0, 5):
        with pytest.raises(Usage, match="prove nothing"):
            statistics.planned(pairs)
    with pytest.raises(Usage, match="too many"):
        statistics.planned(1001)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_times_that_are_none_are_not_compared(seconds: float) -> None:
    for pair in ((1.0, seconds), (seconds, 1.0)):
        with pytest.raises(ValueError, match="no times"):
            statistics.estimate([pair] * 6, 0.05)


@pytest.mark.parametrize(
    ("effect", "control", "verdict", "reason"),
    [
        ((0.5, 0.4, 0.6), (1.0, 0.9, 1.1), Verdict.FASTER, ""),
        ((2.0, 1.6, 2.4), (1.0, 0.9, 1.1), Verdict.SLOWER, ""),
        ((0.5, 0.4, 0.6), None, Verdict.FASTER, ""),
        ((0.5, 0.4, 1.0), None, Verdict.SAME, "the interval reaches 1"),
        ((0.98, 0.97, 0.99), None, Verdict.SAME, "the difference is less than 3%"),
        ((1.03, 1.02, 1.04), None, Verdict.SAME, "the difference is less than 3%"),
        ((0.9, 0.85, 0.95), (1.0, 0.89, 1.2), Verdict.SAME, "before differs as much from itself"),
        ((0.88, 0.85, 0.95), (1.0, 0.89, 1.2), Verdict.FASTER, ""),
        ((0.96, 0.95, 0.98), (0.9, 0.85, 0.94), Verdict.SAME, "before differs as much from itself"),
        ((1.05, 1.02, 1.08), (1.1, 1.06, 1.2), Verdict.SAME, "before differs as much from itself"),
    ],
)
def test_what_may_be_said(
    effect: tuple[float, float, float], control: tuple[float, float, float] | None, verdict: Verdict, reason: str
) -> None:
    found = statistics.verdict(Estimate(*effect), Estimate(*control) if control else None)
    assert found == (verdict, reason)


def test_a_look_takes_its_own_pairs_only() -> None:
    early, late = Round(Sample(1.0), Sample(0.5), Sample(1.0)), Round(Sample(1.0), Sample(2.0), Sample(1.0))
    looks = statistics.taken(LOOKS, [early] * 10 + [late] * 15)
    assert [looked.effect.ratio for looked in looks] == [pytest.approx(0.5), pytest.approx(1.0)]
    assert all(looked.control == Estimate(1.0, 1.0, 1.0) for looked in looks)
    assert statistics.taken(LOOKS, [early] * 9) == ()
    with pytest.raises(ValueError, match="10 pairs"):
        statistics.look_at(LOOKS[0], [early] * 9)


def test_a_control_that_is_not_in_every_round_is_none() -> None:
    bare, whole = Round(Sample(1.0), Sample(0.5)), Round(Sample(1.0), Sample(0.5), Sample(1.0))
    assert statistics.look_at(LOOKS[0], [bare, *[whole] * 9]).control is None
    assert statistics.detectable([bare, *[whole] * 9], LOOKS, Random(16)) is None


def noisy(noise: Noise, count: int, seed: int) -> list[Round]:
    random = Random(seed)
    return [Round(*(Sample(math.exp(noise(random))) for _ in range(3))) for _ in range(count)]


def test_what_is_called_detectable_is_found_so_often() -> None:
    rounds = noisy(even, 200, 8)
    gain = statistics.detectable(rounds, LOOKS, Random(9))
    assert gain is not None
    random = Random(10)
    found = [experiment(random, even, effect=math.log1p(-gain)) for _ in range(400)]
    assert 0.7 <= found.count(Verdict.FASTER) / 400 <= 0.95


def test_more_noise_hides_more() -> None:
    deep = [lambda random: random.gauss(0, 0.05), lambda random: random.gauss(0, 0.3)]
    quiet, loud = (statistics.detectable(noisy(noise, 30, 11), LOOKS, Random(12)) for noise in deep)
    assert quiet is not None
    assert loud is not None
    assert 0.03 < quiet < loud / 2


def test_what_cannot_be_told_is_not() -> None:
    assert statistics.detectable([Round(Sample(1.0), Sample(1.0))] * 10, LOOKS, Random(13)) is None
    assert statistics.detectable(noisy(lambda random: random.gauss(0, 5), 10, 14), LOOKS, Random(15)) is None


def test_which_run_of_the_control_was_slower_does_not_matter() -> None:
    there = [Round(Sample(1.0), Sample(1.0), Sample(1.0 + each / 50)) for each in range(10)]
    back = [Round(each.control or each.before, each.after, each.before) for each in there]
    gains = [statistics.detectable(rounds, LOOKS, Random(17)) for rounds in (there, back)]
    assert None not in gains
    assert gains[0] == pytest.approx(gains[1], abs=0.02)


def test_a_quiet_machine_shows_the_least_gain_that_counts() -> None:
    quiet = [Round(Sample(1.0), Sample(1.0), Sample(1.0))] * 10
    assert statistics.detectable(quiet, LOOKS, Random(18)) == statistics.LEAST
    # Five pairs prove nothing, however quiet it is.
    assert statistics.detectable(quiet, (Look(5, 0.05),), Random(18)) is None
