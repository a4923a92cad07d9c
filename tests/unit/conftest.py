"""How hard the property tests look, the folders of a daemon, and its signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings

from kerntune.engine.writer import SIGNAL, make_endable
from tests.harness import often

# The same examples on every run, so that a failure is the change's and not the day's.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=timedelta(seconds=5), max_examples=often(60)
)
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("explore", database=None, deadline=timedelta(seconds=5), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a runtime directory and a state directory in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "lib").mkdir()
    return tmp_path


@pytest.fixture
def endable() -> Iterator[None]:
    """Have the process take the signal that ends a write, as the daemon does."""
    before = signal.getsignal(SIGNAL)
    make_endable()
    yield
    signal.signal(SIGNAL, before)
