"""`python3 -P -m kerntune.run.keep JSON CMD...`: run CMD as a child, and leave no process that it has started.

JSON: what kerntune.run.launch takes, without `parent`; and the descriptors of two pipes, `leash` and `report`.

A byte from `leash` asks CMD to end. This process kills CMD if it has not ended after `patience` seconds. When no
process has the other end of `leash` any more, because it was closed or its owner was killed, CMD is killed at once.

To `report` this process writes a JSON object at the end. `began` and `ended` are the moments of CMD's execution and
end, in nanoseconds of CLOCK_MONOTONIC; `began` is 0 where CMD was refused before. `status` is as in subprocess. `usage`
is that of CMD and of what it has started, as in resource.struct_rusage. It leaves out what children used for which CMD
did not wait (getrusage(2), SIGCHLD). Below `least`, in KiB, `usage` says nothing about memory: CMD had as much before
it was executed.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from kerntune.kernel.processes import kill_descendants
from kerntune.run import launch

KILLED_SECONDS: Final = 5.0  # after SIGKILL: a process that waits for a disk or runs as another user stays
REAP_SECONDS: Final = 1.0  # between two looks for other processes that have ended
UNSEEN: Final = 16 << 10  # KiB: the kernel counts in steps, a CPU at a time, and CMD takes some on its way to execve(2)
PR_SET_CHILD_SUBREAPER: Final = 36


def main(words: list[str]) -> None:
    """Run the command to its end, and report."""
    text, *argv = words or [""]
    asked = launch.asked_for(text)
    # A process that a daemon forks off becomes a child of this process, and not of init (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a process that ignores it waits in vain
    kill_descendants()  # there are none: this imports what is needed later, when memory may be short
    clock, executed = os.pipe()
    parent, child = os.getpid(), os.fork()
    if not child:
        _become({**asked, "parent": parent, "group": True, "clock": executed}, argv)
    os.close(executed)
    status = _attend(child, asked["leash"], asked["patience"])
    ended = time.monotonic_ns()
    _end_all()
    began, had = map(int, (os.read(clock, 64) or b"0 0").split())
    usage = list(resource.getrusage(resource.RUSAGE_CHILDREN))
    said = {"began": began, "ended": ended, "status": status, "usage": usage, "least": had + UNSEEN}
    with suppress(BrokenPipeError):
        os.write(asked["report"], json.dumps(said).encode())


def _become(asked: Mapping[str, Any], argv: list[str]) -> NoReturn:
    for pipe in ("leash", "report"):
        os.close(asked[pipe])
    launch.main([json.dumps(asked), *argv])


def _attend(child: int, leash: int, patience: float) -> int:
    """Wait for the child, and pass on a request to end; return its status, -SIGKILL where it has not ended."""
    poll, deadline = select.poll(), math.inf
    poll.register(leash, select.POLLIN)
    poll.register(os.pidfd_open(child), select.POLLIN)
    while True:
        for process, status in _reaped():
            if process == child:
                return os.waitstatus_to_exitcode(status)
        left = deadline - time.monotonic()
        came = dict(poll.poll(1000 * max(0.0, min(left, REAP_SECONDS))))
        if left <= 0 or (leash in came and not os.read(leash, 1)):
            return -signal.SIGKILL
        if leash in came:
            deadline = min(deadline, time.monotonic() + patience)
            _ask(child)


def _ask(child: int) -> None:
    """Ask the command to end, and with it its process group; the command may have gone to another group."""
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if os.getpgid(child) == child else os.kill)(child, signal.SIGTERM)


def _reaped() -> Iterator[tuple[int, int]]:
    """Reap ended processes, and yield each with its status. Raise ChildProcessError when no child is left."""
    while (found := os.waitpid(-1, os.WNOHANG))[0]:
        yield found


def _end_all() -> None:
    """Kill what the command has left, and what that starts meanwhile, until no child is left."""
    deadline = time.monotonic() + KILLED_SECONDS
    while time.monotonic() < deadline:
        try:
            for _ in _reaped():
                pass
        except ChildProcessError:
            return
        kill_descendants()
        time.sleep(0.005)  # a killed process takes a moment to end, and then its children come here


if __name__ == "__main__":
    main(sys.argv[1:])
