"""`kerntune profile`, `kerntune reset` and their plans; and each shipped profile beside a running daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerntune.cli.remote import LEAVING
from kerntune.errors import NoSuchProfile, NotAuthorized
from tests.cli.scripted import Captured, Script, document, outcome, run, serving
from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.command import NO_BUS, Shell, demo, kerntune
from tests.harness.privatebus import PrivateBus


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    return tmp_path


def configured(folder: Path) -> dict[str, str]:
    """Return an environment with this configuration, and without a bus."""
    return {"CONFIGURATION_DIRECTORY": str(folder), **NO_BUS}


# list, set, clear


@pytest.mark.parametrize("words", [["profile"], ["profile", "list"]])
def test_the_one_in_force_is_marked(words: list[str], capsys: Captured) -> None:
    assert run(Script(document(profile="balanced")), *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PROFILE       STATE     SUMMARY",
        "ai-inference  -         for serving models",
        "balanced      in force  for other work too",
    ]


def test_the_one_in_force_is_shown_also_when_its_file_is_gone(capsys: Captured) -> None:
    assert run(Script(document(profile="ai-mine")), "profile") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "ai-mine       in force  there is no such profile any more; what it last said stays in force",
        "balanced      -         for other work too",
    ]


def test_list_in_json(capsys: Captured) -> None:
    assert run(Script(), "profile", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["active"], said["profiles"][0]) == (
        "",
        {"name": "ai-inference", "summary": "for serving models"},
    )


def test_status_names_it(capsys: Captured) -> None:
    assert run(Script(document(profile="balanced", degraded=["config-suspended"])), "status") == 0
    assert "generation 3, profile balanced\nAll well\n· config-suspended: " in capsys.readouterr().out


CASES: list[tuple[list[str], tuple[Any, ...]]] = [
    (["profile", "set", "balanced"], ("SetProfile", "balanced")),
    (["profile", "clear"], ("ClearProfile",)),
    (["reset"], ("Reset", {})),
    (["reset", "--baseline"], ("Reset", {"baseline": True})),
    (["reset", "--holds"], ("Reset", {"holds": True})),
    (["profile", "set", "balanced", "--dry-run"], ("Plan", [], {"profile": "balanced"})),
    (["profile", "clear", "--dry-run"], ("Plan", [], {"profile": ""})),
    (["reset", "--dry-run"], ("Plan", [], {"reset": True})),
    (["reset", "--baseline", "--dry-run"], ("Plan", [], {"reset": True, "baseline": True})),
    (["--json", "reset", "--holds", "--dry-run"], ("Plan", [], {"reset": True, "holds": True})),
]


@pytest.mark.parametrize(("words", "call"), CASES)
def test_what_is_asked(words: list[str], call: tuple[Any, ...], capsys: Captured) -> None:
    script = Script(outcomes=[outcome("io-scheduler@sda")])
    assert run(script, *words) == 0
    assert script.calls == [call]
    assert "io-scheduler" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "set"],
        ["profile", "show"],
        ["profile", "clear", "balanced"],
        ["profile", "list", "balanced"],
        ["profile", "balanced"],
        ["profile", "list", "--dry-run"],
        ["profile", "show", "balanced", "--dry-run"],
        ["profile", "set", "--dry-run"],
        ["reset", "--dry-run", "--persist"],
        ["reset", "overcommit"],
    ],
    ids=" ".join,
)
def test_what_does_not_fit_together(words: list[str]) -> None:
    script = Script()
    assert run(script, *words) == 2
    assert script.calls == []


LACKING = outcome("cpu-governor@*", "unsupported", reason="no-kernel-support")
BEATEN = outcome("io-scheduler@sda", "overridden", reason="overridden")
OURS = outcome("io-scheduler@sdb", "overridden", reason="config-wins", detail="FILE:3 wins")


@pytest.mark.parametrize(
    "words",
    [["profile", "set", "balanced"], ["profile", "set", "balanced", "--dry-run"], ["profile", "clear"], ["reset"]],
    ids=" ".join,
)
def test_what_the_host_lacks_is_shown_and_no_failure(words: list[str], capsys: Captured) -> None:
    assert run(Script(outcomes=[LACKING]), *words) == 0
    assert "\ncpu-governor@*  " in capsys.readouterr().out
    assert run(Script(outcomes=[LACKING, outcome("io-scheduler@sda")]), *words) == 0
    assert run(Script(outcomes=[LACKING, outcome("io-scheduler@sda"), BEATEN]), *words) == 6
    assert run(Script(outcomes=[LACKING, outcome("io-scheduler@sda"), OURS]), *words) == 0
    assert "config-wins: FILE:3 wins" in capsys.readouterr().out
    read_only = outcome("overcommit", "unsupported", reason="read-only")
    assert run(Script(outcomes=[read_only]), *words) == 3


def test_nothing_to_do(capsys: Captured) -> None:
    assert run(Script(changed=False), "reset") == 0
    assert run(Script(changed=False), "reset", "--dry-run") == 0
    assert run(Script(), "profile", "clear") == 0
    assert run(Script(), "profile", "clear", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    done = "Done; no target is concerned.", "No target would be concerned."
    assert said == ["Nothing changed.", "Nothing would change.", *done]


@pytest.mark.parametrize(("error", "code"), [(NoSuchProfile("there is no profile 'x'"), 3), (NotAuthorized("no"), 4)])
def test_errors(error: NoSuchProfile | NotAuthorized, code: int) -> None:
    assert run(Script(error=error), "profile", "set", "x") == code


def test_on_the_bus(script_bus: PrivateBus) -> None:
    """Signatures and options as the contract has them; polkit may ask."""
    script = Script(outcomes=[outcome("io-scheduler@sda")])
    with serving(script_bus, script) as manager:
        for words in [case[0] for case in CASES]:
            assert kerntune(*words, env=script_bus.environment).returncode == 0, words
        assert "balanced" in kerntune("profile", env=script_bus.environment).stdout
    assert script.calls[:4] == [
        ("SetProfile", "balanced", LEAVING),
        ("ClearProfile", LEAVING),
        ("Reset", LEAVING),
        ("Reset", {"baseline": True} | LEAVING),
    ]
    assert script.calls[4] == ("Reset", {"holds": True} | LEAVING)
    assert script.calls[5:10] == [case[1] for case in CASES[5:]]
    assert manager.interactive == [True] * 10


# show, and config check


def test_show_needs_no_daemon(etc: Path) -> None:
    (etc / "profiles/mine.toml").write_text(
        'summary = "for me"\ninclude = ["base"]\n[io-scheduler]\n"sd*" = { value = "bfq", why = "measured: fair" }\n'
    )
    (etc / "profiles/base.toml").write_text('[hugepages]\n"2M" = "4G"\n')
    done = kerntune("profile", "show", "mine", env=configured(etc))
    assert (done.returncode, done.stderr) == (0, "")
    head, _, pool, disk = done.stdout.splitlines()
    assert head == f"mine: for me ({etc}/profiles/mine.toml)"
    assert pool.split() == ["hugepages@2M", "4G", "from", "base:", f"{etc}/profiles/base.toml:2"]
    assert disk.split(maxsplit=2) == ["io-scheduler@sd*", "bfq", "measured: fair"]
    page = json.loads(kerntune("--json", "profile", "show", "mine", env=configured(etc)).stdout)
    assert (page["name"], page["summary"], page["problems"]) == ("mine", "for me", [])
    assert page["claims"][1] == {
        "tunable": "io-scheduler",
        "instances": "sd*",
        "value": "bfq",
        "why": "measured: fair",
        "who": "mine",
    }


def test_show_of_one_that_is_not_in_order_or_not_there(etc: Path) -> None:
    (etc / "profiles/mine.toml").write_text('[io-scheduler]\n"sd*" = 5.5\n')
    done = kerntune("profile", "show", "mine", env=configured(etc))
    assert done.returncode == 1
    assert f"{etc}/profiles/mine.toml:2: io-scheduler: 5.5 is no value" in done.stdout
    done = kerntune("profile", "show", "yours", env=configured(etc))
    assert done.returncode == 3
    assert "there is no profile 'yours'" in done.stderr
    assert "ai-inference" in done.stderr


def test_config_check_looks_at_the_administrators_profiles(etc: Path) -> None:
    (etc / "profiles/a.toml").write_text('include = ["b"]\n')
    (etc / "profiles/b.toml").write_text('include = ["a"]\n')
    done = kerntune("config", "check", str(etc))
    assert done.returncode == 1
    assert f"{etc}/profiles/b.toml:1: profiles include each other: a -> b -> a" in done.stdout


# Beside a running daemon, on a host that lacks some of what a profile names: verify is content


PROFILES = sorted(path.stem for path in CHECKOUT.glob("packaging/profiles/*.toml"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@needs_root
@pytest.mark.parametrize("profile", PROFILES)
def test_a_workload_starts_after_verify(shell: Shell, profile: str) -> None:
    shell.check(f"kerntune profile set {profile}")
    said = json.loads(shell.check("kerntune verify --json"))
    assert said["lacking"] == len(said["outcomes"]) > 0, "no vd* is here"
    assert said["satisfied"] == said["managed"] - said["lacking"] > 0
    shell.check("kerntune verify && start-model-server")
    shell.check("kerntune profile clear")


@needs_root
def test_going_back_to_a_profile_is_no_failure_either(shell: Shell) -> None:
    (shell.daemon.config / "kerntune.toml").write_text('profile = "balanced"\n')
    shell.check("kerntune reload")
    shell.check("kerntune profile set ai-inference")
    assert "io-scheduler@vd*" in shell.check("kerntune profile clear")
    shell.check("kerntune set overcommit=always --persist")
    shell.check("kerntune reset")
    shell.check("kerntune verify")
    shell.check("kerntune reset --baseline")
    for verb in ("status", "verify"):
        said = shell.check(f"kerntune {verb}")
        assert "no claim has been made" not in said
        assert "suspended" in said
        assert "kerntune reload" in said
    shell.check("kerntune reload")


@needs_root
def test_what_is_gone_waits_and_is_no_failure(shell: Shell) -> None:
    shell.check("kerntune set io-scheduler@nvme1n1=bfq 'io-scheduler@sd*=bfq' --persist")
    fifo = shell.daemon.folder / "runtime/demo"
    fifo.write_text("remove sda\n")
    shell.check("timeout 10 bash -c 'until ! kerntune get io-scheduler@sda; do :; done'")
    shell.check("kerntune verify")
    fifo.write_text("remove nvme1n1\n")
    shell.check("timeout 10 bash -c 'until ! kerntune get io-scheduler@nvme1n1; do :; done'")
    assert "4 of 7 in the desired state; 3 waiting for a device" in shell.check("kerntune verify")
