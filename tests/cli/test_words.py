"""The words of a line: options wherever they stand, short ones together, and what is said of those that are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune import __version__
from kerntune.cli.__main__ import main
from kerntune.cli.commands import EVERYWHERE, VERBS, Argument, parse, sort
from kerntune.errors import Usage
from tests.cli.scripted import Captured, Script, document, outcome, run, target
from tests.harness.command import COMMAND, kerntune, on_terminal

OPTIONS = [(verb, option) for verb in VERBS for option in verb.options]


@pytest.mark.parametrize(
    "line",
    [
        "set hugepages=5 --persist overcommit=always:95 --json --allow-partial",
        "set --persist --json --allow-partial hugepages=5 overcommit=always:95",
        "--persist set hugepages=5 -j overcommit=always:95 --allow-partial",
        "--json --persist --allow-partial set hugepages=5 overcommit=always:95",
        "-j set --persist --allow-partial -- hugepages=5 overcommit=always:95",
        "--allow-partial --persist -j -- set hugepages=5 overcommit=always:95",
    ],
)
def test_options_may_stand_anywhere(line: str, capsys: Captured) -> None:
    script = Script(document([]), outcomes=[outcome("hugepages@2M")])
    assert run(script, *line.split()) == 0
    asked = [("hugepages", "", "5"), ("overcommit", "*", "always:95")]
    assert script.calls[0] == ("Set", asked, {"persist": True, "allow-partial": True})
    assert json.loads(capsys.readouterr().out)["changed"] is True


@pytest.mark.parametrize(
    "line",
    [
        "hold --who me hugepages=5 --ttl 2h overcommit=1 --detach",
        "--who me --ttl=2h hold hugepages=5 overcommit=1 --detach",
        "hold hugepages=5 overcommit=1 --detach --ttl=2h --who=me",
    ],
)
def test_values_of_options_are_no_arguments(line: str) -> None:
    args = parse(sort(line.split()))
    assert (args.verb, args.who, args.ttl, args.detach) == ("hold", "me", "2h", True)
    assert (args.settings, args.why, args.pid) == (["hugepages=5", "overcommit=1"], None, None)


def test_a_value_may_have_an_equals_sign_and_be_empty() -> None:
    args = parse(sort(["hold", "--why=a=b", "--who=", "--profile", "x"]))
    assert (args.why, args.who, args.profile) == ("a=b", "", "x")


def test_without_a_verb_it_is_status() -> None:
    assert parse(sort([])).verb == parse(sort(["--json"])).verb == "status"


def test_after_the_end_of_options_all_are_arguments() -> None:
    assert parse(sort(["get", "a", "--", "-x", "--", "--json"])).targets == ["a", "-x", "--", "--json"]
    assert parse(sort(["config", "check", "-"])).path == "-"


def test_short_options_share_a_word() -> None:
    args = parse(sort(["set", "-njq", "a=b"]))
    assert (args.dry_run, args.json, args.quiet, args.persist) == (True, True, True, False)


@pytest.mark.parametrize("words", [["-V"], ["--version"], ["set", "-V"], ["-jV", "no-such-verb"]])
def test_the_version_anywhere(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"kerntune {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["set", "--help"], ["-h", "set"], ["set", "a=b", "-h", "--wrong"], ["help", "set"], ["set", "--who", "-jh"]],
)
def test_help_anywhere(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: kerntune set ")
    assert "-n, --dry-run" in said
    assert "-q, --quiet" in said


def test_help_of_an_unknown_verb(capsys: Captured) -> None:
    assert main(["sett", "-h"]) == main(["help", "sett"]) == 2
    assert "Did you mean set?" in capsys.readouterr().err


HAS = "It has --json (-j), --quiet (-q), --color, --version (-V), --help (-h). See kerntune explain --help"


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["explain", "a", "--jsn"], "explain has no option --jsn", f"Did you mean --json? {HAS}"),
        (["explain", "a", "--zzz"], "explain has no option --zzz", HAS),
        (["explain", "a", "--zzz=1"], "explain has no option --zzz", HAS),
        (["--persist", "explain", "a"], "explain has no option --persist", "It belongs to set, unset"),
        (["explain", "a", "-jx"], "explain has no option -x", HAS),
        (["explain", "-n"], "explain has no option -n", f"It belongs to set, unset, profile, reset, reload. {HAS}"),
        (["explain", "a", "-json"], "explain has no option -json", f"Did you mean --json? {HAS}"),
        (["explain", "a", "--json=yes"], "--json takes no value: --json", "See kerntune explain --help"),
        (["hold", "--who", "--json"], "--who takes a value: --who TEXT", "See kerntune hold --help"),
        (["hold", "a=b", "--who"], "--who takes a value: --who TEXT", "See kerntune hold --help"),
        (["hold", "--who", "--", "a=b"], "--who takes a value: --who TEXT", "See kerntune hold --help"),
        (["hold", "--pid", "9" * 19, "a=b"], f"{'9' * 19} is too large", "The largest has 18 digits"),
        (["hold", "--pid", "x", "a=b"], "'x' is no number", "Write digits only"),
        (["bench", "--leg", "cop"], "--leg takes memory, copy, mmap, torch, io, cpu, and not 'cop'",
         "Did you mean copy? See kerntune bench --help"),
        (["profile", "shw"], "profile takes list, set, clear, show, and not 'shw'",
         "Did you mean show? See kerntune profile --help"),
        (["config"], "config takes check", "See kerntune config --help"),
        (["config", "check", "a", "b"], "config takes no argument 'b'", "See kerntune config --help"),
        (["release"], "release takes at least one HOLD", "See kerntune release --help"),
        (["bench", "--slice", "1ms", "--"], "there is no command after --", "Write one, or leave out the --"),
        (["--presist"], "status has no option --presist", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_what_would_do(words: Sequence[str], what: str, hint: str, capsys: Captured) -> None:
    script = Script()
    assert run(script, *words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"kerntune: {what}"
    assert second.startswith(f"  {hint}")
    assert not script.calls


@pytest.mark.parametrize(("verb", "option"), OPTIONS, ids=lambda each: getattr(each, "name", ""))
def test_an_option_takes_a_value_with_every_verb_or_with_none(verb: object, option: Argument) -> None:
    """The words of a line are sorted before the verb is known. A short option takes no value: it may share a word."""
    same = [other for _, other in OPTIONS if set(other.names) & set(option.names)]
    assert {other.takes_value for other in same} == {option.takes_value}
    assert not (option.takes_value and any(not name.startswith("--") for name in option.names))


def test_every_verb_takes_the_same_short_options() -> None:
    assert [option.names for option in EVERYWHERE] == [
        ("-j", "--json"), ("-q", "--quiet"), ("--color",), ("-V", "--version"), ("-h", "--help"),
    ]  # fmt: skip


@given(
    st.lists(
        st.sampled_from(["set", "bench", "--", "-", "--json", "-jx", "--who", "--who=", "a=b", "", "help"]) | st.text()
    )
)
def test_any_line_is_parsed_or_a_usage_error(line: list[str]) -> None:
    with suppress(Usage):
        assert parse(sort(line)).verb in {verb.name for verb in VERBS}


# --quiet


@pytest.mark.parametrize(
    "line", ["get overcommit -q", "-q list", "status --quiet", "verify -q", "set -q a=b", "-qj holds"]
)
def test_quiet_prints_nothing_and_the_exit_status_stays(line: str, capsys: Captured) -> None:
    assert run(Script(document([target("overcommit", "always")])), *line.split()) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_quiet_prints_errors(capsys: Captured) -> None:
    assert run(Script(), "get", "-q", "governor", "--json") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kerntune: there is no tunable 'governor'")


def test_quiet_tells_why_it_failed_but_gives_no_advice(capsys: Captured) -> None:
    host = document([target("io-scheduler@sda", "none")])
    assert run(Script(host), "set", "io-scheduler@sda=none", "--persist", "-q") == 0
    assert capsys.readouterr().err == ""
    assert run(Script(host), "set", "io-scheduler@sda=none", "--persist") == 0
    assert "may be another drive after a reboot" in capsys.readouterr().err
    assert run(Script(outcomes=[outcome("overcommit", "failed")]), "verify", "-q") == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_quiet_on_a_terminal() -> None:
    with on_terminal(*COMMAND, "explain", "thp", "--quiet") as terminal:
        assert terminal.end() == (0, "")


@pytest.mark.parametrize("words", [["set", "-qh"], ["-qV"]])
def test_help_is_printed_all_the_same(words: list[str]) -> None:
    assert kerntune(*words).stdout != ""
