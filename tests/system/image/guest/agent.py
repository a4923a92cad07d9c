"""Runs in the guest: starts the commands that arrive on the virtio-serial port, and sends back what they print.

One JSON object a line. Requests: {"id", "do": "run", "argv", "user", "env", "input": base64}, {"id", "do": "kill",
"signal"}, {"id", "do": "ping"}. Answers: {"id", "is": "pong" | "started" | "out" | "err" | "ended" | "failed", ...}.

One thread serves everything: where memory is refused, a Python thread may neither start nor say that it did not.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import select
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

PORT = "/dev/virtio-ports/testbed.agent"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 60.0  # seconds until an answer that nobody takes is dropped
LINGER = 2.0  # seconds for output after the end: a background child may keep the pipes


class Port:
    """The line to the host, which comes and goes: a snapshot is resumed with nobody there yet."""

    def __init__(self) -> None:
        while not os.path.exists(PORT):
            time.sleep(0.05)
        self.fd = os.open(PORT, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._rest = b""

    def requests(self) -> Iterator[dict[str, Any]]:
        """Those that have arrived whole."""
        data = b""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            pass
        if not data:
            self._rest = b""
            time.sleep(0.05)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            # The tail of a line whose beginning went to somebody else.
            with suppress(ValueError):
                yield json.loads(line)

    def say(self, **message: Any) -> None:
        left = memoryview((json.dumps(message) + "\n").encode())
        deadline = time.monotonic() + PATIENCE
        while left and time.monotonic() < deadline:
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:
                select.select([], [self.fd], [], 1)
            except OSError:
                time.sleep(0.05)


class Job:
    """One command, its pipes and its end."""

    def __init__(self, request: dict[str, Any], watched: selectors.BaseSelector) -> None:
        self.id, self._watched = request["id"], watched
        user = pwd.getpwnam(request["user"])
        home = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
        identity: dict[str, Any] = {}
        if user.pw_uid:
            groups = os.getgrouplist(user.pw_name, user.pw_gid)
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
        self._input = base64.b64decode(request["input"])
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
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in pipes if pipe)
        self._open = {self._stdin, self._stdout, self._stderr}
        self._end = os.pidfd_open(self.process.pid)
        self.late = float("inf")  # when the pipes are given up

    def watch(self) -> None:
        os.set_blocking(self._stdin, False)
        self._watched.register(self._stdin, selectors.EVENT_WRITE, self)
        for fd in (self._stdout, self._stderr, self._end):
            self._watched.register(fd, selectors.EVENT_READ, self)

    def serve(self, fd: int, port: Port) -> None:
        """One of its descriptors is ready."""
        if fd == self._end:
            self._watched.unregister(fd)
            os.close(fd)
            self.process.wait()
            self.late = time.monotonic() + LINGER
        elif fd == self._stdin:
            self._feed()
        elif data := os.read(fd, 1 << 15):
            name = "out" if fd == self._stdout else "err"
            port.say(**{"id": self.id, "is": name, "data": base64.b64encode(data).decode()})
        else:
            self._drop(fd)

    def over(self) -> bool:
        """Ended, and all it has printed was read; a background child may keep the pipes."""
        if self.late == float("inf") or (self._open - {self._stdin} and time.monotonic() < self.late):
            return False
        for fd in tuple(self._open):
            self._drop(fd)
        return True

    def _feed(self) -> None:
        with suppress(BlockingIOError):
            try:
                self._input = self._input[os.write(self._stdin, self._input) :] if self._input else b""
            except BrokenPipeError:
                self._input = b""
        if not self._input:
            self._drop(self._stdin)

    def _drop(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            self._watched.unregister(fd)
            pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
            next(pipe for pipe in pipes if pipe and not pipe.closed and pipe.fileno() == fd).close()


class Agent:
    """The jobs that run, by the host's names for them."""

    def __init__(self) -> None:
        self._watched = selectors.DefaultSelector()
        self._port = Port()
        self._jobs: dict[str, Job] = {}

    def run(self) -> None:
        self._watched.register(self._port.fd, selectors.EVENT_READ)
        while True:
            for key, _ in self._watched.select(0.2 if self._ending() else None):
                with suppress(MemoryError):  # it is ready again at once
                    if key.data is None:
                        for request in self._port.requests():
                            self._answer(request)
                    else:
                        key.data.serve(key.fd, self._port)
            for job in [job for job in self._jobs.values() if job.over()]:
                self._port.say(**{"id": job.id, "is": "ended", "status": job.process.returncode})
                del self._jobs[job.id]

    def _ending(self) -> bool:
        return any(job.late < float("inf") for job in self._jobs.values())

    def _answer(self, request: dict[str, Any]) -> None:
        name = request["id"]
        if request["do"] == "ping":
            self._port.say(**{"id": name, "is": "pong"})
        elif request["do"] == "kill":
            with suppress(ProcessLookupError, KeyError):
                os.killpg(self._jobs[name].process.pid, request["signal"])
        else:
            try:
                job = Job(request, self._watched)
            except (OSError, KeyError, MemoryError, subprocess.SubprocessError) as error:
                self._port.say(**{"id": name, "is": "failed", "why": f"{type(error).__name__}: {error}"})
            else:
                self._jobs[name] = job
                self._port.say(**{"id": name, "is": "started", "pid": job.process.pid})
                job.watch()


if __name__ == "__main__":
    Agent().run()
