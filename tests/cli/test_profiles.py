"""`kerntune profile`, `kerntune reset` and their plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kerntune.cli.__main__ import main
from kerntune.cli.remote import LEAVING
from kerntune.errors import AccessDenied, NoSuchProfile
from tests.cli.scripted import Script, document, outcome, private_bus, serving

Captured = pytest.CaptureFixture[str]
LIMIT = 20.0  # seconds


def run(script: Script, *words: str) -> int:
    return main(words, connect=script.connect)


def cli(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Where no bus can be reached, unless the environment has one."""
    return subprocess.run(
        [sys.executable, "-m", "kerntune.cli", *words],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/bus", **env},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    return tmp_path


# list, set, clear


@pytest.mark.parametrize("words", [["profile"], ["profile", "list"]])
def test_the_one_in_force_is_marked(words: list[str], capsys: Captured) -> None:
    assert run(Script(document(profile="balanced")), *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PROFILE       STATE     SUMMARY",
        "ai-inference  -         for serving models",
        "balanced      in force  for other work too",
    ]


def test_list_in_json(capsys: Captured) -> None:
    assert run(Script(), "profile", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["active"], said["profiles"][0]) == (
        "",
        {"name": "ai-inference", "summary": "for serving models"},
    )


def test_status_names_it(capsys: Captured) -> None:
    run(Script(document(profile="balanced", degraded=["config-suspended"])), "status")
    assert "generation 3, profile balanced, degraded: config-suspended" in capsys.readouterr().out


CASES: list[tuple[list[str], tuple[Any, ...]]] = [
    (["profile", "set", "balanced"], ("SetProfile", "balanced")),
    (["profile", "clear"], ("ClearProfile",)),
    (["reset"], ("Reset", {})),
    (["reset", "--baseline"], ("Reset", {"baseline": True})),
    (["reset", "--holds"], ("Reset", {"holds": True})),
    (["plan", "--profile", "balanced"], ("Plan", [], {"profile": "balanced"})),
    (["plan", "--reset"], ("Plan", [], {"reset": True})),
    (["plan", "--reset", "--baseline"], ("Plan", [], {"reset": True, "baseline": True})),
    (["plan", "--reset", "--holds"], ("Plan", [], {"reset": True, "holds": True})),
]


@pytest.mark.parametrize(("words", "call"), CASES)
def test_what_is_asked(words: list[str], call: tuple[Any, ...], capsys: Captured) -> None:
    script = Script(outcomes=[outcome("io-scheduler@sda")])
    assert run(script, *words) == 0
    assert script.calls == [call]
    assert "\nio-scheduler@sda  " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "set"],
        ["profile", "show"],
        ["profile", "clear", "balanced"],
        ["profile", "list", "balanced"],
        ["profile", "balanced"],
        ["plan"],
        ["plan", "--baseline"],
        ["plan", "--profile", "balanced", "--reset"],
        ["plan", "--profile", "balanced", "--baseline"],
        ["plan", "--profile", "balanced", "overcommit=always"],
        ["plan", "--reset", "--persist"],
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
    [["profile", "set", "balanced"], ["plan", "--profile", "balanced"], ["profile", "clear"], ["reset"]],
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
    assert run(Script(changed=False), "plan", "--reset") == 0
    assert run(Script(), "profile", "clear") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["Nothing changed.", "Nothing would change.", "Done; no target is concerned."]


@pytest.mark.parametrize(("error", "code"), [(NoSuchProfile("there is no profile 'x'"), 3), (AccessDenied("no"), 4)])
def test_errors(error: NoSuchProfile | AccessDenied, code: int) -> None:
    assert run(Script(error=error), "profile", "set", "x") == code


def test_on_the_bus(tmp_path: Path) -> None:
    """Signatures and options as the contract has them; polkit may ask."""
    script = Script(outcomes=[outcome("io-scheduler@sda")])
    with private_bus(tmp_path) as bus, serving(bus, script) as manager:
        for words in [case[0] for case in CASES]:
            assert cli(*words, **bus.environment).returncode == 0, words
        assert "balanced" in cli("profile", **bus.environment).stdout
    assert script.calls[:4] == [
        ("SetProfile", "balanced", LEAVING),
        ("ClearProfile", LEAVING),
        ("Reset", LEAVING),
        ("Reset", {"baseline": True} | LEAVING),
    ]
    assert script.calls[4] == ("Reset", {"holds": True} | LEAVING)
    assert script.calls[5:9] == [case[1] for case in CASES[5:]]
    assert manager.interactive == [True] * 9


# show, and config check


def test_show_needs_no_daemon(etc: Path) -> None:
    (etc / "profiles/mine.toml").write_text(
        'summary = "for me"\ninclude = ["base"]\n[io-scheduler]\n"sd*" = { value = "bfq", why = "measured: fair" }\n'
    )
    (etc / "profiles/base.toml").write_text('[hugepages]\n"2M" = "4G"\n')
    done = cli("profile", "show", "mine", CONFIGURATION_DIRECTORY=str(etc))
    assert (done.returncode, done.stderr) == (0, "")
    head, _, pool, disk = done.stdout.splitlines()
    assert head == f"mine: for me ({etc}/profiles/mine.toml)"
    assert pool.split() == ["hugepages@2M", "2048", "base", f"{etc}/profiles/base.toml:2"]
    assert disk.split(maxsplit=3) == ["io-scheduler@sd*", "bfq", "mine", "measured: fair"]
    page = json.loads(cli("--json", "profile", "show", "mine", CONFIGURATION_DIRECTORY=str(etc)).stdout)
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
    done = cli("profile", "show", "mine", CONFIGURATION_DIRECTORY=str(etc))
    assert done.returncode == 1
    assert f"{etc}/profiles/mine.toml:2: io-scheduler: 5.5 is no value" in done.stdout
    done = cli("profile", "show", "yours", CONFIGURATION_DIRECTORY=str(etc))
    assert done.returncode == 3
    assert "there is no profile 'yours'" in done.stderr
    assert "ai-inference" in done.stderr


def test_config_check_looks_at_the_administrators_profiles(etc: Path) -> None:
    (etc / "profiles/a.toml").write_text('include = ["b"]\n')
    (etc / "profiles/b.toml").write_text('include = ["a"]\n')
    done = cli("config", "check", str(etc))
    assert done.returncode == 1
    assert f"{etc}/profiles/b.toml:1: profiles include each other: a -> b -> a" in done.stdout
