"""Patterns of a tunable's instances: by page size, CPU, drive or fixed name. Text only, without a look at the host.

The daemon, the files and the command line compare patterns with targets here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from kerntune.errors import InvalidValue, NoSuchName
from kerntune.globs import Glob
from kerntune.model import Target
from kerntune.units import CPU_LIST, CpuList, parse_size, spell_cpus, spell_size

Matcher = Callable[[Target], bool]

EVERY: Final = "*"
# The tunables whose instances are pools: without one, the default page size is meant.
HUGE_PAGES: Final = frozenset({"hugepages", "hugepages-overcommit"})
POOL: Final = re.compile(rf"([0-9]{{1,9}}[KMGT](?:i?B)?)(?:/(node({CPU_LIST.pattern})|\*))?", re.IGNORECASE | re.ASCII)
POLICY: Final = "policy"
CPU: Final = "cpu"
# `policy0`, `policy0-3,8`: the form in which `kerntune status` writes several in one row.
POLICIES: Final = re.compile(rf"{POLICY}({CPU_LIST.pattern})", re.ASCII)
CPUS: Final = re.compile(rf"(?:{CPU})?({CPU_LIST.pattern})", re.ASCII)
# Instances that differ in a number, where a pattern may list the numbers.
NUMBERED: Final = re.compile(rf"({POLICY}|.+/node)[0-9]+", re.ASCII)
# The numbers in a drive's name, as the kernel writes them, and names that count in letters.
CANONICAL: Final = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])", re.ASCII)
LETTERED: Final = re.compile(r"(?:sd|vd|xvd|hd)[a-z]+", re.ASCII)
ANY_LETTER: Final = "?"
# Of the names of policies alone: one may have hundreds of CPUs, and each would be another comparison.
CPU_GLOB: Final = re.compile(rf"{POLICY}(?:[0-9*?]|\[!?[0-9-]+\]){{1,57}}", re.ASCII)
# A device's name or a glob of one; `!` stands for the slash in names such as cciss!c0d0.
DRIVE: Final = re.compile(r"(by-id/)?[A-Za-z0-9_.:!+=@*?\[\]-]{1,255}")
GLOB: Final = re.compile(r"[*?\[]")
# The kernel gives these names in the order in which it finds the drives.
UNSTABLE: Final = re.compile(
    r"nvme[0-9]+(?:c[0-9]+)?n[0-9]+|(?:sd|vd|xvd|hd)[a-z]+|(?:mmcblk|pmem|nbd|rbd|dm-|md)[0-9]+", re.ASCII
)


class Kind(StrEnum):
    """The kind of a tunable's instances."""

    POOLS = "pools"
    CPUS = "cpus"
    DRIVES = "drives"
    NAMES = "names"
    SINGLE = "single"


class Patterns(Protocol):
    """The patterns of one kind."""

    def normal(self, text: str) -> str:
        """Return a pattern in normal form. Raise InvalidValue for a text that cannot be one."""

    def exact(self, pattern: str) -> bool:
        """Return True if a pattern (in normal form) names present targets, and waits for nothing that comes later."""

    def matcher(self, pattern: str) -> Matcher:
        """Return a function that checks if a pattern (in normal form) covers a target; it parses it once."""


class Pool(NamedTuple):
    """A page size in bytes, and a node: "" for the whole host, `nodeN`, `node0-3`, or `*` for each node."""

    size: int
    node: str

    def __str__(self) -> str:
        return spell_size(self.size) + (f"/{self.node}" if self.node else "")


def parse_pool(instance: str) -> Pool:
    """Return the pool that an instance names. Raise InvalidValue if it names none."""
    found = POOL.fullmatch(instance)
    size = parse_size(found[1]) if found else None
    if not found or not size:
        raise InvalidValue(
            f"{instance!r} is not a pool of huge pages",
            "Give a page size (2M, 1G), one node of it (2M/node0) or each node (2M/*)",
        )
    if size & (size - 1):
        raise NoSuchName(f"{instance!r} is no page size: each is a power of two", "Examples: 2M, 1G")
    return Pool(size, f"node{CpuList.parse(found[3])}" if found[3] else found[2] or "")


class PoolPatterns:
    """Pools: `2M`, `2M/node0`, `2M/node0-3`, `2M/*`."""

    def normal(self, text: str) -> str:
        return str(parse_pool(text))

    def exact(self, pattern: str) -> bool:
        return not pattern.endswith(EVERY)

    def matcher(self, pattern: str) -> Matcher:
        size, slash, node = pattern.partition("/")
        if node == EVERY:
            return lambda target: target.instance.startswith(f"{size}/")
        if slash:
            return numbered(pattern, f"{size}/node")
        return lambda target: target.instance == pattern


class CpuPatterns:
    """CPUs: `policy0`, `policy0-3,8`, `policy*`; `cpu3` or a CPU list for the policies that move these CPUs; `*`."""

    def normal(self, text: str) -> str:
        if found := POLICIES.fullmatch(text):
            return f"{POLICY}{CpuList.parse(found[1])}"
        if found := CPUS.fullmatch(text):
            return str(CpuList.parse(found[1]))
        if text == EVERY or (GLOB.search(text) and CPU_GLOB.fullmatch(text)):
            return text
        raise InvalidValue(
            f"{text!r} names no CPUs", "Give a CPU list (0-3,8), policies (policy0, policy0-7, policy?) or *"
        )

    def exact(self, pattern: str) -> bool:
        return not GLOB.search(pattern)

    def matcher(self, pattern: str) -> Matcher:
        if pattern == EVERY:
            return lambda _target: True
        if not self.exact(pattern):
            glob = Glob.parse(pattern)
            return lambda target: glob.matches(target.instance)
        if pattern.startswith(POLICY):
            return numbered(pattern, POLICY)
        bits = CpuList.parse(pattern).bits
        return lambda target: bool(bits & cpu_bits(target.aliases))


class GlobPatterns:
    """Names and globs of names, compared with a target's instance and its other names."""

    def exact(self, pattern: str) -> bool:
        return not GLOB.search(pattern)

    def matcher(self, pattern: str) -> Matcher:
        if self.exact(pattern):
            return lambda target: pattern == target.instance or pattern in target.aliases
        return glob_matcher(pattern)


class DrivePatterns(GlobPatterns):
    """Drives: `nvme0n1`, `nvme*`, `by-id/...`."""

    def normal(self, text: str) -> str:
        if not DRIVE.fullmatch(text) or text.removeprefix("by-id/") in (".", ".."):
            raise InvalidValue(
                f"{text!r} cannot name a block device",
                "Give a name (nvme0n1), a glob (nvme*) or by-id/NAME as in /dev/disk/by-id",
            )
        return text


class NamePatterns(GlobPatterns):
    """A name from a fixed list (`vm.swappiness`, also `vm/swappiness`), or a glob of such names."""

    def normal(self, text: str) -> str:
        return text.replace("/", ".")


class SinglePattern:
    """Nothing, or `*`: there is one setting of the host."""

    def normal(self, text: str) -> str:
        if text not in ("", EVERY):
            raise InvalidValue(f"{text!r} names nothing: there is one setting of the host", "Leave it out")
        return ""

    def exact(self, pattern: str) -> bool:  # noqa: ARG002
        return True

    def matcher(self, pattern: str) -> Matcher:
        return lambda target: target.instance == pattern


PATTERNS: Final[Mapping[Kind, Patterns]] = {
    Kind.POOLS: PoolPatterns(),
    Kind.CPUS: CpuPatterns(),
    Kind.DRIVES: DrivePatterns(),
    Kind.NAMES: NamePatterns(),
    Kind.SINGLE: SinglePattern(),
}


def glob_matcher(pattern: str) -> Matcher:
    """Return a function that compares a glob with the names of a target; it does not cross the slash of by-id/."""
    glob, slashes = Glob.parse(pattern), pattern.count("/")

    def matches(target: Target) -> bool:
        names = (target.instance, *target.aliases)
        return pattern in names or any(glob.matches(name) for name in names if name.count("/") == slashes)

    return matches


def numbered(pattern: str, stem: str) -> Matcher:
    """Return a function that compares a pattern such as `policy0-3,8`, a stem and numbers, with a target's instance."""
    bits = CpuList.parse(pattern.removeprefix(stem)).bits

    def matches(target: Target) -> bool:
        number = target.instance.removeprefix(stem)
        return target.instance.startswith(stem) and number.isdecimal() and bool(bits >> int(number) & 1)

    return matches


def joined(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return patterns that cover these instances and no others, each with its instances: `policy0-7,9`, `sda-sdc`.

    So users can type a name that stands for several on a page. An instance that goes with no other stays as it is.
    """
    alike: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        for key, place in places_of(name):
            alike.setdefault(key, {})[place] = name
    found, taken = dict[str, list[str]](), set[str]()
    for key, members in sorted(alike.items(), key=lambda pair: -len(pair[1])):
        rest = {place: name for place, name in sorted(members.items()) if name not in taken}
        for pattern, covered in spell_members(*key, rest):
            taken.update(covered)
            found[pattern] = covered
    found |= {name: [name] for name in names if name not in taken}
    order = {name: place for place, name in enumerate(names)}
    return sorted(found.items(), key=lambda pair: order[pair[1][0]])


def places_of(name: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield what an instance may share with others, the text before and after a number or its last letter, and that."""
    if found := NUMBERED.fullmatch(name):
        yield (found[1], ""), int(name.removeprefix(found[1]))
        return
    if POOL.fullmatch(name) or "/" in name:
        return
    for number in CANONICAL.finditer(name):
        yield (name[: number.start()], name[number.end() :]), int(number[0])
    if LETTERED.fullmatch(name):
        yield (f"{name[:-1]}{ANY_LETTER}", ""), ord(name[-1])


def spell_members(before: str, after: str, members: Mapping[int, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a pattern for the instances between these two texts, or for each run of them, and what it covers."""
    if not after and NUMBERED.fullmatch(f"{before}0"):
        if len(members) > 1:
            yield before + spell_cpus(members), list(members.values())
        return
    for first, last in CpuList.of((place, place) for place in members).spans:
        if last > first:
            yield f"{members[first]}-{members[last]}", [members[place] for place in range(first, last + 1)]


def also_moved(pattern: str, target: Target) -> str:
    """Return, as prose, the CPUs that a policy moves besides those in a CPU list; "" where there are none."""
    if not CPU_LIST.fullmatch(pattern):
        return ""
    listed = CpuList.parse(pattern).bits
    others = [cpu for cpu in cpus_in(target.aliases) if not listed >> cpu & 1]
    return f"{target.instance} also moves CPU {spell_cpus(others)}" if others else ""


def cpus_in(aliases: tuple[str, ...]) -> list[int]:
    """Return the CPUs that are a policy's other names."""
    return [int(alias.removeprefix(CPU)) for alias in aliases]


# The names belong to this host's policies, and no caller can add to them.
@lru_cache(maxsize=1024)
def cpu_bits(aliases: tuple[str, ...]) -> int:
    """Return the CPUs that are a policy's other names, as a number that has a bit for each CPU."""
    return sum(1 << cpu for cpu in cpus_in(aliases))
