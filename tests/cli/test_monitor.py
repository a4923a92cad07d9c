"""monitor: a line for each change, and on a terminal a screen kept up to date; the terminal is given back."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.document import GuardChange, Health, Pass
from kerntune.cli.monitor import CLEAR_LINE, CLEAR_REST, ENTER, HOME, LEAVE, Board, screen
from kerntune.cli.remote import READ_SECONDS
from tests.cli.scripted import Captured, Script, document, outcome, run, serving
from tests.conftest import needs_root
from tests.harness.command import ADDRESS, COLUMNS, COMMAND, LIMIT, ROWS, Terminal, kerntune, on_terminal
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus


class TestMonitor:
    GOVERNORS = (
        outcome("cpu-governor@policy0", requested="performance", actual="performance"),
        outcome("cpu-governor@policy1", "unsupported", actual="", reason="cpu-offline", detail="set when it comes"),
    )
    EVENTS = (Pass(4, "Set", GOVERNORS), Health(("cpu-offline",)), Health(()))
    GONE = errors.Unreachable("org.kerntune.Tuner1 has left the bus", "Is kerntuned running?")

    def test_a_line_for_each_thing_until_the_daemon_goes(self, capsys: Captured) -> None:
        script = Script(events=self.EVENTS, end=self.GONE)
        assert run(script, "monitor") == 5
        assert script.calls == [("watch",), ("Describe",)], "nothing is missed after what the first line shows"
        said = capsys.readouterr()
        head, *lines = said.out.splitlines()
        assert head == "Watching kerntuned 0.1.0 on Linux 6.1.0, generation 3, all well; Ctrl-C ends it"
        assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines] == [
            "Set  ✔  cpu-governor@policy0  before -> performance  satisfied",
            "Set  ○  cpu-governor@policy1  before -> -  unsupported  cpu-offline: set when it comes",
            "degraded: cpu-offline",
            "all well again",
        ]
        assert said.err == "kerntune: org.kerntune.Tuner1 has left the bus\n  Is kerntuned running?\n"

    def test_json_is_a_line_each(self, capsys: Captured) -> None:
        assert run(Script(events=self.EVENTS, end=self.GONE), "monitor", "--json") == 5
        head, first, second, bad, good, error = map(json.loads, capsys.readouterr().out.splitlines())
        assert (head["event"], head["generation"], head["degraded"]) == ("watching", 3, [])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", first.pop("time"))
        assert first == {"event": "outcome", "generation": 4, "cause": "Set", **self.GOVERNORS[0]._asdict()}
        assert second["instance"] == "policy1"
        assert [row["degraded"] for row in (bad, good)] == [["cpu-offline"], []]
        assert error == {"error": {"name": self.GONE.dbus_name, "message": str(self.GONE)}}

    HOG = ((4711, "hog\x1b", 1000, 9 << 30),)
    CULPRIT = "hog.service: hog\x1b --all (pid 4711, alice), 9216 MiB"
    SHORT = GuardChange("capped", 100, "", 900 << 20, 600 << 20, 15 << 30, HOG, (), CULPRIT)

    def test_the_memory_guard_says_who_has_the_memory(self, capsys: Captured) -> None:
        run(Script(events=[self.SHORT], end=self.GONE), "monitor")
        _, state, culprit, most = capsys.readouterr().out.splitlines()
        assert culprit.endswith(
            "  memory guard  most to do with it: "
            "hog.service: hog\N{REPLACEMENT CHARACTER} --all (pid 4711, alice), 9216 MiB"
        )
        assert state.endswith("  memory guard  capped, 0.9 GiB left, floor 0.6 GiB, limit 15.0 GiB")
        assert most.endswith("  memory guard  largest: hog\N{REPLACEMENT CHARACTER} (pid 4711, uid 1000) 9.0 GiB")

    def test_the_memory_guard_in_json(self, capsys: Captured) -> None:
        run(Script(events=[self.SHORT], end=self.GONE), "monitor", "--json")
        _, said, _ = map(json.loads, capsys.readouterr().out.splitlines())
        assert (said["event"], said["state"], said["level"], said["headroom"]) == ("guard", "capped", 100, 900 << 20)
        assert said["largest"] == [[4711, "hog\x1b", 1000, 9 << 30]]
        assert said["culprit"] == self.CULPRIT

    def test_ctrl_c_is_how_it_ends(self, capsys: Captured) -> None:
        assert run(Script(events=self.EVENTS[:1], end=KeyboardInterrupt()), "monitor") == 0
        said = capsys.readouterr()
        assert len(said.out.splitlines()) == 3
        assert said.err == ""

    def test_without_a_daemon(self, capsys: Captured) -> None:
        assert run(Script(error=self.GONE), "monitor") == 5
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("kerntune: org.kerntune.Tuner1 has left the bus")


# Over a bus, into a pipe


@contextmanager
def piped(bus: PrivateBus, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Give the process, and a function for its next line, which has to come in time though nobody makes it flush.

    The pipe is unbuffered bytes: a text reader would take in the lines after it, and neither select nor communicate
    would see them.
    """
    environment = {name: value for name, value in bus.environment.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*COMMAND, "monitor", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process, partial(line, process)
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    assert select.select([process.stdout], [], [], LIMIT)[0], "no line came"
    return process.stdout.readline().decode()


def test_it_is_live_and_ends_with_an_interrupt(script_bus: PrivateBus) -> None:
    script = Script()
    with serving(script_bus, script) as daemon, piped(script_bus) as (process, next_line):
        assert next_line().startswith("Watching kerntuned 0.1.0 on Linux 6.1.0")
        assert script.calls == [("Describe",)]
        daemon.announce("Set", outcome("overcommit", requested="always", actual="always:50"))
        assert next_line().endswith("  Set  ✔  overcommit  before -> always:50  satisfied\n")
        daemon.degrade("over-limit")
        assert next_line().endswith("  degraded: over-limit\n")
        daemon.degrade()
        assert next_line().endswith("  all well again\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == (b"", b"")
        assert process.returncode == 0


def test_it_says_that_the_daemon_has_gone(script_bus: PrivateBus) -> None:
    with serving(script_bus, Script()) as daemon, piped(script_bus, "--json") as (process, next_line):
        assert json.loads(next_line())["event"] == "watching"
        daemon.announce("drift", outcome("overcommit", "contested"))
        daemon.leave()
        assert json.loads(next_line())["cause"] == "drift"
        rest, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == 5
    assert json.loads(rest)["error"]["name"] == errors.Unreachable.dbus_name
    assert complaint.decode() == (
        "kerntune: org.kerntune.Tuner1 has left the bus\n  Is kerntuned running? systemctl status kerntuned\n"
    )


def test_a_reader_that_has_seen_enough_ends_it(script_bus: PrivateBus) -> None:
    with serving(script_bus, Script()) as daemon, piped(script_bus) as (process, next_line):
        next_line()
        assert process.stdout
        process.stdout.close()
        daemon.announce("Set", outcome("overcommit"))
        assert process.wait(LIMIT) == 0
        assert process.stderr
        assert process.stderr.read() == b""


# The lines of the live screen: what they say, and that they fit


GIB = 1 << 30
MEMORY: dict[str, Any] = {
    "Headroom": 6 * GIB, "Floor": 2 * GIB, "GuardState": "relaxed", "WarningLevel": 0, "OvercommitMode": "always",
}  # fmt: skip


def lines(board: Board, *, width: int = 80, height: int = 24, coloured: bool = False) -> list[str]:
    return screen(board, "12:00:00", width=width, height=height, coloured=coloured)


def board(**more: Any) -> Board:
    return Board(document(), **{"memory": MEMORY, **more})


def test_the_first_line_is_the_daemon_s_health_now() -> None:
    shown = lines(board(manager={"Generation": 7, "Degraded": ["over-limit"], "ActiveProfile": "balanced"}), width=120)
    assert shown[0].startswith("kerntuned 0.1.0 on Linux 6.1.0, generation 7, profile balanced, degraded: over-limit")
    assert shown[0].endswith("  12:00:00")


@pytest.mark.parametrize(
    ("headroom", "bar"),
    [(9, "#" * 5 + "|" + "#" * 14), (4, "#" * 5 + "|" + "#" * 4 + "-" * 10), (1, "#" * 2 + "-" * 3 + "|" + "-" * 14)],
)
def test_headroom_above_the_floor(headroom: int, bar: str) -> None:
    shown = lines(board(memory=MEMORY | {"Headroom": headroom * GIB}))
    assert f"memory      {headroom}.0 GiB left  [{bar}] | floor 2.0 GiB, end 8.0 GiB" in shown


def test_a_host_with_little_to_tune() -> None:
    shown = lines(board(memory={"Headroom": GIB, "Floor": 0, "GuardState": "off", "OvercommitMode": ""}))
    assert shown[2:7] == [
        "memory      1.0 GiB left",
        "guard       off, overcommit not there",
        "huge pages  none",
        "governors   no frequency scaling here",
        "drives      none",
    ]


def test_pools_governors_and_drives() -> None:
    pools = [
        (2 << 20, "", 64, 60, 0, 0, 128), (2 << 20, "0", 64, 60, 0, 0, 0), (2 << 20, "1", 0, 0, 0, 0, 0),
        (1 << 30, "", 0, 0, 0, 0, 0), (1 << 30, "0", 0, 0, 0, 0, 0),
    ]  # fmt: skip
    policies = {"policy0": ("performance", "0-3"), "policy4": ("performance", "4-7"), "policy8": ("", "8")}
    drives = {"nvme0n1": ("none", ["none"]), "sda": ("bfq", ["bfq"]), "md0": ("", [])}
    shown = lines(
        board(pools={"Pools": pools}, governors={"Policies": policies}, drives={"Devices": drives}), width=100
    )
    assert "huge pages  2M 64 pages, 60 free, 128 desired (node0 64, node1 0)" in shown
    assert "governors   performance (2), cpu-offline (1)" in shown
    assert "drives      -: md0; bfq: sda; none: nvme0n1" in shown


def test_the_newest_events_are_kept_and_nothing_is_too_large() -> None:
    host = board(drives={"Devices": {f"nvme{number}n1": ("none", []) for number in range(40)}})
    for number in range(300):
        host.note("11:00:00", Pass(number, "Set", (outcome("overcommit", requested="always", detail="why " * 40),)))
    host.note("11:00:01", Health(("over-limit",)))
    for width, height in ((80, 24), (40, 8), (200, 50), (20, 4)):
        shown = lines(host, width=width, height=height)
        assert len(shown) <= height
        assert max(map(len, shown)) <= width
        assert shown[-1] == "Ctrl-C ends it"
    assert lines(host)[-2] == "11:00:01  degraded: over-limit"


@pytest.mark.parametrize("height", [4, 6, 8, 9])
def test_the_newest_event_has_room_in_a_small_window(height: int) -> None:
    host = board()
    assert "Nothing has changed yet" in lines(host, height=height)
    for state in ("capped", "released", "relaxed"):
        host.note("11:00:00", GuardChange(state, 0, "", GIB, GIB, 0, (), ()))
    shown = lines(host, height=height)
    assert len(shown) <= height
    assert shown[-2] == "11:00:00  memory guard  relaxed, 1.0 GiB left, floor 1.0 GiB"
    assert "Last events" in shown
    assert "Nothing has changed yet" not in shown


def test_an_alarm_is_red_and_no_name_can_move_the_cursor() -> None:
    host = board(memory=MEMORY | {"GuardState": "capped", "WarningLevel": 100})
    host.note("11:00:00", GuardChange("capped", 100, "", GIB, GIB, GIB, ((1, "\x1b[2Jhog", 0, GIB),), ()))
    shown = lines(host, coloured=True)
    assert "\x1b[1;31mguard       capped, overcommit always\x1b[0m" in shown
    assert not any("\x1b[2J" in line for line in shown)


# The live screen, with the real daemon


@contextmanager
def monitor(daemon: Daemon, *words: str) -> Iterator[Terminal]:
    with on_terminal(*COMMAND, "monitor", *words, address=daemon.env[ADDRESS], NO_COLOR="1") as screen:
        yield screen


def change(daemon: Daemon, *words: str) -> None:
    done = kerntune(*words, env=daemon.env)
    assert done.returncode == 0, done.stderr


def frame(screen: Terminal) -> list[str]:
    """Return the lines of the next whole screen."""
    screen.read_until(HOME)
    return screen.read_until(CLEAR_REST).replace(CLEAR_LINE, "").replace("\r", "").split("\n")


def frame_with(screen: Terminal, text: str) -> list[str]:
    """Return the lines of the next screen that has a text."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        lines = frame(screen)
        if text in "\n".join(lines):
            return lines
    raise AssertionError(f"no {text!r} on the screen")


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Wait until a child has stopped or ended, and return True if it has stopped."""
    return os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


@needs_root
def test_it_shows_the_host_and_what_happens(demo: Daemon) -> None:
    with monitor(demo) as screen:
        assert screen.read_until(ENTER) == ""
        lines = frame(screen)
        assert re.fullmatch(r"kerntuned \S+ on a simulated host, generation 0, all well +\d\d:\d\d:\d\d", lines[0])
        assert "guard       off, overcommit heuristic" in lines
        assert "governors   schedutil (8)" in lines
        assert "drives      mq-deadline: sda; none: nvme0n1 nvme1n1" in lines
        assert lines[-2:] == ["Nothing has changed yet", "Ctrl-C ends it"]
        change(demo, "set", "hugepages@2M=64", "overcommit=always:95", "io-scheduler@nvme0n1=mq-deadline")
        lines = frame_with(screen, "memory guard  relaxed")
        lines = frame(screen)
        assert max(map(len, lines)) <= COLUMNS
        assert len(lines) <= ROWS
        text = "\n".join(lines)
        assert re.search(r"^memory +[\d.]+ GiB left  \[#+\|#+\] \| floor [\d.]+ GiB, end [\d.]+ GiB$", text, re.M)
        assert "guard       relaxed, overcommit always" in lines
        assert "huge pages  2M 64 pages, 64 free (node0 32, node1 32)" in lines
        assert "drives      mq-deadline: nvme0n1 sda; none: nvme1n1" in lines
        assert re.search(r"^\d\d:\d\d:\d\d  Set  ✔  hugepages@2M  0 -> 64  satisfied$", text, re.M)
        assert screen.end(signal.SIGINT)[0] == 0


@needs_root
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_gives_the_terminal_back(demo: Daemon, number: signal.Signals, status: int) -> None:
    with monitor(demo) as screen:
        frame(screen)
        code, rest = screen.end(number)
        assert code == status
        assert rest.endswith(LEAVE)


@needs_root
def test_it_gives_the_terminal_back_when_the_daemon_goes(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        demo.terminate()
        screen.read_until(LEAVE)
        code, rest = screen.end()
        assert code == 5
        # It was heard of, or a question came too late.
        assert re.search("kerntune: org.kerntune.Tuner1 (has left the bus|cannot be reached)", rest)


@needs_root
def test_it_gives_the_terminal_back_while_it_is_stopped(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        screen.process.send_signal(signal.SIGTSTP)
        screen.read_until(LEAVE)
        assert is_stopped(screen.process)
        screen.process.send_signal(signal.SIGCONT)
        screen.read_until(ENTER)
        frame(screen)


@needs_root
def test_it_can_be_stopped_and_ended_while_the_daemon_hangs(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        os.kill(demo.pid, signal.SIGSTOP)
        try:
            time.sleep(1)  # until it waits for an answer
            screen.process.send_signal(signal.SIGTSTP)
            screen.read_until(LEAVE)
            assert is_stopped(screen.process)
            screen.process.send_signal(signal.SIGCONT)
            screen.read_until(ENTER)
            began = time.monotonic()
            assert screen.end(signal.SIGINT)[0] == 0
            assert time.monotonic() - began < READ_SECONDS / 2
        finally:
            os.kill(demo.pid, signal.SIGCONT)


@needs_root
def test_it_is_not_drawn_more_often_than_twice_a_second(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        start = time.monotonic()
        for number in range(3):
            change(demo, "set", f"hugepages@2M={number + 1}")
        frames = len(re.findall(re.escape(HOME), screen.read_until("2M 3 pages"))) + 1
        # The one that was there already may have been read late.
        assert (frames - 1) * 0.5 <= time.monotonic() - start + 0.5


@needs_root
@pytest.mark.parametrize("words", [["--events"], ["--json"]])
def test_lines_are_there_for_the_asking(demo: Daemon, words: list[str]) -> None:
    with monitor(demo, *words) as screen:
        head = screen.read_until("\r\n")
        assert "Watching kerntuned" in head or '"event": "watching"' in head
        change(demo, "set", "overcommit=always:95")
        screen.read_until("guard")
        code, rest = screen.end(signal.SIGINT)
        assert code == 0
        assert LEAVE not in head + rest
