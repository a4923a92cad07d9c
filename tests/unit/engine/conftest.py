"""A process that takes the signal which ends a write, as the daemon does."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from kerntune.engine.writer import SIGNAL, make_endable


@pytest.fixture
def endable() -> Iterator[None]:
    before = signal.getsignal(SIGNAL)
    make_endable()
    yield
    signal.signal(SIGNAL, before)
