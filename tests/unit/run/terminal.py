"""A shell on a terminal of its own, and how to type there and to wait for what it shows."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from tests.harness.workers import LIMIT

CTRL_C, CTRL_Z, CTRL_BACKSLASH, CTRL_D = "\x03", "\x1a", "\x1c", "\x04"
KEYS: Final = (CTRL_C, CTRL_Z, CTRL_BACKSLASH, CTRL_D)
PROMPT: Final = "%%PROMPT%%"
BASH: Final = ("bash", "--norc", "--noprofile", "--noediting", "-i")


class Terminal:
    """A process that leads a session on a terminal, which does not echo.

    All that is left in the session is killed at the end.
    """

    def __init__(self, argv: Sequence[str] = BASH, *, pass_fds: Sequence[int] = ()) -> None:
        self._ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],  # it becomes the program
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PS1": PROMPT, "LC_ALL": "C"},
            pass_fds=pass_fds,
        )
        os.close(theirs)
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.hang_up()
        self.process.wait(LIMIT)

    def members(self) -> list[int]:
        """Return the processes of the session."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
        found = []
        for pid in pids:
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self.process.pid:
                    found.append(pid)
        return found

    def hang_up(self) -> None:
        """Close the terminal."""
        ours, self._ours = self._ours, -1
        if ours >= 0:
            os.close(ours)

    def type(self, text: str) -> None:
        """Type a line, or a key such as CTRL_C."""
        os.write(self._ours, (text if text in KEYS else f"{text}\n").encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the terminal shows something, and forget what was shown up to there."""
        deadline = time.monotonic() + LIMIT
        while not (found := re.search(pattern, self._seen)):
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._ours], [], [], left)[0], f"no {pattern} in {self._seen!r}"
            try:
                piece = os.read(self._ours, 4096)
            except OSError:  # the last process has closed the other end
                piece = b""
            assert piece, f"no {pattern} in {self._seen!r}"
            self._seen += piece.decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return found

    def prompt(self) -> None:
        """Wait until the shell takes the next line."""
        self.wait_for(PROMPT)
