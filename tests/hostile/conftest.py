"""The attacked: the daemon on a simulated host, on a private bus with the real polkitd; and the attackers' side.

The figures of every attack are printed at the end of the run.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.authorization import LOGGED
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.harness import CHECKOUT, skip
from tests.harness.daemon import Daemon
from tests.harness.polkitd import OTHER, Polkitd, accounts, as_user
from tests.harness.privatebus import PrivateBus, package_bus
from tests.hostile.raw import THE_BUS, Raw

GET_ALL: Final = (BUS_NAME, ROOT, f"{THE_BUS}.Properties", "GetAll")
LONGEST: Final = 40.0  # seconds an attack may take
OFTEN: Final = 0.05  # seconds between two calls of the bystander
ANSWERED: Final = 2.0  # seconds
MEANWHILE: Final = 4.0  # seconds, while attackers, bus and bystander compete for the same CPUs
GROWTH: Final = 10 << 10  # KiB of memory an attack may leave behind

FIGURES: Final[list[str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("attacks")
        for line in FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    """Skip the attacks without root: the attackers are other users."""
    if os.geteuid():
        skip("the attacks need root")


@pytest.fixture(scope="session")
def public(able: None) -> Iterator[Path]:
    """Give the attackers' program where every user can read it."""
    with tempfile.TemporaryDirectory(prefix="kerntune-hostile-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = folder / "tests/hostile"
        package.mkdir(parents=True)
        (folder / "tests/__init__.py").touch()
        for module in ("__init__.py", "raw.py", "attacker.py"):
            shutil.copy(CHECKOUT / "tests/hostile" / module, package)
        yield folder


@pytest.fixture(scope="session")
def bus(able: None) -> Iterator[PrivateBus]:
    with package_bus() as running:
        yield running


@pytest.fixture(scope="session")
def polkitd(bus: PrivateBus) -> Iterator[Polkitd]:
    with accounts(), Polkitd(bus) as running:
        yield running


@pytest.fixture(scope="session")
def daemon(bus: PrivateBus, polkitd: Polkitd) -> Iterator[Daemon]:
    """Give one daemon for all attacks, as on a host; it has served some calls before the first."""
    with Daemon(bus, "--demo") as running:
        with Raw(bus.address) as client:
            for _ in range(300):
                client.call(*GET_ALL, signature="s", args=[""])
        yield running


@dataclass(frozen=True, slots=True)
class Health:
    """What /proc tells of the daemon."""

    memory: int  # KiB resident
    descriptors: int
    cpu: float  # seconds

    @classmethod
    def of(cls, pid: int) -> Health:
        status = Path(f"/proc/{pid}/status").read_text()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found, "the daemon is gone"
        cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        return cls(int(found[1]), len(os.listdir(f"/proc/{pid}/fd")), cpu)


@dataclass(slots=True)
class Result:
    """What the attacker saw, and how a bystander fared meanwhile (seconds a call took, connecting included)."""

    replies: int
    errors: dict[str, int]
    longest: int
    leaks: list[str]
    facts: dict[str, Any]
    waits: list[float] = field(default_factory=list)


class Victim:
    """The daemon under attack, and what is asked of it whatever happens."""

    def __init__(self, bus: PrivateBus, daemon: Daemon, public: Path) -> None:
        self.bus, self.daemon, self._public = bus, daemon, public

    @contextmanager
    def under(self, name: str, *, growth: int = GROWTH, limit: float = LONGEST) -> Iterator[Result]:
        """Carry out an attack; its connections last as long as the context, and then the daemon must be well.

        Well is also that it has no more than `growth` KiB of memory more; the attack may take `limit` seconds.
        """
        health, logged, began = Health.of(self.daemon.pid), self.daemon.journal(), time.monotonic()
        with self._attacker(name) as attacker:
            waits = [self.answer()]
            assert attacker.stdout
            while not select.select([attacker.stdout], [], [], OFTEN)[0]:
                assert time.monotonic() - began < limit, f"{name} does not end"
                waits.append(self.answer())
            line = attacker.stdout.readline()
            assert line, f"{name} failed: {attacker.stderr.read().decode() if attacker.stderr else ''}"
            took = time.monotonic() - began
            result = Result(**json.loads(line), waits=waits)
            after = self.answer()
            assert after < ANSWERED
            yield result
        self._well(name, health, logged[len(logged) :] or self.daemon.journal()[len(logged) :], result, growth)
        now = Health.of(self.daemon.pid)
        FIGURES.append(
            f"{name:12} {took:5.1f} s; a bystander's call: {max(waits) * 1e3:5.0f} ms at worst ({len(waits)}), "
            f"{after * 1e3:4.0f} ms after; memory {health.memory} -> {now.memory} KiB, "
            f"descriptors {health.descriptors} -> {now.descriptors}, {now.cpu - health.cpu:.1f} s of CPU"
        )

    def answer(self) -> float:
        """Return seconds that a new client waits for all properties."""
        began = time.monotonic()
        with Raw(self.bus.address) as client:
            assert not client.call(*GET_ALL, signature="s", args=[""]).error
        return time.monotonic() - began

    def give(self, name: str, data: bytes) -> None:
        """Put a file where the attackers' program is."""
        (self._public / "tests/hostile" / name).write_bytes(data)

    def targets(self) -> dict[str, str]:
        """Return what every target holds; AssertionError when there is a claim."""
        with Raw(self.bus.address) as client:
            document = json.loads(client.call(BUS_NAME, ROOT, MANAGER, "Describe").body[0])
        assert document["claims"] == []
        return {f"{row['tunable']}@{row['instance']}": row["value"] for row in document["targets"]}

    def kept(self) -> int:
        """Return bytes that the bus keeps of what the daemon has sent and others have not read."""
        with Raw(self.bus.address) as client:
            return client.stats(BUS_NAME)["IncomingBytes"]

    def _well(self, name: str, before: Health, logged: str, result: Result, growth: int) -> None:
        """Check that it is on the bus and answers, no larger, tells nobody what is another's, and logs little."""
        assert self.daemon.process.poll() is None, self.daemon.journal()
        after = self.answer()
        now = Health.of(self.daemon.pid)
        assert after < ANSWERED
        assert max(result.waits) < MEANWHILE
        assert now.memory - before.memory < growth
        assert now.descriptors <= before.descriptors
        assert result.leaks == []
        kinds = Counter(re.sub(r":\d+\.\d+|\d+", "N", line) for line in logged.splitlines())
        assert "Traceback" not in logged
        told = {line: LOGGED if line.startswith("WARNING: refused ") else 1 for line in kinds}
        assert all(count <= told[line] for line, count in kinds.items()), kinds

    @contextmanager
    def beside(self, name: str, user: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Have another user do the same beside what comes; give what waits for its end and tells what it saw."""
        with self._attacker(name, user) as attacker:

            def ended() -> dict[str, Any]:
                assert attacker.stdout
                assert select.select([attacker.stdout], [], [], LONGEST)[0], f"{name} does not end"
                return dict(json.loads(attacker.stdout.readline()))

            yield ended

    @contextmanager
    def _attacker(self, name: str, user: str = OTHER) -> Iterator[subprocess.Popen[bytes]]:
        python = str(Path(sys.executable).resolve())
        process = subprocess.Popen(
            as_user(user, [python, "-m", "tests.hostile.attacker", self.bus.address, name]),
            env={**os.environ, "PYTHONPATH": str(self._public), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    assert process.stdin
                    process.stdin.close()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
        finally:
            process.wait(10)


@pytest.fixture
def victim(bus: PrivateBus, daemon: Daemon, public: Path) -> Victim:
    return Victim(bus, daemon, public)
