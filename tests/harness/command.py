"""The simulated host's daemon on a bus of its own, and people in front of it with a shell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.run import private_bus

LIMIT: Final = 20.0  # seconds that a line may take

# What is on a reader's PATH beside Debian's programs: ours, those that only lend rights, and a workload.
PROGRAMS: Final = {
    "kerntune": f'exec {sys.executable} -m kerntune.cli "$@"',
    "sudo": 'exec "$@"',
    "start-model-server": "exit 0",
}


@dataclass(frozen=True, slots=True)
class Shell:
    """bash, as somebody has it who reads the documentation beside a running kerntuned."""

    daemon: Daemon
    programs: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.programs}:{self.daemon.env['PATH']}"
        return self.daemon.env | {"PATH": path, "COLUMNS": "120"}

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], env=self.environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip

    def check(self, line: str) -> str:
        """What a line prints that works."""
        done = self.run(line)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()


@contextmanager
def demo(folder: Path) -> Iterator[Shell]:
    """`folder` is an empty one, for the programs."""
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    with ExitStack() as stack:
        yield Shell(stack.enter_context(Daemon(private_bus(stack), "--demo")), folder)
