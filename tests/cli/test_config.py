"""`kerntune config check`, which is kerntuned's own reader in process, and `kerntune reload`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kerntune.cli.__main__ import main
from kerntune.errors import InvalidValue, NotAuthorized
from tests.cli.scripted import Captured, Script, claim, document, run, serving, target
from tests.harness.command import kerntune
from tests.harness.command import run as run_program
from tests.harness.privatebus import PrivateBus

GOOD = '[hugepages]\n"2M" = "64G"\n[io-scheduler]\n"nvme*" = "none"\n'
BAD = 'x = 1\n[limits]\nclaims = 0\n[hugepages]\n"2M" = "3M"\n[io-scheduler]\n"nvme*" = "none"\n'


def daemon(*words: str) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, "-m", "kerntune.daemon", *words])


def test_what_is_in_order(tmp_path: Path) -> None:
    (tmp_path / "kerntune.toml").write_text(GOOD)
    done = kerntune("config", "check", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 file with 2 claims, nothing wrong\n", "")


def test_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "kerntune.toml"
    file.write_text(BAD)
    (tmp_path / "kerntune.d").mkdir()
    (tmp_path / "kerntune.d/10.toml").write_text("[")
    done = kerntune("config", "check", env={"CONFIGURATION_DIRECTORY": str(tmp_path)})
    assert (done.returncode, done.stderr) == (1, "")
    *problems, last = done.stdout.splitlines()
    assert [line.partition(". ")[0] for line in problems] == [
        f"{file}:1: nothing here is called 'x'",
        f"{file}:3: claims is 0",
        f"{file}:5: hugepages: 3M is not a whole number of 2M pages",
        f"{tmp_path}/kerntune.d/10.toml:1: this is not TOML: Invalid initial character for a key part",
    ]
    assert last == "2 files with 1 claim, 4 errors"


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text(BAD)
    done = kerntune("config", "check", "--json", str(file))
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["files"] == [str(file)]
    assert report["claims"] == [{"tunable": "io-scheduler", "instances": "nvme*", "value": "none", "why": f"{file}:7"}]
    assert [(row["line"], row["severity"]) for row in report["problems"]] == [
        (1, "error"),
        (3, "error"),
        (5, "error"),
    ]
    assert report["problems"][1] == {
        "file": str(file),
        "line": 3,
        "severity": "error",
        "what": "claims is 0",
        "allowed": "Give a whole number from 1 to 100000; the default is 1000",
    }


def test_a_misspelt_table_is_a_failure_and_what_may_be_meant_is_said(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('profil = "ai-inference"\n[cpu_governor]\n"*" = "performance"\n')
    done = kerntune("config", "check", str(file))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 file with 0 claims, 2 errors")
    assert f"{file}:1: nothing here is called 'profil'. Did you mean 'profile'? There are " in done.stdout
    assert f"{file}:2: nothing here is called 'cpu_governor'. Did you mean 'cpu-governor'? There are " in done.stdout


def test_a_warning_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/bad name.toml").write_text(GOOD)
    (tmp_path / "kerntune.toml").write_text(GOOD)
    done = kerntune("config", "check", str(tmp_path))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 file with 2 claims, 1 warning")
    assert f"{tmp_path}/profiles/bad name.toml: warning: no profile is found under this name" in done.stdout


def test_no_second_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The daemon's reader runs in this one."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    (tmp_path / "kerntune.toml").write_text(GOOD)
    assert main(["config", "check", str(tmp_path)]) == 0
    assert main(["profile", "show", "balanced"]) == 0
    assert "1 file with 2 claims, nothing wrong" in capsys.readouterr().out


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    done = kerntune("config", "check", str(tmp_path / "no"))
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, f"{tmp_path}/no: there is no such file or folder")


def test_a_profile_that_is_named_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "kerntune.toml").write_text('profile = "nosuch"\n')
    done = kerntune("config", "check", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{tmp_path}/kerntune.toml:1: there is no profile 'nosuch'. There are ")


def test_a_profile_is_checked_as_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('include = ["balanced"]\n[overcommit]\n"*" = "always"\n')
    done = kerntune("config", "check", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 file with ")
    assert done.stdout.endswith(" claims, nothing wrong\n")


def test_nothing_there_is_said(tmp_path: Path) -> None:
    done = kerntune("config", "check", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}: warning: there is no configuration here. kerntuned reads kerntune.toml")


def test_a_module_of_that_name_where_the_user_is_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "kerntune").mkdir()
    (tmp_path / "kerntune/__init__.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "kerntune.toml").write_text(GOOD)
    program = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.exit(main(['config', 'check', '.']))"
    argv = [sys.executable, "-c", f"from kerntune.cli.__main__ import main; {program}"]
    done = run_program(argv)
    assert done.stdout == "1 file with 2 claims, nothing wrong\n"


def test_the_action_is_named(capsys: Captured) -> None:
    assert main(["config"]) == 2
    assert main(["config", "edit"]) == 2
    assert "--help" in capsys.readouterr().err


def test_the_daemon_checks_by_itself(tmp_path: Path) -> None:
    """Without a bus, without root's rights over anything, and without an effect."""
    file = tmp_path / "kerntune.toml"
    file.write_text(GOOD)
    done = daemon("--check", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "1 file with 2 claims, nothing wrong\n")
    file.write_text(BAD)
    done = daemon("--check", str(tmp_path))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 file with 1 claim, 3 errors")
    assert done.stdout == kerntune("config", "check", str(tmp_path)).stdout
    assert list(tmp_path.iterdir()) == [file]
    assert daemon("--check", str(tmp_path), "--demo").returncode == 2


# Reload


def test_reload_says_how_the_host_is_with_it(capsys: Captured) -> None:
    script = Script(document(degraded=["over-limit"]))
    assert run(script, "reload") == 0
    assert script.calls == [("Reload",), ("Describe",)]
    assert "The configuration was read again. Not well: over-limit\n! over-limit: " in capsys.readouterr().out
    assert run(script, "reload", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"degraded": ["over-limit"]}


@pytest.mark.parametrize(("error", "code"), [(InvalidValue("x.toml:3: no", "Do."), 2), (NotAuthorized("no"), 4)])
def test_a_reload_that_fails_says_why(error: InvalidValue | NotAuthorized, code: int, capsys: Captured) -> None:
    assert run(Script(error=error), "reload") == code
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", f"kerntune: {error.what}")


def test_reload_over_the_bus(script_bus: PrivateBus) -> None:
    script = Script()
    with serving(script_bus, script) as manager:
        done = kerntune("reload", env=script_bus.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.calls == [("Reload", {}), ("Describe",)]
    assert manager.interactive == [True]


def test_status_says_which_line_wants_it(capsys: Captured) -> None:
    place = "/etc/kerntune/kerntune.toml:12"
    wanted = claim("config:io-scheduler@sda", "none", who="config", why=place, place=place)
    row = target("io-scheduler@sda", "none", requested="none", state="satisfied", claim=wanted["id"])
    assert run(Script(document([row], [wanted])), "status") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  config, kerntune.toml:12")
