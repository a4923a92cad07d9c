"""Owns the test for words about what kerntune tunes; a line that no reader understands is shown only if it has one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from kerntune.tunables import REGISTRY


def ends() -> Iterator[str]:
    """Yield how the paths of all tuned files end: a name, with its folder where another file may have the name."""
    for tunable in REGISTRY:
        for path in tunable.files:
            folder, name = path.split("/")[-2:]
            yield name if "_" in name else f"{folder}/{name}"


ENDS: Final = (*dict.fromkeys(ends()), "overcommit_kbytes")
# Folders, programs and sysctls, besides the ends of the tuned files.
WORDS: Final = (
    r"/proc/sys/vm|/sys/(class/)?block|cpufreq|transparent_hugepage|hugepages|hugeadm|cpupower|tuned-adm|--setra"
    r"|powerprofilesctl|x86_energy_perf_policy|\bvm\.|numa_balancing|(?<![\w/])vm/"
)
RELEVANT: Final = re.compile("|".join([WORDS, *map(re.escape, ENDS)]))


def may_be_tuned(path: str) -> bool:
    """Return whether a path, which may be a glob, ends as a tuned file ends, in whatever folder."""
    parts = path.split("/")
    return any(all(map(fnmatchcase, end.split("/"), parts[-1 - end.count("/") :])) for end in ENDS)
