"""status at a glance: what is desired, what is there, why it is not, and who overrides whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kerntune.api.document import TargetRow
from kerntune.api.services import RIVALS
from kerntune.cli import output
from kerntune.cli.health import NOTES
from kerntune.cli.output import MEANINGS
from kerntune.config.active import CONFIG_INVALID
from kerntune.engine.claims import SUSPENDED
from kerntune.guard.guard import CAPS, OBSERVES
from kerntune.store import STATE_SET_ASIDE
from tests.cli.scripted import (
    Captured,
    Script,
    claim,
    document,
    named_page,
    on_terminal,
    outcome,
    plain,
    run,
    status_page,
    target,
)
from tests.conftest import needs_root
from tests.harness.command import kerntune
from tests.harness.daemon import READY, Daemon
from tests.harness.privatebus import package_bus


def satisfied(name: str, value: str, **more: Any) -> TargetRow:
    return target(name, value, requested=value, state="satisfied", **more)


def from_line(number: int, why: str = "") -> dict[str, str]:
    """Return the fields of a claim of the configuration that tell where it is from."""
    place = f"/etc/kerntune/kerntune.toml:{number}"
    return {"why": why or place, "place": place}


def test_what_is_owed_to_the_host_is_listed_as_wanted_by_it() -> None:
    owed = target("io-scheduler@sda", "bfq", requested="mq-deadline", state="failed", reason="kernel-rejected")
    (row,) = (line for line in plain(status_page(document([owed]), [owed])) if "io-scheduler" in line)
    assert row.split() == ["io-scheduler@sda", "mq-deadline", "bfq", "owed", "the", "host", "kernel-rejected"]


def test_while_memory_is_short_it_says_who_has_most_to_do_with_it() -> None:
    host = document([])
    assert not any("most to do with it" in line for line in plain(status_page(host, [])))
    short = {"state": "capped", "floor": 1 << 30, "room": 3 << 29, "culprit": "hog.service: hog\x1b (pid 7, alice)"}
    host["guard"] |= short  # type: ignore[typeddict-item]  # some of its fields
    lines = plain(status_page(host, []))
    guard = next(number for number, line in enumerate(lines) if line.startswith("memory guard: capped"))
    assert lines[guard].endswith(", floor 1.0 GiB, more than 1.5 GiB is refused")
    assert lines[guard + 1] == "most to do with it: hog.service: hog\N{REPLACEMENT CHARACTER} (pid 7, alice)"


def test_it_leads_with_what_is_not_in_the_desired_state() -> None:
    managed = [
        satisfied("overcommit", "always", claim="config:overcommit"),
        target(
            "io-scheduler@sda",
            "bfq",
            requested="none",
            state="contested",
            reason="changed-by-others",
            detail="three times",
            claim="runtime:io-scheduler@s*",
            beaten=["config:io-scheduler@*"],
        ),
    ]
    claims = [
        claim("config:overcommit", "always"),
        claim("runtime:io-scheduler@s*", "none", who="alice (busctl)", why="a test", matches=["sda"]),
        claim("config:io-scheduler@*", "bfq", who="config", matches=["sda"], **from_line(3)),
        claim("persistent:io-scheduler@vd*", "none", who="root", matches=[]),
    ]
    host = document(managed, claims, degraded=["changed-by-others"])
    assert plain(status_page(host, managed)) == [
        "kerntuned 0.1.0 on Linux 6.1.0, generation 3",
        "Not well: 1 of 3 in the desired state; 1 contested; 1 waiting for a device",
        f"! changed-by-others: {MEANINGS['changed-by-others']}",
        "TARGET                 REQUESTED  ACTUAL  STATE      WANTED BY",
        "io-scheduler@sda       none       bfq     contested  runtime, alice (busctl)"
        "  changed-by-others: three times"
        "  overrides bfq of config for *: /etc/kerntune/kerntune.toml:3 (runtime wins over config)",
        "overcommit             always     always  satisfied  config",
        "io-scheduler@vd*=none  -          -       waiting    persistent",
    ]


def test_on_a_terminal_prose_stands_below_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for what is in the desired state, and no name is cut."""
    monkeypatch.setenv("COLUMNS", "92")
    monkeypatch.setenv("NO_COLOR", "1")
    claims = [
        claim("profile:io-scheduler@nvme*", "none", who="balanced", why="documentation: " + "long " * 30),
        claim("runtime:io-scheduler@sda", "none", who="root (python)"),
        claim("config:io-scheduler@*", "bfq", who="config", **from_line(3)),
    ]
    rows = [
        satisfied("io-scheduler@sda", "none", claim="runtime:io-scheduler@sda", beaten=["config:io-scheduler@*"]),
        satisfied("io-scheduler@nvme0n1", "none", claim="profile:io-scheduler@nvme*"),
        target("io-scheduler@sdb", "none", requested="bfq", state="failed", reason="kernel-rejected",
               detail="the kernel says " + "no " * 30, claim="config:io-scheduler@*"),
    ]  # fmt: skip
    host = document(rows, claims, profile="ai-inference")
    expected = [
        "   TARGET                REQUESTED  ACTUAL  STATE      WANTED BY",
        "✘  io-scheduler@sdb      bfq        none    failed     config, kerntune.toml:3",
        "✔  io-scheduler@nvme0n1             none    satisfied  profile",
        "✔  io-scheduler@sda                 none    satisfied  runtime",
    ]
    note = [
        "   kernel-rejected: the kernel says no no no no no no no no no no no no no no no no no no no",
        "   no no no no no no no no no no no",
    ]
    more = "One claim overrides others (kerntune status TARGET shows which)"
    for width in (80, 92, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = on_terminal(status_page(host, rows)).splitlines()
        assert [line for line in lines if line in expected] == expected, "prose alone gives way"
        assert lines[-1] == more
        if width == 92:
            assert lines[2:] == [*expected[:2], *note, *expected[2:], more]
    lines = on_terminal(named_page(host, rows)).splitlines()
    assert "   overrides bfq of config for *: /etc/kerntune/kerntune.toml:3 (runtime wins over config)" in lines


def test_each_slug_of_degraded_says_what_to_do() -> None:
    slugs = [CONFIG_INVALID, STATE_SET_ASIDE, SUSPENDED, *dict.fromkeys(RIVALS.values()), OBSERVES, "mood"]
    lines = plain(status_page(document(degraded=slugs), []))
    assert lines[1] == "Not well: config-invalid; state-set-aside; guard-observing; mood", "a rival is no trouble yet"
    told = [line.split(":")[0] for line in lines[2:-1]]
    assert told == [f"{'·' if slug in NOTES else '!'} {slug}" for slug in slugs]
    for line, hint in zip(
        lines[2:], ("kerntune config check", "journalctl -u kerntuned", "kerntune reload"), strict=False
    ):
        assert hint in line
    assert set(MEANINGS) >= {*slugs[:-1], CAPS}
    assert set(MEANINGS) >= NOTES
    assert lines[-1].startswith("Nothing is managed now: the configuration and the profile are suspended until")


def test_rows_are_in_the_order_of_the_tunables_and_of_their_numbers() -> None:
    names = ["overcommit", "io-scheduler@sda", *(f"io-scheduler@nvme{number}n1" for number in (12, 9))]
    rows = [satisfied(name, "none", detail=name) for name in names]
    host = document(rows)
    lines = plain(status_page(host, rows))
    order = ["io-scheduler@nvme9n1", "io-scheduler@nvme12n1", "io-scheduler@sda", "overcommit"]
    assert [line.split()[0] for line in lines[3:]] == order
    assert [line.split()[0] for line in plain(output.targets(host, host["tunables"], rows))[2:]] == order


def test_of_one_origin_the_newest_or_the_later_line_wins() -> None:
    row = satisfied("io-scheduler@sda", "none", claim="config:io-scheduler@sda", beaten=["config:io-scheduler@*"])
    claims = [claim("config:io-scheduler@sda", "none"), claim("config:io-scheduler@*", "bfq")]
    line = plain(named_page(document([row], claims), [row]))[-1]
    assert line.endswith("  overrides bfq of config for * (of config the later line wins)")
    row = satisfied("io-scheduler@sda", "none", claim="runtime:io-scheduler@sda", beaten=["runtime:io-scheduler@*"])
    claims = [claim("runtime:io-scheduler@sda", "none"), claim("runtime:io-scheduler@*", "bfq")]
    line = plain(named_page(document([row], claims), [row]))[-1]
    assert line.endswith("(of runtime the newest wins)")


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("", ""),
        ("a database", "  config: a database"),
        ("/etc/kerntune/kerntune.toml:3, as last read without an error", "  config: as last read without an error"),
        ("a database, as last read without an error", "  config: a database, as last read without an error"),
    ],
)
def test_a_claim_of_the_configuration_has_its_line_and_its_reason(why: str, said: str) -> None:
    wanted = claim("config:io-scheduler@sda", "none", who="config", **from_line(3, why))
    waiting = claim("config:io-scheduler@vd*", "none", who="config", matches=[], **from_line(3, why))
    beaten = claim("profile:io-scheduler@sd*", "bfq", who="balanced", why="documentation: long", place="/b.toml:9")
    row = satisfied("io-scheduler@sda", "none", claim=wanted["id"], beaten=[beaten["id"]])
    *_, line, waits = plain(named_page(document([row], [wanted, waiting, beaten], profile="ai-inference"), [row]))
    place = "config, kerntune.toml:3"
    assert line.endswith(f"  {place}{said}  overrides bfq of profile balanced for sd* (config wins over profile)")
    assert place in waits
    assert waits.endswith(f"  nothing matches now; the claim waits for a device{said}")
    other = claim("runtime:io-scheduler@sda", "kyber", who="root")
    row = satisfied("io-scheduler@sda", "kyber", claim=other["id"], beaten=[wanted["id"]])
    line = plain(named_page(document([row], [wanted, other]), [row]))[-1]
    reason = said.replace("  config: ", ", ")
    assert line.endswith(f"overrides none of config: /etc/kerntune/kerntune.toml:3{reason} (runtime wins over config)")


def test_targets_with_nothing_to_tell_them_apart_share_a_line() -> None:
    rows = [satisfied(f"cpu-governor@policy{number}", "performance", claim="config:g") for number in range(8)]
    rows[4]["detail"] = "moves CPU 9 too"
    host = document(rows, [claim("config:g", "performance")])
    lines = plain(named_page(host, rows))
    assert lines[0] == "All well: 8 of 8 in the desired state"
    assert [line.split("  ")[0] for line in lines[2:]] == ["cpu-governor@policy0-3,5-7", "cpu-governor@policy4"]
    (line,) = plain(status_page(host, rows))[3:]
    assert line.startswith("cpu-governor@policy0-7  "), "a note that is not shown tells nothing apart"
    for number, row in enumerate(rows):
        row["aliases"] = [f"cpu{number}", f"cpu{number + 8}"]
    assert plain(status_page(host, rows))[3].startswith("cpu-governor@cpu0-15  ")


def test_what_waits_shares_a_line_with_what_waits_for_the_same_value() -> None:
    names = {"nvme5n1": "none", "nvme6n1": "none", "nvme7n1": "bfq"}
    claims = [claim(f"profile:io-scheduler@{name}", value, matches=[]) for name, value in names.items()]
    host = document((), claims)
    expected = ["io-scheduler@nvme5n1-nvme6n1=none", "io-scheduler@nvme7n1=bfq"]
    assert [line.split()[0] for line in plain(status_page(host, []))[3:]] == expected
    rows = [
        outcome(f"io-scheduler@{name}", "unsupported", requested=value, actual="", reason="no-such-target")
        for name, value in names.items()
    ]
    assert [line.split()[0] for line in plain(output.outcomes(rows, document=host))[1:]] == expected


@pytest.mark.parametrize(
    "names",
    [("nvme1n*", "nvme2n*"), ("nvme1n1-nvme2n1", "nvme1n1-nvme3n1"), ("20,22", "20,23"), ("vd[ab]1", "vd[ab]2")],
)
def test_patterns_that_wait_are_not_joined(names: tuple[str, str]) -> None:
    """What would stand there is no pattern."""
    claims = [claim(f"config:io-scheduler@{name}", "none", matches=[]) for name in names]
    shown = [line.split()[0] for line in plain(status_page(document((), claims), []))[3:]]
    assert shown == [f"io-scheduler@{name}=none" for name in names]


def test_status_and_verify_count_a_pattern_once(capsys: Captured) -> None:
    claims = [claim(f"{origin}:io-scheduler@vd*", "none", matches=[]) for origin in ("profile", "runtime")]
    row = outcome("io-scheduler@vd*", "unsupported", actual="", reason="no-such-target")
    script = Script(document((), claims), outcomes=[row, row])
    for words in (["status"], ["verify"], ["status", "io-scheduler@vd*"], ["verify", "io-scheduler@vd*"]):
        assert run(script, *words) == 0
        assert "All well: 0 of 1 in the desired state; 1 waiting for a device\n" in capsys.readouterr().out


def test_status_and_verify_agree_on_a_claim_that_this_host_cannot_have(capsys: Captured) -> None:
    one = claim("profile:cpu-governor@*", "performance", matches=[])
    found = outcome("cpu-governor@*", "unsupported", requested="performance", actual="", reason="no-kernel-support")
    script = Script(document((), [one]), outcomes=[found])
    for words in (["status"], ["verify"], ["status", "cpu-governor@*"], ["verify", "cpu-governor@*"]):
        assert run(script, *words) == 0
        head, _, row = capsys.readouterr().out.splitlines()[-3:]
        assert head == "All well: 0 of 1 in the desired state; 1 not applicable here"
        assert row.split()[:4] == ["cpu-governor@*", "performance", "-", "not-applicable"]
    assert run(script, "status", "cpu-governor@*") == 0
    assert "no cpufreq driver is loaded" in capsys.readouterr().out


def test_a_claim_that_overrides_on_several_targets_is_one() -> None:
    claims = [claim("runtime:io-scheduler@*", "none"), claim("config:io-scheduler@*", "bfq")]
    winner, loser = (one["id"] for one in claims)
    rows = [satisfied(f"io-scheduler@sd{name}", "none", claim=winner, beaten=[loser]) for name in "abc"]
    host = document(rows, claims)
    assert plain(status_page(host, rows))[-1] == "One claim overrides others (kerntune status TARGET shows which)"


def test_a_table_that_would_be_too_wide_has_the_value_requested_below_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        target("hugepages@2M", "49152", requested="49664", state="partial", reason="over-limit", claim="runtime:h"),
        *(satisfied(f"io-scheduler@nvme{number}n1", "none", claim="profile:i") for number in range(24)),
    ]
    page = status_page(document(rows, [claim("runtime:h", "49664"), claim("profile:i", "none")]), rows)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = on_terminal(page).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2:] == [
        "   TARGET                         ACTUAL            STATE      WANTED BY",
        "◐  hugepages@2M                   96G (49152 x 2M)  partial    runtime",
        "   requested: 97G",
        "   over-limit",
        "✔  io-scheduler@nvme0n1-nvme23n1  none              satisfied  profile",
    ]
    monkeypatch.setenv("COLUMNS", "100")
    assert "97G        96G (49152 x 2M)  partial" in on_terminal(page)


def test_a_note_that_differs_only_in_the_name_is_no_reason_for_a_row() -> None:
    rows = [
        target(f"cpu-epp@policy{number}", "power", requested="fast", state="failed", reason="kernel-rejected",
               detail=f"policy{number} offers power, not fast: policy30 offers it", claim="config:e")
        for number in range(4)
    ]  # fmt: skip
    (line,) = plain(status_page(document(rows, [claim("config:e", "fast")]), rows))[3:]
    assert line.split("  ")[0] == "cpu-epp@policy0-3"
    assert "policy0-3 offers power, not fast" in line


def test_a_host_where_nothing_is_managed() -> None:
    assert plain(status_page(document(), [])) == [
        "kerntuned 0.1.0 on Linux 6.1.0, generation 3",
        "All well",
        "Nothing is managed: no claim has been made (kerntune set makes one)",
    ]


@pytest.mark.parametrize(
    ("simulated", "root", "where"),
    [(True, "/", "a simulated host"), (False, "/tree", "Linux 6.1.0 at /tree"), (False, "/", "Linux 6.1.0")],
)
def test_it_says_which_host_is_tuned(simulated: bool, root: str, where: str) -> None:
    host = document()
    host["host"]["simulated"], host["host"]["root"] = simulated, root
    assert f" on {where}, " in plain(status_page(host, []))[0]


def test_a_claim_that_is_not_described_is_shown_by_its_id() -> None:
    row = satisfied("overcommit", "always", claim="hold:overcommit", beaten=["runtime:overcommit"])
    assert plain(named_page(document([row]), [row]))[-1].endswith("hold:overcommit  overrides runtime:overcommit")


# A real daemon, and four that disagree about one drive


CONFIG = """\
profile = "mine"
[io-scheduler]
"nvme*" = "mq-deadline"
"nvme0n1" = { value = "bfq", why = "a database" }
"""
PROFILE = """\
summary = "for this test"
[io-scheduler]
"nvme0n1" = { value = "none", why = "it orders its own queue" }
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with package_bus() as bus:
        daemon = Daemon(bus, "--demo", wait=False)
        (daemon.config / "profiles").mkdir()
        (daemon.config / "profiles/mine.toml").write_text(PROFILE)
        (daemon.config / "kerntune.toml").write_text(CONFIG)
        with daemon:
            daemon.wait_for(READY)
            yield daemon


def cli(daemon: Daemon, *words: str) -> str:
    done = kerntune(*words, env=daemon.env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def about(daemon: Daemon, drive: str) -> str:
    """Return what status says of a drive, with one space between its words."""
    (line,) = (
        line for line in cli(daemon, "status", f"io-scheduler@{drive}").splitlines() if f"io-scheduler@{drive} " in line
    )
    return " ".join(line.replace(str(daemon.config), "ETC").split())


@needs_root
def test_four_that_disagree(daemon: Daemon) -> None:
    """Each wins over those below it, and says so; when it goes, the next one wins."""
    below = "mq-deadline of config for nvme*: ETC/kerntune.toml:3; none of profile mine"
    by_config = (
        "io-scheduler@nvme0n1 bfq bfq satisfied config, kerntune.toml:4 config: a database "
        f"overrides {below} (config wins over profile; of config the later line wins)"
    )
    assert about(daemon, "nvme0n1") == by_config

    cli(daemon, "set", "io-scheduler@nvme0n1=kyber", "--persist")
    losers = f"bfq of config: ETC/kerntune.toml:4, a database; {below}"
    by_persistent = (
        "io-scheduler@nvme0n1 kyber kyber satisfied persistent "
        f"overrides {losers} (persistent wins over config and profile)"
    )
    assert about(daemon, "nvme0n1") == by_persistent

    cli(daemon, "set", "io-scheduler@nvme*=mq-deadline")
    cli(daemon, "set", "io-scheduler@nvme0n1=bfq")
    losers = f"mq-deadline of runtime for nvme*, root (python); kyber of persistent, root (python); {losers}"
    assert about(daemon, "nvme0n1") == (
        "io-scheduler@nvme0n1 bfq bfq satisfied runtime "
        f"overrides {losers} (runtime wins over persistent, config and profile; of runtime the newest wins)"
    )
    assert about(daemon, "nvme1n1") == (
        "io-scheduler@nvme1n1 mq-deadline mq-deadline satisfied runtime "
        "overrides mq-deadline of config for nvme*: ETC/kerntune.toml:3 (runtime wins over config)"
    )
    assert "All well: 2 of 2 in the desired state\n" in cli(daemon, "status")

    cli(daemon, "unset", "io-scheduler@nvme0n1", "io-scheduler@nvme*")
    assert about(daemon, "nvme0n1") == by_persistent
    cli(daemon, "unset", "io-scheduler@nvme0n1", "--persist")
    assert about(daemon, "nvme0n1") == by_config

    (daemon.config / "kerntune.toml").write_text('profile = "mine"\n')
    cli(daemon, "reload")
    assert about(daemon, "nvme0n1") == "io-scheduler@nvme0n1 none none satisfied profile"
