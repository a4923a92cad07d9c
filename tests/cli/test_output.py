"""How answers look: plain where nobody watches, fitted and coloured on a terminal; and the progress bar."""

from __future__ import annotations

import io
import json
import re

import pytest

from kerntune.cli import output, tables
from kerntune.cli.commands import known_verb
from kerntune.cli.progress import line
from kerntune.cli.rows import KIB, MARKS, shown
from kerntune.cli.tables import Prose, Row, Table
from kerntune.model import State
from kerntune.results import Condition
from kerntune.tunables import REGISTRY
from tests.cli.scripted import (
    DRIVES,
    Captured,
    Script,
    Watched,
    claim,
    document,
    on_terminal,
    outcome,
    plain,
    run,
    status_page,
    target,
)

LONG = "the kernel had fewer pages than asked, because memory is too fragmented: " * 3


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "72")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def test_every_state_has_a_mark() -> None:
    assert set(MARKS) == {*Condition, State.UNMANAGED}


def test_outcomes() -> None:
    page = output.outcomes(
        [
            outcome("io-scheduler@nvme0n1"),
            outcome(
                "hugepages@2M", "partial", requested="128", actual="96", reason="partially-allocated", detail="why"
            ),
            outcome("io-scheduler@sda", "failed", reason="read-back-differs"),
        ]
    )
    assert plain(page) == [
        "TARGET                REQUESTED  ACTUAL          STATE",
        "io-scheduler@nvme0n1  none       none            satisfied",
        "hugepages@2M          256M       192M (96 x 2M)  partial    partially-allocated: why",
        "io-scheduler@sda      none       none            failed     read-back-differs",
    ]


def test_a_satisfied_outcome_may_have_a_detail_too() -> None:
    assert plain(output.outcomes([outcome("overcommit", detail="the ratio has no effect now")]))[1].endswith(
        "no effect now"
    )


def test_no_outcomes() -> None:
    assert plain(output.outcomes([])) == ["Nothing changed."]


def test_a_state_of_a_newer_daemon_is_shown_as_it_is() -> None:
    assert plain(output.outcomes([outcome("overcommit", "pondering", reason="mood")]))[1].split() == [
        "overcommit",
        "none",
        "none",
        "pondering",
        "mood",
    ]


def test_targets_with_choices_and_tunables_that_are_not_supported() -> None:
    host = document([*DRIVES[:1], target("hugepages@2M", None, state="unsupported", reason="read-only", detail="why")])
    assert plain(output.targets(host, host["tunables"], host["targets"])) == [
        "TARGET                ACTUAL  STATE           CHOICES",
        "cpu-governor          -       not-applicable  -                 no cpufreq driver is loaded",
        "hugepages@2M          -       failed          -                 read-only: why",
        "io-scheduler@nvme0n1  none    -               none mq-deadline",
    ]


@pytest.mark.parametrize(
    ("name", "value", "text", "brief"),
    [
        ("hugepages@2M", "32768", "64G (32768 x 2M)", "64G"),
        ("hugepages@1G/node0", "3", "3G (3 x 1G)", "3G"),
        ("hugepages@2M", "+5", "+10M (5 x 2M)", "+10M"),
        ("hugepages@2M", ">=1024", ">=2G (1024 x 2M)", ">=2G"),
        ("hugepages@2M", "0", "0", "0"),
        ("hugepages-overcommit@2M", "512", "1G (512 x 2M)", "1G"),
        ("read-ahead@sda", "128", "128 KiB", "128 KiB"),
        ("read-ahead@nvme*", ">=4096", ">=4096 KiB", ">=4096 KiB"),
        ("overcommit", "always:95", "always:95", "always:95"),
        ("overcommit", "never:7715872k", "never:7.4 GiB", "never:7.4 GiB"),
        ("sysctl@vm.swappiness", "10", "10", "10"),
        ("io-scheduler@sda", "none", "none", "none"),
        ("hugepages@2M", "", "", ""),
    ],
)
def test_values_have_their_unit(name: str, value: str, text: str, brief: str) -> None:
    tunable, _, instance = name.partition("@")
    assert (shown(tunable, instance, value), shown(tunable, instance, value, brief=True)) == (text, brief)


def test_the_unit_of_a_value_is_that_of_its_tunable() -> None:
    assert {tunable.name for tunable in REGISTRY if tunable.sizes == "KiB"} == KIB


def test_values() -> None:
    assert plain(output.values(DRIVES[:1])) == ["none"]
    assert plain(output.values(DRIVES)) == [
        "io-scheduler@nvme0n1 none",
        "io-scheduler@nvme1n1 mq-deadline",
        "io-scheduler@sda bfq",
    ]


def test_no_colour_and_no_folding_unless_on_a_terminal() -> None:
    rows = [
        outcome(f"hugepages@{size}", "partial", reason="partially-allocated", detail=LONG)
        for size in ("64K", "2M", "1G")
    ]
    lines = plain(output.outcomes(rows))
    assert len(lines) == 4
    assert all(LONG.strip() in line for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_fitted_and_coloured_on_a_terminal() -> None:
    text = on_terminal(output.outcomes([outcome("hugepages@2M", "partial", reason="partially-allocated", detail=LONG)]))
    assert "\x1b[33m" in text
    seen = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert len(seen) > 4
    assert max(map(len, seen)) <= 72
    assert seen[2].split()[0] == "partially-allocated:", "the detail is below its row"
    assert "".join(seen).replace(" ", "").count(LONG.replace(" ", "")) == 1, "nothing is cut off"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_terminal(output.outcomes([outcome("overcommit", "failed", reason="kernel-rejected")]))
    assert "overcommit" in text
    assert "\x1b" not in text


def test_equal_outcomes_share_a_row() -> None:
    long = {"requested": "performance", "actual": "performance", "detail": "moves other CPUs too"}
    rows = [outcome(f"cpu-governor@policy{number}", **long) for number in range(8)]
    rows[3] = outcome("cpu-governor@policy3", "unsupported", reason="cpu-offline")
    assert [line.split("  ")[0] for line in plain(output.outcomes(rows))[1:]] == [
        "cpu-governor@policy0-2,4-7",
        "cpu-governor@policy3",
    ]
    drives = [outcome(f"io-scheduler@nvme{number}n1") for number in range(4)]
    assert plain(output.outcomes(drives))[1].startswith("io-scheduler@nvme0n1-nvme3n1  ")


def test_prose_is_wrapped_on_a_terminal_and_nothing_else() -> None:
    assert max(map(len, on_terminal([Prose("word " * 40)]).splitlines())) <= 72
    assert on_terminal(["word " * 40]).splitlines() == ["word " * 40]
    assert plain([Prose("word " * 40)]) == ["word " * 40]


@pytest.mark.parametrize("width", [1, 3, 10, 30])
def test_however_narrow_nothing_is_lost(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [target("overcommit", "always", requested="never", state="failed", reason="kernel-rejected", claim="hold:o")]
    text = on_terminal(status_page(document(rows), rows))
    assert all(word in text for word in ("overcommit", "always", "never", "failed", "kernel-rejected", "hold:o"))


def test_prose_in_the_last_column_gives_way() -> None:
    table = Table(("", "PROFILE", "SUMMARY"), (Row(("→", "a" * 20, "word " * 20)),), wraps=True)
    lines = on_terminal([table]).splitlines()
    assert max(map(len, lines)) <= 72 + len("\x1b[2m\x1b[0m")
    assert lines[1] == f"→  {'a' * 20}  {'word ' * 9}".rstrip()
    assert lines[2] == " " * 25 + ("word " * 9).rstrip()


def test_prose_may_be_blank() -> None:
    table = Table(("", "PROFILE", "SUMMARY"), (Row(("", "mine", "  ")),), wraps=True)
    assert "mine" in on_terminal([table])


@pytest.mark.parametrize("width", [30, 72, 200])
def test_a_table_looks_the_same_at_every_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants a value stands in its row, and in one piece."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    table = Table(("", "TARGET", "STATE", "WANTED BY"), (Row(("✔", "a" * 20, "satisfied", "runtime, root (python)")),))
    assert on_terminal([table]).splitlines() == [
        "   TARGET                STATE      WANTED BY",
        "✔  aaaaaaaaaaaaaaaaaaaa  satisfied  runtime, root (python)",
    ]


def test_a_terminal_shows_what_was_requested_only_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    good, partial = outcome("overcommit", requested="always", actual="always"), outcome("hugepages@2M", "partial")
    assert on_terminal(output.outcomes([good])).splitlines() == [
        "   TARGET      ACTUAL  STATE",
        "✔  overcommit  always  satisfied",
    ]
    assert on_terminal(output.outcomes([good, partial._replace(requested="128", actual="96")])).splitlines() == [
        "   TARGET        REQUESTED  ACTUAL          STATE",
        "✔  overcommit               always          satisfied",
        "◐  hugepages@2M  256M       192M (96 x 2M)  partial",
    ]
    assert plain(output.outcomes([good]))[1] == "overcommit  always     always  satisfied"


@pytest.mark.parametrize("watched", [True, False])
def test_no_name_can_move_the_cursor_or_start_a_line(watched: bool) -> None:
    row = target("overcommit", "always", state="satisfied", claim="runtime:overcommit")
    host = document([row], [claim("runtime:overcommit", "always", who="\x1b[2Jmallory\nroot\udcff")])
    page = status_page(host, [row])
    text = on_terminal(page) if watched else "\n".join(plain(page))
    assert "\x1b[2J" not in text
    assert "mallory�root�" in text


@pytest.mark.parametrize(
    ("what", "hint", "said"),
    [
        ("it broke", "", "kerntune: it broke\n"),
        ("it broke", "Try again " * 20, f"kerntune: it broke\n  {'Try again ' * 20}\n"),
    ],
)
def test_an_error_is_a_line_and_its_hint_another(what: str, hint: str, said: str) -> None:
    stream = io.StringIO()
    tables.error(what, hint, stream)
    assert stream.getvalue() == said


def test_an_error_is_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Watched()
    tables.error("it broke " * 20, "Try: kerntune set io-scheduler@by-id/a-very-long-name=none", stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("kerntune: it broke")
    assert all(line.startswith("  ") for line in lines[1:])
    assert "  io-scheduler@by-id/a-very-long-name=none" in lines, "a command to copy stays whole"


# The progress bar: as wide as there is room, and about what is told


def test_half_of_it() -> None:
    assert line("hugepages", "2M", 50, 100, columns=48) == "hugepages@2M [########........] 50 of 100 pages"


@pytest.mark.parametrize(("done", "full"), [(0, 0), (1, 0), (99, 39), (100, 40), (200, 40)])
def test_how_much_is_full(done: int, full: int) -> None:
    drawn = line("hugepages", "2M", done, 100, columns=200)
    assert (drawn.count("#"), drawn.count("#") + drawn.count(".")) == (full, 40)


@pytest.mark.parametrize("columns", range(1, 90))
def test_it_never_reaches_the_last_column(columns: int) -> None:
    assert len(line("hugepages", "2M/node0", 12345, 99999, columns=columns)) < columns


def test_nothing_wanted_is_no_division() -> None:
    assert "0 of 0 pages" in line("hugepages", "2M", 0, 0, columns=80)


def test_names_move_no_cursor() -> None:
    assert "\x1b" not in line("huge\x1b[2Jpages", "2M", 1, 2, columns=80)


def test_a_later_daemon_may_say_more() -> None:
    assert "1 of 2 pages" in line("hugepages", "2M", 1, 2, "seconds left", columns=80)


# Fields, for scripts


def test_only_the_fields_that_are_named(capsys: Captured) -> None:
    words = ("list", "io-scheduler", "--fields", "target, value,choices,claim,condition")
    assert run(Script(), *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "io-scheduler@nvme0n1\tnone\tnone mq-deadline\t\tunmanaged",
        "io-scheduler@nvme1n1\tmq-deadline\tnone mq-deadline\t\tunmanaged",
        "io-scheduler@sda\tbfq\tbfq none\t\tunmanaged",
    ]
    assert run(Script(), *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["choices"] == ["none", "mq-deadline"]


def test_fields_of_outcomes(capsys: Captured) -> None:
    row = outcome("hugepages@2M", "partial", requested="128", actual="96", reason="partially-allocated", detail="a\tb")
    assert run(Script(outcomes=[row]), "set", "hugepages=128", "--fields", "target,actual,state,detail") == 6
    assert capsys.readouterr().out == "hugepages@2M\t96\tpartial\ta\N{REPLACEMENT CHARACTER}b\n"


@pytest.mark.parametrize("words", [("status",), ("list",), ("verify",), ("get", "overcommit"), ("holds",)])
def test_a_field_that_is_not_there_is_told(words: tuple[str, ...], capsys: Captured) -> None:
    assert run(Script(), *words, "--fields", "colour") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kerntune: there is no field 'colour' here\n  There are ")


def test_no_field_is_none_that_is_there(capsys: Captured) -> None:
    assert run(Script(), "status", "--fields=") == 2
    assert capsys.readouterr().err.startswith("kerntune: there is no field '' here\n")


@pytest.mark.parametrize("verb", output.ROWS)
def test_the_help_text_names_fields_that_the_verb_has(verb: str) -> None:
    (help_text,) = (option.how["help"] for option in known_verb(verb).options if "--fields" in option.names)
    (example,) = re.findall(r"\((.+)\)", help_text)
    assert len(output.known_fields(verb, example)) > 1


FAILED = [outcome("overcommit", "failed", reason="kernel-rejected")]
PAGE = output.outcomes(FAILED)


@pytest.mark.parametrize(
    ("color", "environment", "piped", "terminal"),
    [
        ("auto", {}, False, True),
        ("auto", {"TERM": "dumb"}, False, False),
        ("auto", {"NO_COLOR": "", "FORCE_COLOR": ""}, False, True),
        ("auto", {"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ("always", {"NO_COLOR": "1", "TERM": "dumb"}, True, True),
        ("never", {"FORCE_COLOR": "1"}, False, False),
    ],
)
def test_the_option_wins_over_no_color_and_that_over_force_color(
    color: str, environment: dict[str, str], *, piped: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream, coloured in ((io.StringIO(), piped), (Watched(), terminal)):
        tables.write(PAGE, stream, color)
        assert ("\x1b[" in stream.getvalue()) == coloured
        # What is coloured has the layout of a terminal, and a terminal always has it.
        assert stream.getvalue().startswith("TARGET") == (not coloured and not stream.isatty())
