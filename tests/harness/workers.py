"""Workers of `kerntune bench`, as tests start them, each for one answer, and how to wait for the end of a process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

LIMIT: Final = 30.0  # seconds that anything may take
MIB: Final = 1 << 20


class Ended(NamedTuple):
    """What a worker said, None without an answer; and its exit status."""

    said: dict[str, Any] | None
    status: int

    @property
    def figures(self) -> dict[str, float]:
        assert self.said is not None
        figures: dict[str, float] = self.said["figures"]
        return figures

    @property
    def trouble(self) -> str:
        assert self.said is not None
        return str(self.said["trouble"])


def words(leg: str, asked: Mapping[str, Any]) -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-P", "-m", "kerntune.bench.worker", leg, json.dumps(asked)]


def work(
    leg: str,
    fd: int | None = None,
    size: int = 0,
    *,
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    **asked: Any,
) -> Ended:
    """Run a worker on an open file; `before` are words that stand in front of its own."""
    if fd is not None:
        asked |= {"fd": fd, "bytes": size or os.fstat(fd).st_size}
    done = subprocess.run(
        [*before, *words(leg, asked)],
        pass_fds=() if fd is None else (fd,),
        env=None if env is None else {**os.environ, **env},
        stdout=subprocess.PIPE,
        timeout=LIMIT,
        check=False,
    )
    return Ended(json.loads(done.stdout) if done.stdout else None, done.returncode)


@contextmanager
def hogging(*before: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a hog, which is killed at the end in any case. `before` are words that stand in front of its own."""
    with subprocess.Popen([*before, *words("hog", {})], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["trouble"] == ""
            yield process
        finally:
            process.kill()


def ends_with_its_parent(script: str) -> bool:
    """Run a Python script that prints the number of its child, kill it, and say whether the child ends then."""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            child = os.pidfd_open(int(parent.stdout.readline()))
        finally:
            parent.kill()
        try:
            return gone(child)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


def gone(pidfd: int) -> bool:
    """Wait for the end of a process, for a bounded time (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(LIMIT * 1000))
