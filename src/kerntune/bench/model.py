"""The nouns of a measurement, as frozen values; this module measures nothing and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kerntune.run.shield import Shield


class Verdict(StrEnum):
    """The verdict on a leg; the values are the words in JSON."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "~"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Change:
    """The difference of the runs "after": settings as typed, a profile, and what the process gets."""

    settings: tuple[str, ...] = ()
    profile: str = ""
    shield: Shield = field(default_factory=Shield)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run in a fresh process: the compared seconds, and figures by name, whose names end in their units.

    For a read from disk `cold` is the proof that nothing of the file was in memory. It is "blocks read", "not in the
    page cache", or "" where there is none. `trouble` says what makes the run useless.
    """

    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    cold: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """Three runs in random order: before, after, and before once more, the control (None without one)."""

    before: Sample
    after: Sample
    control: Sample | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A moment at which the pairs may be judged: the number of pairs, and the chance of a false verdict (`alpha`)."""

    pairs: int
    alpha: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of after / before over the pairs, and its interval: from 0 to infinity where pairs are too few."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Looked:
    """A look that was taken: the estimate of the pairs, and of the control at the same confidence."""

    look: Look
    effect: Estimate
    control: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """The measurement of one workload; `reason` says why it is invalid, or why it is not another verdict.

    `detectable` is the smallest gain that this run would have found in 80 of 100 cases; 0.1 is 10 % less time. It is
    None where it cannot be computed.
    """

    name: str
    what: str
    rounds: tuple[Round, ...]
    looks: tuple[Looked, ...]
    verdict: Verdict
    reason: str = ""
    detectable: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole result of a `kerntune bench`: the change, each leg, and the place of the measurement."""

    change: Change
    legs: tuple[Leg, ...]
    environment: Mapping[str, object]
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    date: str = ""
