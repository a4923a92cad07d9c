"""The command as a process: what it loads, how it parses, what it asks over a bus, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kerntune import __version__, errors
from kerntune.cli.__main__ import main, run_of
from kerntune.cli.commands import VERBS
from kerntune.cli.remote import LEAVING, Manager
from tests.cli.scripted import Captured, Script, outcome, run, serving
from tests.harness import CHECKOUT
from tests.harness.command import COMMAND, LIMIT, kerntune, on_terminal
from tests.harness.command import run as run_program
from tests.harness.privatebus import PrivateBus

PROGRAM = "import sys; from tests.cli.scripted import Script, main; sys.exit(main({}, connect=Script().connect))"


def loaded(modules: set[str], *words: str) -> str:
    """Return which of these modules a run has imported."""
    program = f"""
import sys
from kerntune.cli.__main__ import main
try:
    main({list(words)!r})
except SystemExit:
    pass
print(sorted({modules!r} & sys.modules.keys()))
"""
    return run_program([sys.executable, "-c", program]).stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [["set"], ["no-such-verb"], ["set", "hugepages"]])
def test_what_needs_no_daemon_loads_no_more_than_it_needs(words: list[str]) -> None:
    assert loaded({"dbus_next", "kerntune.doctor", "kerntune.kernel"}, *words) == "[]"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["set", "--help"], ["doctor", "--help"], ["help"]])
def test_help_loads_next_to_nothing(words: list[str]) -> None:
    heavy = {"asyncio", "dbus_next", "json", "pathlib", "dataclasses"}
    assert loaded(heavy | {"kerntune.model", "kerntune.doctor", "kerntune.kernel"}, *words) == "[]"


def test_help_names_every_verb_and_exits_with_0() -> None:
    done = kerntune("--help")
    assert done.returncode == 0
    assert all(f"    {verb.name} " in done.stdout for verb in VERBS)


def test_version() -> None:
    done = kerntune("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kerntune {__version__}\n", "")


def test_without_a_bus_it_says_so() -> None:
    done = kerntune("--json")
    assert done.returncode == 5
    assert done.stderr.startswith("kerntune: the bus at unix:path=/nonexistent/bus cannot be reached")
    assert json.loads(done.stdout)["error"]["name"] == "org.freedesktop.DBus.Error.ServiceUnknown"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["no-such-verb"], "there is no verb 'no-such-verb'"),
        (["set"], "set takes at least one TUNABLE[@INSTANCES]=VALUE"),
        (["get"], "get takes at least one TUNABLE[@INSTANCES]"),
        (["unset", "overcommit", "--allow-partial"], "unset has no option --allow-partial"),
        (["set", "overcommit=always", "--pers"], "set has no option --pers"),
        (["explain", "a", "b"], "explain takes no argument 'b'"),
    ],
)
def test_usage_errors(words: list[str], complaint: str, capsys: Captured) -> None:
    script = Script()
    assert run(script, *words, "--json") == 2
    assert script.calls == []
    said = capsys.readouterr()
    assert complaint in said.err
    assert "--help" in said.err
    assert complaint in json.loads(said.out)["error"]["message"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("staus", "Did you mean status? kerntune --help shows"),
        ("rseet", "Did you mean reset?"),
        ("Profile", "Did you mean profile?"),
        ("xyz", "kerntune --help shows those there are"),
        ("vm.swappiness=10", "To set it: kerntune set vm.swappiness=10"),
    ],
)
def test_an_unknown_verb_is_told_in_two_lines(word: str, hint: str, capsys: Captured) -> None:
    assert main([word]) == 2
    what, rest = capsys.readouterr().err.splitlines()
    assert word in what
    assert rest.startswith(f"  {hint}")


@pytest.mark.parametrize(("words", "same"), [(["help"], ["--help"]), (["--json", "help", "set"], ["set", "--help"])])
def test_help_is_a_verb_too(words: list[str], same: list[str]) -> None:
    done = kerntune(*words)
    assert (done.returncode, done.stdout) == (0, kerntune(*same).stdout)
    assert done.stdout.startswith("usage: kerntune")


def test_set_s_help_says_where_values_are_shown() -> None:
    said = " ".join(kerntune("set", "--help").stdout.split())
    assert "kerntune list" in said
    assert "kerntune explain TUNABLE" in said


def test_an_interrupt_is_told_from_a_failure(capsys: Captured) -> None:
    @contextmanager
    def interrupted() -> Iterator[Manager]:
        raise KeyboardInterrupt
        yield

    assert main([], connect=interrupted) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kerntune: interrupted\n")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-c", PROGRAM.format(["get", "governor", "--json"])]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            program, cwd=CHECKOUT, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=LIMIT, check=False
        )
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "kerntune: there is no tunable 'governor'",
        "  Did you mean cpu-governor? There are cpu-governor, hugepages, io-scheduler, overcommit",
    ]


def test_a_locale_without_the_marks_shows_something_else() -> None:
    done = run_program([sys.executable, "-c", PROGRAM.format(["list"])], env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "io-scheduler@nvme0n1" in done.stdout


def test_every_verb_is_described() -> None:
    assert all(verb.summary and run_of(verb.run).__doc__ for verb in VERBS)


# Over a bus, where the contract's Manager is a script


def test_set(script_bus: PrivateBus) -> None:
    line = "set hugepages=128M overcommit=always:95 --persist --allow-partial --json"
    script = Script(outcomes=[outcome("hugepages@2M", requested="64", actual="64"), outcome("overcommit", "failed")])
    with serving(script_bus, script) as manager:
        done = kerntune(*line.split(), env=script_bus.environment)
    assert (done.returncode, done.stderr) == (6, "")
    assert [row["state"] for row in json.loads(done.stdout)["outcomes"]] == ["satisfied", "failed"]
    asked = [("hugepages", "", "128M"), ("overcommit", "*", "always:95")]
    assert script.calls == [("Set", asked, {"persist": True, "allow-partial": True} | LEAVING)]
    assert manager.interactive == [True]


def test_unset(script_bus: PrivateBus) -> None:
    script = Script(outcomes=[outcome("io-scheduler@sda", "unmanaged", requested="")])
    with serving(script_bus, script) as manager:
        done = kerntune("unset", "io-scheduler", env=script_bus.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "io-scheduler@sda  -          none    unmanaged" in done.stdout
    assert script.calls == [("Unset", [("io-scheduler", "*")], LEAVING)]
    assert manager.interactive == [True]


def test_a_dry_run(script_bus: PrivateBus) -> None:
    with serving(script_bus, script := Script(outcomes=[outcome("overcommit", "planned", requested="always")])):
        done = kerntune("set", "overcommit=always", "--allow-partial", "--dry-run", env=script_bus.environment)
        withdrawn = kerntune("unset", "overcommit", "--dry-run", env=script_bus.environment)
    assert (done.returncode, done.stderr) == (withdrawn.returncode, withdrawn.stderr) == (0, "")
    assert "overcommit  always     none    planned" in done.stdout
    assert script.calls == [
        ("Plan", [("overcommit", "*", "always")], {"allow-partial": True}),
        ("Plan", [("overcommit", "*", "")], {"unset": True}),
    ]


def test_verify(script_bus: PrivateBus) -> None:
    row = outcome("overcommit", "failed", requested="always", actual="heuristic")
    with serving(script_bus, Script(outcomes=[row])):
        done = kerntune("verify", env=script_bus.environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert "overcommit  always     heuristic  owed" in done.stdout


def test_get_prints_the_bare_value(script_bus: PrivateBus) -> None:
    with serving(script_bus, Script()):
        done = kerntune("get", "io-scheduler@by-id/nvme-Fast_1", env=script_bus.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", "")


@pytest.mark.parametrize("words", [[], ["list"]])
def test_reading_needs_one_call(words: list[str], script_bus: PrivateBus) -> None:
    script = Script()
    with serving(script_bus, script):
        done = kerntune(*words, env=script_bus.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.calls == [("Describe",)]


def test_a_refusal_keeps_its_name_and_its_text(script_bus: PrivateBus) -> None:
    refusal = errors.OverLimit("2000 pages asked, 900 possible", "Ask for fewer")
    with serving(script_bus, Script(error=refusal)):
        done = kerntune("set", "hugepages@2M=2000", "--json", env=script_bus.environment)
    assert done.returncode == 1
    assert done.stderr == "kerntune: 2000 pages asked, 900 possible\n  Ask for fewer\n"
    assert json.loads(done.stdout) == {"error": {"name": refusal.dbus_name, "message": str(refusal)}}


def test_without_the_daemon(script_bus: PrivateBus) -> None:
    done = kerntune("set", "overcommit=always", env=script_bus.environment)
    assert (done.returncode, done.stdout) == (5, "")
    assert "org.kerntune.Tuner1 cannot be reached" in done.stderr
    assert "Is kerntuned running? systemctl status kerntuned" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "set io-scheduler@nvme0n1=none",
        "verify",
        "set hugepages=1 --dry-run",
        "hold hugepages=1 --detach --ttl 1h",
    ],
)
def test_a_verb_needs_no_event_loop(script_bus: PrivateBus, line: str) -> None:
    """To import asyncio takes longer than all that such a verb does."""
    program = """import sys
from kerntune.cli.__main__ import main
main(sys.argv[1:])
print(sorted({'asyncio', 'pathlib', 'tomllib', 'kerntune.tunables'} & sys.modules.keys()), file=sys.stderr)
"""
    with serving(script_bus, Script(outcomes=[outcome("io-scheduler@nvme0n1")])):
        done = run_program([sys.executable, "-c", program, *line.split()], env=script_bus.environment)
    assert done.stderr.splitlines()[-1] == "[]"


def test_on_a_terminal_it_is_coloured(script_bus: PrivateBus) -> None:
    words = (*COMMAND, "list")
    with serving(script_bus, Script()), on_terminal(*words, address=script_bus.address, COLUMNS="72") as terminal:
        code, text = terminal.end()
    assert code == 0
    assert "\x1b[" in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 72


@pytest.mark.parametrize(
    "words", [["list", "--color=always"], ["--color=always", "list"], ["list", "--color", "always"]]
)
def test_colours_are_there_for_the_asking(script_bus: PrivateBus, words: list[str]) -> None:
    """`watch --color kerntune list --color=always` gives its width in COLUMNS, and no terminal."""
    environment = {**script_bus.environment, "COLUMNS": "74", "NO_COLOR": "1", "TERM": "dumb"}
    with serving(script_bus, Script()):
        done = kerntune(*words, env=environment)
        in_json = kerntune(*words, "--json", env=environment)
    assert (done.returncode, done.stderr) == (in_json.returncode, in_json.stderr) == (0, "")
    assert "\x1b[" in done.stdout
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines())) <= 74
    assert "\x1b" not in in_json.stdout


def test_never_is_also_for_a_terminal(script_bus: PrivateBus) -> None:
    words = (*COMMAND, "list", "--color=never")
    with serving(script_bus, Script()), on_terminal(*words, address=script_bus.address, FORCE_COLOR="1") as terminal:
        code, text = terminal.end()
    assert code == 0
    assert "\x1b" not in text


def test_a_colour_is_no_value_of_color(capsys: Captured) -> None:
    assert main(["list", "--color=red"]) == 2
    assert "--color" in capsys.readouterr().err
