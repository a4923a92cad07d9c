"""`hold`, `holds` and `release`: what is asked, how the answers look, and how a hold ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME
from kerntune.cli.__main__ import main
from kerntune.cli.holds import ttl_of
from kerntune.cli.remote import Manager
from kerntune.dbus import blocking
from kerntune.dbus.standard import BUS, BUS_PATH
from kerntune.errors import KerntuneError, NoSuchHold, NotOwner, OverLimit, Unreachable, Usage
from tests.cli.scripted import Captured, Script, ScriptedManager, claim, document, outcome, run, target, tunable
from tests.conftest import needs_root
from tests.harness.command import COMMAND, LIMIT, Shell, demo

SINCE = 1_700_000_000_000_000
HELD = outcome("hugepages@2M", requested="+64", actual="164")


def held(number: int, **more: Any) -> dict[str, Any]:
    row = {"hold": number, "who": "train", "why": "", "uid": 1000, "detached": False}
    return row | {"since_usec": SINCE, "expires_usec": 0} | more


def with_holds(*holds: dict[str, Any]) -> Script:
    claims = [
        claim(f"hold/{row['hold']}:hugepages@2M", "64", origin="hold", hold=row["hold"], who=row["who"])
        for row in holds
    ]
    return Script(document([target("hugepages@2M", "128")], claims, holds=list(holds)))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["hugepages=64G"], ([("hugepages", "", "64G")], "", "", {})),
        (
            ["hugepages=64G", "--who", "train", "--why", "the 70B model", "--allow-partial"],
            ([("hugepages", "", "64G")], "train", "the 70B model", {"allow-partial": True}),
        ),
        (["--profile", "ai-inference"], ([], "", "", {"profile": "ai-inference"})),
        (
            ["hugepages=1", "--detach", "--ttl", "2h"],
            ([("hugepages", "", "1")], "", "", {"detached": True, "ttl-usec": 7_200_000_000}),
        ),
        (
            ["hugepages=1", "--ttl", "1s", "cpu-governor=performance"],
            ([("hugepages", "", "1"), ("cpu-governor", "*", "performance")], "", "", {"ttl-usec": 1_000_000}),
        ),
        (["--pid", str(os.getppid()), "hugepages=1"], ([("hugepages", "", "1")], "", "", {})),
    ],
)
def test_what_a_hold_asks(words: list[str], call: tuple[Any, ...], capsys: Captured) -> None:
    script = Script(outcomes=[HELD])
    assert run(script, "hold", *words) == 0
    assert script.calls == [("Hold", *call)]
    said = capsys.readouterr().out
    assert "hugepages@2M  +128M      328M (164 x 2M)  satisfied" in said
    assert ("Hold 3 has ended." in said) is ("--detach" not in words)


def test_a_hold_that_cannot_be_told_of_is_released(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended when the command says so: the daemon would notice later that the client has left."""
    script = Script(outcomes=[HELD])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(script, "hold", "hugepages=64") == 1
    assert script.calls[1:] == [("Release", 3)]
    assert capsys.readouterr().err.endswith("  The hold has ended\n")


def test_in_json_each_event_is_a_line(capsys: Captured) -> None:
    assert run(Script(outcomes=[HELD]), "hold", "hugepages=64", "--json") == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["hold"], first["outcomes"][0]["requested"]) == ("held", 3, "+64")
    assert first["outcomes"][0]["condition"] == "satisfied"
    assert last == {"event": "ended", "hold": 3}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["hold"], "there is nothing to hold"),
        (["hold", "hugepages=1", "--detach"], "needs its time"),
        (["hold", "hugepages=1", "--detach", "--ttl", "1h", "--pid", "1"], "ends with no process"),
        (["hold", "hugepages=1", "--ttl", "soon"], "'soon' is no time"),
        (["hold", "hugepages=1", "--ttl", "5ms"], "'5ms' is no time"),
        (["hold", "hugepages=1", "--ttl", ""], "'' is no time"),
        (["hold", "hugepages=1", "--ttl", "999999999d"], "999999999d is too long"),
        (["hold", "hugepages=1", "--ttl", "5000d"], "5000d is too long"),
        (["hold", "hugepages=1", "--profile", ""], "--profile is empty"),
        (["hold", "hugepages=1", "--who", "\udcff"], "--who is '\\udcff'"),
        (["hold", "hugepages=1", "--why", "\udcff"], "--why is '\\udcff'"),
        (["hold", "--profile", "\udcff"], "--profile is '\\udcff'"),
        (["hold", "hugepages=1", "--pid", "-5"], "'-5' is no number"),
        (["hold", "hugepages=1", "--pid", "0"], "there is no process 0"),
        (["hold", "hugepages=1", "--pid", "99999999999999"], "there is no process 99999999999999"),
        (["hold", "hugepages=1", "--who"], "takes a value: --who TEXT"),
        (["release"], "release takes at least one HOLD"),
        (["release", "-1"], "'-1' is no number"),
        (["release", "1_0"], "'1_0' is no number"),
        (["release", "\N{ARABIC-INDIC DIGIT THREE}"], "is no number"),
    ],
)
def test_what_cannot_be_meant_asks_nobody(words: list[str], complaint: str, capsys: Captured) -> None:
    script = Script()
    assert run(script, *words) == 2
    assert script.calls == []
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([HELD], 0),
        ([outcome("hugepages@2M", "partial"), HELD], 6),
        ([outcome("cpu-governor@policy0", "overridden")], 1),
        ([outcome("io-scheduler@nvme*", "unsupported", reason="no-such-target")], 3),
    ],
)
@pytest.mark.parametrize("words", [[], ["--json"], ["--detach", "--ttl", "2h"]])
def test_its_exit_code_is_that_of_set(rows: list[Any], code: int, words: list[str]) -> None:
    assert run(Script(outcomes=rows), "hold", "hugepages=1", *words) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ttl", "2"], "Hold 3, for 2s"),
        (["--ttl", "2h", "--detach"], "Hold 3, for 2h"),
        (["--pid", str(os.getppid())], f"Hold 3, until process {os.getppid()} ends"),
        ([], "Hold 3"),
    ],
)
def test_it_says_how_it_ends(words: list[str], said: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Script(outcomes=[HELD]), "hold", "hugepages=1", *words) == 0
    assert said in capsys.readouterr().out.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run(Script(outcomes=[HELD]), "hold", "hugepages=1", *words) == 0
    ends = "" if "--detach" in words else "; Ctrl-C ends it"
    assert f"{said}{ends}" in capsys.readouterr().out.splitlines()


def test_a_refusal_has_its_exit_code(capsys: Captured) -> None:
    assert run(Script(error=OverLimit("too many pages", "Ask for less")), "hold", "hugepages=1") == 1
    assert run(Script(error=NotOwner("hold 3 is not yours", "")), "release", "3") == 4
    assert "too many pages" in capsys.readouterr().err


def test_release_ends_each(capsys: Captured) -> None:
    script = Script()
    assert run(script, "release", "3", "5") == 0
    assert script.calls == [("Release", 3), ("Release", 5)]
    assert capsys.readouterr().out == "Released: 3, 5\n"


class Some(ScriptedManager):
    """Has two holds."""

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        super().release(number)
        if number == 6:
            raise NotOwner("it is of another user")
        if number not in {3, 5}:
            raise NoSuchHold(f"there is no hold {number}", "kerntune holds shows those there are")


def test_release_goes_through_the_list(capsys: Captured) -> None:
    script = Script(manager=Some)
    assert run(script, "release", "3", "4", "5", "3", "6") == 3
    assert [number for _, number in script.calls] == [3, 4, 5, 6]
    said = capsys.readouterr()
    assert said.out == "Released: 3, 5\n"
    assert "kerntune: there is no hold 4\n" in said.err
    assert "kerntune: hold 6: it is of another user\n" in said.err
    assert run(script, "release", "3", "4", "--json") == 3
    error = {"name": NoSuchHold.dbus_name, "message": "there is no hold 4. kerntune holds shows those there are"}
    assert json.loads(capsys.readouterr().out) == {"released": [3], "failed": [{"hold": 4, "error": error}]}


def test_a_long_name_leaves_room_for_others(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x" * 250
    script = with_holds(held(3, who=name))
    assert run(script, "holds") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert f"{'x' * 19}\N{HORIZONTAL ELLIPSIS}, uid 1000" in row
    assert len(row) < 100
    assert run(script, "holds", "--json") == 0
    assert json.loads(capsys.readouterr().out)["holds"][0]["who"] == name
    pool = target("hugepages@2M", "164", requested="164", state="satisfied", claim="hold/3:hugepages@2M")
    assert run(Script(document([pool], script.described["claims"])), "status") == 0
    assert "x" * 20 not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("read-ahead@sda", ("64", "7"), "of holds the newest wins"),
        ("cpu-governor@policy0", ("performance", "powersave"), "of holds the fastest wins"),
    ],
)
def test_status_says_what_a_hold_overrides(name: str, values: tuple[str, str], rule: str, capsys: Captured) -> None:
    winner, loser = (
        claim(f"hold/{number}:{name}", value, origin="hold", hold=number, who=who)
        for number, value, who in zip((2, 1), values, ("new", "old"), strict=True)
    )
    row = target(name, values[0], state="satisfied", claim=winner["id"], beaten=[loser["id"]])
    assert (
        run(Script(document([row], [winner, loser], tunables=[tunable(name.partition("@")[0])])), "status", name) == 0
    )
    assert f"overrides {values[1]} of hold 1, old ({rule})" in capsys.readouterr().out


def test_who_holds_what(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    script = with_holds(held(3), held(4, who="<b>\x1b[31mred", why="step 1", expires_usec=SINCE + 10**6, detached=True))
    assert run(script, "holds") == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["HOLD", "BY", "SINCE", "ENDS", "WHAT"]
    assert first.startswith("3     train, uid 1000 ")
    assert "  2023-11-14 22:13  " in first
    assert first.endswith("with its client   hugepages@2M=+128M")
    assert "<b>\N{REPLACEMENT CHARACTER}[31mred, uid 1000" in second
    assert second.endswith("hugepages@2M=+128M  step 1")
    assert run(Script(), "holds") == 0
    assert capsys.readouterr().out == "Nobody holds anything.\n"


def test_status_says_whose_each_part_is(capsys: Captured) -> None:
    claims = [
        claim("runtime:hugepages@2M", "100", who="alice (kerntune)"),
        claim("hold/3:hugepages@2M", "64", origin="hold", hold=3, who="train", seq=2),
    ]
    row = target("hugepages@2M", "164", requested="164", state="satisfied", claim=claims[1]["id"],
                 parts=[each["id"] for each in claims])  # fmt: skip
    assert run(Script(document([row], claims)), "status", "hugepages") == 0
    said = capsys.readouterr().out
    assert "hold 3, train" in said
    assert "100 for runtime, alice (kerntune), and 64 for hold 3, train" in said


def test_metrics_count_them(capsys: Captured) -> None:
    assert run(with_holds(held(3), held(4, who='a "b"')), "metrics") == 0
    said = capsys.readouterr().out
    assert "kerntune_holds 2\n" in said
    assert 'kerntune_hold_info{hold="4",who="a \\"b\\"",uid="1000"} 1\n' in said


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30s", 30), ("15m", 900), ("2h", 7200), ("1d", 86_400)])
def test_times(text: str, seconds: int) -> None:
    assert ttl_of(text) == seconds * 1_000_000


@pytest.mark.parametrize("text", ["", "0", "0h", "-1", "1w", "1.5h", "h", "1 h", "٣", "9999999999", "3661d"])
def test_no_times(text: str) -> None:
    with pytest.raises(Usage):
        ttl_of(text)


# How a hold ends


HOLD: Final = (*COMMAND, "hold", "hugepages@2M=64", "--json")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        yield running


@contextmanager
def holding(shell: Shell) -> Iterator[tuple[subprocess.Popen[str], IO[str], int]]:
    """Start HOLD; give its process, what it says from then on, and the number of the hold."""
    with subprocess.Popen(HOLD, env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        granted = json.loads(process.stdout.readline())
        assert granted["event"] == "held"
        yield process, process.stdout, granted["hold"]


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_next_command_sees_the_old_state(shell: Shell, number: signal.Signals) -> None:
    before = shell.check("kerntune get hugepages@2M")
    with holding(shell) as (process, told, hold):
        assert int(shell.check("kerntune get hugepages@2M")) == int(before) + 64
        process.send_signal(number)
        rest = told.read()
        assert process.wait(LIMIT) == 0
    assert json.loads(rest) == {"event": "ended", "hold": hold}
    assert shell.check("kerntune get hugepages@2M") == before
    assert shell.check("kerntune holds") == "Nobody holds anything."


@needs_root
def test_a_reader_that_goes_does_not_end_it(shell: Shell) -> None:
    """As with `| head -1`."""
    with holding(shell) as (process, told, number):
        told.close()
        assert f'"hold": {number}' in shell.check("kerntune holds --json")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    assert shell.check("kerntune holds") == "Nobody holds anything."


@needs_root
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


@needs_root
def test_a_hold_outlives_the_daemon_that_granted_it(shell: Shell) -> None:
    with holding(shell) as (process, told, number):
        shell.daemon.restart()
        assert f'"hold": {number}' in shell.check("kerntune holds --json")
        shell.check(f"kerntune release {number}")
        assert json.loads(told.readline()) == {"event": "ended", "hold": number}
        assert process.wait(LIMIT) == 0


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_also_when_the_next_daemon_does_not_answer(shell: Shell, number: signal.Signals) -> None:
    with holding(shell) as (process, told, hold):
        shell.daemon.kill()
        with blocking.connect(BUS, shell.environment["DBUS_SYSTEM_BUS_ADDRESS"]) as silent:
            silent.call(BUS_PATH, BUS, "RequestName", "su", BUS_NAME, 0)
            time.sleep(0.5)  # until it asks the new one; any time will do
            process.send_signal(number)
            assert json.loads(told.readline()) == {"event": "ending", "hold": hold}
            assert process.wait(LIMIT) == 0


@needs_root
def test_a_hold_whose_time_is_over_ends(shell: Shell) -> None:
    done = shell.check("kerntune hold hugepages@2M=1 --ttl 1 --json").splitlines()
    assert [json.loads(line)["event"] for line in done] == ["held", "ended"]


@needs_root
def test_the_time_of_a_program_s_hold_is_in_seconds(shell: Shell) -> None:
    program = """
import kerntune, subprocess
with kerntune.hold('hugepages@2M=1', ttl=90.5):
    subprocess.run(['kerntune', 'holds', '--json'], check=True)
"""
    (held,) = json.loads(shell.check(f'{sys.executable} -c "{program}"'))["holds"]
    assert held["expires_usec"] - held["since_usec"] == pytest.approx(90.5e6, abs=1e6)


@needs_root
def test_what_a_script_starts_in_the_background_ignores_ctrl_c(shell: Shell) -> None:
    line = "trap '' INT; exec kerntune hold hugepages@2M=64 --json"
    with subprocess.Popen(["bash", "-c", line], env=shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = json.loads(process.stdout.readline())["hold"]
        process.send_signal(signal.SIGINT)
        shell.check(f"kerntune release {number}")
        assert json.loads(process.stdout.read())["event"] == "ended"
        assert process.wait(LIMIT) == 0


class Interrupting(ScriptedManager):
    """Somebody interrupts who waits for the end of a hold; the daemon answers the release with `answer`."""

    answer: KerntuneError | None = None

    def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select(beside, (), (), LIMIT)[0]
        return False

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        if self.answer:
            raise self.answer


class Stuck(Interrupting):
    answer = Unreachable("it did not answer within 5 s")


class Refusing(Interrupting):
    answer = errors.Failed("it cannot end it now")


class Impatient(Interrupting):
    """The daemon hangs, and somebody interrupts again."""

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        assert not select.select(beside, (), (), 0)[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select(beside, (), (), LIMIT)[0]
        raise blocking.Interrupted("Release was interrupted")


class Over(Interrupting):
    answer = NoSuchHold("there is no hold 3")


LATE: Final = (Stuck, Refusing, Impatient)


@pytest.mark.parametrize(("state", "code"), [("satisfied", 0), ("partial", 6)])
@pytest.mark.parametrize(
    ("manager", "event"),
    [(Interrupting, "ended"), (Over, "ended"), *((manager, "ending") for manager in LATE)],
)
def test_who_interrupts_is_told_whether_it_has_ended(
    manager: type[ScriptedManager], event: str, state: str, code: int, capsys: Captured
) -> None:
    """A daemon that does not answer ends it without us; the exit status says what was had."""
    script = Script(outcomes=[outcome("hugepages@2M", state)], manager=manager)
    assert run(script, "hold", "hugepages=1", "--json") == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"event": event, "hold": 3}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Left(ScriptedManager):
    """Goes while somebody waits."""

    def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
        raise Unreachable("kerntuned has left the bus", "systemctl status kerntuned")


def test_a_daemon_that_does_not_come_back(capsys: Captured) -> None:
    assert run(Script(outcomes=[outcome("hugepages@2M")], manager=Left), "hold", "hugepages=1") == 5
    assert "kerntuned has left the bus" in capsys.readouterr().err


def test_interrupted_before_it_is_granted(capsys: Captured) -> None:
    @contextmanager
    def interrupted() -> Iterator[Manager]:
        raise KeyboardInterrupt
        yield

    assert main(["hold", "hugepages=1"], connect=interrupted) == 130
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "kerntune: interrupted")


@needs_root
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("kerntune hold hugepages@2M=1 --ttl 1 --json >&-", 0, ""),
        ("kerntune get hugepages@2M >&-", 0, ""),
        ("kerntune hold hugepages@2M=1 --json >/dev/full", 1, "answer could not be written: No space left on device"),
        ("kerntune get hugepages@2M >/dev/full", 1, "the answer could not be written: No space left on device"),
        ("kerntune release 9 2>&-", 3, ""),
    ],
)
def test_nowhere_to_write(shell: Shell, line: str, code: int, said: str) -> None:
    done = shell.run(line)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


# As a service


class Told:
    """Listens as a service manager does."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def read(self) -> list[str]:
        found = []
        while select.select([self.socket], (), (), 0)[0]:
            found.append(self.socket.recv(4096).decode())
        return found


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """Give a service manager that has started this process."""
    manager = Told(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    with manager.socket:
        yield manager


@pytest.mark.parametrize(
    ("states", "status"),
    [(("satisfied", "satisfied"), "all is in force"), (("satisfied", "partial"), "1 of 2 values in force")],
)
@pytest.mark.parametrize(("manager", "end"), [(Interrupting, "ends"), (Over, "ends"), (ScriptedManager, "has ended")])
def test_a_service_manager_hears_when_it_begins_and_when_it_ends(
    manager: type[ScriptedManager], end: str, states: Sequence[str], status: str, told: Told
) -> None:
    """The service has not failed where a value waits: what is in force was said when it began."""
    script = Script(outcomes=[outcome("read-ahead@sda", state) for state in states], manager=manager)
    assert run(script, "hold", "read-ahead=1M") == 0
    assert told.read() == [f"READY=1\nSTATUS=Hold 3: {status}", f"STOPPING=1\nSTATUS=Hold 3 {end}"]


@pytest.mark.parametrize(
    ("script", "words", "code", "status"),
    [
        (Script(error=OverLimit("too much\nREADY=1", "Less")), ["hugepages=64G"], 1, "too much READY=1. Less"),
        (Script(), ["--ttl", "1h"], 2, "there is nothing to hold. Name settings, such as"),
        (Script(outcomes=[outcome("hugepages@2M")], manager=Left), ["hugepages=1"], 5, "kerntuned has left the bus. "),
    ],
    ids=["refused", "nothing", "left"],
)
def test_a_service_manager_hears_why_it_fails(
    script: Script, words: list[str], code: int, status: str, told: Told
) -> None:
    assert run(script, "hold", *words) == code
    last = told.read()[-1]
    assert last.startswith(f"STATUS={status}")
    assert "\n" not in last


def test_a_command_of_a_service_does_not_speak_for_it(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in a service with NotifyAccess=all holds something before its server is ready."""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid() + 1))
    script = Script(outcomes=[outcome("hugepages@2M", "partial")], manager=Interrupting)
    assert run(script, "hold", "hugepages=1") == 6
    assert run(Script(error=OverLimit("too much")), "hold", "hugepages=1") == 1
    assert told.read() == []


def test_it_imports_no_loop_for_that() -> None:
    code = "import sys; import kerntune.cli.holds; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=LIMIT, check=False).returncode == 0
