"""What there is to know of a tunable before it is set: use, evidence, risk. Each tunable explains itself.

"Measured" figures are of loading models (a guest with 2 CPUs and 23 GiB, kernel 6.18, ext4 on a virtual disk), in
pairs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Grade(StrEnum):
    """How well something is known, best first."""

    MEASURED = "measured"
    VENDOR = "vendor documentation"
    KERNEL = "kernel documentation"
    NONE = "none"


class Evidence(NamedTuple):
    """What is known, and how well."""

    grade: Grade
    said: str


class Example(NamedTuple):
    """A setting as it is typed, and what it is for."""

    setting: str
    about: str


class Explanation(NamedTuple):
    """Of one tunable; `files` are paths on the host, `document` is one of the kernel's sources."""

    what: str
    helps: str
    evidence: tuple[Evidence, ...]
    risk: str
    files: tuple[str, ...]
    document: str
    instances: str
    values: str
    example: Example
