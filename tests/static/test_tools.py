"""The linters, the type checker and the import layers, as tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import CHECKOUT

TOOLS = Path(sys.executable).parent

# A first run of mypy, without its cache, on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("lint-imports --no-cache", id="layers"),
        pytest.param("ruff check --no-cache .", id="ruff"),
        pytest.param("ruff format --no-cache --check .", id="format"),
        pytest.param("mypy --strict src tests tools", id="mypy"),
    ],
)
def test_tool_finds_nothing(command: str) -> None:
    program, *options = command.split()
    done = subprocess.run(
        [str(TOOLS / program), *options], cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
