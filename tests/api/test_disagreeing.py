"""With a running daemon: what status says of claims that disagree, and that no damaged file stops a start."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.demo import Shell, demo

DRIVE: Final = "io-scheduler@nvme0n1"
# From the strongest to the weakest, each with what status calls it.
LAYERS: Final = (
    ("runtime", "bfq", f"kerntune unset {DRIVE}"),
    ("persistent", "kyber", f"kerntune unset {DRIVE} --persist"),
    ("config", "none", "sed -i /nvme/d $CONFIGURATION_DIRECTORY/kerntune.toml && kerntune reload"),
    ("profile", "mq-deadline", ""),
)
FILES: Final = (
    "config/kerntune.toml", "config/kerntune.d/10-more.toml", "config/profiles/mine.toml",
    "state/claims.json", "runtime/runtime.json", "runtime/config.json", "runtime/profile.json", "runtime/cap.json",
)  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Four layers, each of another mind about one drive."""
    with demo(tmp_path) as running:
        config = running.daemon.config
        (config / "profiles").mkdir()
        (config / "kerntune.d").mkdir()
        (config / "kerntune.toml").write_text('[io-scheduler]\n"nvme*" = { value = "none", why = "a database" }\n')
        (config / "kerntune.d/10-more.toml").write_text('[cpu-governor]\n"*" = "performance"\n')
        (config / "profiles/mine.toml").write_text(
            '[io-scheduler]\n"nvme*" = { value = "mq-deadline", why = "for models" }\n'
        )
        running.check("kerntune reload")
        # What the configuration overrides is no failure, and is told with the line that wins.
        for asked in ("kerntune plan --profile mine", "kerntune profile set mine"):
            assert f"{config}/kerntune.toml:2) wins" in running.check(asked)
        running.check(f"kerntune set {DRIVE}=kyber --persist")
        # With the memory guard, which has a file too.
        running.check(f"kerntune set {DRIVE}=bfq overcommit=always:95")
        yield running


def in_force(status: dict[str, list[dict[str, object]]]) -> list[tuple[object, object]]:
    """The claims, and not where they were read: a damaged file's are those it had when it was last in order."""
    return [(claim["id"], claim["value"]) for claim in status["claims"]]


def test_status_says_who_wins_and_who_is_beaten_and_why(shell: Shell) -> None:
    for place, (layer, value, withdraw) in enumerate(LAYERS):
        (line,) = (line for line in shell.check("kerntune status").splitlines() if DRIVE in line)
        words = line.split()
        assert words[:4] == [DRIVE, value, value, "satisfied"]
        assert words[4].rstrip(",") == layer
        overridden = [(name, other) for name, other, _ in LAYERS[place + 1 :]]
        for name, other in overridden:
            assert f"{other} of {name}" in line
        if overridden:
            *most, last = [name for name, _ in overridden]
            others = f"{', '.join(most)} and {last}" if most else last
            assert f"({layer} wins over {others})" in line
            shell.check(withdraw)
        if layer == "config":
            assert " config, kerntune.toml:2 config: a database overrides " in " ".join(words)


def test_on_the_bus_it_is_no_error_either(shell: Shell) -> None:
    shell.check(f"kerntune unset {DRIVE} && kerntune unset {DRIVE} --persist")
    call = "busctl --json=short call org.kerntune.Tuner1 /org/kerntune/Tuner1 org.kerntune.Tuner1.Manager"
    for asked in ("Plan 'a(sss)a{sv}' 0 1 profile s mine", "SetProfile 'sa{sv}' mine 0"):
        changed, outcomes = json.loads(shell.check(f"{call} {asked}"))["data"]
        (drive,) = (row for row in outcomes if row[1] == "nvme0n1")
        assert (changed, drive[2:7]) == (False, ["mq-deadline", "none", "none", "overridden", "config-wins"])
        assert f"none ({shell.daemon.config}/kerntune.toml:2) wins" in drive[7]


def test_what_a_caller_overrides_is_told_by_the_exit_status(shell: Shell) -> None:
    """Of the two drives the profile has one for the file, which is no failure, and one for a caller, which is."""
    for asked in ("kerntune plan --profile mine", "kerntune profile set mine"):
        done = shell.run(asked)
        assert (done.returncode, done.stderr) == (1, ""), done.stdout
        one, other = sorted(line for line in done.stdout.splitlines() if line.startswith("io-scheduler@"))
        assert " overridden: runtime:io-scheduler@nvme0n1 = bfq, by root (python) wins; " in one
        assert " config-wins: config:io-scheduler@nvme* = none (" in other


@pytest.mark.parametrize("name", FILES)
def test_a_daemon_starts_whatever_is_in_a_file(shell: Shell, name: str) -> None:
    daemon = shell.daemon
    before = json.loads(shell.check("kerntune --json status"))
    daemon.terminate()
    path = daemon.folder / name
    chance = random.Random(name)
    data = b"[" + chance.randbytes(40) + path.read_bytes()[: chance.randrange(20)]
    path.write_bytes(data)
    daemon.start()
    assert str(path) in daemon.journal()
    found = json.loads(shell.check("kerntune --json status"))
    if name.startswith("config/"):
        assert found["degraded"] == ["config-invalid"]
        assert in_force(found) == in_force(before)
    else:
        assert found["degraded"] == ["state-set-aside"]
        assert path.with_name(f"{path.name}.bad").read_bytes() == data
        lost = {"state/claims.json": {"persistent", "profile"}, "runtime/runtime.json": {"runtime"}}.get(name, set())
        assert {claim["origin"] for claim in found["claims"]} == {layer for layer, _, _ in LAYERS} - lost
    shell.check("kerntune verify")
    assert "Traceback" not in daemon.journal()
