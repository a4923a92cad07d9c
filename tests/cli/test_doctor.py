"""`kerntune doctor` on trees and on this host, with a daemon, without one, and without starting one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kerntune.cli import tables
from kerntune.cli.__main__ import main
from kerntune.cli.doctor import daemon_of, findings_page
from kerntune.doctor.types import Daemon, Finding, Severity, Wanted
from tests.cli.scripted import Script, claim, document, private_bus, serving
from tests.hosts import lay_out
from tests.unit.doctor.lab import handmade

Captured = pytest.CaptureFixture[str]

LIMIT = 30.0  # seconds


def test_a_problem_is_exit_code_1_and_comes_first(tmp_path: Path, capsys: Captured) -> None:
    script = Script()
    assert main(["doctor", "--root", str(handmade(tmp_path))], connect=script.connect) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("✘ overcommit: memory is committed without limit")
    assert "    /proc/sys/vm/overcommit_memory reads 1" in lines
    assert any(line.startswith("  → kerntune set overcommit=always --persist") for line in lines)
    assert lines[-1].startswith("1 problem, ")
    assert said.err == ""
    assert script.calls == []  # the daemon of this host knows nothing of that tree


def test_no_problem_is_exit_code_0(tmp_path: Path, capsys: Captured) -> None:
    lay_out("two-sockets", tmp_path)
    assert main(["doctor", "--root", str(tmp_path)], connect=Script().connect) == 0
    assert "0 problems, " in capsys.readouterr().out


def test_json(tmp_path: Path, capsys: Captured) -> None:
    main(["doctor", "--json", "--root", str(handmade(tmp_path))], connect=Script().connect)
    answer = json.loads(capsys.readouterr().out)
    assert answer["daemon"] is False
    first = answer["findings"][0]
    assert list(first) == ["severity", "topic", "what", "evidence", "fix"]
    assert (first["severity"], first["topic"]) == ("problem", "overcommit")
    assert {finding["severity"] for finding in answer["findings"]} == {"problem", "warning", "note", "ok"}


def test_what_is_no_tree_of_a_host(tmp_path: Path, capsys: Captured) -> None:
    assert main(["doctor", "--root", str(tmp_path)], connect=Script().connect) == 2
    assert "has no proc directory" in capsys.readouterr().err


def test_the_daemon_is_asked_where_there_is_one(capsys: Captured) -> None:
    script = Script()
    main(["doctor", "--json"], connect=script.connect)
    assert json.loads(capsys.readouterr().out)["daemon"] is True
    assert script.calls == [("Describe",)]


def test_a_daemon_of_another_host_has_no_say(capsys: Captured) -> None:
    script = Script()
    script.described["host"]["simulated"] = True
    main(["doctor"], connect=script.connect)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "kerntuned works on a simulated host, and this is not about that one, but about the machine"
    )
    assert last.endswith("not known: it works on a simulated host.")
    script.described["host"]["root"] = "/srv/captured"
    main(["doctor"], connect=script.connect)
    assert "--root /srv/captured looks at that one" in capsys.readouterr().out.splitlines()[0]


def test_none_is_started(capsys: Captured) -> None:
    script = Script()
    script.running = False
    main(["doctor"], connect=script.connect)
    assert (
        capsys.readouterr().out.splitlines()[-1] == "The claims of kerntuned are not known: kerntuned is not running."
    )
    assert script.calls == []


@pytest.mark.parametrize("serve", [True, False])
def test_over_the_bus(tmp_path: Path, serve: bool) -> None:
    script = Script()
    with private_bus(tmp_path) as bus:
        if serve:
            with serving(bus, script):
                done = doctor(bus.environment)
        else:
            done = doctor(bus.environment)
    assert json.loads(done.stdout)["daemon"] is serve
    assert done.stderr == ""


def test_without_a_bus(tmp_path: Path) -> None:
    done = doctor({**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"})
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout)["daemon"] is False


def doctor(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kerntune.cli", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_claims_come_strongest_first() -> None:
    rows = [
        claim("config:overcommit", "never:90", seq=9, matches=[""]),
        claim("runtime:hugepages@2M", "1", seq=2),
        claim("runtime:hugepages@2M/*", "2", seq=3, matches=["2M/node0"]),
        claim("guard:overcommit", "never:1k", seq=8),
        claim("hold:hugepages@2M", "3", seq=8),
        claim("newer-than-us:overcommit", "always", seq=7),
    ]
    assert daemon_of(document(claims=rows)) == Daemon(
        (
            Wanted("hugepages", "2M/*", "2", "runtime", ("2M/node0",)),
            Wanted("hugepages", "2M", "1", "runtime", ("2M",)),
            Wanted("overcommit", "", "never:90", "config", ("",)),
            Wanted("overcommit", "", "always", "newer-than-us", ("",)),
        ),
        "off",
    )


def test_what_files_say_moves_no_cursor(capsys: Captured) -> None:
    tables.write(findings_page([Finding(Severity.NOTE, "pages", "a\x1b[2Jb")], ""), sys.stdout)
    assert capsys.readouterr().out.splitlines()[0] == "· pages: a\N{REPLACEMENT CHARACTER}[2Jb"
