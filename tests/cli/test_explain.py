"""`kerntune explain`: what is known of the tunables there are, without a daemon."""

from __future__ import annotations

import json
import re
import sys

import pytest

from kerntune.cli.__main__ import main
from kerntune.tunables import REGISTRY
from tests.cli.scripted import Script

Captured = pytest.CaptureFixture[str]


def run(*words: str) -> int:
    script = Script()
    code = main(["explain", *words], connect=script.connect)
    assert script.calls == []
    return code


def test_the_list_has_those_there_are(capsys: Captured) -> None:
    assert run() == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "TUNABLE"
    assert [line.split()[0] for line in lines] == [tunable.name for tunable in REGISTRY]


def test_all_there_is_to_know(capsys: Captured) -> None:
    assert run("io-scheduler") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("io-scheduler: Who puts the requests")
    assert "  evidence    vendor documentation: 'none' for NVMe, 'mq-deadline' for disks" in lines
    assert "              measured: no gain for loading a model by itself" in lines
    assert "  kernel file /sys/block/*/queue/scheduler" in lines
    assert "  document    Documentation/block/switching-sched.rst" in lines
    assert "  example     kerntune set 'io-scheduler@nvme*=none'" in lines


def test_on_a_terminal_it_is_fitted(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("overcommit") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("  risk        With 'always', the kernel") for line in lines)


def test_in_json(capsys: Captured) -> None:
    assert run("hugepages", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["evidence"][0]["grade"] == "measured"
    assert said["example"]["command"] == "kerntune set hugepages=64G"
    assert run("--json") == 0
    names = [row["tunable"] for row in json.loads(capsys.readouterr().out)["tunables"]]
    assert names == [tunable.name for tunable in REGISTRY]


@pytest.mark.parametrize("tunable", [one.name for one in REGISTRY])
def test_no_value_can_be_taken_for_a_word(tunable: str, capsys: Captured) -> None:
    """`none` is a scheduler, and always and never are values too: in a sentence they are quoted."""
    assert run(tunable) == 0
    prose = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"  (values|example|kernel)", line)]
    assert not re.findall(r"(?<!['\w:=])(?:none|always|never|madvise|heuristic)(?![':(\w])", "\n".join(prose[1:]))


@pytest.mark.parametrize("word", ["thp@enabled", "thp=always", "thp"])
def test_an_instance_does_not_matter(word: str, capsys: Captured) -> None:
    assert run(word) == 0
    assert capsys.readouterr().out.startswith("thp: Transparent huge pages")


def test_another_name_is_told(capsys: Captured) -> None:
    assert run("governor") == 2
    said = capsys.readouterr().err
    assert "there is no tunable 'governor'" in said
    assert "cpu-governor" in said
