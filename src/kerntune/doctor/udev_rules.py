"""The values that udev rules set on drives and CPUs, as far as a pattern can say a rule's conditions (udev(7))."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kerntune.doctor.files import Files, drop_ins
from kerntune.doctor.files import Line as Row
from kerntune.doctor.relevant import RELEVANT
from kerntune.doctor.shell_script import NOT_READ, SHELLS, Script
from kerntune.doctor.types import Assignment, Cause, Entry, Left, Place, Stage
from kerntune.tunables.knobs import KNOBS

FOLDERS: Final = (
    "etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d",
)  # fmt: skip
PAIR: Final = re.compile(r'\s*([A-Za-z]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*[ei]?"((?:[^"\\]|\\.)*)"\s*,?')
# The attributes of a device that kerntune tunes, below the folder of the device.
ATTRIBUTES: Final = {attribute: knob.scope for knob in KNOBS for attribute in knob.scope.attributes}
# Every drive that kerntune can tune meets conditions on these anyway.
HARMLESS: Final = frozenset({"ACTION", "SUBSYSTEM", "TEST", "KERNEL"})
NO_SHELL: Final = "udev starts no shell, so what stands behind > or | is an argument"
DEVICE_NAME: Final = re.compile(r"\$kernel|\$name|%k|\$env\{DEVNAME\}")


class Pair(NamedTuple):
    """One `KEY{attribute}OPERATOR"value"` of a rule."""

    key: str
    attribute: str
    operator: str
    value: str

    def __str__(self) -> str:
        attribute = f"{{{self.attribute}}}" if self.attribute else ""
        return f'{self.key}{attribute}{self.operator}"{self.value}"'

    @property
    def tests(self) -> bool:
        return self.operator in ("==", "!=")


def read(files: Files) -> list[Entry]:
    """Return what all the rules set, in the order in which udev reads them."""
    found: list[Entry] = []
    for path, masked_by in drop_ins(files, FOLDERS, ".rules"):
        idle = f"/{masked_by} has the same name and is read in its place" if masked_by else ""
        found += rules(list(files.lines(path)), f"/{path}", idle=idle)
    return found


def rules(rows: Sequence[Row], file: str, *, idle: str = "") -> list[Entry]:
    """Return what the rules of one file set; after a GOTO whose condition matters, nothing is certain."""
    found: list[Entry] = []
    jump = ""
    for row in logical(rows):
        pairs = [Pair(*(part or "" for part in match.groups())) for match in PAIR.finditer(row.text)]
        if any(pair.key == "LABEL" and pair.value == jump for pair in pairs):
            jump = ""
        place = Place(file, row.number, row.text)
        found += rule(pairs, place, behind=jump, idle=idle)
        goto = next((pair.value for pair in pairs if pair.key == "GOTO"), "")
        if goto and any(pair.tests and pair.key not in ("ACTION", "SUBSYSTEM") for pair in pairs):
            jump = jump or goto
    return found


def logical(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield each rule as one line; a backslash at the end continues a rule, a line that starts with # is a comment."""
    first, text = 0, ""
    for number, part in rows:
        if not text and part.lstrip().startswith("#"):
            continue
        first = first if text else number
        text = f"{text}{part.strip()}"
        if text.endswith("\\"):
            text = f"{text[:-1]} "
            continue
        if text:
            yield Row(first, text)
        text = ""
    if text:
        yield Row(first, text)


def rule(pairs: Sequence[Pair], place: Place, *, behind: str, idle: str) -> Iterator[Entry]:
    """Yield what one rule sets."""
    names = [pair.value for pair in pairs if pair.key == "KERNEL" and pair.operator == "=="]
    patterns = names[0].split("|") if names else ["*"]
    conditions = [str(pair) for pair in pairs if pair.tests and not harmless(pair, patterns)]
    if behind:
        conditions.append(f'and what leads past GOTO="{behind}"')
    if len(names) > 1 or any(pair.key == "ACTION" and pair.value == "remove" for pair in pairs):
        conditions.append("more than one condition on a name or an action")
    for entry in effects(pairs, patterns, place):
        if conditions and isinstance(entry, Assignment):
            yield Left(place, f"a claim cannot say the rule's condition {', '.join(conditions)}")
            return
        yield replace(entry, idle=idle) if isinstance(entry, Assignment) else entry


def harmless(pair: Pair, patterns: Sequence[str]) -> bool:
    """Return whether a condition says no more than the patterns and the tunable say."""
    if pair.key in HARMLESS:
        return pair.operator == "==" or pair.key == "ACTION"
    if pair.key == "ENV" and pair.attribute == "DEVTYPE":
        return (pair.operator, pair.value) == ("==", "disk")
    if pair.key == "ATTR" and pair.attribute == "queue/rotational":
        return (pair.operator, pair.value) == ("==", "0") and all(name.startswith("nvme") for name in patterns)
    # Some rules ask whether the attribute exists, or has the value already.
    return pair.key == "ATTR" and pair.attribute in ATTRIBUTES and pair.operator == "!="


def effects(pairs: Sequence[Pair], patterns: Sequence[str], place: Place) -> Iterator[Entry]:
    """Yield what a rule sets, and what the commands set that it runs."""
    for pair in pairs:
        if pair.tests:
            continue
        if pair.key == "ATTR" and (scope := ATTRIBUTES.get(pair.attribute)):
            for name in patterns:
                yield Assignment(place, Stage.UDEV, scope.of_device(name), pair.value)
        elif pair.key == "SYSCTL":
            yield Assignment(place, Stage.UDEV, f"proc/sys/{pair.attribute.replace('.', '/')}", pair.value)
        elif pair.key == "RUN":
            for name in patterns:
                yield from run(pair.value.replace('\\"', '"'), name.replace("\\", ""), place)


def run(command: str, device: str, place: Place) -> list[Entry]:
    """Return what a command sets for one device."""
    try:
        words = shlex.split(DEVICE_NAME.sub("${device}", command))
    except ValueError:
        return [Left(place, NOT_READ)] if RELEVANT.search(command) else []
    in_shell = any(word.rsplit("/", 1)[-1] in SHELLS for word in words)
    if not in_shell and any(word.startswith((">", "|")) for word in words) and RELEVANT.search(command):
        return [Left(place, NO_SHELL, Cause.NO_EFFECT)]
    return Script(place.file, stage=Stage.UDEV, place=place, variables={"device": device}).execute(words)
