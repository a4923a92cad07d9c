"""What patterns cost: a claim is parsed once for all targets, whatever its text names."""

from __future__ import annotations

import pytest

from kerntune import patterns
from kerntune.engine.answers import by_tunable, own_outcomes
from kerntune.engine.passes import Result
from kerntune.engine.resolve import resolve
from kerntune.globs import Glob
from kerntune.model import Origin, Reading, Target
from kerntune.tunables.knobs import CPU_GOVERNOR as GOVERNORS
from kerntune.tunables.knobs import IO_SCHEDULER as SCHEDULERS
from kerntune.units import CpuList
from tests.unit.lab import claim

POLICIES = [
    Target("cpu-governor", f"policy{n}", aliases=tuple(f"cpu{cpu}" for cpu in range(8 * n, 8 * n + 8)))
    for n in range(64)
]
DRIVES = [Target("io-scheduler", f"nvme{n}n1", aliases=(f"by-id/nvme-{n}",)) for n in range(64)]


class Counted:
    """Counts how often something is parsed."""

    def __init__(self, cls: type[CpuList] | type[Glob]) -> None:
        self.parse_text, self.times = cls.parse, 0

    def parse(self, text: str) -> object:
        self.times += 1
        return self.parse_text(text)


def test_a_cpu_list_is_parsed_once_for_all_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [",".join(map(str, range(n, n + 400, 7))) for n in range(300)]
    claims = [claim(Origin.RUNTIME, "cpu-governor", each, "performance", seq) for seq, each in enumerate(lists)]
    counted = Counted(CpuList)
    monkeypatch.setattr(patterns, "CpuList", counted)
    desired_states = resolve(GOVERNORS, claims, {}, POLICIES)
    assert len(desired_states) == len(POLICIES)
    assert counted.times == len(claims)


def test_a_glob_is_parsed_once_for_all_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [claim(Origin.RUNTIME, "io-scheduler", f"nvme{n}*", "none", n) for n in range(64)]
    counted = Counted(Glob)
    monkeypatch.setattr(patterns, "Glob", counted)
    resolve(SCHEDULERS, claims, {}, DRIVES)
    result = Result(readings={target: Reading(target, "none") for target in DRIVES})
    there = by_tunable(result)
    for each in claims:
        own_outcomes(each, SCHEDULERS, result, there)
    assert counted.times == 2 * len(claims)


def test_a_list_costs_what_its_text_costs() -> None:
    """The widest range there is, 40 times, is one range."""
    everything = CpuList.parse(",".join(["0-9999"] * 40))
    assert everything.spans == ((0, 9999),)
    assert GOVERNORS.normal("0-9999,5-9998,3") == "0-9999"
    assert GOVERNORS.matches("0-9999", POLICIES[-1])
