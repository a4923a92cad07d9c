"""`python3 -P -m kerntune.run.keep JSON CMD...`: run CMD as a child, and leave nothing of what it has started.

JSON: what kerntune.run.launch takes, but `parent`; and two descriptors of pipes. A byte from `leash` asks CMD to end,
and it is killed when it has not after `patience` seconds. When nobody has the other end of `leash` any more, because it
was closed or its owner was killed, CMD is killed at once. To `report` a JSON object is written at the end. It has the
moments at which CMD was executed and at which it ended (`began`, 0 where it was refused before, and `ended`, in
nanoseconds of CLOCK_MONOTONIC), its `status` as in subprocess, and the `usage` of it and of what it has started, as in
resource.struct_rusage: without what children used that CMD did not want to know of (getrusage(2), SIGCHLD). `least` is
the memory in KiB below which `usage` tells none: CMD had as much before it was executed.
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

KILLED_SECONDS: Final = 5.0  # for what is killed: a process that waits for a disk or runs as another user stays
REAP_SECONDS: Final = 1.0  # between two looks at what else has ended
UNSEEN: Final = 16 << 10  # KiB: the kernel counts in steps, a CPU at a time, and CMD takes some on its way to execve(2)
PR_SET_CHILD_SUBREAPER: Final = 36


def main(words: list[str]) -> None:
    """Run the command to its end, and report."""
    text, *argv = words or [""]
    asked = launch.asked_for(text)
    # What a daemon forks off becomes a child of this process, and not of init (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it waits in vain
    kill_descendants()  # there are none: what it imports is here when memory is short
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
    """Wait for the child, and pass on what it is asked; return its status, -SIGKILL where it has not ended."""
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
    """Ask the command to end, and with it those of its process group; it may have gone to another one."""
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if os.getpgid(child) == child else os.kill)(child, signal.SIGTERM)


def _reaped() -> Iterator[tuple[int, int]]:
    """Reap what has ended, and give each with its status; raises ChildProcessError when there is no child any more."""
    while (found := os.waitpid(-1, os.WNOHANG))[0]:
        yield found


def _end_all() -> None:
    """Kill what the command has left, and what that starts meanwhile, until there is no child any more."""
    deadline = time.monotonic() + KILLED_SECONDS
    while time.monotonic() < deadline:
        try:
            for _ in _reaped():
                pass
        except ChildProcessError:
            return
        kill_descendants()
        time.sleep(0.005)  # who is killed takes a moment to end, and then its children come here


if __name__ == "__main__":
    main(sys.argv[1:])
