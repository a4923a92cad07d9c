"""How `kerntune hold` ends: by a signal, with a process, by others, and when the daemon does not answer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME
from kerntune.cli.__main__ import main
from kerntune.cli.remote import Manager
from kerntune.dbus import blocking
from kerntune.dbus.standard import BUS, BUS_PATH
from kerntune.errors import Unreachable
from tests.cli.scripted import Script, ScriptedManager, outcome
from tests.harness.command import LIMIT, Shell, demo

Captured = pytest.CaptureFixture[str]
COMMAND: Final = (sys.executable, "-m", "kerntune.cli", "hold", "hugepages@2M=64", "--json")
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="without polkit root alone may hold")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        yield running


@by_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_next_command_sees_the_old_state(shell: Shell, number: signal.Signals) -> None:
    before = shell.check("kerntune get hugepages@2M")
    with subprocess.Popen(COMMAND, env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        granted = json.loads(process.stdout.readline())
        assert granted["event"] == "held"
        assert int(shell.check("kerntune get hugepages@2M")) == int(before) + 64
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(LIMIT) == 0
    assert json.loads(rest) == {"event": "ended", "hold": granted["hold"]}
    assert shell.check("kerntune get hugepages@2M") == before
    assert shell.check("kerntune holds") == "Nobody holds anything."


@by_root
def test_it_ends_with_the_script_that_has_begun_it(shell: Shell, tmp_path: Path) -> None:
    """Also with one that is killed, and cannot end it any more."""
    script = f"kerntune hold --pid $$ hugepages@2M=64 --json >{tmp_path}/told & echo $!; wait"
    with subprocess.Popen(["bash", "-c", script], env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        hold = os.pidfd_open(int(process.stdout.readline()))
        shell.check(f"until grep -q held {tmp_path}/told; do sleep 0.01; done")
        process.kill()
    assert select.select([hold], (), (), LIMIT)[0]
    os.close(hold)
    assert json.loads((tmp_path / "told").read_text().splitlines()[-1])["event"] == "ended"
    assert shell.check("kerntune holds") == "Nobody holds anything."


@by_root
def test_a_hold_outlives_the_daemon_that_granted_it(shell: Shell) -> None:
    with subprocess.Popen(COMMAND, env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = json.loads(process.stdout.readline())["hold"]
        shell.daemon.restart()
        assert f'"hold": {number}' in shell.check("kerntune holds --json")
        shell.check(f"kerntune release {number}")
        assert json.loads(process.stdout.readline()) == {"event": "ended", "hold": number}
        assert process.wait(LIMIT) == 0


@by_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_also_when_the_next_daemon_does_not_answer(shell: Shell, number: signal.Signals) -> None:
    with subprocess.Popen(COMMAND, env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        hold = json.loads(process.stdout.readline())["hold"]
        shell.daemon.kill()
        with blocking.connect(BUS, shell.environment["DBUS_SYSTEM_BUS_ADDRESS"]) as silent:
            silent.call(BUS_PATH, BUS, "RequestName", "su", BUS_NAME, 0)
            time.sleep(0.5)  # until it asks the new one; any time will do
            process.send_signal(number)
            assert json.loads(process.stdout.readline()) == {"event": "ending", "hold": hold}
            assert process.wait(LIMIT) == 0


@by_root
def test_a_hold_whose_time_is_over_ends(shell: Shell) -> None:
    done = shell.check("kerntune hold hugepages@2M=1 --ttl 1 --json").splitlines()
    assert [json.loads(line)["event"] for line in done] == ["held", "ended"]


@by_root
def test_what_a_script_starts_in_the_background_ignores_ctrl_c(shell: Shell) -> None:
    line = "trap '' INT; exec kerntune hold hugepages@2M=64 --json"
    with subprocess.Popen(["bash", "-c", line], env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = json.loads(process.stdout.readline())["hold"]
        process.send_signal(signal.SIGINT)
        shell.check(f"kerntune release {number}")
        assert json.loads(process.stdout.read())["event"] == "ended"
        assert process.wait(LIMIT) == 0


class Stuck(ScriptedManager):
    """A daemon that does not answer when somebody interrupts."""

    def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select(beside, (), (), LIMIT)[0]
        return False

    def release(self, number: int, *, timeout: float = 0.0) -> None:
        raise Unreachable(f"it did not answer within {timeout:g} s")


@pytest.mark.parametrize(("state", "code"), [("satisfied", 0), ("partial", 6)])
def test_who_interrupts_a_daemon_that_does_not_answer(state: str, code: int, capsys: Captured) -> None:
    """The daemon ends it without us; the exit status says what was had."""

    @contextmanager
    def connect() -> Iterator[Manager]:
        yield Stuck(Script(outcomes=[outcome("hugepages@2M", state)]))

    assert main(["hold", "hugepages=1", "--json"], connect=connect) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"event": "ending", "hold": 3}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_daemon_that_does_not_come_back(capsys: Captured) -> None:
    class Left(ScriptedManager):
        def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
            raise Unreachable("kerntuned has left the bus", "systemctl status kerntuned")

    @contextmanager
    def connect() -> Iterator[Manager]:
        yield Left(Script(outcomes=[outcome("hugepages@2M")]))

    assert main(["hold", "hugepages=1"], connect=connect) == 5
    assert "kerntuned has left the bus" in capsys.readouterr().err


def test_interrupted_before_it_is_granted(capsys: Captured) -> None:
    @contextmanager
    def interrupted() -> Iterator[Manager]:
        raise KeyboardInterrupt
        yield

    assert main(["hold", "hugepages=1"], connect=interrupted) == 130
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "kerntune: interrupted")


@by_root
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("kerntune hold hugepages@2M=1 --ttl 1 --json >&-", 0, ""),
        ("kerntune get hugepages@2M >&-", 0, ""),
        ("kerntune hold hugepages@2M=1 --json >/dev/full", 1, "the answer cannot be written: No space left on device"),
        ("kerntune get hugepages@2M >/dev/full", 1, "the answer cannot be written: No space left on device"),
        ("kerntune release 9 2>&-", 3, ""),
    ],
)
def test_nowhere_to_write(shell: Shell, line: str, code: int, said: str) -> None:
    done = shell.run(line)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
