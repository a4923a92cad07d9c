"""thp: when the kernel uses transparent huge pages, and how hard it tries.

Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue, NoSuchName, NotOffered
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel import support
from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.patterns import Kind
from kerntune.tunables.base import Action, Plain, bracketed, unreadable

FOLDER = "sys/kernel/mm/transparent_hugepage"
# What a file may say; kernels before 4.11 have no defer+madvise.
WORDS: Mapping[str, tuple[str, ...]] = {
    "enabled": ("always", "madvise", "never"),
    "defrag": ("always", "defer", "defer+madvise", "madvise", "never"),
}
WORD = re.compile(r"[a-z][a-z+_]{0,31}")


class Thp(Plain):
    """One target per file: `enabled` and `defrag`."""

    name: ClassVar[str] = "thp"
    summary: ClassVar[str] = "transparent huge pages"
    lane: ClassVar[Lane] = Lane.MEMORY
    action: ClassVar[Action] = "set-memory"
    kind: ClassVar[Kind] = Kind.NAMES
    by_hand: ClassVar[tuple[str, ...]] = (rf"{FOLDER}/(?P<name>enabled|defrag)",)
    explained: ClassVar[Explanation] = Explanation(
        what="Transparent huge pages: which programs get them without changes of their own (enabled), and which wait "
        "while the kernel makes room for them (defrag).",
        helps="Loaders that copy, and allocators that ask with madvise(2). enabled at 'madvise' suits most hosts, "
        "'always' those with a single purpose; defrag at 'madvise'.",
        evidence=(
            Evidence(Grade.MEASURED, "copying loaders that get them: 0.58 of the time"),
            Evidence(Grade.KERNEL, "with defrag at 'always' every program may wait for compaction"),
        ),
        risk="With 'always', programs that touch memory sparsely grow, and may stall.",
        files=("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/transparent_hugepage/defrag"),
        document="Documentation/admin-guide/mm/transhuge.rst",
        instances="enabled or defrag",
        values="always, madvise or never; for defrag also defer or defer+madvise",
        example=Example("thp@enabled=madvise", "for programs that ask for them"),
    )

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        return [Target(self.name, file) for file in WORDS if find(kernel, f"{FOLDER}/{file}") is not None]

    def missing(self, kernel: KernelView) -> str:
        if self.targets(kernel):
            return ""
        return support.missing(kernel, f"{FOLDER}/enabled", "TRANSPARENT_HUGEPAGE")

    def normal(self, instances: str) -> str:
        if instances in WORDS:
            return instances
        which = "Give enabled (who gets huge pages) or defrag (who waits for them)"
        if instances == "*":
            raise InvalidValue("thp has two files, and their values differ in what they cost", which)
        raise NoSuchName(f"thp has no file {instances!r}", which)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            return Reading(target, *bracketed(kernel.read(f"{FOLDER}/{target.instance}")))
        except KernelError as error:
            return Reading(target, None, reason=Reason.NO_KERNEL_SUPPORT, detail=f"cannot be read: {error.strerror}")

    def normal_value(self, value: str) -> str:
        if not WORD.fullmatch(value):
            raise InvalidValue(f"{value!r} is no word of transparent huge pages", "Examples: always, madvise, never")
        return value

    def check(self, instances: str, value: str) -> None:
        if value not in (words := WORDS[instances]):
            raise InvalidValue(f"{instances} is one of {', '.join(words)}, not {value}", "Choose one of these")

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in reading.choices:
            raise NotOffered(not_offered(reading, value), "Choose one of these")

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target]) for target, wish in wishes.items()]

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EINVAL and reading.value is not None:
            return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, not_offered(reading, value))
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading) -> Step:
    """Nothing where the value is in place or is none of the file's."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if before.value == wish.value:
        return Step(wish, before)
    if wish.value not in before.choices:
        verdict = Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, not_offered(before, wish.value))
        return Step(wish, before, verdict=verdict)
    return Step(wish, before, (Write(f"{FOLDER}/{wish.target.instance}", wish.value),))


def not_offered(reading: Reading, value: str) -> str:
    """Prose: what the file has instead."""
    return f"{reading.target} offers {', '.join(reading.choices)}, not {value}"
