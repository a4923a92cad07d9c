"""`python3 -P -m kerntune.run.launch JSON CMD...`: become CMD, behind a shield, and die with the process that asked.

JSON: the fields of the shield (`cpus`, `slice_us` and others, see `Shield.as_json`), and `parent`, a process id to die
with. `group` has it lead a new process group.
`environment` has variables that CMD gets in addition. This process writes two numbers to the descriptor `clock`. They
are the moment of execve(2), in nanoseconds of CLOCK_MONOTONIC, and the most memory that the process had by then, in
KiB.

The exit status is 127 when CMD is not found, 126 when it cannot be run, and 125 when something was refused before.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from kerntune.errors import KerntuneError
from kerntune.run.shield import Shield

REFUSED: Final = 125
NOT_RUN: Final = 126
NOT_FOUND: Final = 127
PR_SET_PDEATHSIG: Final = 1
MAX_NAME: Final = 200  # characters of a name in a message


def command(shield: Shield, words: Sequence[str], *, by: str = "launch", **more: Any) -> list[str]:
    """Return the words that start a command behind a shield; `more` goes into the JSON for the module `by`."""
    return [sys.executable, "-P", "-m", f"kerntune.run.{by}", json.dumps({**behind(shield), **more}), *words]


def behind(shield: Shield) -> dict[str, Any]:
    """Return the JSON for a process behind a shield that dies with the thread that starts it (prctl(2))."""
    return {**shield.as_json(), "parent": os.getpid()}


def main(words: Sequence[str]) -> NoReturn:
    """Do what the first word asks, and become the command in the others."""
    text, *argv = words or [""]
    asked = asked_for(text)
    if not argv:
        _fail(REFUSED, "kerntune.run.launch: there is no command to run")
    prepare(asked)
    os.environ.update(asked.get("environment", {}))
    if clock := asked.get("clock", 0):
        had = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(clock, b"%d %d" % (time.monotonic_ns(), had))
        os.close(clock)
    _become(argv)


def asked_for(text: str) -> dict[str, Any]:
    """Return the request in a JSON text; end the process where it is not an object."""
    try:
        asked = json.loads(text)
    except ValueError as error:
        _fail(REFUSED, f"kerntune.run.launch takes JSON and a command ({error})")
    if not isinstance(asked, dict):
        _fail(REFUSED, "kerntune.run.launch takes JSON and a command (no object)")
    return asked


def prepare(asked: Mapping[str, Any]) -> None:
    """Die with the parent, and go behind the shield; end the process where that is refused."""
    if parent := asked.get("parent", 0):
        _die_with(parent)
    if asked.get("group"):
        os.setpgid(0, 0)
    try:
        Shield.from_json(asked).apply()
    except (KerntuneError, TypeError, ValueError) as error:
        _fail(REFUSED, str(error))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent ends; end it here if the parent has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        _fail(REFUSED, f"process {parent}, which started this one, has ended")


def _become(argv: list[str]) -> NoReturn:
    # Python ignores these two signals, and an ignored signal stays ignored over execve(2).
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        if not argv[0]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvp(argv[0], argv)
    except OSError as error:
        _fail(*not_run(argv[0], error.errno or 0))


def not_run(name: str, number: int) -> tuple[int, str]:
    """Return the exit status for a command that execve(2) refused, as of a shell, and what happened."""
    plain = "".join(char if char.isprintable() else "?" for char in name)
    short = plain if len(plain) <= MAX_NAME else f"{plain[:MAX_NAME]}..."
    is_absent = number in (errno.ENOENT, errno.ENOTDIR)
    what = f"{short} cannot be {'found' if is_absent else 'run'} ({os.strerror(number)})"
    return NOT_FOUND if is_absent else NOT_RUN, what


def _fail(status: int, why: str) -> NoReturn:
    sys.stderr.write(f"kerntune: {why}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
