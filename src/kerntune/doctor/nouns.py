"""What the doctor finds, as frozen values: places, the values set there, proposals and findings; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from kerntune.model import Setting


class Severity(StrEnum):
    """How much a finding matters; only a problem makes the doctor's exit code 1."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the host: what is so, the evidence (what was read, and where), and what to do about it."""

    severity: Severity
    topic: str
    what: str
    evidence: tuple[str, ...] = ()
    fix: str = ""


class Stage(IntEnum):
    """When in a boot a place has its say; of two that set the same, the later one wins."""

    KERNEL = 0
    UDEV = 1
    SYSCTL = 2
    SERVICE = 3
    RC_LOCAL = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, as it stands there; files are named as on the host, whatever the root."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def quoted(self) -> str:
        """The place and its text, as evidence."""
        return f"{self}: {self.text}"

    @property
    def shipped(self) -> bool:
        """Whether it came with a package, and not from a person."""
        return self.file.startswith(("/usr/lib/", "/lib/"))


@dataclass(frozen=True, slots=True)
class Assignment:
    """A line that sets a file of the kernel: its path below the root (it may be a glob), and the value.

    `remark` is what a reader should know of it; `idle` is why the line has no effect.
    """

    place: Place
    stage: Stage
    path: str
    value: str
    remark: str = ""
    idle: str = ""


class Cause(StrEnum):
    """Why a line is not proposed as a claim."""

    NOT_UNDERSTOOD = "not-understood"
    NO_EFFECT = "no-effect"
    NOT_TUNED = "not-tuned"
    NOT_POSSIBLE = "not-possible"
    NOT_OURS = "not-ours"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Left:
    """A line about such values that is not translated, and why."""

    place: Place
    why: str
    cause: Cause = Cause.NOT_UNDERSTOOD


Line = Assignment | Left


@dataclass(frozen=True, slots=True)
class Proposal:
    """A setting that would replace the lines at `places`, what to know of it, and the earlier lines that they beat.

    `assignments` are what the lines write, `shipped` says that all of them came with packages.
    """

    setting: Setting
    assignments: tuple[Assignment, ...]
    remark: str = ""
    beaten: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(dict.fromkeys(assignment.place for assignment in self.assignments))

    @property
    def shipped(self) -> bool:
        return all(place.shipped for place in self.places)


@dataclass(frozen=True, slots=True)
class Survey:
    """All that the files of a host set: what can be claimed in their place, and what is left."""

    proposals: tuple[Proposal, ...]
    left: tuple[Left, ...]


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
    """What the running daemon says: everybody's claims, the strongest first, and the state of its memory guard."""

    claims: tuple[Wanted, ...] = ()
    guard: str = ""
