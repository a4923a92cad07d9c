"""Talks to the guest's agent: starts commands in the guest, and collects what they print."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.system.qmp import MachineError, connect

LIMIT: Final = 60.0  # seconds that a command may take under emulation, unless said otherwise
SHOWN: Final = 2000  # characters of output in an error


@dataclass(frozen=True, slots=True)
class Result:
    """The exit status of a command (negative: a signal ended it) and all that it printed."""

    status: int
    out: str
    err: str


class Job:
    """A command that runs in the guest."""

    def __init__(self, shell: Shell, name: str, what: str) -> None:
        self._shell, self._name, self._what = shell, name, what
        self._change = threading.Condition()
        self._printed = {"out": bytearray(), "err": bytearray()}
        self._status: int | None = None
        self._failure = ""
        self._pid = 0

    @property
    def pid(self) -> int:
        """Return the number of its process in the guest."""
        with self._change:
            self._change.wait_for(lambda: self._pid or self._over, LIMIT)
            return self._pid

    @property
    def out(self) -> str:
        """Return its standard output so far."""
        with self._change:
            return self._printed["out"].decode(errors="replace")

    @property
    def ended(self) -> bool:
        """Return whether it is over, well or not."""
        with self._change:
            return self._over

    def wait_output(self, text: str, limit: float = LIMIT) -> None:
        """Wait for `text` in its standard output; raise MachineError when it ends without that, or takes too long."""
        with self._change:
            self._change.wait_for(lambda: text in self.out or self._over, limit)
            if text not in self.out:
                raise MachineError(f"{text!r} is not in the output of {self._what}: {self._shown()}")

    def wait(self, limit: float = LIMIT) -> Result:
        """Wait for its end and return the result; kill it and raise MachineError when it takes too long."""
        with self._change:
            if not self._change.wait_for(lambda: self._over, limit):
                self.kill(signal.SIGKILL)
                raise MachineError(f"still running after {limit:.0f} s: {self._what}: {self._shown()}")
            if self._status is None:
                raise MachineError(f"{self._what}: {self._failure}")
            out, err = (self._printed[name].decode(errors="replace") for name in ("out", "err"))
            return Result(self._status, out, err)

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to it and its children."""
        self._shell.say({"id": self._name, "do": "kill", "signal": int(number)})

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in what the agent says about it."""
        with self._change:
            match message["is"]:
                case "out" | "err" as name:
                    self._printed[name] += base64.b64decode(message["data"])
                case "started":
                    self._pid = message["pid"]
                case "ended":
                    self._status = message["status"]
                case "pong":
                    self._status = 0
                case "failed":
                    self._failure = message["why"]
            self._change.notify_all()

    @property
    def _over(self) -> bool:
        return self._status is not None or bool(self._failure)

    def _shown(self) -> str:
        return " / ".join(text.decode(errors="replace")[-SHOWN:] for text in self._printed.values())


class Shell:
    """The connection to the agent of one guest."""

    def __init__(self, path: Path) -> None:
        self._line = connect(path)
        self._turn = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._count = itertools.count()
        # A snapshot's agent may have half a line of somebody else's.
        self._line.sendall(b"\n")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT)
        self._line.close()

    def answers(self, limit: float) -> bool:
        """Return whether the agent answers within `limit` seconds."""
        try:
            self._ask("ping", {"do": "ping"}).wait(limit)
        except (MachineError, OSError):
            return False
        return True

    def spawn(self, argv: Sequence[str], *, user: str, env: Mapping[str, str], data: bytes) -> Job:
        """Start a command as a user; `data` is all of its standard input."""
        text = base64.b64encode(data).decode()
        request = {"do": "run", "argv": list(argv), "user": user, "env": dict(env), "input": text}
        return self._ask(" ".join(argv)[:SHOWN], request)

    def say(self, message: Mapping[str, Any]) -> None:
        with self._turn:
            self._line.sendall(json.dumps(message).encode() + b"\n")

    def _ask(self, what: str, request: Mapping[str, Any]) -> Job:
        name = f"{id(self):x}-{next(self._count)}"
        job = self._jobs[name] = Job(self, name, what)
        self.say({"id": name, **request})
        return job

    def _read(self) -> None:
        rest = b""
        with suppress(OSError):
            while data := self._line.recv(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    with suppress(ValueError):
                        self._sort(json.loads(line))
        for job in list(self._jobs.values()):
            job.take({"is": "failed", "why": "the guest is gone"})

    def _sort(self, message: Mapping[str, Any]) -> None:
        job = self._jobs.get(message["id"])
        if job is None:
            return
        job.take(message)
        if message["is"] in ("pong", "ended", "failed"):
            del self._jobs[message["id"]]
