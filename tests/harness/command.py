"""The command line as people use it: as a process, on a terminal, and in a shell beside a running kerntuned."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.harness import CHECKOUT
from tests.harness.daemon import Daemon
from tests.harness.privatebus import package_bus

LIMIT: Final = 20.0  # seconds that a line may take
COMMAND: Final = (sys.executable, "-m", "kerntune.cli")
ADDRESS: Final = "DBUS_SYSTEM_BUS_ADDRESS"
NO_BUS: Final = {ADDRESS: "unix:path=/nonexistent/bus"}
ROWS, COLUMNS = 24, 100

# What is on a reader's PATH beside Debian's programs: ours, those that only lend rights, and a workload.
PROGRAMS: Final = {
    "kerntune": f'exec {sys.executable} -m kerntune.cli "$@"',
    "sudo": 'exec "$@"',
    "start-model-server": "exit 0",
}


def kerntune(*words: str, env: Mapping[str, str] = NO_BUS) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with `env` on top of our environment; without one it can reach no bus."""
    return run([*COMMAND, *words], env=env)


def run(argv: Sequence[str], *, env: Mapping[str, str] = NO_BUS) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `kerntune` runs the command."""
    return subprocess.run(
        argv, env={**os.environ, **env}, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


class Terminal:
    """A program on a terminal of its own, and what it has written there that nobody has read."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process, self._screen = process, screen
        self.text = ""

    def read_until(self, wanted: str) -> str:
        """Return what comes before that text, which has to come in time."""
        while wanted not in self.text:
            assert select.select([self._screen], [], [], LIMIT)[0], f"no {wanted!r} in {self.text[-3000:]!r}"
            self.text += os.read(self._screen, 1 << 16).decode()
        before, _, self.text = self.text.partition(wanted)
        return before

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._screen, text.encode())

    def hang_up(self) -> None:
        """Take the terminal away."""
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), self._screen)

    def modes(self) -> list[Any]:
        """Return the modes of the terminal, as tcgetattr does."""
        return termios.tcgetattr(self._screen)

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Send a signal, if one is named; return the exit status and the rest of what comes."""
        if number is not None:
            self.process.send_signal(number)
        rest = self.text + read_all(self._screen)
        return self.process.wait(LIMIT), rest


def read_all(screen: int) -> str:
    """Return what comes to a terminal until its other side is closed (reading then fails with EIO)."""
    text = b""
    while select.select([screen], [], [], LIMIT)[0]:
        try:
            text += os.read(screen, 1 << 16)
        except OSError:
            return text.decode()
    raise TimeoutError(text.decode())


@contextmanager
def on_terminal(
    *argv: str, address: str = NO_BUS[ADDRESS], only_errors: bool = False, **env: str
) -> Iterator[Terminal]:
    """Run a program on a terminal, which is as wide as COLUMNS; it is killed at the end in any case."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    taken = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    with subprocess.Popen(
        argv,
        env={**environment, "TERM": "xterm", ADDRESS: address, **env},
        stdin=theirs,
        stdout=subprocess.DEVNULL if only_errors else theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


@dataclass(frozen=True, slots=True)
class Shell:
    """bash, for somebody who reads the documentation beside a running kerntuned."""

    daemon: Daemon
    programs: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.programs}:{self.daemon.env['PATH']}"
        return self.daemon.env | {"PATH": path, "COLUMNS": "120"}

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line to its end."""
        return run(["bash", "-c", line], env=self.environment)

    def check(self, line: str) -> str:
        """Run a line that has to work, and return what it prints."""
        done = self.run(line)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()


@contextmanager
def demo(folder: Path) -> Iterator[Shell]:
    """Run a daemon on the simulated host; `folder` is an empty one, for the programs of its shell."""
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    with package_bus() as bus, Daemon(bus, "--demo") as daemon:
        yield Shell(daemon, folder)
