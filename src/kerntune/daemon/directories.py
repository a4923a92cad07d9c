"""The daemon's directories, and the lock by which it is the only daemon there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

LOCK_WAIT = 2.0  # seconds
LOCK_RETRY = 0.1


@dataclass(frozen=True, slots=True)
class Directories:
    """The directories of the daemon; systemd names them (systemd.exec(5), RuntimeDirectory= and the like)."""

    runtime: Path
    state: Path
    config: Path

    @classmethod
    def from_environment(cls) -> Directories:
        return cls(
            Path(os.environ.get("RUNTIME_DIRECTORY", "/run/kerntune")),
            Path(os.environ.get("STATE_DIRECTORY", "/var/lib/kerntune")),
            Path(os.environ.get("CONFIGURATION_DIRECTORY", "/etc/kerntune")),
        )

    def make(self) -> None:
        """Make the directories, but not the configuration's: it belongs to the administrator."""
        for folder in (self.runtime, self.state):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


async def locked(runtime: Path, stack: contextlib.ExitStack) -> bool:
    """Try `lock` for LOCK_WAIT seconds, and return whether it succeeds: `kerntuned --uncap` has it for a moment."""
    deadline = asyncio.get_running_loop().time() + LOCK_WAIT
    while not lock(runtime, stack):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(LOCK_RETRY)
    return True


def lock(runtime: Path, stack: contextlib.ExitStack) -> bool:
    """Lock the runtime directory. Return whether this is its only daemon; the lock ends with the process."""
    with contextlib.ExitStack() as trying:
        folder = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        trying.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        stack.push(trying.pop_all())
    return True
