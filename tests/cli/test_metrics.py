"""`kerntune metrics`: what is told, in which form, and where it is put."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from kerntune.api.document import Pool
from kerntune.cli.metrics import Kind, Metric, Sample, measured, text
from kerntune.model import GuardState
from tests.cli.scripted import Captured, Script, claim, document, run, target

DRIVE = target("io-scheduler@nvme0n1", "none", requested="none", state="satisfied", claim="runtime:io-scheduler@nvme*")
PAGES = target("hugepages@2M", "64", requested="128", state="partial", claim="config:hugepages@2M")
POOLS = [Pool(2 << 20, "", 64, 60, 4, 1, 128), Pool(2 << 20, "0", 63, 60, 4, 0, 63)]


def told(*pools: Pool, **more: object) -> list[str]:
    return text(measured(document(**more), pools)).splitlines()  # type: ignore[arg-type]  # the fields of a document


# The form


def test_a_metric_is_said_once_and_its_samples_follow() -> None:
    found = Metric("a_total", Kind.COUNTER, "All of it.", (Sample(1, {}), Sample(2, {"b": "c", "d": "e"})))
    assert text([found, Metric("nothing", Kind.GAUGE, "None.", ())]) == (
        '# HELP a_total All of it.\n# TYPE a_total counter\na_total 1\na_total{b="c",d="e"} 2\n# EOF\n'
    )


def test_labels_are_escaped() -> None:
    assert Sample(1, {"reason": 'a "b"\\\nc'}).label_text == r'{reason="a \"b\"\\\nc"}'


def test_names_follow_the_conventions() -> None:
    full = document([DRIVE, PAGES], [claim("config:hugepages@2M", "128")], degraded=["x"])
    full["holds"] = [
        {"hold": 1, "who": "a", "why": "", "uid": 0, "detached": False, "since_usec": 1, "expires_usec": 0}
    ]
    full["guard"]["culprit"] = "hog.service: hog (pid 7, alice), 900 MiB"
    for metric in measured(full, POOLS):
        assert re.fullmatch(r"kerntune_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.samples, metric.name
        assert metric.help.endswith(".")
        # Prometheus has labels of these names itself.
        assert not {"instance", "job"} & {name for sample in metric.samples for name in sample.labels}


# What is told


def test_outcomes_by_tunable_and_state() -> None:
    lines = told(targets=[DRIVE, PAGES, target("io-scheduler@sda", "bfq")])
    assert 'kerntune_targets{tunable="io-scheduler",state="satisfied"} 1' in lines
    assert 'kerntune_targets{tunable="hugepages",state="partial"} 1' in lines
    assert 'kerntune_targets{tunable="hugepages",state="failed"} 0' in lines
    assert "kerntune_well 0" in lines
    assert "kerntune_well 1" in told(targets=[DRIVE])
    owed = target("overcommit", "never:50", requested="heuristic", state="failed", reason="kernel-rejected")
    assert 'kerntune_targets{tunable="overcommit",state="owed"} 1' in told(targets=[owed])
    waiting = claim("runtime:io-scheduler@nvme7*", "none", matches=[])
    assert 'kerntune_targets{tunable="io-scheduler",state="waiting"} 1' in told(claims=[waiting])
    lacking = claim("profile:cpu-governor@*", "performance", matches=[])
    assert 'kerntune_targets{tunable="cpu-governor",state="not-applicable"} 1' in told(claims=[lacking])
    assert not any("unmanaged" in line or "planned" in line for line in lines)
    assert [line for line in lines if line.startswith("kerntune_target_satisfied")] == [
        'kerntune_target_satisfied{tunable="io-scheduler",target="nvme0n1"} 1',
        'kerntune_target_satisfied{tunable="hugepages",target="2M"} 0',
    ]


def test_a_state_that_a_later_daemon_has_made_up() -> None:
    lines = told(targets=[PAGES | {"state": "melted"}], guard={**document()["guard"], "state": "asleep"})
    assert 'kerntune_targets{tunable="hugepages",state="melted"} 1' in lines
    assert [line for line in lines if line.startswith("kerntune_guard_state") and line.endswith(" 1")] == [
        'kerntune_guard_state{state="asleep"} 1'
    ]


def test_pools_of_the_host_and_of_its_nodes_have_names_of_their_own() -> None:
    lines = told(*POOLS)
    for name, whole, node in (
        ("pages", 64, 63), ("free_pages", 60, 60), ("reserved_pages", 4, 4), ("surplus_pages", 1, 0),
        ("requested_pages", 128, 63),
    ):  # fmt: skip
        assert [line for line in lines if line.startswith(f"kerntune_hugepages_{name}{{")] == [
            f'kerntune_hugepages_{name}{{page_size="2097152"}} {whole}'
        ], "a sum counts no page twice"
        assert f'kerntune_hugepages_node_{name}{{page_size="2097152",node="0"}} {node}' in lines


def test_the_guard_and_what_memory_there_is() -> None:
    guard = {"state": "capped", "level": 100, "reason": "", "headroom": 3 << 30, "floor": 1 << 30}
    lines = told(guard=guard, counters={"hotplug_events": 5, "drift_repairs": 2, "guard_caps": 1})
    assert [line for line in lines if line.startswith("kerntune_guard_state")] == [
        f'kerntune_guard_state{{state="{state}"}} {int(state == "capped")}' for state in GuardState
    ]
    assert "kerntune_memory_warning_level 100" in lines
    assert not any("culprit" in line for line in lines)
    assert f"kerntune_memory_headroom_bytes {3 << 30}" in lines
    assert f"kerntune_memory_floor_bytes {1 << 30}" in lines
    assert {"kerntune_hotplug_events_total 5", "kerntune_drift_repairs_total 2"} < set(lines)
    assert "kerntune_guard_caps_total 1" in lines


def test_who_has_made_memory_short() -> None:
    line = 'hog.service: hog --say "much" (pid 7, alice), 900 MiB'
    lines = told(guard={**document()["guard"], "culprit": line})
    assert 'kerntune_guard_culprit{culprit="hog.service: hog --say \\"much\\" (pid 7, alice), 900 MiB"} 1' in lines


def test_the_daemon_itself() -> None:
    lines = told(claims=[claim("config:hugepages@2M", "128")], degraded=["config-invalid"])
    assert 'kerntune_build_info{version="0.1.0"} 1' in lines
    assert "kerntune_generation 3" in lines
    assert 'kerntune_degraded{reason="config-invalid"} 1' in lines
    assert 'kerntune_claims{origin="config"} 1' in lines
    assert 'kerntune_claims{origin="hold"} 0' in lines
    assert not any("kerntune_degraded" in line for line in told())


def test_a_daemon_that_counts_nothing() -> None:
    assert not any("_total" in line for line in told(counters={}))


# The verb


def test_it_reads_the_memory_anew_and_then_all_else(capsys: Captured) -> None:
    assert run(script := Script(), "metrics") == 0
    assert script.calls == [("Pools",), ("Describe",)]
    said = capsys.readouterr()
    assert said.out.endswith("kerntune_guard_caps_total 0\n# EOF\n")
    assert said.err == ""


def test_in_json(capsys: Captured) -> None:
    assert run(Script(), "metrics", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert rows["kerntune_drift_repairs_total"]["samples"] == [{"value": 1, "labels": {}}]
    assert rows["kerntune_drift_repairs_total"]["kind"] == "counter"


def test_a_daemon_is_not_started_to_be_measured(tmp_path: Path, capsys: Captured) -> None:
    script = Script()
    script.running = False
    assert run(script, "metrics", "--output", str(tmp_path / "kerntune.prom")) == 5
    assert script.calls == []
    assert "is not started" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "kerntune.prom"
    file.write_text("old")
    with file.open() as reader:
        assert run(Script(), "metrics", "--output", str(file)) == 0
        assert reader.read() == "old", "whoever reads it reads on in the old one"
    assert file.read_text().endswith("# EOF\n")
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]
    assert capsys.readouterr().out == ""


def test_the_mode_is_not_the_umask_s(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run(Script(), "metrics", "--output", str(tmp_path / "kerntune.prom"))
    finally:
        os.umask(before)
    assert (tmp_path / "kerntune.prom").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["folder", "link", "nowhere"])
def test_what_cannot_be_replaced_is_left_alone(kind: str, tmp_path: Path, capsys: Captured) -> None:
    place = tmp_path / "place"
    match kind:
        case "folder":
            place.mkdir()
        case "link":  # as /dev/stdout is
            place.symlink_to("/dev/null")
        case _:
            place = tmp_path / "missing" / "kerntune.prom"
    before = sorted(tmp_path.rglob("*"))
    assert run(Script(), "metrics", "--output", str(place)) == 1
    assert str(place) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
