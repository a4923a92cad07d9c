"""The daemon of the tests, its bus, and a tree of files that it may tune."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api import lab
from tests.harness.daemon import Daemon
from tests.harness.host import make_tree
from tests.harness.privatebus import PrivateBus


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBus]:
    """Give a bus with the policy of the daemon."""
    with lab.private_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    """Give the daemon on a simulated host; it is ready."""
    with Daemon(bus, "--demo") as running:
        yield running


@pytest.fixture
def stopped(bus: PrivateBus) -> Iterator[Daemon]:
    """Give the daemon on a simulated host; the test starts it, and may write its configuration before."""
    with lab.not_started(Daemon(bus, "--demo")) as daemon:
        yield daemon


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a tree of files in place of /proc and /sys, with three drives, a pool of huge pages and overcommit."""
    return make_tree(tmp_path / "host")
