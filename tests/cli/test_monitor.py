"""monitor: a line for each change, and on a terminal a screen kept up to date; the terminal is given back."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.document import Change, Document, Event, GuardChange, Health, Pass
from kerntune.cli import output
from kerntune.cli.board import Board, screen
from kerntune.cli.remote import READ_SECONDS
from kerntune.cli.terminal import CLEAR_LINE, CLEAR_REST, ENTER, HOME, LEAVE
from tests.cli.scripted import Captured, Script, ScriptedService, document, outcome, run, serving
from tests.conftest import needs_root
from tests.harness.command import ADDRESS, COLUMNS, COMMAND, LIMIT, ROWS, Terminal, kerntune, on_terminal
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus, open_bus, package_bus


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
        assert head == "Watching kerntuned 0.1.0 on Linux 6.1.0, generation 3. All well. Ctrl-C ends it"
        assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines] == [
            "Set  ✔  cpu-governor@policy0  before -> performance  satisfied",
            "Set  ○  cpu-governor@policy1  before -> -  waiting  cpu-offline: set when it comes",
            "degraded: cpu-offline",
            "degraded: nothing any more",
        ]
        assert said.err == "kerntune: org.kerntune.Tuner1 has left the bus\n  Is kerntuned running?\n"

    def test_changes_that_differ_in_the_name_alone_share_a_line(self, capsys: Captured) -> None:
        """JSON keeps a line each."""
        rows = [outcome(f"cpu-governor@policy{n}", requested="performance", actual="performance") for n in range(192)]
        drives = [outcome(f"io-scheduler@nvme{n}n1")._replace(before="none") for n in range(8)]
        for words, number in (([], 2), (["--json"], 200)):
            assert run(Script(events=[Pass(4, "Set", (*rows, *drives))], end=self.GONE), "monitor", *words) == 5
            _, *lines = capsys.readouterr().out.splitlines()
            assert len(lines) == number + len(words)
            if not words:
                assert re.search("  Set  ✔  cpu-governor@policy0-191.*  before -> performance  satisfied$", lines[0])
                # The value was there already: it has not changed.
                assert re.search(r"  Set  ✔  io-scheduler@nvme0n1-nvme7n1  satisfied$", lines[1])

    def test_json_is_a_line_each(self, capsys: Captured) -> None:
        assert run(Script(events=self.EVENTS, end=self.GONE), "monitor", "--json") == 5
        head, first, second, bad, good, error = map(json.loads, capsys.readouterr().out.splitlines())
        assert (head["event"], head["generation"], head["degraded"]) == ("watching", 3, [])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", first.pop("time"))
        assert first == {"event": "outcome", "generation": 4, "cause": "Set", **output.outcome_data(self.GOVERNORS[0])}
        assert (second["instance"], second["state"], second["condition"]) == ("policy1", "unsupported", "waiting")
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
def piped(
    bus: PrivateBus, *words: str, command: Sequence[str] = (*COMMAND, "monitor")
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Give the process, and a function for its next line, which has to come in time though nobody makes it flush.

    The pipe is unbuffered bytes: a text reader would take in the lines after it, and neither select nor communicate
    would see them.
    """
    environment = {name: value for name, value in bus.environment.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*command, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process, partial(line, process)
        finally:
            process.kill()


@contextmanager
def piped_beside(
    bus: PrivateBus,
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str], ScriptedService]]:
    """Give the process that answers in JSON, its next line, and a daemon that may leave before it."""
    with ExitStack() as stack:
        daemon = stack.enter_context(serving(bus, Script()))
        process, next_line = stack.enter_context(piped(bus, "--json"))
        yield process, next_line, daemon


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
        assert next_line().endswith("  degraded: nothing any more\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == (b"", b"")
        assert process.returncode == 0


def test_it_goes_on_with_the_next_daemon(script_bus: PrivateBus) -> None:
    with piped_beside(script_bus) as (process, next_line, daemon):
        assert json.loads(next_line())["event"] == "watching"
        daemon.announce("drift", outcome("overcommit", "contested"))
        daemon.leave()
        assert json.loads(next_line())["cause"] == "drift"
        assert json.loads(next_line())["event"] == "left"
        with serving(script_bus, script := Script(document(generation=9))) as following:
            back = json.loads(next_line())
            assert (back["event"], back["generation"], back["version"]) == ("back", 9, "0.1.0")
            assert script.calls == [("Describe",)]
            following.announce("Set", outcome("overcommit"))
            assert json.loads(next_line())["cause"] == "Set"
        assert json.loads(next_line())["event"] == "left"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == (b"", b"")
        assert process.returncode == 0


IMPATIENT = """import sys
from kerntune.cli import __main__, monitor
monitor.BACK_SECONDS = 0.1
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_it_ends_when_no_daemon_comes_back(script_bus: PrivateBus) -> None:
    command = (sys.executable, "-c", IMPATIENT, "monitor")
    with serving(script_bus, Script()) as daemon, piped(script_bus, command=command) as (process, next_line):
        next_line()
        daemon.leave()
        assert next_line().endswith("  kerntuned has left the bus; waiting until it is back\n")
        assert process.communicate(timeout=LIMIT) == (
            b"", b"kerntune: kerntuned has left the bus\n  systemctl status kerntuned\n",
        )  # fmt: skip
        assert process.returncode == 5


class Asked(Script):
    """A script that tells when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def answer(self, *call: Any) -> Change:
        self.asked.set()
        return super().answer(*call)


def test_it_goes_on_where_standard_output_is_closed(script_bus: PrivateBus) -> None:
    """It ends only because its daemon goes, and none comes."""
    line = ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", IMPATIENT, "monitor"]
    with (
        serving(script_bus, script := Asked()) as daemon,
        subprocess.Popen(line, env=script_bus.environment, stderr=subprocess.PIPE) as process,
    ):
        assert script.asked.wait(LIMIT)
        daemon.announce("Set", outcome("overcommit"))
        daemon.leave()
        _, complaint = process.communicate(timeout=LIMIT)
    assert complaint == b"kerntune: kerntuned has left the bus\n  systemctl status kerntuned\n"
    assert process.returncode == 5


def test_it_ends_with_its_bus() -> None:
    with open_bus() as bus, serving(bus, Script()), piped(bus, "--json") as (process, next_line):
        assert json.loads(next_line())["event"] == "watching"
        bus.stop()
        rest, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == 5
    assert json.loads(rest)["error"]["name"] == errors.Unreachable.dbus_name
    assert complaint.startswith(b"kerntune: the bus at unix:path=")


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_it_ends_at_once_when_its_reader_goes(script_bus: PrivateBus, words: list[str]) -> None:
    """As with `| head -1`: nothing has to happen for that."""
    with serving(script_bus, Script()), piped(script_bus, *words) as (process, next_line):
        next_line()
        assert process.stdout
        process.stdout.close()
        assert process.wait(LIMIT) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def test_it_ends_with_its_reader_also_where_it_writes_nothing(script_bus: PrivateBus) -> None:
    with serving(script_bus, script := Asked()), piped(script_bus, "--quiet") as (process, _):
        assert script.asked.wait(LIMIT)
        assert process.stdout
        process.stdout.close()
        assert process.wait(LIMIT) == 0


def test_it_ends_when_its_reader_goes_while_there_is_no_daemon(script_bus: PrivateBus) -> None:
    with piped_beside(script_bus) as (process, next_line, daemon):
        next_line()
        daemon.leave()
        assert json.loads(next_line())["event"] == "left"
        assert process.stdout
        process.stdout.close()
        assert process.wait(LIMIT) == 0


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
    return screen(board, "12:00:00", width=width, height=height, coloured=coloured, ending="Ctrl-C ends it")


def board(described: Document | None = None, **more: Any) -> Board:
    return Board(described or document(), **{"memory": MEMORY, **more})


def note(host: Board, clock: str, event: Event) -> None:
    host.note(output.happened(clock, event))


def test_the_first_line_is_the_daemon_s_health_now() -> None:
    shown = lines(board(document(generation=7, degraded=["over-limit"], profile="balanced")), width=120)
    assert shown[0].startswith("Not well: over-limit  ")
    assert shown[0].endswith("  12:00:00")
    assert shown[1] == "kerntuned 0.1.0 on Linux 6.1.0, generation 7, profile balanced"


@pytest.mark.parametrize(
    ("headroom", "bar"),
    [(9, "#" * 5 + "|" + "#" * 14), (4, "#" * 5 + "|" + "#" * 4 + "-" * 10), (1, "#" * 2 + "-" * 3 + "|" + "-" * 14)],
)
def test_headroom_above_the_floor(headroom: int, bar: str) -> None:
    shown = lines(board(memory=MEMORY | {"Headroom": headroom * GIB}))
    assert f"memory      {headroom}.0 GiB left  [{bar}] | floor 2.0 GiB, end 8.0 GiB" in shown


def test_a_host_with_little_to_tune() -> None:
    shown = lines(board(memory={"Headroom": GIB, "Floor": 0, "GuardState": "off", "OvercommitMode": ""}))
    assert shown[3:8] == [
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
        note(host, "11:00:00", Pass(number, "Set", (outcome("overcommit", requested="always", detail="why " * 40),)))
    note(host, "11:00:01", Health(("over-limit",)))
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
        note(host, "11:00:00", GuardChange(state, 0, "", GIB, GIB, 0, (), ()))
    shown = lines(host, height=height)
    assert len(shown) <= height
    assert shown[-2] == "11:00:00  memory guard  relaxed, 1.0 GiB left, floor 1.0 GiB"
    assert "Last events" in shown
    assert "Nothing has changed yet" not in shown


def degraded(*slugs: str, **more: Any) -> Document:
    return document(generation=68, degraded=list(slugs), profile="ai-inference", **more)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_health_is_whole_and_says_what_it_means(width: int) -> None:
    host = board(degraded("config-invalid", "state-unread"))
    for number in range(30):
        note(host, "11:00:00", Pass(number, "Set", (outcome("overcommit", detail="because " * 9),)))
    shown = lines(host, width=width, height=30)
    text = " ".join(" ".join(shown).replace("12:00:00", "").split())
    assert text.startswith("Not well: config-invalid; state-unread kerntuned ")
    assert "! config-invalid: a configuration file or profile is not in order" in text
    assert max(map(len, shown)) <= width


@pytest.mark.parametrize("height", [5, 6, 8])
def test_health_goes_before_all_else_in_a_small_window(height: int) -> None:
    host = board(degraded("config-invalid"))
    note(host, "11:00:00", Pass(1, "Set", (outcome("overcommit", detail="because " * 40),)))
    text = " ".join(" ".join(lines(host, height=height)).replace("12:00:00", "").split())
    assert text.startswith("Not well: config-invalid ")


def test_the_newest_event_is_whole() -> None:
    """The names of those who have the memory are at its end."""
    rows = tuple((number, f"qemu-system-x86_{number}", 0, GIB) for number in range(30300, 30310))
    host = board()
    note(host, "11:00:00", GuardChange("capped", 100, "", GIB, GIB, GIB, rows, ()))
    shown = lines(host)
    text = " ".join(" ".join(shown).split())
    assert all(f"qemu-system-x86_{pid} (pid {pid}, uid 0) 1.0 GiB" in text for pid, *_ in rows)
    assert max(map(len, shown)) <= 80
    start = next(place for place, line in enumerate(shown) if "largest: " in line)
    assert all(line.startswith(" " * 10) for line in shown[start + 1 : -1])
    assert f"qemu-system-x86_{rows[-1][0]}" in " ".join(lines(host, height=14))


def test_patterns_that_wait_have_a_line_each() -> None:
    host = board()
    rows = [outcome(f"io-scheduler@nvme{n}n*", "unsupported", reason="no-such-target") for n in (1, 2)]
    note(host, "11:00:00", Pass(1, "Set", tuple(rows)))
    assert re.findall(r"io-scheduler@\S+", " ".join(lines(host))) == [
        "io-scheduler@nvme1n*", "io-scheduler@nvme2n*",
    ]  # fmt: skip


def test_one_line_for_a_change_of_many() -> None:
    host = board()
    rows = [outcome(f"cpu-governor@policy{number}", actual="performance") for number in range(192)]
    note(host, "11:00:00", Pass(1, "SetProfile", tuple(rows)))
    (shown,) = [line for line in lines(host, width=100) if "policy" in line]
    assert re.search("  SetProfile  ✔  cpu-governor@policy0-191.*  before -> performance  satisfied$", shown)


@pytest.mark.parametrize(
    ("mode", "ratio", "shown"),
    [("always", 95, "always:95"), ("never", 80, "never:80"), ("never", 0, "never"), ("heuristic", 50, "heuristic")],
)
def test_overcommit_has_its_ratio(mode: str, ratio: int, shown: str) -> None:
    assert f"guard       relaxed, overcommit {shown}" in lines(
        board(memory=MEMORY | {"OvercommitMode": mode, "OvercommitRatio": ratio})
    )


def test_a_host_without_its_daemon() -> None:
    host = board()
    host.lose("11:00:00")
    assert lines(host)[0].startswith("kerntuned has left the bus. This is what it has told last:")
    assert lines(host)[-2] == "11:00:00  kerntuned has left the bus; waiting until it is back"
    host.find("11:00:09", document(generation=1))
    assert lines(host)[:2] == [f"{'All well':72}12:00:00", "kerntuned 0.1.0 on Linux 6.1.0, generation 1"]
    assert lines(host)[-2] == "11:00:09  kerntuned is back, generation 1"


def test_an_alarm_is_red_and_no_name_can_move_the_cursor() -> None:
    host = board(memory=MEMORY | {"GuardState": "capped", "WarningLevel": 100})
    note(host, "11:00:00", GuardChange("capped", 100, "", GIB, GIB, GIB, ((1, "\x1b[2Jhog", 0, GIB),), ()))
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
        assert re.fullmatch(r"All well +\d\d:\d\d:\d\d", lines[0])
        assert re.fullmatch(r"kerntuned \S+ on a simulated host, generation 0", lines[1])
        assert "guard       off, overcommit heuristic" in lines
        assert "governors   schedutil (8)" in lines
        assert "drives      mq-deadline: sda; none: nvme0n1 nvme1n1" in lines
        assert lines[-2:] == ["Nothing has changed yet", "q or Ctrl-C ends it"]
        change(demo, "set", "hugepages@2M=64", "overcommit=always:95", "io-scheduler@nvme0n1=mq-deadline")
        lines = frame_with(screen, "memory guard  relaxed")
        lines = frame(screen)
        assert max(map(len, lines)) <= COLUMNS
        assert len(lines) <= ROWS
        text = "\n".join(lines)
        assert re.search(r"^memory +[\d.]+ GiB left  \[#+\|#+\] \| floor [\d.]+ GiB, end [\d.]+ GiB$", text, re.M)
        assert "guard       relaxed, overcommit always:95" in lines
        assert "huge pages  2M 64 pages, 64 free (node0 32, node1 32)" in lines
        assert "drives      mq-deadline: nvme0n1 sda; none: nvme1n1" in lines
        assert re.search(r"^\d\d:\d\d:\d\d  Set  ✔  hugepages@2M  0 -> 128M \(64 x 2M\)  satisfied$", text, re.M)
        assert screen.end(signal.SIGINT)[0] == 0


USUAL, RAW = termios.ICANON | termios.ECHO, 0
ENDS = [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP), ("q", 0), ("Q", 0)]


def local_modes(screen: Terminal) -> int:
    """Return the modes by which a terminal waits for whole lines, and shows what is typed."""
    return int(screen.modes()[3]) & USUAL


@needs_root
@pytest.mark.parametrize(("how", "status"), ENDS)
def test_it_gives_the_terminal_back(demo: Daemon, how: signal.Signals | str, status: int) -> None:
    with monitor(demo) as screen:
        frame(screen)
        assert local_modes(screen) == RAW
        if isinstance(how, str):
            screen.type(how)
            code, rest = screen.end()
        else:
            code, rest = screen.end(how)
        assert code == status
        assert rest.endswith(LEAVE)
        assert local_modes(screen) == USUAL


@needs_root
@pytest.mark.parametrize(("words", "coloured"), [(["--color=always"], True), (["--color=never"], False), ([], False)])
def test_colour_is_decided_as_for_all_verbs(demo: Daemon, words: list[str], *, coloured: bool) -> None:
    """NO_COLOR is set."""
    with monitor(demo, *words) as screen:
        assert ("\x1b[2m" in "".join(frame(screen))) == coloured


@needs_root
def test_no_other_key_ends_it(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        screen.type("x \x1b[A\x1b[B\x04\r")
        for _ in range(3):
            lines = frame(screen)
        assert lines[-1] == "q or Ctrl-C ends it"
        screen.type("q")
        assert screen.end()[0] == 0


@needs_root
@pytest.mark.parametrize("state", ["</dev/null", "<&-"])
def test_q_is_not_offered_where_nobody_can_type(demo: Daemon, state: str) -> None:
    words = ("bash", "-c", f"exec {' '.join(COMMAND)} monitor {state}")
    with on_terminal(*words, address=demo.env[ADDRESS], NO_COLOR="1") as screen:
        assert frame(screen)[-1] == "Ctrl-C ends it"
        assert local_modes(screen) == USUAL
        assert screen.end(signal.SIGINT)[0] == 0


@needs_root
def test_it_goes_on_when_the_daemon_is_restarted(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        demo.terminate()
        lines = frame_with(screen, "waiting until it is back")
        assert lines[0].startswith("kerntuned has left the bus. This is what it has told last:")
        assert lines[1:3] == ["All well", "kerntuned 0.1.0 on a simulated host, generation 0"]
        demo.start()
        lines = frame_with(screen, "kerntuned is back, generation ")
        assert lines[0].startswith("All well ")
        change(demo, "set", "hugepages@2M=64")
        frame_with(screen, "2M 64 pages, 64 free")
        screen.type("q")
        assert screen.end()[0] == 0


@needs_root
def test_q_ends_it_while_there_is_no_daemon(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        demo.terminate()
        frame_with(screen, "waiting until it is back")
        screen.type("q")
        assert screen.end()[0] == 0


@needs_root
def test_it_gives_the_terminal_back_when_no_daemon_comes(demo: Daemon) -> None:
    command = (sys.executable, "-c", IMPATIENT, "monitor")
    with on_terminal(*command, address=demo.env[ADDRESS], NO_COLOR="1") as screen:
        frame(screen)
        demo.terminate()
        screen.read_until(LEAVE)
        code, rest = screen.end()
        assert code == 5
        assert "kerntune: kerntuned has left the bus" in rest
        assert local_modes(screen) == USUAL


@needs_root
def test_it_gives_the_terminal_back_when_the_bus_goes() -> None:
    with package_bus() as bus, Daemon(bus, "--demo") as daemon, monitor(daemon) as screen:
        frame(screen)
        bus.stop()
        screen.read_until(LEAVE)
        code, rest = screen.end()
        assert code == 5
        assert "kerntune: the bus at unix:path=" in rest


def test_it_gives_the_terminal_back_after_an_error(script_bus: PrivateBus) -> None:
    """The scripted daemon has no memory guard."""
    with serving(script_bus, Script()), on_terminal(*COMMAND, "monitor", address=script_bus.address) as screen:
        screen.read_until(LEAVE)
        code, rest = screen.end()
        assert code == 1
        assert "Traceback" not in rest
        assert local_modes(screen) == USUAL


@needs_root
def test_it_ends_with_its_terminal(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        screen.hang_up()
        assert screen.process.wait(LIMIT) == 1


@needs_root
def test_it_gives_the_terminal_back_while_it_is_stopped(demo: Daemon) -> None:
    with monitor(demo) as screen:
        frame(screen)
        screen.process.send_signal(signal.SIGTSTP)
        screen.read_until(LEAVE)
        assert is_stopped(screen.process)
        assert local_modes(screen) == USUAL
        screen.process.send_signal(signal.SIGCONT)
        screen.read_until(ENTER)
        frame(screen)
        assert local_modes(screen) == RAW
        screen.type("q")
        assert screen.end()[0] == 0
        assert local_modes(screen) == USUAL


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
