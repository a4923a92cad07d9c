"""The moment at which a server is ready: it says so to systemd, a port takes connections, or a command ends with 0."""

from __future__ import annotations

import array
import ctypes
import math
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kerntune.errors import Failed, Usage
from kerntune.run.launch import PR_SET_PDEATHSIG
from kerntune.run.signals import Signals
from kerntune.sd_notify import address_of

NOTIFY: Final = "notify"
VARIABLE: Final = "NOTIFY_SOCKET"
READY: Final = b"READY=1"
MAX_PORT: Final = 65_535
PORT_SECONDS: Final = 0.2  # between two tries of a port
CONNECT_SECONDS: Final = 0.1  # a port of this host answers at once, or not at all
COMMAND_SECONDS: Final = 1.0  # between two runs of a command
LONGEST_SECONDS: Final = 30.0  # of one run
LOOK_SECONDS: Final = 0.05  # between two looks whether the command has ended
KILLED_SECONDS: Final = 1.0  # for a run to end after SIGKILL: one that waits for a disk stays
# The kernel tells the first process alone of the death of its parent (prctl(2)): it kills all of its process group.
# A shell has what it starts in the background ignore Ctrl-C, and with it `timeout -s INT`.
WITH_ALL: Final = 'trap "kill -KILL 0" TERM; /usr/bin/env --default-signal=INT,QUIT /bin/sh -c "$1" & wait $!'
FORWARD_SECONDS: Final = 1.0  # for the service manager to take a message, which is lost then
FORWARD_STEP: Final = 0.05  # of these, after which signals have their turn
MESSAGES: Final = 16  # that are taken before signals have their turn
MAX_DEPTH: Final = 64  # of a process below this one
MAX_MESSAGE: Final = 64 << 10  # bytes
MAX_DESCRIPTORS: Final = 253  # in a message: SCM_MAX_FD of include/net/scm.h
CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
LOCAL: Final = ("127.0.0.1", "::1")


class Readiness(Protocol):
    """The wait for a server. `descriptor` may wake it earlier than the moments that `look` returns."""

    descriptor: int | None

    def environment(self) -> Mapping[str, str]:
        """Return the variables that the command gets for it."""

    def look(self, now: float) -> float | None:
        """Look whether the server is ready; return the moment of the next look, or None when nothing is left to do."""


@contextmanager
def awaited(text: str, signals: Signals, on_ready: Callable[[], None]) -> Iterator[Readiness]:
    """Give the wait for `notify`, a port, or a command line; it calls `on_ready` once, and leaves nothing behind.

    Raise as `check` does.
    """
    check(text)
    if text == NOTIFY:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            notified = _Notified(own, on_ready)
            try:
                yield notified
            finally:
                notified.end()
    elif text.isdecimal():
        yield _Port(port_of(text), on_ready)
    else:
        command = _Command(text, signals, on_ready)
        try:
            yield command
        finally:
            command.end()


def check(text: str) -> None:
    """Raise Usage for a number that is no port, and Failed for a port that is open before the command has started."""
    if text.isdecimal() and is_open(port_of(text)):
        raise Failed(
            f"port {text} takes connections before the command has started",
            "Another program serves it, or systemd for a socket unit: give the port that the command opens",
        )


def port_of(text: str) -> int:
    """Return the number of a port. Raise Usage."""
    if len(text) > len(str(MAX_PORT)) or not 0 < int(text) <= MAX_PORT:
        raise Usage(f"{text:.20} is no port", f"Give 1 to {MAX_PORT}, notify, or a command that ends with 0")
    return int(text)


class _Port:
    """A port of this host that takes connections."""

    descriptor: int | None = None

    def __init__(self, port: int, on_ready: Callable[[], None]) -> None:
        self._port, self._on_ready = port, on_ready

    def environment(self) -> Mapping[str, str]:
        return {}

    def look(self, now: float) -> float | None:
        if is_open(self._port):
            self._on_ready()
            return None
        return now + PORT_SECONDS


def is_open(port: int) -> bool:
    """Return True if somebody listens on a port of this host."""
    return any(takes_connections(address, port) for address in LOCAL)


def takes_connections(address: str, port: int) -> bool:
    """Return True if somebody listens on a port of an address of this host."""
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as own:
        own.settimeout(CONNECT_SECONDS)
        own.bind((address, 0))
        # The kernel may choose this very port, and from there the connection would be one to itself (RFC 9293, 3.5).
        if own.getsockname()[1] != port:
            own.connect((address, port))
            return True
    return False


class _Command:
    """A command line of sh(1) that ends with 0 when the server is ready; it is run again and again."""

    descriptor: int | None = None

    def __init__(self, text: str, signals: Signals, on_ready: Callable[[], None]) -> None:
        self._text, self._mask, self._on_ready = text, signals.before, on_ready
        self._running: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0

    def environment(self) -> Mapping[str, str]:
        return {}

    def look(self, now: float) -> float | None:
        if self._running is None:
            try:
                self._running, self._deadline = self._started(), now + LONGEST_SECONDS
            except OSError:  # a limit of processes or of memory is used up
                return now + COMMAND_SECONDS
        if not _has_ended(self._running):
            if now >= self._deadline:
                _kill(self._running)
            return now + LOOK_SECONDS
        if self.end() == 0:
            self._on_ready()
            return None
        return now + COMMAND_SECONDS

    def end(self) -> int | None:
        """Kill a run with all that it has started; return its status, None if there is none."""
        running, self._running = self._running, None
        if running:
            _kill(running)  # before its status is taken: its number may be another's after that
            with suppress(subprocess.TimeoutExpired):
                return running.wait(KILLED_SECONDS)
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            ["/bin/sh", "-c", WITH_ALL, "sh", self._text],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            preexec_fn=self._prepare,  # noqa: PLW1509  # this process has one thread
        )

    def _prepare(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # A shell traps no signal that it was started with ignored (sh(1p), trap).
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask - {signal.SIGTERM})


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return True if a process has ended, and keep its status, and with it its number, for later."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(slots=True)
class _Message:
    """A message for the service manager, and the moment at which it is given up."""

    text: bytes
    descriptors: array.array[int]
    until: float

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class _Notified:
    """READY=1 of sd_notify(3). Every message goes on to the service manager, with its descriptors, to the end."""

    def __init__(self, own: socket.socket, on_ready: Callable[[], None]) -> None:
        self._own, self._on_ready = own, on_ready
        self._manager = address_of(os.environ.get(VARIABLE, ""))
        self._is_ready = False
        self._message: _Message | None = None  # the one that goes on next
        own.setblocking(False)  # noqa: FBT003  # the parameter has no name
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        own.bind("")  # the kernel chooses an abstract name, which leaves no file behind (unix(7), autobind)
        self.descriptor: int | None = own.fileno()

    def environment(self) -> Mapping[str, str]:
        return {VARIABLE: f"@{self._own.getsockname()[1:].decode()}"}

    def look(self, now: float) -> float | None:
        try:
            for _ in range(MESSAGES):
                message = self._message = self._message or self._taken(now)
                if message:
                    went_on = self._went_on(message)
                    if READY in message.text.splitlines() and not self._is_ready:
                        self._is_ready = True
                        self._on_ready()
                    if not went_on and now < message.until:
                        return now
                self._drop()
        except BlockingIOError:
            return math.inf
        return now

    def end(self) -> None:
        """Try for the last time to pass on a message that waits for room."""
        if self._message:
            self._went_on(self._message)
        self._drop()

    def _drop(self) -> None:
        message, self._message = self._message, None
        if message:
            message.close()

    def _taken(self, now: float) -> _Message | None:
        """Take a message; return None for one of a stranger. Raise BlockingIOError when there is none."""
        room = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        text, beside, _, _ = self._own.recvmsg(MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
        message, sender = _Message(text, array.array("i"), now + FORWARD_SECONDS), (0, -1, -1)
        for _, kind, data in beside:
            if kind == socket.SCM_RIGHTS:
                message.descriptors.frombytes(data[: len(data) - len(data) % message.descriptors.itemsize])
            elif kind == socket.SCM_CREDENTIALS:
                sender = CREDENTIALS.unpack(data)
        if is_ours(*sender[:2]):  # every user of the host can reach the name
            return message
        message.close()
        return None

    def _went_on(self, message: _Message) -> bool:
        """Pass a message on. Return False if the service manager has no room for it yet."""
        if self._manager:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, message.descriptors)] if message.descriptors else []
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.settimeout(FORWARD_STEP)
                    sender.connect(self._manager)  # without it, poll(2) knows nothing of the room there
                    sender.sendmsg([message.text], rights)
            except (BlockingIOError, TimeoutError):
                return False
            except OSError:  # nobody listens there any more, or the message is too large
                pass
        return True


def is_ours(pid: int, uid: int, root: Path = Path("/")) -> bool:
    """Return True for a process of root or of the own user, and for a descendant, such as a server that became another.

    A descendant that has ended already is not known any more.
    """
    if uid in (0, os.geteuid()):
        return True
    for _ in range(MAX_DEPTH):
        if pid in (0, 1, os.getpid()):
            break
        try:
            stat = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])  # the name before it may have anything in it
    return pid == os.getpid()
