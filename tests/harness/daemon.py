"""The real kerntuned on a bus of one's choice, in directories of its own, with a notify socket to wait on."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.harness.polkitd import Bus

READY: Final = "READY=1"
LIMIT: Final = 10.0

# What is set around us and is not meant for the daemon: an installed one has its bytecode compiled.
FOREIGN: Final = ("PYTHONDONTWRITEBYTECODE", "JOURNAL_STREAM", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID")


class DaemonError(RuntimeError):
    """The daemon did not do in time what was waited for; the message ends with its log."""


class Daemon:
    """kerntuned with `options`, started on entry and stopped on exit.

    Its directories (`config`, `state`, `runtime`) are empty at first, last until exit, and survive a restart.
    With `stream` its log goes to our own stderr, and `journal()` is empty.
    With `wait` off, entry does not wait for READY=1: `wait_for(READY)` or `wait()` do.
    `program` is the command to start, before the options; otherwise it is the checkout's with our own Python.
    """

    def __init__(
        self,
        bus: Bus,
        *options: str,
        program: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stream: bool = False,
        wait: bool = True,
        limit: float = LIMIT,
    ) -> None:
        self.program, self.options = program, options
        self.limit = limit
        self._stream = stream
        self._wait = wait
        self._folder = tempfile.TemporaryDirectory(prefix="kerntuned-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.config, self.state, self.runtime = (self.folder / name for name in ("config", "state", "runtime"))
        for directory in (self.config, self.state, self.runtime):
            directory.mkdir()
        self.log = self.folder / "log"
        self.log.touch()
        self._socket = self.folder / "notify"
        self.env = {name: value for name, value in os.environ.items() if name not in FOREIGN} | {
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
            "CONFIGURATION_DIRECTORY": str(self.config),
            "STATE_DIRECTORY": str(self.state),
            "RUNTIME_DIRECTORY": str(self.runtime),
            "NOTIFY_SOCKET": str(self._socket),
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: _Watch | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("kerntuned was not started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def messages(self) -> tuple[str, ...]:
        """What this start of the daemon has said to the service manager, line by line (sd_notify(3))."""
        return self._watch.lines if self._watch else ()

    def start(self) -> None:
        """Start it; unless told not to wait, return when it is ready."""
        with _listen(self._socket) as listener, self._open_log() as log:
            self._process = subprocess.Popen(
                [*(self.program or (sys.executable, "-m", "kerntune.daemon")), *self.options],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Out of reach of the terminal's Ctrl-C: it ends when we say so, before its bus does.
                start_new_session=True,
            )
            self._watch = _Watch(listener.dup(), self._process.pid)
        if self._wait:
            self.wait_for(READY)

    def started(self) -> Self:
        """Start it, also where entry does not wait, and return when it is ready."""
        self.start()
        self.wait_for(READY)
        return self

    def wait_for(self, line: str) -> None:
        """Wait until the daemon has sent this line through the notify socket; DaemonError when it does not."""
        if self._watch is None or not self._watch.wait_for(line, self.limit):
            ended = self.process.poll()
            what = "has not said" if ended is None else f"ended with {ended} before it said"
            raise DaemonError(f"kerntuned {what} {line}:\n{self.journal()}")

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status, negative for a signal."""
        try:
            return self.process.wait(self.limit)
        except subprocess.TimeoutExpired:
            raise DaemonError(f"kerntuned does not end:\n{self.journal()}") from None

    def terminate(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """Send SIGKILL, as a crash or the OOM killer does."""
        self.process.kill()
        self.wait()

    def restart(self) -> None:
        """Stop it, if it still runs, and start it with the same directories."""
        if self.process.poll() is None:
            self.terminate()
        self.start()

    def journal(self) -> str:
        """Return all it has logged, over all its starts."""
        return self.log.read_text(errors="replace")

    def _open_log(self) -> IO[bytes]:
        return open(os.dup(sys.stderr.fileno()) if self._stream else self.log, "ab")

    def _close(self) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()
                try:
                    self._process.wait(self.limit)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait(self.limit)
            if self._watch is not None:
                self._watch.join()
        finally:
            self._folder.cleanup()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    return listener


class _Watch:
    """Reads the notify socket while the process lives: sd_notify(3) blocks its sender when nobody reads."""

    def __init__(self, listener: socket.socket, pid: int) -> None:
        self._listener = listener
        self._process = os.pidfd_open(pid)
        self._change = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._thread = threading.Thread(target=self._read, name=f"notify of {pid}", daemon=True)
        self._thread.start()

    @property
    def lines(self) -> tuple[str, ...]:
        with self._change:
            return tuple(self._lines)

    def wait_for(self, line: str, limit: float) -> bool:
        """Whether the line comes before the process ends and within `limit` seconds."""
        deadline = time.monotonic() + limit
        with self._change:
            while line not in self._lines and not self._ended:
                if not self._change.wait(deadline - time.monotonic()):
                    break
            return line in self._lines

    def join(self) -> None:
        self._thread.join(LIMIT)

    def _read(self) -> None:
        either = select.poll()
        either.register(self._listener, select.POLLIN)
        either.register(self._process, select.POLLIN)
        ended = False
        while not ended:
            ended = any(fd == self._process for fd, _ in either.poll())
            text = self._drain()
            with self._change:
                self._lines += text.splitlines()
                self._ended = ended
                self._change.notify_all()
        self._listener.close()
        os.close(self._process)

    def _drain(self) -> str:
        """Return all that has arrived by now: what a process sent before its end is there when the end is seen."""
        parts = []
        try:
            while True:
                parts.append(self._listener.recv(1 << 16, socket.MSG_DONTWAIT).decode(errors="replace"))
        except BlockingIOError:
            return "\n".join(parts)
