"""Each shipped profile beside a running daemon, on a host that lacks some of what it names: verify is content."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.harness.command import Shell, demo
from tests.harness.polkitd import CHECKOUT

PROFILES = sorted(path.stem for path in CHECKOUT.glob("packaging/profiles/*.toml"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    if os.geteuid() != 0:
        pytest.skip("choosing a profile takes root")
    with demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest.mark.parametrize("profile", PROFILES)
def test_a_workload_starts_after_verify(shell: Shell, profile: str) -> None:
    shell.check(f"kerntune profile set {profile}")
    said = json.loads(shell.check("kerntune verify --json"))
    assert said["lacking"] == len(said["outcomes"]) > 0, "no vd* is here"
    assert said["satisfied"] == said["managed"] - said["lacking"] > 0
    shell.check("kerntune verify && start-model-server")
    shell.check("kerntune profile clear")


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


def test_what_was_asked_for_by_name_and_is_gone_is_a_failure(shell: Shell) -> None:
    shell.check("kerntune set io-scheduler@nvme1n1=bfq 'io-scheduler@sd*=bfq' --persist")
    fifo = shell.daemon.folder / "runtime/demo"
    fifo.write_text("remove sda\n")
    shell.check("timeout 10 bash -c 'until ! kerntune get io-scheduler@sda; do :; done'")
    shell.check("kerntune verify")
    fifo.write_text("remove nvme1n1\n")
    shell.check("timeout 10 bash -c 'until ! kerntune get io-scheduler@nvme1n1; do :; done'")
    assert shell.run("kerntune verify").returncode == 6
