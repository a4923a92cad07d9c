"""Talks to QEMU about its devices and its state (QMP: QEMU's docs/interop/qmp-spec); knows nothing of the guest."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

LIMIT: Final = 30.0
Event = dict[str, Any]


class MachineError(Exception):
    """The machine, or a command in it, failed or took too long."""


def connect(path: Path, limit: float = LIMIT) -> socket.socket:
    """Connect to a socket that QEMU makes as it starts."""
    deadline = time.monotonic() + limit
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(path))
            return line
        except (FileNotFoundError, ConnectionRefusedError):
            line.close()
            if time.monotonic() > deadline:
                raise MachineError(f"nobody listens at {path.name}") from None
            time.sleep(0.02)


class Qmp:
    """Sends commands to one QEMU, and keeps its events for those who wait for them."""

    def __init__(self, path: Path) -> None:
        self._line = connect(path)
        self._file = self._line.makefile("rb")
        self._turn = threading.Lock()
        self._change = threading.Condition()
        self._events: list[Event] = []
        self._answers: list[Event] = []
        self._ended = False
        self._file.readline()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT)
        self._line.close()

    def __call__(self, command: str, limit: float = LIMIT, **arguments: Any) -> Any:
        """Run a command and return its result; underscores in argument names stand for dashes."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._turn:
            self._line.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
            with self._change:
                self._change.wait_for(lambda: self._answers or self._ended, limit)
                answer = self._answers.pop() if self._answers else {"error": {"desc": "no answer"}}
        if "error" in answer:
            raise MachineError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, match: Callable[[Event], bool], limit: float = LIMIT) -> bool:
        """Return whether such an event has come since the connection was made, or comes within `limit` seconds."""
        with self._change:
            self._change.wait_for(lambda: any(map(match, self._events)) or self._ended, limit)
            return any(map(match, self._events))

    def forget(self, match: Callable[[Event], bool]) -> None:
        """Drop such events, so that `wait_event` waits for a new one."""
        with self._change:
            self._events = [event for event in self._events if not match(event)]

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for text in self._file:
                message = json.loads(text)
                with self._change:
                    (self._events if "event" in message else self._answers).append(message)
                    self._change.notify_all()
        with self._change:
            self._ended = True
            self._change.notify_all()
