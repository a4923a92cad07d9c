"""`kerntune doctor` and `kerntune import`, on trees and on this host, with a daemon and without one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from kerntune.cli import doctor
from kerntune.cli.__main__ import main
from kerntune.cli.doctor import daemon_of, findings_page
from kerntune.doctor import examine
from kerntune.doctor.types import Daemon, Finding, Severity, Survey, Wanted
from kerntune.errors import OverLimit
from tests.cli.scripted import Captured, Script, claim, document, outcome, plain, run, serving
from tests.conftest import needs_root
from tests.harness.command import kerntune
from tests.harness.daemon import Daemon as Kerntuned
from tests.harness.privatebus import PrivateBus, package_bus
from tests.hosts import lay_out
from tests.unit.doctor.lab import handmade, write


def test_a_problem_is_exit_code_1_and_comes_first(tmp_path: Path, capsys: Captured) -> None:
    script = Script()
    assert run(script, "doctor", "--root", str(handmade(tmp_path))) == 1
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
    assert run(Script(), "doctor", "--root", str(tmp_path)) == 0
    assert "0 problems, " in capsys.readouterr().out


def test_findings_in_json(tmp_path: Path, capsys: Captured) -> None:
    run(Script(), "doctor", "--json", "--root", str(handmade(tmp_path)))
    answer = json.loads(capsys.readouterr().out)
    assert answer["daemon"] is False
    first = answer["findings"][0]
    assert list(first) == ["severity", "topic", "what", "evidence", "fix"]
    assert (first["severity"], first["topic"]) == ("problem", "overcommit")
    assert {finding["severity"] for finding in answer["findings"]} == {"problem", "warning", "note", "ok"}


def test_what_is_no_tree_of_a_host(tmp_path: Path, capsys: Captured) -> None:
    assert run(Script(), "doctor", "--root", str(tmp_path)) == 2
    assert "has no proc directory" in capsys.readouterr().err


def test_the_daemon_is_asked_where_there_is_one(capsys: Captured) -> None:
    script = Script()
    run(script, "doctor", "--json")
    assert json.loads(capsys.readouterr().out)["daemon"] is True
    assert script.calls == [("Describe",)]


def test_a_daemon_of_another_host_has_no_say(capsys: Captured) -> None:
    script = Script()
    script.described["host"]["simulated"] = True
    run(script, "doctor")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "kerntuned works on a simulated host, and this is not about that one, but about the machine"
    )
    assert last.endswith("not known: it works on a simulated host.")
    script.described["host"]["root"] = "/srv/captured"
    run(script, "doctor")
    assert "--root /srv/captured looks at that one" in capsys.readouterr().out.splitlines()[0]


def test_none_is_started(capsys: Captured) -> None:
    script = Script()
    script.running = False
    run(script, "doctor")
    assert (
        capsys.readouterr().out.splitlines()[-1] == "The claims of kerntuned are not known: kerntuned is not running."
    )
    assert script.calls == []


@pytest.mark.parametrize("is_serving", [True, False])
def test_over_the_bus(script_bus: PrivateBus, is_serving: bool) -> None:
    with serving(script_bus, Script()) if is_serving else nullcontext():
        done = kerntune("doctor", "--json", env=script_bus.environment)
    assert json.loads(done.stdout)["daemon"] is is_serving
    assert done.stderr == ""


def test_without_a_bus() -> None:
    done = kerntune("doctor", "--json")
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout)["daemon"] is False


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


def test_what_files_say_moves_no_cursor() -> None:
    page = findings_page([Finding(Severity.NOTE, "pages", "a\x1b[2Jb")], "")
    assert plain(page)[0] == "· pages: a\N{REPLACEMENT CHARACTER}[2Jb"


# import: a script to read, a list of what is left, and claims with --apply


BY_ID = "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123"
COMMANDS = [
    ["kerntune", "set", "hugepages@1G=24", "--persist"],
    ["kerntune", "set", "io-scheduler@nvme[0-9]*=none", "--persist"],
    ["kerntune", "set", "overcommit=always:95", "--persist"],
    ["kerntune", "set", "hugepages@2M=512", "--persist"],
    ["kerntune", "set", f"io-scheduler@{BY_ID}=none", "--persist"],
]


def snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tree as if it were this host."""
    root = handmade(tmp_path)
    monkeypatch.setattr(doctor, "look", lambda _root, look=examine.look: look(root))
    return root


def test_the_proposal_is_a_script_and_changes_nothing(tmp_path: Path, capsys: Captured) -> None:
    root = handmade(tmp_path)
    before, script = snapshot(root), Script()
    assert run(script, "import", "--root", str(root)) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    assert [command for command in COMMANDS if command not in commands] == []
    assert "# /etc/rc.local:3: echo 512 > /proc/sys/vm/nr_hugepages" in lines
    assert "# (it overrides /etc/sysctl.d/10-llm.conf:2: vm.nr_hugepages = 64)" in lines
    left = lines[lines.index("# Not taken over:") :]
    assert "# /etc/rc.local:9: hugeadm --thp-always" in left
    assert (snapshot(root), script.calls) == (before, [])


def test_a_shell_reads_the_script_as_it_is_meant(tmp_path: Path, capsys: Captured) -> None:
    """Whatever stands in the files: each line is a comment or one call of kerntune."""
    rc_local = (
        "#!/bin/sh\necho 8 > /proc/sys/vm/nr_hugepages # $(touch x)\necho `touch x` > /proc/sys/vm/nr_hugepages\n"
    )
    root = write(handmade(tmp_path / "host"), {"etc/rc.local": rc_local})
    run(Script(), "import", "--root", str(root))
    program = f'kerntune() {{ echo "$#"; }}\n{capsys.readouterr().out}'
    done = subprocess.run(["sh", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert set(done.stdout.split()) == {"3"}
    assert os.listdir(tmp_path) == ["host"]


def test_the_proposal_in_json(tmp_path: Path, capsys: Captured) -> None:
    assert run(Script(), "import", "--root", str(handmade(tmp_path)), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    (pool,) = [row for row in answer["claims"] if row["instances"] == "2M"]
    assert pool == {
        "tunable": "hugepages",
        "instances": "2M",
        "value": "512",
        "command": "kerntune set hugepages@2M=512 --persist",
        "places": [{"file": "/etc/rc.local", "line": 3, "text": "echo 512 > /proc/sys/vm/nr_hugepages"}],
        "beaten": [{"file": "/etc/sysctl.d/10-llm.conf", "line": 2, "text": "vm.nr_hugepages = 64"}],
        "remark": "",
    }
    assert {"file", "line", "text", "cause", "why"} == set(answer["left"][0])


@pytest.mark.parametrize("apply", [[], ["--apply"]])
def test_a_daemon_of_another_host_is_told_in_the_first_line(here: Path, capsys: Captured, apply: list[str]) -> None:
    script = Script(outcomes=[outcome("hugepages@2M")])
    run(script, "import", *apply)
    assert "simulated" not in capsys.readouterr().out
    script.described["host"]["simulated"] = True
    run(script, "import", *apply)
    assert capsys.readouterr().out.splitlines()[0].startswith("# kerntuned works on a simulated host, and this is not")


def test_apply_persists_all_in_one_call(here: Path, capsys: Captured) -> None:
    before, script = snapshot(here), Script(outcomes=[outcome("hugepages@2M", requested="512", actual="512")])
    assert run(script, "import", "--apply") == 0
    described, (member, rows, options) = script.calls
    assert described == ("Describe",)
    assert (member, options) == ("Set", {"persist": True})
    wanted = [command[2].rpartition("=") for command in COMMANDS]
    spelt = {(f"{tunable}@{instances}" if instances else tunable, value) for tunable, instances, value in rows}
    assert {(name, value) for name, _, value in wanted} <= spelt
    said = capsys.readouterr()
    assert "hugepages@2M" in said.out
    assert "the lines that were taken over still stand in their files" in said.err
    assert "/etc/rc.local:3" in said.err
    assert said.err.count("/proc/cmdline") == 1
    assert ". The parameter of the kernel may stay, with the same number: /proc/cmdline:1" in said.err
    assert snapshot(here) == before


def test_a_line_that_sets_more_is_not_to_be_put_out_of_the_way(here: Path, capsys: Captured) -> None:
    write(here, {"etc/rc.local": "#!/bin/sh\nsysctl -w vm.nr_hugepages=4 kernel.numa_balancing=0\n"})
    script = Script(outcomes=[outcome("hugepages@2M")])
    assert run(script, "import", "--apply") == 0
    whole, more = capsys.readouterr().err.split("These set more than that, which would be lost")
    assert "/etc/rc.local:2" not in whole
    assert "/etc/sysctl.conf:1" in whole
    assert "/etc/rc.local:2" in more


@pytest.mark.parametrize("more", ["", "ExecStartPost=/usr/local/bin/serve\n", "ExecStop=/bin/true\n"])
def test_a_unit_is_to_be_disabled_if_all_its_commands_are_taken_over(here: Path, capsys: Captured, more: str) -> None:
    unit = f"[Service]\nExecStart=/bin/sh -c 'echo 768 > /proc/sys/vm/nr_hugepages'\n{more}"
    (here / "etc/rc.local").unlink()
    folder = "etc/systemd/system"
    write(here, {f"{folder}/llm.service": unit, f"{folder}/multi-user.target.wants/llm.service": unit})
    assert run(Script(), "import") == 0
    shown = capsys.readouterr().out.splitlines()
    at = shown.index("kerntune set hugepages@2M=768 --persist")
    remark = "# sudo systemctl disable llm.service ends it, if the unit does nothing else"
    assert (shown[at - 1] == remark) is not bool(more)
    assert run(Script(outcomes=[outcome("hugepages@2M")]), "import", "--apply") == 0
    advice = capsys.readouterr().err
    assert ("sudo systemctl disable llm.service" in advice) is not bool(more)
    assert "/etc/systemd/system/llm.service:2" in advice


@needs_root
def test_apply_with_a_real_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The daemon tunes the same tree; afterwards the doctor finds that the lines say what the claims say."""
    lay_out("small-vm", tmp_path)
    lines = "vm.overcommit_memory=1\nvm.overcommit_ratio=95\nvm.nr_hugepages=64\n"
    write(tmp_path, {"etc/sysctl.d/llm.conf": lines})
    monkeypatch.setattr(doctor, "look", lambda _root, look=examine.look: look(tmp_path))
    with package_bus() as bus, Kerntuned(bus, "--root", str(tmp_path)):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        assert main(["import", "--apply"]) == 0
        assert "satisfied" in capsys.readouterr().out
        assert main(["import", "--apply", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["changed"] is False
        assert main(["status", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert {claim["origin"] for claim in document["claims"]} == {"persistent"}
    values = [(tmp_path / f"proc/sys/vm/overcommit_{name}").read_text().strip() for name in ("memory", "ratio")]
    assert values == ["1", "95"]
    found = examine.examine(tmp_path, daemon_of(document))
    said = [finding.what for finding in found if "/etc/sysctl.d/llm.conf sets" in finding.what]
    assert [what.rpartition(": ")[2] for what in said] == ["the line is not needed"] * 2


def test_apply_in_json(here: Path, capsys: Captured) -> None:
    script = Script(outcomes=[outcome("hugepages@2M", "partial")])
    assert run(script, "import", "--apply", "--json") == 6
    assert {"claims", "left", "changed", "outcomes"} == set(json.loads(capsys.readouterr().out))


def test_fewer_huge_pages_may_do(here: Path) -> None:
    script = Script()
    assert run(script, "import", "--apply", "--allow-partial") == 0
    assert script.calls[-1][2] == {"persist": True, "allow-partial": True}


def test_an_error_of_the_daemon_is_the_answer(here: Path, capsys: Captured) -> None:
    script = Script(error=OverLimit("24 pages asked for 1G, 16 possible", "Ask for less"))
    assert run(script, "import", "--apply") == 1
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "kerntune: 24 pages asked for 1G, 16 possible")


def test_nothing_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    lay_out("two-sockets", tmp_path)
    assert run(Script(), "import", "--root", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines() == [doctor.NOTHING]
    monkeypatch.setattr(doctor, "look", lambda _root: Survey((), ()))
    script = Script()
    assert run(script, "import", "--apply") == 0
    assert script.calls == [("Describe",)]


def test_what_a_package_ships_is_not_applied(tmp_path: Path, capsys: Captured) -> None:
    lay_out("two-sockets", tmp_path)
    rule = 'ACTION=="add|change", SUBSYSTEM=="block", KERNEL=="sd*", ATTR{queue/scheduler}="none"\n'
    write(tmp_path, {"usr/lib/udev/rules.d/60-block-scheduler.rules": rule})
    assert run(Script(), "import", "--root", str(tmp_path), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["claims"] == []
    assert [row["cause"] for row in answer["left"]] == ["shipped"]
    assert "kerntune set 'io-scheduler@sd*=none' --persist" in answer["left"][0]["why"]


def test_a_unit_with_a_line_that_is_left_is_not_to_be_disabled(here: Path, capsys: Captured) -> None:
    """Another unit sets one of its two values otherwise."""
    folder = "etc/systemd/system"
    for name, more in (("a", ""), ("b", " vm.overcommit_memory=1")):
        unit = f"[Service]\nExecStart=/usr/sbin/sysctl -w vm.swappiness={len(more)}{more}\n"
        write(here, {f"{folder}/{name}.service": unit, f"{folder}/multi-user.target.wants/{name}.service": unit})
    assert run(Script(outcomes=[outcome("hugepages@2M")]), "import", "--apply") == 0
    whole, more = capsys.readouterr().err.split("These set more than that, which would be lost")
    assert "/etc/systemd/system/b.service:2" in more
    assert "systemctl disable" not in whole + more


def test_a_line_that_one_of_a_package_hides_is_shown(tmp_path: Path, capsys: Captured) -> None:
    lay_out("two-sockets", tmp_path)
    folder = "usr/lib/systemd/system"
    unit = "[Service]\nExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=8\n"
    files = {f"{folder}/llm.service": unit, f"{folder}/multi-user.target.wants/llm.service": unit}
    write(tmp_path, {**files, "etc/sysctl.d/llm.conf": "vm.nr_hugepages=9\n"})
    assert run(Script(), "import", "--root", str(tmp_path), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    (hidden,) = [row for row in answer["left"] if row["file"] == "/etc/sysctl.d/llm.conf"]
    why = f"/{folder}/llm.service:2, which a package ships, sets it again later: translate it by hand"
    assert (answer["claims"], hidden["why"]) == ([], why)


def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: Captured) -> None:
    lay_out("two-sockets", tmp_path)
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/crontab").symlink_to("crontab")
    unread = f"# {doctor.UNREADABLE.format('/etc/crontab')}"
    assert run(Script(), "import", "--root", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines() == [unread]
    write(tmp_path, {"etc/sysctl.d/llm.conf": "vm.nr_hugepages=9\n"})
    assert run(Script(), "import", "--root", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[0] == unread


def test_another_hosts_settings_are_not_applied_here(tmp_path: Path, capsys: Captured) -> None:
    script = Script()
    assert run(script, "import", "--apply", "--root", str(handmade(tmp_path))) == 2
    assert "cannot be applied here" in capsys.readouterr().err
    assert script.calls == []
