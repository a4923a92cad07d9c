"""Owns the list of the tunables there are, in the order in which a lane serves them."""

from __future__ import annotations

from kerntune.tunables.base import Tunable
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.hugepages_overcommit import HugePagesOvercommit
from kerntune.tunables.knobs import KNOBS
from kerntune.tunables.overcommit import Overcommit

# Huge pages come before overcommit: what they take lowers the commit limit that overcommit is checked against.
REGISTRY: tuple[Tunable, ...] = (HugePages(), HugePagesOvercommit(), Overcommit(), *KNOBS)
