"""The bus of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.privatebus import PrivateBus, open_bus


@pytest.fixture(scope="session")
def script_bus() -> Iterator[PrivateBus]:
    """Give a bus on which a script may play the daemon."""
    with open_bus() as running:
        yield running
