"""What the tests of all folders share: where the checkout is, what cannot be tested here, how often chance is tried."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NoReturn

CHECKOUT: Final = Path(__file__).parents[2]
# Less is tried where the same is tested with another Python as well.
PART: Final = float(os.environ.get("KERNTUNE_RANDOM", "1"))


def often(times: int) -> int:
    """Return how often, of so many times, a test with random input is repeated in this run."""
    return max(1, round(times * PART))


def skip(why: str) -> NoReturn:
    """Skip a test that this machine cannot run, and fail it where CI is set: nobody reads there what was skipped."""
    import pytest  # noqa: PLC0415  # `make run` needs the other modules only, and may be anybody's

    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(why)
    pytest.skip(why)
