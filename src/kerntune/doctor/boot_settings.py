"""The sysctls that files set at boot, in the order and with the masks of sysctl.d(5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from kerntune.doctor.files import Files, drop_ins
from kerntune.doctor.types import Assignment, Line, Place, Stage

FOLDERS: Final = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
CLASSIC: Final = "etc/sysctl.conf"
NOT_READ: Final = (
    "nothing reads /etc/sysctl.conf at boot here: no link to it in /etc/sysctl.d (ln -s ../sysctl.conf "
    "/etc/sysctl.d/99-sysctl.conf makes one)"
)


class Sysctl(NamedTuple):
    """A key and a value as the file has them, with the line's number and text."""

    number: int
    text: str
    key: str
    value: str


def read(files: Files) -> list[Line]:
    """Return what all the files set, in the order in which systemd-sysctl reads them."""
    found: list[Line] = []
    classic = False
    for path, masked_by in drop_ins(files, FOLDERS, ".conf"):
        same = files.leads_to(path) == CLASSIC
        classic |= same and not masked_by
        idle = f"/{masked_by} has the same name and is read in its place" if masked_by else ""
        found += settings(files, CLASSIC if same else path, idle=idle)
    if not classic:
        found += settings(files, CLASSIC, idle=NOT_READ)
    return found


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
