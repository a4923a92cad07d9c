"""The settings on the kernel's command line (Documentation/admin-guide/kernel-parameters.txt)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kerntune.doctor.boot_settings import path_of
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment, Cause, Left, Line, Place, Stage
from kerntune.errors import InvalidValue
from kerntune.patterns import parse_pool
from kerntune.tunables.hugepages import POOLS
from kerntune.tunables.knobs import CPU_GOVERNOR, SYSCTL, THP

FILE: Final = "proc/cmdline"
KEEP: Final = "pages are surest to be had at boot, so the parameter may stay, with the same number"
PER_NODE: Final = re.compile(r"([0-9]{1,4}):([0-9]{1,20})")

PLAIN: Final = {
    "transparent_hugepage": THP.scope.path("enabled"),
    "cpufreq.default_governor": CPU_GOVERNOR.scope.of_device("cpu*"),
    "numa_balancing": SYSCTL.scope.path("kernel.numa_balancing"),
}
WORD_VALUES: Final = {"numa_balancing": {"enable": "1", "disable": "0"}}


def words(files: Files) -> Iterator[tuple[str, str, Place]]:
    """Yield each parameter for the kernel itself: its name, its value and its place."""
    for number, text in files.lines(FILE):
        for word in text.split():
            if word == "--":
                return  # the rest is for init
            name, _, value = word.partition("=")
            # The kernel takes dashes and underscores in the names of parameters as the same.
            yield name.replace("-", "_"), value.strip('"'), Place(f"/{FILE}", number, word)


def read(files: Files, default_page_size: int) -> list[Line]:
    """Return what the parameters set, in their order; sizes are in bytes."""
    found: list[Line] = []
    size = default_page_size
    for name, value, place in words(files):
        if name in ("hugepagesz", "default_hugepagesz"):
            try:
                size = parse_pool(value).size
            except InvalidValue as error:
                size = 0
                found.append(Left(place, error.what))
        elif name == "hugepages":
            found += pools(value, size, place)
        elif name == "elevator":
            found.append(Left(place, "kernels since 5.0 ignore it; set io-scheduler instead", Cause.NO_EFFECT))
        elif path := PLAIN.get(name) or (f"proc/sys/{path_of(name[7:])}" if name.startswith("sysctl.") else ""):
            found.append(Assignment(place, Stage.KERNEL, path, WORD_VALUES.get(name, {}).get(value, value)))
    return found


def pools(value: str, size: int, place: Place) -> Iterator[Line]:
    """Yield the pages of one size: `value` is a number, or has numbers for nodes (`0:512,1:512`)."""
    if not size:
        yield Left(place, "this kernel has no huge pages of a default size")
        return
    pool = f"hugepages-{size >> 10}kB/nr_hugepages"
    if value.isdecimal():
        yield Assignment(place, Stage.KERNEL, f"{POOLS}/{pool}", value, remark=KEEP)
        return
    for part in value.split(","):
        if node := PER_NODE.fullmatch(part):
            path = f"sys/devices/system/node/node{node[1]}/hugepages/{pool}"
            yield Assignment(place, Stage.KERNEL, path, node[2], remark=KEEP)
        else:
            yield Left(place, f"{part!r} is not a number of pages")
