"""Reports as a measurement would make them, from a fixed seed: what the tests and a look in the browser show."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable

from kerntune.bench.model import Change, Estimate, Leg, Look, Looked, Report, Round, Sample, Verdict
from kerntune.run.shield import Shield

GIB = 1 << 30
HOSTILE = (
    "</style></title><script>alert(1)</script>",
    "\" onload='alert(1)' x=\"",
    "\x1b[31mred\x1b[0m\x07",
    "safe\u202egnp.exe\u2066",
    "bytes\udcff that are no text",
    "a" + "\u0301" * 500,
    "$\\frac{1}{0}$ %s {0} &lt;",
    "x" * 10_000,
    "line\none\r\n\ttwo",
)
ENVIRONMENT: dict[str, object] = {
    "kernel": "6.18.2-amd64",
    "cpu": "AMD EPYC 9654 96-Core Processor",
    "cpus": 2,
    "memory_bytes": 23 * GIB,
    "virtualisation": "QEMU Standard PC",
    "file_system": "ext4",
    "drives": ["vda"],
    "python": "3.11.2",
    "glibc": "2.36",
    "kerntune": "0.5.0",
    "settings": {
        "hugepages@2M": {"before": "0", "after": "600"},
        "read-ahead@vda": {"before": "128", "after": "4096"},
    },
}


def rounds_of(
    before: float,
    ratio: float,
    *,
    pairs: int = 20,
    noise: float = 0.05,
    seed: int = 1,
    was: dict[str, float] | None = None,
    now: dict[str, float] | None = None,
    cold: str = "",
) -> tuple[Round, ...]:
    """Rounds whose times scatter by `noise` around `before` and `ratio * before`."""
    chance = random.Random(seed)

    def run(middle: float, figures: dict[str, float]) -> Sample:
        seconds = middle * math.exp(chance.gauss(0, noise))
        some = {
            name: round(value * chance.uniform(0.98, 1.02))
            for name, value in figures.items()
            if value > 99 and name.endswith("faults")
        }
        times = {"user_seconds": seconds * 0.3, "system_seconds": seconds * 0.6}
        return Sample(seconds, {**times, **figures, **some}, cold)

    return tuple(
        Round(run(before, was or {}), run(before * ratio, now or {}), run(before, was or {})) for _ in range(pairs)
    )


def looks_of(rounds: Iterable[Round], *at: int) -> tuple[Looked, ...]:
    """Looks after so many pairs; the intervals are wide enough to look like real ones, and no more."""
    found = list(rounds)
    return tuple(
        Looked(
            Look(pairs, 0.05 / len(at)),
            estimate([one.after.seconds / one.before.seconds for one in found[:pairs]]),
            estimate([one.control.seconds / one.before.seconds for one in found[:pairs] if one.control]),
        )
        for pairs in at
    )


def estimate(ratios: list[float]) -> Estimate:
    kept = sorted(ratios)
    place = len(kept) // 4
    return Estimate(statistics.median(kept), kept[place], kept[-1 - place])


def faster() -> Leg:
    loaded = {"loaded_bytes": float(GIB)}
    rounds = rounds_of(
        0.566,
        0.51,
        was=loaded | {"minor_faults": 262_237, "major_faults": 0, "hugetlb_bytes": 0},
        now=loaded | {"minor_faults": 590, "major_faults": 0, "hugetlb_bytes": 1028 << 20},
    )
    what = "1 GiB read into memory that was allocated for it"
    return Leg("copy", what, rounds, looks_of(rounds, 10, 20), Verdict.FASTER, detectable=0.08)


def slower() -> Leg:
    figures = {"loaded_bytes": float(GIB), "read_bytes": float(GIB), "major_faults": 8_190}
    rounds = rounds_of(1.9, 1.31, noise=0.09, seed=2, was=figures, now=figures, cold="blocks read")
    looks = looks_of(rounds, 10, 20)
    return Leg("io", "1 GiB read from the disk, nothing of it in memory", rounds, looks, Verdict.SLOWER, detectable=0.1)


def same() -> Leg:
    figures = {"loaded_bytes": float(GIB), "minor_faults": 16_400, "file_pmd_bytes": 0}
    rounds = rounds_of(0.231, 1.004, noise=0.06, seed=3, pairs=30, was=figures, now=figures)
    return Leg(
        "mmap",
        "1 GiB mapped, and a byte of every page read",
        rounds,
        looks_of(rounds, 10, 20, 30),
        Verdict.SAME,
        reason="the interval holds 1",
        detectable=0.06,
        notes=("Huge pages of the pool never reach a file that is mapped.",),
    )


def invalid() -> Leg:
    rounds = list(rounds_of(2.4, 1.06, noise=0.2, seed=4, pairs=10))
    rounds[3] = Round(rounds[3].before, Sample(6.1, {}, "", "load was above the number of CPUs"), rounds[3].control)
    reason = "the huge pages were not used: 2 of 1 024 MiB lay on them"
    what = "python3 load.py --model /srv/models/llama"
    return Leg("cmd", what, tuple(rounds), looks_of(rounds, 10), Verdict.INVALID, reason=reason)


def latency() -> Leg:
    rounds = rounds_of(
        0.0031,
        0.04,
        noise=0.3,
        seed=5,
        was={"p50_seconds": 0.0029, "p90_seconds": 0.0112, "p99_seconds": 0.0353},
        now={"p50_seconds": 0.000053, "p90_seconds": 0.00009, "p99_seconds": 0.0113},
    )
    what = "a program that works 0.2 ms every 3 ms, beside 3 that never rest"
    return Leg("cpu", what, rounds, looks_of(rounds, 10, 20), Verdict.FASTER, detectable=0.2)


def report(*legs: Leg, notes: tuple[str, ...] = ()) -> Report:
    change = Change(("hugepages=600", "read-ahead@vda=4096"), "", Shield(frozenset({1}), 100))
    command = ("python3", "load.py", "--model", "/srv/models/llama")
    return Report(change, legs, ENVIRONMENT, notes, command, "2026-03-14 15:09:26 +0100")


def everything() -> Report:
    note = "A virtual machine: the host may have had the file in its memory."
    return report(faster(), same(), slower(), latency(), invalid(), notes=(note,))


def hostile() -> Report:
    """Every text is one that would do harm on a page that did not escape it."""
    legs = tuple(
        Leg(
            name,
            name,
            (Round(Sample(1.0, {name: 1.0}, name, name), Sample(0.5, {f"{name}_bytes": 1.0}), None),),
            (Looked(Look(1, 0.05), Estimate(0.5, 0, math.inf)),),
            verdict,
            name,
            None,
            (name,),
        )
        for name, verdict in zip(HOSTILE, [*Verdict, *Verdict, *Verdict], strict=False)
    )
    environment: dict[str, object] = {name: name for name in HOSTILE} | {"nested": {"list": list(HOSTILE)}}
    environment["settings"] = {name: {"before": name, "after": name} for name in HOSTILE}
    return Report(Change(HOSTILE, HOSTILE[0], Shield()), legs, environment, HOSTILE, HOSTILE, HOSTILE[0])


def odd(*times: tuple[float, float], look: Estimate | None = None, name: str = "copy") -> Report:
    """A report of one leg with these pairs, and nothing else known."""
    rounds = tuple(Round(Sample(before), Sample(after), Sample(before)) for before, after in times)
    looks = (Looked(Look(len(times), 0.05), look, look),) if look else ()
    return Report(Change(), (Leg(name, "", rounds, looks, Verdict.SAME),), {})
