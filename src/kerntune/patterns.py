"""Patterns of a tunable's instances: by page size, CPU, drive or fixed name. Text only, without a look at the host.

The daemon, the files and the command line compare patterns with targets here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from kerntune.errors import InvalidValue, NoSuchName
from kerntune.globs import DIGITS, Glob
from kerntune.model import Target
from kerntune.units import CPU_LIST, CpuList, parse_size, spell_cpus, spell_size

Matcher = Callable[[Target], bool]

EVERY: Final = "*"
# The tunables whose instances are pools: without one, the default page size is meant.
HUGE_PAGES: Final = frozenset({"hugepages", "hugepages-overcommit"})
NODES: Final = rf"{CPU_LIST.pattern}|\*"
POOL: Final = re.compile(rf"([0-9]{{1,9}}[KMGT](?:i?B)?)(?:/(?:node)?({NODES}))?", re.IGNORECASE | re.ASCII)
# Nodes alone: their pools have the default page size.
NODES_ALONE: Final = re.compile(rf"node({NODES})", re.IGNORECASE | re.ASCII)
POLICY: Final = "policy"
CPU: Final = "cpu"
# `policy0`, `policy0-3,8`: the form in which `kerntune status` writes several in one row.
POLICIES: Final = re.compile(rf"{POLICY}({CPU_LIST.pattern})", re.ASCII)
CPUS: Final = re.compile(rf"(?:{CPU})?({CPU_LIST.pattern})", re.ASCII)
# Instances that differ in a number, where a pattern may list the numbers.
NUMBERED: Final = re.compile(rf"({POLICY}|.+/node)[0-9]+", re.ASCII)
# The numbers in a drive's name, as the kernel writes them.
CANONICAL: Final = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])", re.ASCII)
ANY_LETTER: Final = "?"
# Of the names of policies alone: one may have hundreds of CPUs, and each would be another comparison.
CPU_GLOB: Final = re.compile(rf"{POLICY}(?:[0-9*?]|\[!?[0-9-]+\]){{1,57}}", re.ASCII)
# A device's name or a glob of one; `!` stands for the slash in names such as cciss!c0d0.
DRIVE: Final = re.compile(r"(by-id/)?[A-Za-z0-9_.:!+=@*?\[\]-]{1,255}")
GLOB: Final = re.compile(r"[*?\[]")
# Sysctls for which another tunable is there.
OTHER_TUNABLES: Final[Mapping[str, str]] = {
    "vm.overcommit_memory": "overcommit",
    "vm.overcommit_ratio": "overcommit",
    "vm.overcommit_kbytes": "overcommit",
    "vm.nr_hugepages": "hugepages",
    "vm.nr_hugepages_mempolicy": "hugepages",
    "vm.nr_overcommit_hugepages": "hugepages-overcommit",
}
# Devices that pass requests on to memory, or to the queue of another device: only a name of their own means them.
# Others that make no requests to hardware stay: read-ahead counts most on md and dm, which have it instead of their
# members, and behind nbd and rbd there is no other queue of this host.
LEFT_OUT: Final = re.compile(r"(loop|ram|zram)[0-9]+", re.ASCII)
# Drives that are counted in letters: sdz is followed by sdaa.
LETTERED: Final = re.compile(r"(sd|vd|xvd|hd)([a-z]{1,5})", re.ASCII)
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
    node = found[2] or ""
    return Pool(size, f"node{CpuList.parse(node)}" if node not in ("", EVERY) else node)


def with_size(pattern: str, page_size: int) -> str:
    """Return a pattern of pools with the default page size, in bytes, where it names nodes alone (`node0`)."""
    return f"{spell_size(page_size)}/{pattern}" if page_size and NODES_ALONE.fullmatch(pattern) else pattern


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
    """Drives: `nvme0n1`, `nvme*`, `nvme0n1-nvme3n1`, `sda-sdd`, `by-id/...`, each also with /dev in front.

    A glob leaves out loop, ram and zram devices, unless it begins with that word: `loop*`, `zram[0-3]`.
    """

    def normal(self, text: str) -> str:
        name = text.removeprefix("/dev/").removeprefix("disk/") if text.startswith("/dev/") else text
        if not DRIVE.fullmatch(name) or name.removeprefix("by-id/") in (".", ".."):
            hint = "Give a name (nvme0n1), a glob (nvme*), a range (sda-sdd) or by-id/NAME as in /dev/disk/by-id"
            if text.startswith("/dev/"):
                hint = "For another link below /dev, give the device's own name: readlink -f prints it"
            raise InvalidValue(f"{text!r} cannot name a block device", hint)
        if (span := Span.parse(name)) and span.last < span.first:
            raise InvalidValue(f"{name!r} runs backwards", "Give the lower name first, as in nvme0n1-nvme3n1")
        return name

    def matcher(self, pattern: str) -> Matcher:
        if span := Span.parse(pattern):
            # An end of it may be the drive of which a target is a path.
            return lambda target: pattern == target.instance or any(map(span.has, (target.instance, *target.aliases)))
        matches = super().matcher(pattern)
        if self.exact(pattern):
            return matches
        return lambda target: matches(target) and pattern.startswith(left_out_word(target.instance))


class NamePatterns(GlobPatterns):
    """A name from a fixed list (`vm.swappiness`, also `vm/swappiness` and below /proc/sys), or a glob of such names."""

    def normal(self, text: str) -> str:
        return text.removeprefix("/proc/sys/").replace("/", ".")


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


class Span(NamedTuple):
    """The drives from one to another: `nvme0n1-nvme3n1`, `sda-sdd`. They differ in one number, or in their letters."""

    before: str
    first: int
    last: int
    after: str
    lettered: bool

    @classmethod
    def parse(cls, pattern: str) -> Span | None:
        """Return the span that a pattern is, or None."""
        if pattern.count("-") % 2 == 0 or "/" in pattern or GLOB.search(pattern):
            return None
        names = halves(pattern)
        letters = [LETTERED.fullmatch(name) for name in names]
        if letters[0] and letters[1] and letters[0][1] == letters[1][1]:
            return cls(letters[0][1], count_letters(letters[0][2]), count_letters(letters[1][2]), "", lettered=True)
        first, last = (DIGITS.split(name) for name in names)
        other = [at for at, (one, two) in enumerate(zip(first, last, strict=False)) if one != two]
        # Every second part is a number.
        if len(first) != len(last) or len(other) != 1 or not other[0] % 2 or not first[0]:
            return None
        at = other[0]
        if any(len(part[at]) > 9 or part[at] != str(int(part[at])) for part in (first, last)):
            return None
        return cls("".join(first[:at]), int(first[at]), int(last[at]), "".join(first[at + 1 :]), lettered=False)

    def has(self, name: str) -> bool:
        """Return True if a device's name is in the span."""
        if not (name.startswith(self.before) and name.endswith(self.after)):
            return False
        part = name[len(self.before) : len(name) - len(self.after)]
        if self.lettered:
            return part.isalpha() and part.islower() and self.first <= count_letters(part) <= self.last
        return part.isdecimal() and self.first <= int(part) <= self.last


def halves(pattern: str) -> tuple[str, str]:
    """Return the two names of a span: they are alike, so the middle hyphen is between them."""
    words = pattern.split("-")
    return "-".join(words[: len(words) // 2]), "-".join(words[len(words) // 2 :])


def count_letters(letters: str) -> int:
    """Return the number of a drive that is counted in letters: 1 for a, 26 for z, 27 for aa."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number


def left_out_word(name: str) -> str:
    """Return the word that a glob has to begin with to cover this device, "" for most."""
    found = LEFT_OUT.fullmatch(name)
    return found[1] if found else ""


def is_unstable(pattern: str) -> bool:
    """Return True if a pattern names drives that a reboot may find in another order."""
    name = pattern.removeprefix("/dev/")
    return any(map(UNSTABLE.fullmatch, halves(name) if Span.parse(name) else [name]))


def full_name(name: str, listed: Iterable[str]) -> str:
    """Return the one name of which this is the last part (`swappiness`), or else the name as it is.

    It is one of those listed, or a sysctl for which another tunable is there.
    """
    known = [*listed, *OTHER_TUNABLES]
    found = [full for full in known if full.endswith(f".{name}")]
    return found[0] if len(found) == 1 and name and name not in known else name


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
    for number in CANONICAL.finditer(name, 1):
        yield (name[: number.start()], name[number.end() :]), int(number[0])
    if found := LETTERED.fullmatch(name):
        yield (f"{found[1]}{ANY_LETTER}", ""), count_letters(found[2])


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
