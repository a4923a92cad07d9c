"""The tunables there are: an explicit tuple, in the order in which a lane serves them."""

from __future__ import annotations

from kerntune.tunables.base import Tunable
from kerntune.tunables.cpu_epp import CpuEpp
from kerntune.tunables.cpu_governor import CpuGovernor
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.hugepages_overcommit import HugePagesOvercommit
from kerntune.tunables.knobs import IoScheduler
from kerntune.tunables.overcommit import Overcommit
from kerntune.tunables.read_ahead import ReadAhead
from kerntune.tunables.sysctl import Sysctl
from kerntune.tunables.thp import Thp

# Huge pages come before overcommit: what they take lowers the commit limit that overcommit is checked against.
# The governor comes before the preference: with some governors the kernel takes no other than performance.
REGISTRY: tuple[Tunable, ...] = (
    HugePages(),
    HugePagesOvercommit(),
    Overcommit(),
    Thp(),
    Sysctl(),
    CpuGovernor(),
    CpuEpp(),
    IoScheduler(),
    ReadAhead(),
)
