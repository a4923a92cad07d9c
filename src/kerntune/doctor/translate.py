"""Says a file of the kernel and its value as a setting of kerntune, where there is a tunable for it. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from kerntune.tunables import page_size

OVERCOMMIT: Final = "overcommit"
MODES: Final = {"0": "heuristic", "1": "always", "2": "never"}
SIZE: Final = r"hugepages-(?P<kb>[0-9]{1,12})kB"
CPU: Final = r"sys/devices/system/cpu/(?:cpu(?P<cpus>[^/]+)|\*|cpufreq/(?P<policy>[^/]+))(?:/cpufreq)?"
DRIVE: Final = r"sys/(?:class/)?block/(?P<drive>[^/]+)"
ANY_CPU: Final = frozenset({"*", "?", "[0-9]", "[0-9]*", "?*", "*[0-9]", "policy*", "policy[0-9]*", "policy?*"})
# Sysctls that are worth a word when kerntune has no tunable for them; others are none of its business.
SYSCTLS: Final = re.compile(r"proc/sys/(vm/.+|kernel/numa_balancing)")


class Knob(NamedTuple):
    """A tunable and its instances; for `part` the value is only one of several that make the setting."""

    tunable: str
    instances: str
    part: str = ""


def knob(path: str, default_page_size: int) -> Knob | None:
    """What a path below the root is to kerntune; None when it is nothing. `default_page_size` is in bytes, 0 for none.

    Symbolic links that everybody uses (/sys/class/block) are known; the path may be a glob.
    """
    path = posixpath.normpath(path.strip("/"))
    for pattern, name in KNOBS:
        if found := pattern.fullmatch(path):
            return name({key: text or "" for key, text in found.groupdict().items()}, default_page_size)
    return None


def pool(tunable: str) -> Callable[[dict[str, str], int], Knob | None]:
    """A pool of huge pages; without a size in the path that of the default size."""

    def name(found: dict[str, str], default: int) -> Knob | None:
        size = int(found["kb"]) << 10 if "kb" in found else default
        if not size:
            return None
        node = found.get("node", "")
        node = "*" if node in ("node*", "node[0-9]*") else node
        return Knob(tunable, page_size.spell(size) + (f"/{node}" if node else ""))

    return name


def on_cpus(tunable: str) -> Callable[[dict[str, str], int], Knob | None]:
    """A frequency policy, or the CPUs by which one is found."""

    def name(found: dict[str, str], _default: int) -> Knob | None:
        where = found["cpus"] or found["policy"] or "*"
        return Knob(tunable, "*" if where in ANY_CPU else where)

    return name


def on_drives(tunable: str) -> Callable[[dict[str, str], int], Knob | None]:
    return lambda found, _default: Knob(tunable, found["drive"])


def fixed(tunable: str, instances: str = "", part: str = "") -> Callable[[dict[str, str], int], Knob | None]:
    return lambda _found, _default: Knob(tunable, instances, part)


def sysctl(found: dict[str, str], _default: int) -> Knob:
    return Knob("sysctl", found["name"].replace("/", "."))


KNOBS: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"proc/sys/vm/nr_hugepages(?:_mempolicy)?", pool("hugepages")),
        (r"proc/sys/vm/nr_overcommit_hugepages", pool("hugepages-overcommit")),
        (rf"sys/kernel/mm/hugepages/{SIZE}/nr_hugepages(?:_mempolicy)?", pool("hugepages")),
        (rf"sys/kernel/mm/hugepages/{SIZE}/nr_overcommit_hugepages", pool("hugepages-overcommit")),
        (rf"sys/devices/system/node/(?P<node>[^/]+)/hugepages/{SIZE}/nr_hugepages", pool("hugepages")),
        (r"sys/kernel/mm/transparent_hugepage/enabled", fixed("thp", "enabled")),
        (r"sys/kernel/mm/transparent_hugepage/defrag", fixed("thp", "defrag")),
        (rf"{CPU}/scaling_governor", on_cpus("cpu-governor")),
        (rf"{CPU}/energy_performance_preference", on_cpus("cpu-epp")),
        (rf"{DRIVE}/queue/scheduler", on_drives("io-scheduler")),
        (rf"{DRIVE}/(?:queue|bdi)/read_ahead_kb", on_drives("read-ahead")),
        (r"proc/sys/vm/overcommit_memory", fixed(OVERCOMMIT, part="mode")),
        (r"proc/sys/vm/overcommit_ratio", fixed(OVERCOMMIT, part="ratio")),
        (r"proc/sys/vm/overcommit_kbytes", fixed(OVERCOMMIT, part="kbytes")),
        (r"proc/sys/(?P<name>.+)", sysctl),
    )
)


def overcommit(mode: str, ratio: str, kbytes: str, *, current_ratio: int) -> tuple[str, str]:
    """Mode and ratio as one value, and what to know of it; ("", why) when it cannot be said.

    An empty text is a part that nobody sets. `current_ratio` is what the kernel has, for a mode that needs one.
    """
    word = MODES.get(mode)
    if word is None:
        return "", f"vm.overcommit_memory is 0, 1 or 2, not {mode}" if mode else "a ratio is read in mode 2 only"
    if word == "heuristic":
        return word, "the ratio is not read in this mode" if ratio else ""
    if word == "never" and kbytes not in ("", "0"):
        return "", "kerntune takes the limit as a ratio, not in kilobytes: overcommit=never:RATIO"
    if word == "always":
        caps = "the kernel reads the ratio in mode 2 only; as a claim it is what the memory guard lets programs have"
        return (f"{word}:{ratio}", caps) if ratio else (word, "")
    return f"{word}:{ratio or current_ratio}", "" if ratio else "the ratio is the one the kernel has now"
