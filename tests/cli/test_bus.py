"""The command line as a process, a bus, and the contract's Manager on it, played by a script."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kerntune import errors
from kerntune.cli.remote import LEAVING
from tests.cli.scripted import Script, outcome, private_bus, serving
from tests.harness.privatebus import PrivateBus

LIMIT = 20.0  # seconds


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    with private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


def cli(bus: PrivateBus, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kerntune.cli", *words],
        env=bus.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_set(bus: PrivateBus) -> None:
    script = Script(outcomes=[outcome("hugepages@2M", requested="64", actual="64"), outcome("overcommit", "failed")])
    with serving(bus, script) as manager:
        done = cli(bus, "set", "hugepages=128M", "overcommit=always:95", "--persist", "--allow-partial", "--json")
    assert (done.returncode, done.stderr) == (6, "")
    assert [row["state"] for row in json.loads(done.stdout)["outcomes"]] == ["satisfied", "failed"]
    asked = [("hugepages", "", "128M"), ("overcommit", "*", "always:95")]
    assert script.calls == [("Set", asked, {"persist": True, "allow-partial": True} | LEAVING)]
    assert manager.interactive == [True]


def test_unset(bus: PrivateBus) -> None:
    script = Script(outcomes=[outcome("io-scheduler@sda", "unmanaged", requested="")])
    with serving(bus, script) as manager:
        done = cli(bus, "unset", "io-scheduler")
    assert (done.returncode, done.stderr) == (0, "")
    assert "io-scheduler@sda  -          none    unmanaged" in done.stdout
    assert script.calls == [("Unset", [("io-scheduler", "*")], LEAVING)]
    assert manager.interactive == [True]


def test_plan(bus: PrivateBus) -> None:
    with serving(bus, script := Script(outcomes=[outcome("overcommit", "planned", requested="always")])):
        done = cli(bus, "plan", "overcommit=always", "--allow-partial")
        withdrawn = cli(bus, "plan", "--unset", "overcommit")
    assert (done.returncode, done.stderr) == (withdrawn.returncode, withdrawn.stderr) == (0, "")
    assert "overcommit  always     none    planned" in done.stdout
    assert script.calls == [
        ("Plan", [("overcommit", "*", "always")], {"allow-partial": True}),
        ("Plan", [("overcommit", "*", "")], {"unset": True}),
    ]


def test_verify(bus: PrivateBus) -> None:
    with serving(bus, Script(outcomes=[outcome("overcommit", "failed", requested="always", actual="heuristic")])):
        done = cli(bus, "verify")
    assert (done.returncode, done.stderr) == (1, "")
    assert "overcommit  always     heuristic  failed" in done.stdout


def test_get_prints_the_bare_value(bus: PrivateBus) -> None:
    with serving(bus, Script()):
        done = cli(bus, "get", "io-scheduler@by-id/nvme-Fast_1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", "")


@pytest.mark.parametrize("words", [[], ["list"]])
def test_reading_needs_one_call(words: list[str], bus: PrivateBus) -> None:
    script = Script()
    with serving(bus, script):
        done = cli(bus, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.calls == [("Describe",)]


def test_a_refusal_keeps_its_name_and_its_text(bus: PrivateBus) -> None:
    refusal = errors.OverLimit("2000 pages asked, 900 possible", "Ask for fewer")
    with serving(bus, Script(error=refusal)):
        done = cli(bus, "set", "hugepages@2M=2000", "--json")
    assert done.returncode == 1
    assert done.stderr == "kerntune: 2000 pages asked, 900 possible\n  Ask for fewer\n"
    assert json.loads(done.stdout) == {"error": {"name": refusal.dbus_name, "message": str(refusal)}}


def test_without_the_daemon(bus: PrivateBus) -> None:
    done = cli(bus, "set", "overcommit=always")
    assert (done.returncode, done.stdout) == (5, "")
    assert "org.kerntune.Tuner1 cannot be reached" in done.stderr
    assert "is kerntuned running? systemctl status kerntuned" in done.stderr


@pytest.mark.parametrize(
    "line",
    ["status", "set io-scheduler@nvme0n1=none", "verify", "plan hugepages=1", "hold hugepages=1 --detach --ttl 1h"],
)
def test_a_verb_needs_no_event_loop(bus: PrivateBus, line: str) -> None:
    """To import asyncio takes longer than all that such a verb does."""
    program = """import sys
from kerntune.cli.__main__ import main
main(sys.argv[1:])
print(sorted({'asyncio', 'pathlib', 'tomllib', 'kerntune.tunables'} & sys.modules.keys()), file=sys.stderr)
"""
    with serving(bus, Script(outcomes=[outcome("io-scheduler@nvme0n1")])):
        words = [sys.executable, "-c", program, *line.split()]
        done = subprocess.run(words, env=bus.environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stderr.splitlines()[-1] == "[]"


def test_on_a_terminal_it_is_coloured(bus: PrivateBus) -> None:
    ours, theirs = pty.openpty()
    environment = {**bus.environment, "TERM": "xterm", "COLUMNS": "64"}
    environment.pop("NO_COLOR", None)
    with (
        serving(bus, Script()),
        os.fdopen(ours, "rb", buffering=0) as screen,
        subprocess.Popen(
            [sys.executable, "-m", "kerntune.cli", "list"], env=environment, stdout=theirs, stderr=theirs
        ) as process,
    ):
        os.close(theirs)
        text = read_all(screen.fileno())
        assert process.wait(LIMIT) == 0
    assert "\x1b[" in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 64


def read_all(terminal: int) -> str:
    """What is written to a pseudo-terminal until its other side is closed (reading then fails with EIO)."""
    text = b""
    while select.select([terminal], [], [], LIMIT)[0]:
        try:
            text += os.read(terminal, 65536)
        except OSError:
            return text.decode()
    raise TimeoutError(text.decode())
