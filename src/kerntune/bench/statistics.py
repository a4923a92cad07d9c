"""The proof in pairs of runs: an exact interval, a rule when to look, the least gain to be found. Pure.

The interval of a median rests on order statistics alone, so the shape of the noise does not matter (H. A. David and H.
N. Nagaraja, Order Statistics, 3rd edition, 7.1). Several looks share the chance of a false verdict (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from random import Random
from statistics import median
from typing import Final, NamedTuple

from kerntune.bench.model import Estimate, Look, Looked, Round, Verdict
from kerntune.errors import Usage

ALPHA: Final = 0.05  # chance of "faster" or "slower" where there is no difference
LOOKS: Final = (10, 20, 30)
FEWEST, MOST = 6, 1000  # pairs; with 5 of one sign the chance of that is 6.25 %
LEAST: Final = 0.03  # a smaller difference interests no user
POWER: Final = 0.8
GAINS: Final = tuple(percent / 100 for percent in range(1, 61))
SIMULATIONS: Final = 500  # so 80 % are known to 2 %

Pair = tuple[float, float]


class Conclusion(NamedTuple):
    """A verdict, and why it is not another one."""

    verdict: Verdict
    reason: str


def planned(pairs: int | None) -> tuple[Look, ...]:
    """Return the looks to take: one at this number of pairs, or three without a number. Raise Usage."""
    if pairs is None:
        return tuple(Look(count, ALPHA / len(LOOKS)) for count in LOOKS)
    if pairs < FEWEST:
        raise Usage(
            f"{pairs} pairs can prove nothing: by chance alone all of them go one way too often",
            f"Take {FEWEST} at least; 20 find a gain of 40 % in 99 of 100 cases",
        )
    if pairs > MOST:
        raise Usage(f"{pairs} pairs are too many", f"Take {MOST} at most; more find differences that do not matter")
    return (Look(pairs, ALPHA),)


def estimate(pairs: Sequence[Pair], alpha: float) -> Estimate:
    """Return the median of after / before, and an interval that misses the true one with a chance of at most `alpha`.

    Raise ValueError for times that are not positive and finite.
    """
    return _estimate(sorted(_logs(pairs)), alpha)


def _logs(pairs: Iterable[Pair]) -> list[float]:
    found = []
    for before, after in pairs:
        if not (0 < before < math.inf and 0 < after < math.inf):
            raise ValueError(f"{before} s and {after} s are no times that can be compared")
        found.append(math.log(after / before))
    return found


def _estimate(logs: Sequence[float], alpha: float) -> Estimate:
    """Return the estimate from sorted logarithms of ratios."""
    rank = rank_of(len(logs), alpha)
    low, high = (math.exp(logs[rank - 1]), math.exp(logs[-rank])) if rank else (0.0, math.inf)
    return Estimate(math.exp(median(logs)), low, high)


@cache
def rank_of(count: int, alpha: float) -> int:
    """Return the rank from either end of `count` sorted values that bounds the median; 0 where there is none.

    The chance that fewer than `rank` of `count` fair coins fall on one side is at most `alpha` (both sides together).
    """
    ways, rank = 1, 0  # ways to have fewer than `rank` + 1 of `count` coins on one side
    while rank < count // 2 and 2 * ways <= alpha * 2**count:
        rank += 1
        ways += math.comb(count, rank)
    return rank


def look_at(look: Look, rounds: Sequence[Round]) -> Looked:
    """Return the result of the look's pairs, the first of the rounds. Raise ValueError where there are fewer."""
    if len(rounds) < look.pairs:
        raise ValueError(f"a look at {look.pairs} pairs, of which there are {len(rounds)}")
    taken = rounds[: look.pairs]
    effect = estimate([(each.before.seconds, each.after.seconds) for each in taken], look.alpha)
    controls = [(each.before.seconds, each.control.seconds) for each in taken if each.control]
    return Looked(look, effect, estimate(controls, look.alpha) if len(controls) == len(taken) else None)


def verdict(effect: Estimate, control: Estimate | None) -> Conclusion:
    """Return the verdict that an estimate allows beside the estimate of the control."""
    if effect.low <= 1 <= effect.high:
        return Conclusion(Verdict.SAME, "the interval reaches 1")
    if 1 - LEAST < effect.ratio < 1 / (1 - LEAST):
        return Conclusion(Verdict.SAME, f"the difference is less than {LEAST:.0%}")
    is_faster = effect.ratio < 1
    # On the effect's own side: 0.96 is no gain where the control went to [0.85, 0.94].
    if control and not (effect.ratio < control.low if is_faster else effect.ratio > control.high):
        return Conclusion(Verdict.SAME, "before differs as much from itself")
    return Conclusion(Verdict.FASTER if is_faster else Verdict.SLOWER, "")


def conclude(looks: Sequence[Look], rounds: Sequence[Round]) -> Conclusion | None:
    """Return the verdict if a planned look has one, or was the last; None while more rounds are needed."""
    look = next((look for look in looks if look.pairs == len(rounds)), None)
    if look is None:
        return None
    looked = look_at(look, rounds)
    conclusion = verdict(looked.effect, looked.control)
    return conclusion if conclusion.verdict != Verdict.SAME or look == looks[-1] else None


def taken(looks: Sequence[Look], rounds: Sequence[Round]) -> tuple[Looked, ...]:
    """Return the looks for which there are enough rounds."""
    return tuple(look_at(look, rounds) for look in looks if look.pairs <= len(rounds))


def detectable(rounds: Sequence[Round], looks: Sequence[Look], random: Random) -> float | None:
    """Return the smallest gain that these looks find in 80 of 100 experiments with the noise of the control.

    The noise is drawn anew from the control's pairs, with either sign. Return None without a control, and where no gain
    up to 60 % is found so often.
    """
    if not rounds or not all(each.control for each in rounds):
        return None
    logs = _logs((each.before.seconds, each.control.seconds) for each in rounds if each.control)
    noise = [*logs, *(-log for log in logs)]
    experiments = [_simulated(noise, looks, random) for _ in range(SIMULATIONS)]
    low, high = 0, len(GAINS)
    while low < high:
        middle = (low + high) // 2
        if sum(_finds(looked, 1 - GAINS[middle]) for looked in experiments) >= POWER * SIMULATIONS:
            high = middle
        else:
            low = middle + 1
    return GAINS[low] if low < len(GAINS) else None


def _simulated(noise: Sequence[float], looks: Sequence[Look], random: Random) -> tuple[Looked, ...]:
    """Return the looks of an experiment without any effect."""
    effect, control = (random.choices(noise, k=looks[-1].pairs) for _ in range(2))
    return tuple(
        Looked(
            look,
            _estimate(sorted(effect[: look.pairs]), look.alpha),
            _estimate(sorted(control[: look.pairs]), look.alpha),
        )
        for look in looks
    )


def _finds(looked: Iterable[Looked], ratio: float) -> bool:
    """Return True if the experiment would have ended in "faster", had each run after taken `ratio` times as long."""
    found = (verdict(_times(each.effect, ratio), each.control).verdict for each in looked)
    return next((word for word in found if word != Verdict.SAME), Verdict.SAME) == Verdict.FASTER


def _times(effect: Estimate, ratio: float) -> Estimate:
    return Estimate(effect.ratio * ratio, effect.low * ratio, effect.high * ratio)
