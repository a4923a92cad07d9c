"""monitor on a terminal: a screen kept up to date, and a terminal that is given back; with the real daemon."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kerntune.cli.monitor import CLEAR_LINE, CLEAR_REST, ENTER, HOME, LEAVE
from kerntune.cli.remote import READ_SECONDS
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.privatebus import PrivateBus

# There is no polkit on this bus: root alone may change anything.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="setting values takes root")

LIMIT = 20.0  # seconds
ROWS, COLUMNS = 24, 100


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(include=[CHECKOUT / "dbus/org.kerntune.Tuner1.conf"]) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    with Daemon(bus, "--demo") as running:
        yield running


class Screen:
    """The monitor on a terminal, and what it has written there."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self._terminal = process, terminal
        self.text = ""

    def read_until(self, wanted: str) -> str:
        """All there is up to that text; it has to come in time."""
        while wanted not in self.text:
            assert select.select([self._terminal], [], [], LIMIT)[0], f"no {wanted!r} in {self.text[-3000:]!r}"
            self.text += os.read(self._terminal, 65536).decode()
        before, _, self.text = self.text.partition(wanted)
        return before

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Its exit status, after a signal, and the rest of what it wrote."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        while select.select([self._terminal], [], [], 0)[0]:
            try:
                self.text += os.read(self._terminal, 65536).decode()
            except OSError:
                break
        return code, self.text


@contextmanager
def monitor(bus: PrivateBus, *words: str) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in bus.environment.items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(
        [sys.executable, "-m", "kerntune.cli", "monitor", *words],
        env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            yield Screen(process, ours)
        finally:
            process.kill()
            os.close(ours)


def change(bus: PrivateBus, *words: str) -> None:
    command = [sys.executable, "-m", "kerntune.cli", *words]
    done = subprocess.run(command, env=bus.environment, capture_output=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr


def frame(screen: Screen) -> list[str]:
    """The lines of the next whole screen."""
    screen.read_until(HOME)
    return screen.read_until(CLEAR_REST).replace(CLEAR_LINE, "").replace("\r", "").split("\n")


def frame_with(screen: Screen, text: str) -> list[str]:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        lines = frame(screen)
        if text in "\n".join(lines):
            return lines
    raise AssertionError(f"no {text!r} on the screen")


def test_it_shows_the_host_and_what_happens(bus: PrivateBus, daemon: Daemon) -> None:
    with monitor(bus) as screen:
        assert screen.read_until(ENTER) == ""
        lines = frame(screen)
        assert re.fullmatch(r"kerntuned \S+ on a simulated host, generation 0, all well +\d\d:\d\d:\d\d", lines[0])
        assert "guard       off, overcommit heuristic" in lines
        assert "governors   schedutil (8)" in lines
        assert "drives      mq-deadline: sda; none: nvme0n1 nvme1n1" in lines
        assert lines[-2:] == ["Nothing has changed yet", "Ctrl-C ends it"]
        change(bus, "set", "hugepages@2M=64", "overcommit=always:95", "io-scheduler@nvme0n1=mq-deadline")
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_gives_the_terminal_back(bus: PrivateBus, daemon: Daemon, number: signal.Signals, status: int) -> None:
    with monitor(bus) as screen:
        frame(screen)
        code, rest = screen.end(number)
        assert code == status
        assert rest.endswith(LEAVE)


def test_it_gives_the_terminal_back_when_the_daemon_goes(bus: PrivateBus, daemon: Daemon) -> None:
    with monitor(bus) as screen:
        frame(screen)
        daemon.terminate()
        screen.read_until(LEAVE)
        code, rest = screen.end()
        assert code == 5
        # It was heard of, or a question came too late.
        assert re.search("kerntune: org.kerntune.Tuner1 (has left the bus|cannot be reached)", rest)


def test_it_gives_the_terminal_back_while_it_is_stopped(bus: PrivateBus, daemon: Daemon) -> None:
    with monitor(bus) as screen:
        frame(screen)
        screen.process.send_signal(signal.SIGTSTP)
        screen.read_until(LEAVE)
        _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        screen.process.send_signal(signal.SIGCONT)
        screen.read_until(ENTER)
        frame(screen)


def test_it_can_be_stopped_and_ended_while_the_daemon_hangs(bus: PrivateBus, daemon: Daemon) -> None:
    with monitor(bus) as screen:
        frame(screen)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            time.sleep(1)  # until it waits for an answer
            screen.process.send_signal(signal.SIGTSTP)
            screen.read_until(LEAVE)
            _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            screen.process.send_signal(signal.SIGCONT)
            screen.read_until(ENTER)
            began = time.monotonic()
            assert screen.end(signal.SIGINT)[0] == 0
            assert time.monotonic() - began < READ_SECONDS / 2
        finally:
            os.kill(daemon.pid, signal.SIGCONT)


def test_it_is_not_drawn_more_often_than_twice_a_second(bus: PrivateBus, daemon: Daemon) -> None:
    with monitor(bus) as screen:
        frame(screen)
        start = time.monotonic()
        for number in range(3):
            change(bus, "set", f"hugepages@2M={number + 1}")
        frames = len(re.findall(re.escape(HOME), screen.read_until("2M 3 pages"))) + 1
        # The one that was there already may have been read late.
        assert (frames - 1) * 0.5 <= time.monotonic() - start + 0.5


@pytest.mark.parametrize("words", [["--events"], ["--json"]])
def test_lines_are_there_for_the_asking(bus: PrivateBus, daemon: Daemon, words: list[str]) -> None:
    with monitor(bus, *words) as screen:
        head = screen.read_until("\r\n")
        assert "Watching kerntuned" in head or '"event": "watching"' in head
        change(bus, "set", "overcommit=always:95")
        screen.read_until("guard")
        code, rest = screen.end(signal.SIGINT)
        assert code == 0
        assert LEAVE not in head + rest
