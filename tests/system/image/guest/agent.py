"""Runs in the guest: starts the commands that arrive on the virtio-serial port, and sends back what they print.

One JSON object a line. Requests: {"id", "do": "run", "argv", "user", "env", "input": base64}, {"id", "do": "kill",
"signal"}, {"id", "do": "ping"}. Answers: {"id", "is": "pong" | "started" | "out" | "err" | "ended" | "failed", ...}.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

PORT = "/dev/virtio-ports/testbed.agent"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 60.0  # seconds until an answer that nobody takes is dropped
STACK = 256 << 10  # bytes of a thread; the usual 8 MiB count as promised when a memory limit is tested
LINGER = 2.0  # seconds for output after the end: a background child may keep the pipes


class Port:
    """The line to the host, which comes and goes: a snapshot is resumed with nobody there yet."""

    def __init__(self) -> None:
        while not os.path.exists(PORT):
            time.sleep(0.05)
        self._fd = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)
        self._turn = threading.Lock()

    def requests(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while True:
            data = b""
            with suppress(OSError):
                data = os.read(self._fd, 1 << 16)
            if not data:
                rest = b""
                time.sleep(0.05)
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                # The tail of a line whose beginning went to somebody else.
                with suppress(ValueError):
                    yield json.loads(line)

    def say(self, **message: Any) -> None:
        left = memoryview((json.dumps(message) + "\n").encode())
        deadline = time.monotonic() + PATIENCE
        with self._turn:
            while left and time.monotonic() < deadline:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:
                    select.select([], [self._fd], [], 1)
                except OSError:
                    time.sleep(0.05)


class Job:
    """One command and the threads that serve it."""

    def __init__(self, port: Port, request: dict[str, Any]) -> None:
        self._port, self._id = port, request["id"]
        user = pwd.getpwnam(request["user"])
        home = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
        identity: dict[str, Any] = {}
        if user.pw_uid:
            groups = os.getgrouplist(user.pw_name, user.pw_gid)
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
        self.process = subprocess.Popen(
            request["argv"],
            env={"PATH": PATH, "LANG": "C.UTF-8", **home, **request["env"]},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **identity,
        )
        port.say(**{"id": self._id, "is": "started", "pid": self.process.pid})
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        try:
            self._pumps = [
                self._start(self._pump, self.process.stdout, "out"),
                self._start(self._pump, self.process.stderr, "err"),
            ]
            self._start(self._feed, base64.b64decode(request["input"]))
            self._start(self._finish)
        except RuntimeError:
            # No memory for a thread: nobody would ever hear of the command.
            self.process.kill()
            raise

    def _start(self, what: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=what, args=args, daemon=True)
        thread.start()
        return thread

    def _feed(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(data)

    def _pump(self, stream: IO[bytes], name: str) -> None:
        with stream:
            while data := os.read(stream.fileno(), 1 << 15):
                self._port.say(**{"id": self._id, "is": name, "data": base64.b64encode(data).decode()})

    def _finish(self) -> None:
        status = self.process.wait()
        for pump in self._pumps:
            pump.join(LINGER)
        self._port.say(**{"id": self._id, "is": "ended", "status": status})


def main() -> None:
    threading.stack_size(STACK)
    port = Port()
    jobs: dict[str, Job] = {}
    for request in port.requests():
        name = request["id"]
        if request["do"] == "ping":
            port.say(**{"id": name, "is": "pong"})
        elif request["do"] == "kill":
            with suppress(ProcessLookupError, KeyError):
                os.killpg(jobs[name].process.pid, request["signal"])
        else:
            try:
                jobs[name] = Job(port, request)
            except (OSError, KeyError, RuntimeError, MemoryError) as error:
                port.say(**{"id": name, "is": "failed", "why": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
