"""`bench`: what is asked of the daemon, what is refused, and how a result looks."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kerntune.cli.__main__ import main
from kerntune.cli.bench import plan_of
from kerntune.cli.commands import parse, sort
from kerntune.cli.shield_options import slice_of
from kerntune.errors import Exit, Usage
from tests.cli.scripted import Captured, Script, document, outcome, run, serving, target
from tests.harness.command import COMMAND, Terminal, on_terminal
from tests.harness.privatebus import PrivateBus

SMALL = ("--size", "1M", "--pairs", "6")
INTERRUPTED = 130
MEASURED = (Exit.OK, Exit.NOT_FOUND)  # invalid beside other tests, for the machine is busy then


def bench(script: Script, *words: str) -> int:
    return run(script, "bench", *words)


def nobody() -> Script:
    return Script(document([]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to compare"),
        (["--set", "hugepages"], "has no value"),
        (["--slice", "0"], "no slice of time"),
        (["--slice", "3 ms"], "no slice of time"),
        (["--slice", "50us"], "out of range"),
        (["--slice", "101ms"], "out of range"),
        (["--cpus", "4095"], "none that it may run on"),
        (["--cpus", ",".join(map(str, sorted(os.sched_getaffinity(0))))], "it may run already"),
        (["--slice", "100us", ""], "file is empty"),
        (["--slice", "100us", "--html", ""], "html is empty"),
        (["--slice", "100us", "--"], "there is no command"),
        (["--cpus", "two"], "no list of CPUs"),
        (["--cpus", "3-1"], "runs backwards"),
        (["--slice", "100us", "--pairs", "5"], "5 pairs"),
        (["--slice", "100us", "--until", "ready"], "--until names no command"),
        (["--slice", "100us", "model.bin", "--", "true"], "measured apart"),
        (["--slice", "100us", "--leg", "io", "--", "true"], "timed alone"),
        (["--slice", "100us", "--leg", "copy", "--size", "much"], "no size"),
        (["--slice", "100us", "--leg", "copy", "/nowhere/model"], "no file /nowhere/model"),
        (["--slice", "100us", "--leg", "copy", "/proc"], "a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(words: list[str], said: str, capsys: Captured) -> None:
    script = nobody()
    assert bench(script, *words) == Exit.USAGE
    assert said in capsys.readouterr().err
    assert not script.calls


def test_a_page_that_cannot_be_written_is_told_before_anything_runs(capsys: Captured, tmp_path: Path) -> None:
    script = nobody()
    for path in (tmp_path / "no/page.html", tmp_path, Path("/proc/page.html"), tmp_path / ("x" * 300)):
        assert bench(script, "--slice", "100us", "--html", str(path)) == Exit.FAILED
        assert "cannot be written" in (said := capsys.readouterr().err) or "not a plain file" in said
    assert not script.calls


def test_no_page_is_written_over_a_file_of_another_kind(capsys: Captured, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    assert bench(nobody(), "--slice", "100us", "--html", str(model)) == Exit.FAILED
    assert "not of this kind" in capsys.readouterr().err
    assert model.read_bytes() == b"GGUF"
    page = tmp_path / "page.html"
    words = ("--slice", "100us", "--pairs", "6", "--html", str(page), "--", "true")
    assert all(bench(nobody(), *words) in MEASURED for _ in range(2))
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_the_words_of_a_command_are_not_ours() -> None:
    words = sort(["--slice", "1ms", "bench", "--", "prog", "--json", "--pairs", "-h", "--", "x"])
    assert (words.verb, words.arguments) == ("bench", ())
    assert parse(words).command == ["prog", "--json", "--pairs", "-h", "--", "x"]
    words = sort(["set", "a=b", "--", "--json"])
    assert (words.arguments, words.options, words.command) == (("a=b", "--json"), (), None)


@pytest.mark.parametrize(("text", "microseconds"), [(None, 0), ("100us", 100), ("250", 250), ("3ms", 3000)])
def test_a_slice_has_units(text: str | None, microseconds: int) -> None:
    assert slice_of(text) == microseconds


def test_options_become_a_plan() -> None:
    args = parse(sort(["bench", "--set", "hugepages=640", "--set", "overcommit=always:90", "--slice", "1ms"]))
    args.command = []
    plan = plan_of(args)
    assert plan.change.settings == ("hugepages=640", "overcommit=always:90")
    assert plan.change.shield.slice_us == 1000
    assert [look.pairs for look in plan.looks] == [10, 20, 30]
    args.pairs = 5
    with pytest.raises(Usage):
        plan_of(args)


def held(**more: Any) -> Script:
    row = target("overcommit", "heuristic")
    return Script(document([row]), outcomes=[outcome("overcommit", requested="always:90", actual="always:90", **more)])


def test_a_setting_that_is_not_had_is_not_compared(
    script_bus: PrivateBus, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = held(state="overridden", detail="the guard holds it")
    with serving(script_bus, script):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", script_bus.address)
        assert main(["bench", "--set", "overcommit=always:90", "--leg", "copy", *SMALL]) == Exit.FAILED
    assert "overcommit is always:90: overridden, the guard holds it" in capsys.readouterr().err


def test_a_daemon_that_tunes_another_host_changes_nothing_here(capsys: Captured) -> None:
    script = Script(document([target("overcommit", "heuristic")]))
    script.described["host"]["simulated"] = True
    assert bench(script, "--set", "overcommit=always:90", "--leg", "copy", *SMALL) == Exit.FAILED
    assert "another host than this one" in capsys.readouterr().err
    assert [call[0] for call in script.calls] == ["Describe"]


def test_a_command_that_does_nothing_is_timed(capsys: Captured) -> None:
    code = bench(nobody(), "--slice", "100us", "--pairs", "6", "--json", "--", "true", "--secret")
    found = json.loads(capsys.readouterr().out)
    assert code in MEASURED
    assert found["format"] == 1
    assert found["command"] == ["true", "--secret"]
    assert [leg["name"] for leg in found["legs"]] == ["cmd"]
    assert len(found["legs"][0]["pairs"]) == len(found["legs"][0]["aa"]) == 6
    assert found["legs"][0]["looks"][0]["pairs"] == 6


def test_a_command_may_be_left_out_of_what_others_read(capsys: Captured) -> None:
    words = ("--slice", "100us", "--pairs", "6", "--json", "--no-command", "--", "true", "--secret")
    assert bench(nobody(), *words) in MEASURED
    assert "secret" not in capsys.readouterr().out


def test_a_command_that_fails_is_no_measurement(capsys: Captured) -> None:
    words = ("--slice", "100us", "--pairs", "6", "--", "sh", "-c", "echo out of memory >&2; exit 3")
    assert bench(nobody(), *words) == Exit.NOT_FOUND
    said = capsys.readouterr().out
    assert "the command failed: it ended with status 3; its last line: out of memory" in said


@contextmanager
def measuring(*words: str, before: Sequence[str] = ()) -> Iterator[Terminal]:
    """Run a measurement, and give the terminal on which its bar is drawn."""
    cpu = str(min(os.sched_getaffinity(0)))
    with on_terminal(*before, *COMMAND, "bench", "--cpus", cpu, *words, only_errors=True) as terminal:
        yield terminal


def test_the_making_of_random_data_is_shown_and_ends_at_once() -> None:
    with measuring("--leg", "copy", "--size", "512M") as terminal:
        terminal.read_until("random data [")
        code, seen = terminal.end(signal.SIGINT)
    assert code == INTERRUPTED
    assert " 0 of 512 MiB" in seen
    assert " 496 of 512 MiB" not in seen, "the last piece was made all the same"


@pytest.mark.parametrize("before", [[], ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]], ids=["alone", "nohup"])
@pytest.mark.parametrize("how_often", [1, 5])
def test_whoever_asks_it_to_end_again_and_again_gets_the_same(before: list[str], how_often: int) -> None:
    script = "trap 'sleep 0.5; exit 0' TERM; echo $$ >&2; setsid sleep 600 & wait"
    with measuring("--", "sh", "-c", script, before=before) as terminal:
        terminal.read_until("cmd [")
        for _ in range(how_often):
            terminal.process.send_signal(signal.SIGINT)
            time.sleep(0.003)  # an impatient finger; any time will do
        code, said = terminal.end()
    assert code == INTERRUPTED
    assert "the host is as it was" in said
    assert "Traceback" not in said


def test_the_bar_is_there_from_the_first_run() -> None:
    """A command may run for minutes, and the runs that warm up come first."""
    with measuring("--", "sleep", "60") as terminal:
        terminal.read_until("cmd [")
