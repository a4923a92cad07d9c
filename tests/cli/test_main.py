"""The entry: what it loads, how it parses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kerntune
from kerntune.cli.__main__ import main, run_of
from kerntune.cli.commands import VERBS, parser
from kerntune.cli.remote import Manager
from kerntune.errors import Exit
from kerntune.model import Reason, State
from tests.cli.scripted import Script

Captured = pytest.CaptureFixture[str]

LIMIT = 20.0  # seconds
MAN_PAGE = Path(__file__).parents[2] / "docs/man/kerntune.1"


def cli(*words: str, address: str = "unix:path=/nonexistent/bus") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kerntune.cli", *words],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def loaded(modules: set[str], *words: str) -> str:
    """Which of these modules a run has imported."""
    program = f"""
import sys
from kerntune.cli.__main__ import main
try:
    main({list(words)!r})
except SystemExit:
    pass
print(sorted({modules!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [["set"], ["no-such-verb"], ["set", "hugepages"]])
def test_what_needs_no_daemon_loads_no_more_than_it_needs(words: list[str]) -> None:
    assert loaded({"dbus_next", "kerntune.doctor", "kerntune.kernel"}, *words) == "[]"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["set", "--help"], ["doctor", "--help"], ["help"]])
def test_help_loads_next_to_nothing(words: list[str]) -> None:
    heavy = {"asyncio", "dbus_next", "json", "pathlib", "dataclasses"}
    assert loaded(heavy | {"kerntune.model", "kerntune.doctor", "kerntune.kernel"}, *words) == "[]"


def test_help_names_every_verb_and_exits_with_0() -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert all(f"    {verb.name} " in done.stdout for verb in VERBS)


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kerntune {kerntune.__version__}\n", "")


def test_without_a_bus_it_says_so() -> None:
    done = cli("--json")
    assert done.returncode == 5
    assert done.stderr.startswith("kerntune: the bus at unix:path=/nonexistent/bus cannot be reached")
    assert json.loads(done.stdout)["error"]["name"] == "org.freedesktop.DBus.Error.ServiceUnknown"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["no-such-verb"], "there is no verb 'no-such-verb'"),
        (["set"], "arguments are required"),
        (["get"], "arguments are required"),
        (["unset", "overcommit", "--allow-partial"], "unrecognized arguments: --allow-partial"),
        (["set", "overcommit=always", "--pers"], "unrecognized arguments: --pers"),
        (["list", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_usage_errors(words: list[str], complaint: str, capsys: Captured) -> None:
    script = Script()
    assert main([*words, "--json"], connect=script.connect) == 2
    assert script.calls == []
    said = capsys.readouterr()
    assert complaint in said.err
    assert "--help" in said.err
    assert complaint in json.loads(said.out)["error"]["message"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("staus", "Did you mean status? kerntune --help shows"),
        ("plna", "Did you mean plan?"),
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
    done = cli(*words)
    assert (done.returncode, done.stdout) == (0, cli(*same).stdout)
    assert done.stdout.startswith("usage: kerntune")


def test_set_s_help_says_where_values_are_shown() -> None:
    said = " ".join(cli("set", "--help").stdout.split())
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
    program = (
        "import sys; from kerntune.cli.__main__ import main; sys.exit(main(['get', 'governor', '--json'], connect=c))"
    )
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", f"from tests.cli.scripted import Script; c = Script().connect; {program}"],
            cwd=Path(__file__).parents[2],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "kerntune: there is no tunable 'governor'",
        "  Did you mean cpu-governor? There are cpu-governor, hugepages, io-scheduler, overcommit",
    ]


def test_a_locale_without_the_marks_shows_something_else() -> None:
    program = "import sys; from kerntune.cli.__main__ import main; sys.exit(main(['list'], connect=c))"
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.cli.scripted import Script; c = Script().connect; {program}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0
    assert "io-scheduler@nvme0n1" in done.stdout


def test_the_man_page_has_every_verb_and_option() -> None:
    page = MAN_PAGE.read_text()
    synopsis = page.partition(".Sh SYNOPSIS\n")[2].partition(".Sh DESCRIPTION\n")[0].split(".Nm\n")
    for verb in VERBS:
        assert f".It Cm {verb.name}\n" in page or f".It Cm {verb.name} " in page, verb.name
        usage = "".join(form for form in synopsis if f"Cm {verb.name}\n" in form)
        assert usage, verb.name
        for name in ["--json", *(name for argument in verb.arguments for name in argument.names)]:
            if name.startswith("--"):
                # An option stands alone or in front of its argument.
                option = re.compile(rf"Fl {name.removeprefix('-')}( Ar \w+)?\n")
                assert re.search(rf"\.It {option.pattern}", page), name
                assert option.search(usage), (verb.name, name)


def test_the_man_page_has_every_exit_code_state_and_reason() -> None:
    page = MAN_PAGE.read_text()
    for code in Exit:
        assert f".It {code.value}\n" in page, code
    for state in State:
        assert f".It {state}\n" in page, state
    for reason in Reason:
        assert f".It {reason}\n" in page, reason


def test_every_verb_is_described() -> None:
    assert parser().prog == "kerntune"
    assert all(verb.summary and run_of(verb.run).__doc__ for verb in VERBS)
