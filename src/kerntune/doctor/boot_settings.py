"""The settings that a boot reads from lists: the kernel's command line, sysctl.d(5) and tmpfiles.d(5)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from kerntune.doctor.files import Files, drop_ins
from kerntune.doctor.relevant import RELEVANT
from kerntune.doctor.types import CMDLINE, Assignment, Cause, Entry, Left, Place, Stage
from kerntune.errors import InvalidValue
from kerntune.patterns import parse_pool
from kerntune.tunables.hugepages import POOLS
from kerntune.tunables.knobs import CPU_GOVERNOR, SYSCTL, THP

KEEP: Final = "pages are surest to be had at boot, so the parameter may stay, with the same number"
PER_NODE: Final = re.compile(r"([0-9]{1,4}):([0-9]{1,20})")

PLAIN: Final = {
    "transparent_hugepage": THP.scope.path("enabled"),
    "cpufreq.default_governor": CPU_GOVERNOR.scope.of_device("cpu*"),
    "numa_balancing": SYSCTL.scope.path("kernel.numa_balancing"),
}
WORD_VALUES: Final = {"numa_balancing": {"enable": "1", "disable": "0"}}

SYSCTL_FOLDERS: Final = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
CLASSIC: Final = "etc/sysctl.conf"
NOT_READ: Final = (
    "nothing reads /etc/sysctl.conf at boot here: no link to it in /etc/sysctl.d (ln -s ../sysctl.conf "
    "/etc/sysctl.d/99-sysctl.conf makes one)"
)
TMPFILES_FOLDERS: Final = (
    "etc/tmpfiles.d", "run/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d", "lib/tmpfiles.d",
)  # fmt: skip
BY_HAND: Final = "kerntune cannot read it: translate it by hand"
# Type, path, mode, user, group and age; w writes, f and F write to a new file, and to an old one with a modifier.
TMPFILES_LINE: Final = re.compile(
    r"(?P<quote>[\"']?)(?P<type>[wfF])(?P<modifiers>[-+!=~^$?]*)(?P=quote)[ \t]+"
    r"(?P<path>\S+)(?:[ \t]+\S+){4}[ \t]+(?P<argument>.+)"
)


def parameters(files: Files) -> Iterator[tuple[str, str, Place]]:
    """Yield each parameter for the kernel itself: its name, its value and its place."""
    for number, text in files.lines(CMDLINE):
        for word in text.split():
            if word == "--":
                return  # the rest is for init
            name, _, value = word.partition("=")
            # The kernel takes dashes and underscores in the names of parameters as the same.
            yield name.replace("-", "_"), value.strip('"'), Place(f"/{CMDLINE}", number, word)


def read_cmdline(files: Files, default_page_size: int) -> list[Entry]:
    """Return what the parameters set, in their order; sizes are in bytes."""
    found: list[Entry] = []
    size = default_page_size
    for name, value, place in parameters(files):
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


def pools(value: str, size: int, place: Place) -> Iterator[Entry]:
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


class Sysctl(NamedTuple):
    """A key and a value as the file has them, with the line's number and text."""

    number: int
    text: str
    key: str
    value: str


def read_sysctls(files: Files) -> list[Entry]:
    """Return what all the files set, in the order in which systemd-sysctl reads them."""
    found: list[Entry] = []
    classic = False
    for path, masked_by in drop_ins(files, SYSCTL_FOLDERS, ".conf"):
        same = files.leads_to(path) == CLASSIC
        classic |= same and not masked_by
        idle = f"/{masked_by} has the same name and is read in its place" if masked_by else ""
        found += settings(files, CLASSIC if same else path, idle=idle)
    if not classic:
        found += settings(files, CLASSIC, idle=NOT_READ)
    return found


def system_files(files: Files) -> list[str]:
    """Return the files that `sysctl --system` reads, in its order: /etc/sysctl.conf comes last (sysctl(8))."""
    found = [drop.path for drop in drop_ins(files, SYSCTL_FOLDERS, ".conf") if not drop.masked_by]
    return [*found, CLASSIC] if files.there(CLASSIC) else found


def settings(files: Files, path: str, *, idle: str, stage: Stage = Stage.SYSCTL) -> Iterator[Assignment]:
    """Yield what one file sets if a boot reads it at that stage."""
    for number, text, key, value in parse(files, path):
        place = Place(f"/{path}", number, text)
        yield Assignment(place, stage, f"proc/sys/{path_of(key)}", value, idle=idle)


def parse(files: Files, path: str) -> Iterator[Sysctl]:
    """Yield the lines that set something; a `-` in front only says that errors do not matter."""
    for number, text in files.lines(path):
        line = text.strip()
        if line.startswith(("#", ";")):
            continue
        key, equals, value = line.removeprefix("-").partition("=")
        if equals and key.strip():
            yield Sysctl(number, line, key.strip(), " ".join(value.split()))


def path_of(key: str) -> str:
    """Return the path below /proc/sys.

    Dots or slashes separate the parts of a key: the kind that comes first (sysctl.d(5)).
    """
    first = next((char for char in key if char in "./"), "/")
    return key if first == "/" else key.translate(str.maketrans("./", "/."))


def read_tmpfiles(files: Files) -> list[Entry]:
    """Return what systemd-tmpfiles writes at boot; of several lines for one path, it takes the first.

    It takes the lines of w by themselves, and runs them after those of f and F.
    """
    found: list[Entry] = []
    firsts: dict[bool, dict[str, Place]] = {True: {}, False: {}}
    for path, masked_by in drop_ins(files, TMPFILES_FOLDERS, ".conf"):
        for number, text in files.lines(path):
            line = TMPFILES_LINE.fullmatch(text.strip())
            place = Place(f"/{path}", number, text.strip())
            if not line:
                if text.lstrip("\"' \t")[:1] in ("w", "f", "F") and RELEVANT.search(text):
                    found.append(Left(place, BY_HAND))
                continue
            first = firsts[line["type"] == "w"]
            target = posixpath.normpath(line["path"].strip("\"'").replace("%%", "%")).lstrip("/")
            idle = f"/{masked_by} has the same name and is read in its place" if masked_by else ""
            if not idle and target in first and "+" not in line["modifiers"]:
                idle = f"{first[target]} is for the same path, and systemd-tmpfiles takes the first line"
            if not idle:
                first.setdefault(target, place)
            value = line["argument"].strip().removesuffix("\\n").replace("%%", "%")
            encoded = (
                "\\" in text.strip().removesuffix("\\n")
                or "%" in text.replace("%%", "")
                or not set("~^").isdisjoint(line["modifiers"])
            )
            if line["type"] != "w" or encoded:
                if RELEVANT.search(f"/{target}"):
                    found.append(Left(place, idle or BY_HAND, Cause.NO_EFFECT if idle else Cause.NOT_UNDERSTOOD))
            elif target.startswith(("proc/", "sys/")):
                found.append(Assignment(place, Stage.TMPFILES, target, value, idle=idle))
    return found
