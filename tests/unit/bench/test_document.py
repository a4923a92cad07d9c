"""The JSON of a report: what is in it, what every parser reads, and what it never gives away."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from kerntune.bench.model import Change, Estimate, Leg, Look, Looked, Report, Round, Sample, Verdict
from kerntune.bench.page import page
from kerntune.bench.report import document, without_command
from kerntune.run.shield import Shield
from tests.unit.bench import reports

SECRET = ("serve", "--token=hunter2", "/srv/private", "-x")


def strictly(found: dict[str, Any]) -> Any:
    """Read it back as the strictest of parsers would."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(json.dumps(found, allow_nan=False).encode(), parse_constant=refuse)


def test_a_report_has_every_sample_pair_and_look() -> None:
    control = Sample(2.1, {"minor_faults": 7})
    first = Round(Sample(2.0, {"minor_faults": 9}, "blocks read"), Sample(1.0, trouble="it was killed"), control)
    looked = Looked(Look(2, 0.05), Estimate(0.5, 0.4, 0.6), Estimate(1.0, 0.9, 1.1))
    leg = Leg("io", "a file", (first, Round(Sample(4.0), Sample(2.0))), (looked,), Verdict.FASTER, "", 0.1, ("a note",))
    change = Change(("hugepages=9",), "inference", Shield(frozenset({3, 1}), 100))
    found = document(Report(change, (leg,), {"cpus": 2}, ("general",), ("true",), "2026-03-14"))

    assert found == {
        "format": 1,
        "date": "2026-03-14",
        "command": ["true"],
        "after": {"settings": ["hugepages=9"], "profile": "inference", "slice_us": 100, "cpus": [1, 3]},
        "legs": [
            {
                "name": "io",
                "what": "a file",
                "before": [
                    {"seconds": 2.0, "cold": "blocks read", "trouble": "", "figures": {"minor_faults": 9}},
                    {"seconds": 4.0, "cold": "", "trouble": "", "figures": {}},
                ],
                "after": [
                    {"seconds": 1.0, "cold": "", "trouble": "it was killed", "figures": {}},
                    {"seconds": 2.0, "cold": "", "trouble": "", "figures": {}},
                ],
                "control": [{"seconds": 2.1, "cold": "", "trouble": "", "figures": {"minor_faults": 7}}],
                "pairs": [[2.0, 1.0], [4.0, 2.0]],
                "aa": [[2.0, 2.1]],
                "looks": [
                    {
                        "pairs": 2,
                        "alpha": 0.05,
                        "ratio": 0.5,
                        "low": 0.4,
                        "high": 0.6,
                        "control": {"ratio": 1.0, "low": 0.9, "high": 1.1},
                    }
                ],
                "verdict": "faster",
                "reason": "",
                "detectable": 0.1,
                "notes": ["a note"],
            }
        ],
        "environment": {"cpus": 2},
        "notes": ["general"],
    }
    assert strictly(found) == found


@pytest.mark.parametrize("report", [reports.everything(), reports.hostile(), reports.report()])
def test_it_is_the_same_once_it_was_read_back(report: Report) -> None:
    found = document(report)
    assert strictly(found) == found
    json.dumps(found, ensure_ascii=False).encode()  # raises for half of a surrogate pair


def test_what_is_no_finite_number_is_null() -> None:
    look = Estimate(math.nan, 0.0, math.inf)
    found = strictly(document(reports.odd((math.inf, math.nan), look=look)))
    (leg,) = found["legs"]
    assert leg["pairs"] == [[None, None]]
    assert leg["looks"][0] | {"control": None} == {
        "pairs": 1,
        "alpha": 0.05,
        "ratio": None,
        "low": 0.0,
        "high": None,
        "control": None,
    }


def test_a_look_without_a_control_says_so() -> None:
    leg = replace(reports.faster(), looks=(Looked(Look(5, 0.05), Estimate(0.5, 0.4, 0.6)),))
    assert document(reports.report(leg))["legs"][0]["looks"][0]["control"] is None


def test_the_environment_may_hold_values_of_any_type() -> None:
    environment = {"path": reports, "set": frozenset({2, 1}), "nested": {"list": (1, math.nan, None, True)}}
    found = strictly(document(Report(Change(), (), environment)))["environment"]
    assert found == {"path": str(reports), "set": [1, 2], "nested": {"list": [1, None, None, True]}}


def told(report: Report) -> Report:
    """The same, with the command wherever a measurement may come to speak of it."""
    said = f"{' '.join(SECRET)} ended with 1"
    sample = Sample(1.0, trouble="/srv/private is not there", cold=said)
    rounds = (Round(sample, sample, sample),)
    cmd = Leg("cmd", "serve with --token=hunter2", rounds, (), Verdict.INVALID, said, notes=(said,))
    environment = {"program": "serve", "nested": [{"words": list(SECRET)}], "cpus": 2}
    return replace(
        report, command=SECRET, legs=(cmd, replace(cmd, name="copy")), notes=(said,), environment=environment
    )


@pytest.mark.parametrize("word", SECRET[:3])
def test_the_command_is_left_out_everywhere(word: str) -> None:
    report = told(reports.report())
    assert word in json.dumps(document(report))
    found = document(report, command=False)
    assert word not in json.dumps(found)
    assert word not in page(without_command(report))
    assert "command" not in found
    assert found["legs"][0]["what"] == "a command"
    assert found["legs"][0]["reason"] == "a command ended with 1"


def test_what_is_no_part_of_the_command_stays() -> None:
    whole, hidden = document(reports.everything()), document(reports.everything(), command=False)
    del whole["command"]
    whole["legs"][-1]["what"] = "a command"
    assert hidden == whole


def test_the_environment_of_the_process_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    assert "hf_never_to_be_seen" not in json.dumps(document(reports.everything())) + page(reports.everything())
