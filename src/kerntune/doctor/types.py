"""The doctor's frozen values: places, the values that lines set there, proposals and findings; it decides nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from kerntune.model import Setting

CMDLINE: Final = "proc/cmdline"  # the kernel command line


class Severity(StrEnum):
    """The weight of a finding; only a problem makes the doctor's exit code 1."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the host, its evidence (what the doctor read, and where), and what to do about it."""

    severity: Severity
    topic: str
    what: str
    evidence: tuple[str, ...] = ()
    fix: str = ""


class Stage(IntEnum):
    """The time in a boot at which a place sets its values; of two places that set the same, the later one wins."""

    KERNEL = 0
    UDEV = 1
    SYSCTL = 2
    TMPFILES = 3
    SERVICE = 4
    RC_LOCAL = 5
    CRON = 6


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, word for word; `file` has the name that it has on the host, whatever the root.

    `unit` is the systemd unit that the line belongs to, if a boot starts it and all of its commands are taken over.
    """

    file: str
    line: int
    text: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def quoted(self) -> str:
        """The place and its text, as evidence."""
        return f"{self}: {self.text}"

    @property
    def is_boot_parameter(self) -> bool:
        """True if it is a word on the kernel command line."""
        return self.file == f"/{CMDLINE}"

    @property
    def how_to_disable(self) -> str:
        """The advice that ends the line's effect from the next boot on."""
        if self.is_boot_parameter:
            return "take the word out of GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub and a reboot"
        if self.unit:
            unit = shlex.quote(self.unit)
            if self.shipped:
                return f"override the line in a drop-in, or sudo systemctl mask {unit} if it does nothing else"
            return f"take the line out, or sudo systemctl disable {unit} if it does nothing else"
        if self.shipped and "/systemd/system/" in self.file:
            return "override the line in a drop-in of its unit"
        return f"put a # in front of the {'rule' if self.file.endswith('.rules') else 'line'}"

    @property
    def shipped(self) -> bool:
        """True if the line came with a package, and not from a person."""
        return self.file.startswith(("/usr/lib/", "/lib/"))


@dataclass(frozen=True, slots=True)
class Assignment:
    """A line that sets a file of the kernel: its path below the root (it may be a glob), and the value.

    `remark` tells readers what they should know of it; `idle` tells them why the line has no effect.
    """

    place: Place
    stage: Stage
    path: str
    value: str
    remark: str = ""
    idle: str = ""


class Cause(StrEnum):
    """The reason for which the doctor does not propose a line as a claim."""

    NOT_UNDERSTOOD = "not-understood"
    NO_EFFECT = "no-effect"
    NOT_TUNED = "not-tuned"
    NOT_POSSIBLE = "not-possible"
    NOT_OURS = "not-ours"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Left:
    """A line about such values that the doctor does not translate, and the reason."""

    place: Place
    why: str
    cause: Cause = Cause.NOT_UNDERSTOOD


Entry = Assignment | Left


@dataclass(frozen=True, slots=True)
class Proposal:
    """A setting that would replace the lines at `places`, a remark, and the earlier lines that these lines override.

    `assignments` has the values that the lines write; `shipped` says that all of the lines came with packages.
    """

    setting: Setting
    assignments: tuple[Assignment, ...]
    remark: str = ""
    overridden: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(dict.fromkeys(assignment.place for assignment in self.assignments))

    @property
    def shipped(self) -> bool:
        return all(place.shipped for place in self.places)


@dataclass(frozen=True, slots=True)
class Survey:
    """All that the files of a host set: proposals of claims in their place, and the lines left over.

    `unreadable` has the files and folders that could not be read.
    """

    proposals: tuple[Proposal, ...]
    left: tuple[Left, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A claim of the running daemon; `matches` are the instances it matches now."""

    tunable: str
    instances: str
    value: str
    origin: str
    matches: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tunable}@{self.instances}" if self.instances else self.tunable


@dataclass(frozen=True, slots=True)
class Daemon:
    """The answers of the running daemon: all users' claims, the strongest first, and the state of its memory guard."""

    claims: tuple[Wanted, ...] = ()
    guard: str = ""
