"""The words people type: how settings are written, what they find, what was meant, and what is known of them."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune import syntax
from kerntune.api import document as answers
from kerntune.cli import suggest
from kerntune.errors import Failed, InvalidValue, KerntuneError, NoSuchTarget, NotSupported, UnknownTunable, Usage
from kerntune.tunables import REGISTRY
from tests.cli.scripted import DRIVES, OVERCOMMIT, POOLS, Captured, Script, claim, document, run, target, tunable


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("hugepages=128", ("hugepages", "", "128")),
        ("hugepages=64G", ("hugepages", "", "64G")),
        ("hugepages@1024MiB/node1=1g", ("hugepages", "1024MiB/node1", "1g")),
        ("io-scheduler@nvme*=none", ("io-scheduler", "nvme*", "none")),
        ("io-scheduler@by-id/nvme-a=b@c=none", ("io-scheduler", "by-id/nvme-a=b@c", "none")),
        ("read-ahead=4.5M", ("read-ahead", "*", "4.5M")),
        ("overcommit=always:95", ("overcommit", "*", "always:95")),
        ("no-such-thing=5", ("no-such-thing", "*", "5")),
        ("vm.swappiness=10", ("sysctl", "vm.swappiness", "10")),
        ("vm/swappiness=10", ("sysctl", "vm/swappiness", "10")),
        ("/proc/sys/vm/swappiness=10", ("sysctl", "/proc/sys/vm/swappiness", "10")),
        ("/sys/block/sda/queue/scheduler=none", ("/sys/block/sda/queue/scheduler", "*", "none")),
        ("io-scheduler@/dev/disk/by-id/a.b/c=none", ("io-scheduler", "/dev/disk/by-id/a.b/c", "none")),
        ("hugepages@node0=64G", ("hugepages", "node0", "64G")),
    ],
)
def test_a_setting_is_sent_as_it_is_typed(text: str, setting: tuple[str, str, str]) -> None:
    assert syntax.setting(text) == setting


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no value"),
        ("hugepages", "has no value"),
        ("hugepages=", "has no value"),
        ("hugepages@2M", "has no value"),
        ("=5", "names no tunable"),
        ("@2M=5", "names no tunable"),
        ("hugepages@=5", "no instances after the @"),
        ("io-scheduler=no\x1b[2Jne", "cannot be printed"),
        ("io-scheduler@\udcff=none", "cannot be printed"),
    ],
)
def test_a_setting_that_cannot_be_read(text: str, complaint: str) -> None:
    with pytest.raises(Usage, match=complaint):
        syntax.setting(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hugepages", ("hugepages", "*")),
        ("hugepages@2MiB/node0", ("hugepages", "2MiB/node0")),
        ("io-scheduler@nvme*", ("io-scheduler", "nvme*")),
        ("io-scheduler@by-id/a=b", ("io-scheduler", "by-id/a=b")),
        ("vm.swappiness", ("sysctl", "vm.swappiness")),
        ("cpu-*", ("cpu-*", "*")),
    ],
)
def test_a_name(text: str, what: tuple[str, str]) -> None:
    assert syntax.what(text) == what


@pytest.mark.parametrize("text", ["", "@2M", "hugepages@", "hugepages=5", "sda\n"])
def test_no_name(text: str) -> None:
    with pytest.raises(Usage):
        syntax.what(text)


@given(st.text())
def test_any_text_is_a_setting_or_a_usage_error(text: str) -> None:
    with suppress(Usage):
        assert syntax.setting(text).value


# Finding targets in what the daemon describes


HOST = document([*DRIVES, *POOLS, OVERCOMMIT])


def find(host: answers.Document, tunable: str, pattern: str) -> list[answers.TargetRow]:
    """Return the targets that a pattern covers. Raise the error with which `get` ends where there are none."""
    if rows := answers.covered(host, tunable, pattern):
        return rows
    raise answers.nothing_matches(host, tunable, pattern)


@pytest.mark.parametrize(
    ("tunable", "pattern", "instances"),
    [
        ("io-scheduler", "", ["nvme0n1", "nvme1n1", "sda"]),
        ("io-scheduler", "*", ["nvme0n1", "nvme1n1", "sda"]),
        ("io-scheduler", "nvme*", ["nvme0n1", "nvme1n1"]),
        ("io-scheduler", "nvme[1-9]n1", ["nvme1n1"]),
        ("io-scheduler", "by-id/nvme-Fast_2", ["nvme1n1"]),
        ("io-scheduler", "by-id/*", ["nvme0n1", "nvme1n1"]),
        ("hugepages", "*", ["2M", "2M/node0", "1G"]),
        ("hugepages", "2M", ["2M"]),
        ("hugepages", "2M/*", ["2M/node0"]),
        ("overcommit", "", [""]),
    ],
)
def test_find(tunable: str, pattern: str, instances: list[str]) -> None:
    assert [row["instance"] for row in find(HOST, tunable, pattern)] == instances


@pytest.mark.parametrize(
    ("host", "tunable", "pattern", "error", "said"),
    [
        (HOST, "io-scheduler", "vda", NoSuchTarget,
         r"io-scheduler has no 'vda'\. There are nvme0n1-nvme1n1, sda"),
        (HOST, "overcommit", "x", InvalidValue, "one setting of the host"),
        (HOST, "hugepages", "2*", InvalidValue, "not a pool of huge pages"),
        (HOST, "cpu-governor", "*", NotSupported, "no cpufreq driver"),
        (HOST, "governor", "*", UnknownTunable,
         r"'governor'\. There are cpu-governor, hugepages, io-scheduler, overcommit"),
        (document(), "io-scheduler", "*", NoSuchTarget, "This host has no io-scheduler now"),
    ],
)  # fmt: skip
def test_what_is_not_found_is_told_with_what_there_is(
    host: answers.Document, tunable: str, pattern: str, error: type[KerntuneError], said: str
) -> None:
    with pytest.raises(error, match=said):
        find(host, tunable, pattern)


LOOPS = [target(f"io-scheduler@loop{number}", "none") for number in range(2)]
MORE = document(
    [*DRIVES, *LOOPS, target("io-scheduler@zram0", "none", claim="runtime:io-scheduler@zram0"), *POOLS, OVERCOMMIT,
     target("sysctl@vm.swappiness", "60"), target("sysctl@vm.watermark_scale_factor", "10")],
    [claim("profile:io-scheduler@vd*", "none", matches=[]), claim("runtime:io-scheduler@zram0", "none"),
     claim("runtime:hugepages@4M/node1", "1", matches=[])],
    tunables=[*document()["tunables"], tunable("sysctl")],
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("overcommit", "overcommit"),
        ("hugepages@2M overcommit hugepages", "hugepages@2M overcommit hugepages@2M/node0 hugepages@1G"),
        ("hugepages@2M/0", "hugepages@2M/node0"),
        ("hugepages@node0", "hugepages@2M/node0"),
        ("hugepages@node*", "hugepages@2M/node0"),
        # What `*` leaves out is there when it has a claim, or a name of its own.
        ("io-scheduler", "io-scheduler@nvme0n1 io-scheduler@nvme1n1 io-scheduler@sda io-scheduler@zram0"),
        ("io-scheduler@*", "io-scheduler@nvme0n1 io-scheduler@nvme1n1 io-scheduler@sda io-scheduler@zram0"),
        ("io-scheduler@loop*", "io-scheduler@loop0 io-scheduler@loop1"),
        ("io-scheduler@loop1 io-scheduler@zram0", "io-scheduler@loop1 io-scheduler@zram0"),
        ("io-scheduler@/dev/nvme0n1", "io-scheduler@nvme0n1"),
        ("io-scheduler@/dev/disk/by-id/nvme-Fast_2", "io-scheduler@nvme1n1"),
        ("io-scheduler@nvme0n1-nvme9n1", "io-scheduler@nvme0n1 io-scheduler@nvme1n1"),
        ("io-*", "io-scheduler@nvme0n1 io-scheduler@nvme1n1 io-scheduler@sda io-scheduler@zram0"),
        ("*@nvme0n1", "io-scheduler@nvme0n1"),
        ("over*", "overcommit"),
        ("cpu-governor", ""),
        ("vm.swappiness", "sysctl@vm.swappiness"),
        ("vm/swappiness", "sysctl@vm.swappiness"),
        ("/proc/sys/vm/swappiness", "sysctl@vm.swappiness"),
        ("sysctl@swappiness", "sysctl@vm.swappiness"),
        ("vm.*", "sysctl@vm.swappiness sysctl@vm.watermark_scale_factor"),
        # A claim that waits has the name, and no target has it.
        ("io-scheduler@vd*", ""),
        ("hugepages@4096K/1", ""),
    ],
)  # fmt: skip
def test_select(names: str, found: str) -> None:
    rows = answers.select(MORE, names.split())
    assert [answers.named(row["tunable"], row["instance"]) for row in rows] == found.split()


def test_without_names_all_are_selected() -> None:
    found = [answers.named(row["tunable"], row["instance"]) for row in answers.select(MORE)]
    there = [answers.named(row["tunable"], row["instance"]) for row in MORE["targets"]]
    assert sorted(found) == sorted(name for name in there if "loop" not in name)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("governor", UnknownTunable, "no tunable 'governor'"),
        ("x*", UnknownTunable, r"no tunable 'x\*'"),
        ("vm@swappiness", UnknownTunable, "no tunable 'vm'"),
        ("/dev/nvme0n1", UnknownTunable, "no tunable '/dev/nvme0n1'"),
        ("vm.swapiness", NoSuchTarget, "Did you mean vm.swappiness. There are vm.swappiness"),
        ("vm.dirty_ratio", NoSuchTarget, "kerntune tunes no sysctl .vm.dirty_ratio. here. There are vm.swappiness"),
        ("vm.overcommit_memory", NoSuchTarget, "set by the tunable overcommit. kerntune get over"),
        ("sysctl@nr_hugepages", NoSuchTarget, "vm.nr_hugepages is set by the tunable hugepages"),
        ("io-scheduler@sdz", NoSuchTarget, "io-scheduler has no .sdz.. There are nvme0n1-nvme1n1, sda, zram0$"),
        ("io-scheduler@nvme5n1-nvme9n1", NoSuchTarget, "has no .nvme5n1-nvme9n1."),
        ("hugepages@16M", NoSuchTarget, "There are 1G, 2M, 2M/node0"),
        ("cpu-governor@0", NotSupported, "no cpufreq driver"),
        ("hugepages@x", InvalidValue, "not a pool"),
        ("*@no/name", NoSuchTarget, r"nothing matches \*@no/name"),
        ("*@sdz", NoSuchTarget, r"nothing matches \*@sdz"),
        ("io-scheduler@", Usage, "no instances after the @"),
    ],
)
def test_a_name_that_selects_nothing_is_told(name: str, error: type[KerntuneError], said: str) -> None:
    with pytest.raises(error, match=said):
        answers.select(MORE, ["overcommit", name])


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("io-scheduler", ["profile:io-scheduler@vd*"]),
        ("io-scheduler@v*", ["profile:io-scheduler@vd*"]),
        ("*", ["profile:io-scheduler@vd*", "runtime:hugepages@4M/node1"]),
        ("hugepages@4M/1", ["runtime:hugepages@4M/node1"]),
        ("hugepages@4M/0", []),
        ("overcommit", []),
    ],
)
def test_claims_that_wait_are_named_too(name: str, claims: list[str]) -> None:
    assert [row["id"] for row in answers.waiting(MORE, answers.resolve(MORE, name))] == claims


def test_a_daemon_of_another_version_is_told() -> None:
    older = document([OVERCOMMIT])
    older["tunables"] = [{key: value for key, value in row.items() if key != "kind"} for row in older["tunables"]]  # type: ignore[misc]  # as it was before
    with pytest.raises(Failed, match=r"another version.*systemctl restart kerntuned"):
        find(older, "overcommit", "")


# What was meant


NAMES = sorted(tunable.name for tunable in REGISTRY)


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        ("it broke", "it broke", ""),
        ("in part: x:2: claims is 0. Give more. The rest is in force", "in part: x:2: claims is 0. Give more",
         "The rest is in force"),
        ("no v'1. 5'. `kerntune list` shows more", "no v'1. 5'", "`kerntune list` shows more"),
        ("too many. wait for the replies", "too many", "wait for the replies"),
        ("modprobe acpi_cpufreq. /boot/config has it. It takes another", "modprobe acpi_cpufreq. /boot/config has it",
         "It takes another"),
    ],
)  # fmt: skip
def test_what_the_daemon_sends_as_one_text(said: str, what: str, hint: str) -> None:
    assert suggest.parts(Failed(said)) == (what, hint)


def test_our_own_have_two_parts_already() -> None:
    assert suggest.parts(Failed("it broke. Badly", "Try again")) == ("it broke. Badly", "Try again")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("hugepage", "hugepages"),
        ("io_scheduler", "io-scheduler"),
        ("scheduler", "io-scheduler"),
        ("governor", "cpu-governor"),
        ("scaling_governor", "cpu-governor"),
        ("epp", "cpu-epp"),
        ("readahead", "read-ahead"),
        ("read_ahead_kb", "read-ahead"),
        ("elevator", "io-scheduler"),
        ("transparent_hugepage", "thp"),
        ("defrag", "thp@defrag"),
        ("energy_performance_preference", "cpu-epp"),
        ("nr_overcommit_hugepages", "hugepages-overcommit"),
        ("nr_hugepages", "hugepages"),
        ("vm.nr_hugepages", "hugepages"),
        ("vm.overcommit_memory", "overcommit"),
        ("over-commit", "overcommit"),
        ("vm.swappiness", "sysctl@vm.swappiness"),
        ("vm.swapiness", "sysctl@vm.swappiness"),
        ("swappiness", "sysctl@vm.swappiness"),
        ("kernel.numa_balancing", "sysctl@kernel.numa_balancing"),
        ("zzz", ""),
    ],
)
def test_what_was_meant(word: str, meant: str) -> None:
    assert suggest.tunable(word, NAMES) == meant
    error = UnknownTunable(f"there is no tunable {word!r}. There are {', '.join(NAMES)}")
    what, hint = suggest.parts(error)
    assert what == f"there is no tunable {word!r}"
    assert hint.startswith(f"Did you mean {meant}? There are " if meant else "There are ")


def test_what_things_are_known_as_is_there() -> None:
    tunables = {tunable.name: tunable for tunable in REGISTRY}
    for meant in suggest.known_as().values():
        name, _, instance = meant.partition("@")
        assert name in tunables
        assert not instance or tunables[name].normal(instance) == instance


def test_only_what_there_is_can_be_meant() -> None:
    assert suggest.tunable("governor", ["hugepages"]) == ""


# explain: what is known of the tunables there are, without a daemon


def explain(*words: str) -> int:
    script = Script()
    code = run(script, "explain", *words)
    assert script.calls == []
    return code


def test_the_list_has_those_there_are(capsys: Captured) -> None:
    assert explain() == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "TUNABLE"
    assert [line.split()[0] for line in lines] == [tunable.name for tunable in REGISTRY]


def test_the_list_fits_a_terminal_of_80_columns(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert explain("--color=always") == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_all_there_is_to_know(capsys: Captured) -> None:
    assert explain("io-scheduler") == 0
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
    assert explain("overcommit") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("  risk        With 'always', the kernel") for line in lines)


def test_in_json(capsys: Captured) -> None:
    assert explain("hugepages", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["evidence"][0]["grade"] == "measured"
    assert said["example"]["command"] == "kerntune set hugepages=64G"
    assert explain("--json") == 0
    names = [row["tunable"] for row in json.loads(capsys.readouterr().out)["tunables"]]
    assert names == [tunable.name for tunable in REGISTRY]


@pytest.mark.parametrize("tunable", [one.name for one in REGISTRY])
def test_no_value_can_be_taken_for_a_word(tunable: str, capsys: Captured) -> None:
    """`none` is a scheduler, and always and never are values too: in a sentence they are quoted."""
    assert explain(tunable) == 0
    prose = [line for line in capsys.readouterr().out.splitlines() if not re.match(r"  (values|example|kernel)", line)]
    assert not re.findall(r"(?<!['\w:=])(?:none|always|never|madvise|heuristic)(?![':(\w])", "\n".join(prose[1:]))


@pytest.mark.parametrize("word", ["thp@enabled", "thp=always", "thp@enabled=always", "thp"])
def test_an_instance_does_not_matter(word: str, capsys: Captured) -> None:
    assert explain(word) == 0
    assert capsys.readouterr().out.startswith("thp: Transparent huge pages")


@pytest.mark.parametrize("word", ["vm.swappiness", "vm.swappiness=10", "/proc/sys/vm/swappiness", "sysctl@swappiness"])
def test_a_sysctl_by_itself_is_explained(word: str, capsys: Captured) -> None:
    assert explain(word) == 0
    assert capsys.readouterr().out.startswith("sysctl: ")


@pytest.mark.parametrize("word", ["vm.nosuch", "sysctl@nosuch", "vm.overcommit_memory", "thp@nosuch"])
def test_a_name_that_is_not_on_a_list_is_not_found(word: str, capsys: Captured) -> None:
    assert explain(word) == 3
    assert capsys.readouterr().out == ""


def test_another_name_is_told(capsys: Captured) -> None:
    assert explain("governor") == 3
    said = capsys.readouterr().err
    assert "there is no tunable 'governor'" in said
    assert "cpu-governor" in said
