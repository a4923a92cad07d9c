"""--dry-run at each verb ends as the verb itself does and changes nothing, and verify --repair puts back by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.command import COMMAND, Shell, demo
from tests.harness.daemon import Daemon
from tests.harness.privatebus import package_bus
from tests.hosts import lay_out

# In this order, on one simulated host: what a verb changes is there for the next one.
LINES = (
    "set hugepages=64 overcommit=always:95",
    "set hugepages=64 overcommit=always:95",
    "set hugepages=99999999",
    "set overcommit=never:1",
    "set hugepages=many",
    "set nosuch=1",
    "set io-scheduler@nosuch=none",
    "set 'io-scheduler@vd*=none'",
    "set io-scheduler@sda=bfq 'io-scheduler@vd*=none' --persist",
    "set cpu-governor=performance cpu-epp=power",
    "set cpu-governor@0=schedutil cpu-epp=power",
    "set sysctl@kernel.numa_balancing=0",
    "unset hugepages",
    "unset hugepages",
    "unset io-scheduler@sda --persist",
    "unset nosuch",
    "profile set ai-inference",
    "profile set ai-inference",
    "profile set nosuch",
    "profile clear",
    "profile clear",
    "reset",
    "reset --baseline --holds",
    "reload",
    "reload",
)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        (running.daemon.config / "kerntune.toml").write_text('[sysctl]\n"vm.swappiness" = 33\n')
        yield running


def standing(shell: Shell) -> object:
    """Return the claims, and the value of each target."""
    service = "org.kerntune.Tuner1 /org/kerntune/Tuner1 org.kerntune.Tuner1.Manager"
    (text,) = json.loads(shell.check(f"busctl --json=short call {service} Describe"))["data"]
    found = json.loads(text)
    return found["claims"], {(row["tunable"], row["instance"]): row["value"] for row in found["targets"]}


def test_each_verb_s_dry_run_ends_as_it_does(shell: Shell) -> None:
    before = standing(shell)
    for line in LINES:
        planned = shell.run(f"kerntune {line} --dry-run --json")
        assert standing(shell) == before, line
        done, (was, before) = shell.run(f"kerntune {line} --json"), (before, standing(shell))
        assert planned.returncode == done.returncode, f"{line}\n{planned.stdout}{planned.stderr}{done.stdout}"
        plan, answer = json.loads(planned.stdout), json.loads(done.stdout)
        if "changed" in answer:
            assert plan["changed"] == answer["changed"], line
        elif "changed" in plan:  # of settings that would end in an error, the outcomes are shown too
            assert plan["changed"] is (before != was), line


def test_a_reload_of_a_file_that_is_not_in_order(shell: Shell) -> None:
    (shell.daemon.config / "kerntune.toml").write_text('[sysctl]\n"vm.swappiness" = 33\nnonsense\n')
    before = standing(shell)
    planned = shell.run("kerntune reload --dry-run")
    assert (planned.returncode, standing(shell)) == (2, before)
    assert "kerntune.toml:3: this is not TOML" in planned.stderr
    assert "All well" in shell.check("kerntune status")
    done = shell.run("kerntune reload")
    assert (done.returncode, done.stderr) == (2, planned.stderr.replace("would be taken", "was taken"))


def test_a_repair_puts_back_what_was_changed_by_hand(tmp_path: Path) -> None:
    tree, programs = tmp_path / "host", tmp_path / "programs"
    lay_out("small-vm", tree)
    programs.mkdir()
    by_hand = {
        tree / "proc/sys/vm/overcommit_memory": "0\n",
        tree / "sys/devices/virtual/block/loop0/queue/read_ahead_kb": "128\n",
    }
    with package_bus() as bus, Daemon(bus, "--root", str(tree)) as daemon:
        (daemon.config / "kerntune.toml").write_text("[drift]\ninterval = 0\n")
        shell = Shell(daemon, programs)
        command = " ".join(COMMAND)
        shell.check(f"{command} reload")
        shell.check(f"{command} set overcommit=never:90 read-ahead@loop0=512")
        for path, text in by_hand.items():
            path.write_text(text)
        assert shell.run(f"{command} verify").returncode == 1
        assert "2 values put back:" in shell.check(f"{command} verify --repair").splitlines()[0]
        assert {path.read_text().strip() for path in by_hand} == {"2", "512"}
        assert shell.check(f"{command} verify --repair").splitlines()[0] == "Nothing was put back."
