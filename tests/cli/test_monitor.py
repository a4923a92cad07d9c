"""monitor: a line for each thing that changes, at once, to people and to pipes."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from kerntune import errors
from kerntune.api.document import GuardChange, Health, Pass
from kerntune.cli.__main__ import main
from tests.cli.scripted import Script, outcome, private_bus, serving
from tests.harness.privatebus import PrivateBus

LIMIT = 20.0  # seconds

Captured = pytest.CaptureFixture[str]


def run(script: Script, *words: str) -> int:
    return main(words, connect=script.connect)


class TestMonitor:
    GOVERNORS = (
        outcome("cpu-governor@policy0", requested="performance", actual="performance"),
        outcome("cpu-governor@policy1", "unsupported", actual="", reason="cpu-offline", detail="set when it comes"),
    )
    EVENTS = (Pass(4, "Set", GOVERNORS), Health(("cpu-offline",)), Health(()))
    GONE = errors.Unreachable("org.kerntune.Tuner1 has left the bus", "is kerntuned running?")

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
        assert said.err == "kerntune: org.kerntune.Tuner1 has left the bus\n  is kerntuned running?\n"

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


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    with private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@contextmanager
def monitor(bus: PrivateBus, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """The process, and what reads its next line; it has to come in time though nobody makes it flush.

    The pipe is unbuffered bytes: a text reader would take in the lines after it, and neither select nor communicate
    would see them.
    """
    environment = {name: value for name, value in bus.environment.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "kerntune.cli", "monitor", *words],
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


def test_it_is_live_and_ends_with_an_interrupt(bus: PrivateBus) -> None:
    script = Script()
    with serving(bus, script) as daemon, monitor(bus) as (process, next_line):
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


def test_it_says_that_the_daemon_has_gone(bus: PrivateBus) -> None:
    with serving(bus, Script()) as daemon, monitor(bus, "--json") as (process, next_line):
        assert json.loads(next_line())["event"] == "watching"
        daemon.announce("drift", outcome("overcommit", "contested"))
        daemon.leave()
        assert json.loads(next_line())["cause"] == "drift"
        rest, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == 5
    assert json.loads(rest)["error"]["name"] == errors.Unreachable.dbus_name
    assert complaint.decode() == (
        "kerntune: org.kerntune.Tuner1 has left the bus\n  is kerntuned running? systemctl status kerntuned\n"
    )


def test_a_reader_that_has_seen_enough_ends_it(bus: PrivateBus) -> None:
    with serving(bus, Script()) as daemon, monitor(bus) as (process, next_line):
        next_line()
        assert process.stdout
        process.stdout.close()
        daemon.announce("Set", outcome("overcommit"))
        assert process.wait(LIMIT) == 0
        assert process.stderr
        assert process.stderr.read() == b""
