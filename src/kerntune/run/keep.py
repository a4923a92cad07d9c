"""`python3 -P -m kerntune.run.keep JSON CMD...`: run CMD as a child, and leave nothing of what it has started.

JSON: what kerntune.run.launch takes; `patience`, the seconds that CMD has to end when it is asked to; and a descriptor,
`report`, to which a JSON object is written at the end. It has the moments at which CMD was executed and at which it
ended (`began`, 0 where it never was, and `ended`, in nanoseconds of CLOCK_MONOTONIC), its `status` as in subprocess,
and the `usage` of it and of all that it has started, as in resource.struct_rusage.
SIGTERM asks CMD to end, and kills it when it does not. SIGHUP, or the end of `parent`, kills it at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from kerntune.kernel.processes import kill_descendants
from kerntune.run import launch

LONGEST: Final = 1e9  # seconds
KILLED_SECONDS: Final = 5.0  # for what is killed: a process that waits for a disk or runs as another user stays
PR_SET_CHILD_SUBREAPER: Final = 36
WATCHED: Final = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP})


def main(words: list[str]) -> None:
    """Run the command to its end, and report."""
    text, *argv = words or [""]
    asked = launch.asked_for(text)
    # They are kept from now on, so that none is lost before it is waited for; who ignores SIGCHLD waits in vain.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if parent := asked.get("parent", 0):
        launch.die_with(parent, signal.SIGHUP)
    # What a daemon forks off becomes a child of this process, and not of init (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    clock, executed = os.pipe()
    child = os.fork()
    if not child:
        os.close(clock)
        _become(asked, executed, argv)
    os.close(executed)
    status = _attend(child, asked["patience"])
    ended = time.monotonic_ns()
    _end_all()
    said = {
        "began": int(os.read(clock, 64) or 0),
        "ended": ended,
        "status": status,
        "usage": list(resource.getrusage(resource.RUSAGE_CHILDREN)),
    }
    with suppress(BrokenPipeError):
        os.write(asked["report"], json.dumps(said).encode())


def _become(asked: Mapping[str, Any], executed: int, argv: list[str]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    os.close(asked["report"])
    launch.main([json.dumps({**asked, "parent": os.getppid(), "group": True, "clock": executed}), *argv])


def _attend(child: int, patience: float) -> int:
    """Wait for the child, and pass on what it is asked; return its status, -SIGKILL where it has not ended."""
    deadline = time.monotonic() + LONGEST
    while (status := _reaped(child)) is None:
        came = signal.sigtimedwait(WATCHED, max(0.0, deadline - time.monotonic()))
        if came is None or came.si_signo == signal.SIGHUP:
            return -signal.SIGKILL
        if came.si_signo == signal.SIGTERM:
            deadline = min(deadline, time.monotonic() + patience)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGTERM)
    return status


def _reaped(child: int) -> int | None:
    """Reap what has ended, and return the status of the child if it is among it."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == child:
                return os.waitstatus_to_exitcode(found[1])
    return None


def _end_all() -> None:
    """Kill what the command has left, and what that starts meanwhile, until there is no child any more."""
    deadline = time.monotonic() + KILLED_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        kill_descendants()
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
