"""The machine for the end-to-end tests: a private bus, the real polkitd, the daemon on the real kernel.

Every test is watched: the kernel's values are the same after it as before, or it fails and they are put back. It fails
too when the host was in mode never meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from kerntune.engine.claims import Claims
from kerntune.model import Claim
from kerntune.store import Store
from tests.harness import host, skip
from tests.harness.daemon import Daemon
from tests.harness.polkitd import MEMBER, OTHER, Polkitd, accounts
from tests.harness.privatebus import PrivateBus, package_bus
from tests.live.users import User, public_copy

NEVER: Final = str(host.MODES.index("never"))
LOOPS: Final = tuple(f"loop{number}" for number in range(4))


def unfit() -> str:
    """Return why we cannot tune the kernel of this machine, or ""."""
    try:
        os.close(os.open("/proc/sys/vm/overcommit_memory", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/proc/sys/vm cannot be written ({error.strerror}): the end-to-end tests need root on a real kernel"
    return "" if os.geteuid() == 0 else "the end-to-end tests need root"


@pytest.fixture(scope="session", autouse=True)
def machine() -> Iterator[None]:
    """Give this machine's kernel to one run of these tests at a time."""
    if why := unfit():
        skip(why)
    mine = os.open("/proc/sys/vm", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(mine, fcntl.LOCK_EX)
        yield
    finally:
        os.close(mine)


@pytest.fixture(scope="session")
def loops(machine: None) -> tuple[str, ...]:
    """Return loop devices with nothing behind them, whose schedulers nobody misses."""
    if not all(map(host.choices, LOOPS)):
        subprocess.run(["modprobe", "loop", f"max_loop={len(LOOPS)}"], timeout=10, check=False)
    poor = [name for name in LOOPS if "mq-deadline" not in host.choices(name)]
    assert not poor, f"{', '.join(poor)}: no such loop device, or without the scheduler mq-deadline"
    return LOOPS


@pytest.fixture(scope="session")
def mode_never(machine: None) -> Iterator[list[str]]:
    """Give each time that something has put this host into mode never, where programs get no memory.

    A host that is in that mode by itself is not watched.
    """
    with host.kept_from(Path("/proc/sys/vm/overcommit_memory"), NEVER) as seen:
        yield seen


@pytest.fixture(autouse=True)
def kernel_as_found(mode_never: list[str]) -> Iterator[dict[str, str]]:
    """Give what the kernel holds before the test, and has to hold after it."""
    mode_never.clear()
    before = host.snapshot()
    yield before
    after = host.snapshot()
    host.restore(before)
    changed = differences(before, after)
    stuck = differences(before, host.snapshot())
    assert not mode_never, "the test put this host into mode never: such a test belongs in tests/system"
    assert not changed, f"the test left other values behind (before, after): {changed}; not put back: {stuck}"


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return what is not as it was: before and after."""
    return {path: (was, after.get(path)) for path, was in before.items() if after.get(path) != was}


@pytest.fixture(scope="session")
def public(machine: None) -> Iterator[Path]:
    with public_copy() as folder:
        yield folder


@pytest.fixture(scope="session")
def bus(machine: None) -> Iterator[PrivateBus]:
    with package_bus() as running:
        yield running


@pytest.fixture(scope="session")
def polkitd(bus: PrivateBus) -> Iterator[Polkitd]:
    with accounts(), Polkitd(bus) as running:
        yield running


@pytest.fixture(scope="session")
def running(bus: PrivateBus, polkitd: Polkitd) -> Iterator[Daemon]:
    """Give the daemon that most tests share; it looks for drift when a test asks, and not by the clock."""
    daemon = Daemon(bus)
    (daemon.config / "kerntune.toml").write_text("[drift]\ninterval = 0\n")
    with daemon:
        yield daemon


@pytest.fixture
def daemon(running: Daemon, root: User, kernel_as_found: dict[str, str]) -> Iterator[Daemon]:
    """Give the shared daemon; afterwards every claim is withdrawn, and nothing has gone wrong inside it."""
    yield running
    root.release()
    left = root.describe()
    assert left["claims"] == []
    assert left["degraded"] == []
    assert "Traceback" not in running.journal()


@pytest.fixture(scope="session")
def root(bus: PrivateBus, public: Path) -> Iterator[User]:
    with User("root", bus, public) as user:
        yield user


@pytest.fixture(scope="session")
def member(bus: PrivateBus, polkitd: Polkitd, public: Path) -> Iterator[User]:
    """Give somebody in the group kerntune."""
    with User(MEMBER, bus, public) as user:
        yield user


@pytest.fixture(scope="session")
def other(bus: PrivateBus, polkitd: Polkitd, public: Path) -> Iterator[User]:
    """Give somebody outside the group."""
    with User(OTHER, bus, public) as user:
        yield user


@pytest.fixture
def own_bus(machine: None) -> Iterator[PrivateBus]:
    """Give a bus for one test, without polkit: root alone may change anything there."""
    with package_bus() as alone:
        yield alone


@pytest.fixture
def own_root(own_bus: PrivateBus, public: Path) -> Iterator[User]:
    with User("root", own_bus, public) as user:
        yield user


@pytest.fixture
def daemon_with(own_bus: PrivateBus, kernel_as_found: dict[str, str]) -> Iterator[Callable[..., Daemon]]:
    """Give a maker of daemons on the test's own bus that end with the test; they are not started yet."""
    with ExitStack() as stack:

        def make(*options: str, **how: object) -> Daemon:
            daemon = Daemon(own_bus, *options, wait=False, **how)  # type: ignore[arg-type]  # the parameters of Daemon
            stack.callback(daemon.__exit__, None, None, None)
            return daemon

        yield make


def saved(daemon: Daemon, *claims: Claim) -> None:
    """Save persistent claims in the daemon's directory, as they were left before a reboot."""
    Store(daemon.runtime, daemon.state, boot_id="of another boot").commit(Claims.of(*claims))


@pytest.fixture
def chance() -> random.Random:
    """Return random numbers; the seed is shown when the test fails, and KERNTUNE_TEST_SEED sets it."""
    seed = int(os.environ.get("KERNTUNE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    sys.stdout.write(f"KERNTUNE_TEST_SEED={seed}\n")
    return random.Random(seed)
