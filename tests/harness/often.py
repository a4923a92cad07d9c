"""How often a test with random input is repeated: less where the same is tested with another Python as well."""

import os
from typing import Final

PART: Final = float(os.environ.get("KERNTUNE_RANDOM", "1"))


def often(times: int) -> int:
    """Return how often, of so many times, a test is repeated in this run."""
    return max(1, round(times * PART))
