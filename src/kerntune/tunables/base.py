"""What a tunable is: a description of knobs, their values and the writes that set them; it writes nothing."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol

from kerntune.errors import InvalidValue
from kerntune.explained import Explanation
from kerntune.kernel.files import KernelView
from kerntune.model import (
    SATISFIED,
    Lane,
    Limits,
    Memory,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
    Wish,
    Write,
)
from kerntune.patterns import PATTERNS, Kind, Matcher, parse_pool
from kerntune.tunables.sums import Asking, Total, apart
from kerntune.units import in_kib, in_pages

Action = Literal["set", "set-memory"]
# What a size with a unit (64G) becomes where it is taken as a value: pages of the instance's size, or KiB.
Sizes = Literal["", "pages", "KiB"]


class Tunable(Protocol):
    """A family of kernel knobs. `plan` and `judge` are pure: they see readings, never the kernel."""

    name: ClassVar[str]
    summary: ClassVar[str]
    lane: ClassVar[Lane]
    action: ClassVar[Action]
    kind: ClassVar[Kind]
    sizes: ClassVar[Sizes]
    # Its files as people name them in lines of their own: patterns (re) of paths below the root. Groups tell the
    # instance (doctor/translate.py): `kb` and `node` of pools, `cpus` or `policy`, `drive`, `name`, and `part` where
    # several files make one value.
    by_hand: ClassVar[tuple[str, ...]]
    explained: ClassVar[Explanation]
    # Writes to different targets may run at the same time.
    parallel: ClassVar[bool]
    # Its values are counts that grow as the kernel goes about a write: whoever waits is told how far it is.
    counted: ClassVar[bool]
    # The numbers of holds add up: each client brings its own.
    adds: ClassVar[bool]
    # Done once between two tries when the kernel gave less than asked, while that helps.
    remedy: ClassVar[tuple[Write, ...]]
    # The errnos with which the kernel says that it is busy for a moment: such a write is made again at once.
    transient: ClassVar[frozenset[int]]
    # The tunable whose writes change this one's values too, at the same instance: that is nobody else's work.
    moved_by: ClassVar[str]

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        """Every knob there is now."""

    def missing(self, kernel: KernelView) -> str:
        """Why this kernel has no such knob, and how that was found; "" when it may have."""

    def normal(self, instances: str) -> str:
        """A pattern in normal form; InvalidValue when it cannot be one."""

    def exact(self, instances: str) -> bool:
        """Whether the pattern (in normal form) names one instance and no more."""

    def matcher(self, instances: str) -> Matcher:
        """Return what says whether the pattern (in normal form) covers a target: it is parsed once for all of them."""

    def matches(self, instances: str, target: Target) -> bool:
        """Return whether the pattern (in normal form) covers the target."""

    def group(self, target: Target) -> str:
        """Targets of one group settle each other: they are read back, named and contested together."""

    def read(self, kernel: KernelView, target: Target) -> Reading:
        """What the target holds now; an unreadable one is a reading with a reason."""

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        """The same of many, where what they have in common is read once."""

    def normal_value(self, value: str) -> str:
        """A value in normal form; InvalidValue when no target could ever take it."""

    def check(self, instances: str, value: str) -> None:
        """Raise InvalidValue when no kernel could ever take the value on these instances (both in normal form)."""

    def restorable(self, value: str) -> bool:
        """Whether a saved baseline is a value that can be written back."""

    def validate(self, reading: Reading, value: str) -> None:
        """InvalidValue when this target can never take the value (which is in normal form)."""

    def speed(self, value: str) -> int:
        """How fast a value is: of holds the fastest has its way, and of equal ones the newest."""

    def sums(self, asking: Asking, own: Mapping[Target, int]) -> Mapping[Target, Total]:
        """The numbers of targets that holds have a part in; `own` are those without any claim."""

    def takes(self, target: Target, value: str) -> int:
        """Bytes of memory that a hold of this value sets aside, or lets programs set aside."""

    def plan(
        self, readings: Mapping[Target, Reading], wishes: Mapping[Target, Wish], memory: Memory, limits: Limits
    ) -> Sequence[Step]:
        """A step for each wish: the writes that get there, or the verdict that forbids them."""

    def foreseen(self, steps: Sequence[Step], memory: Memory) -> Memory:
        """Return the host's memory as it will be after these steps: a plan goes by it for the next tunable."""

    def elsewhere(
        self, steps: Sequence[Step], old: Mapping[Target, Reading], now: Mapping[Target, Reading]
    ) -> Mapping[Target, Reading]:
        """Return the readings to plan by again at once: one place gave less than it was asked, another may give more.

        They are empty when there is no such place.
        """

    def pieces(self, kernel: KernelView, write: Write) -> Iterable[Write]:
        """The writes that a planned one is carried out by, each done before the next is asked for."""

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:
        """What a reading means for a wish, after the writes (or without any)."""

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        """What it means that the kernel refused a write with this errno."""

    def lacking(self, wish: Wish, reading: Reading) -> int:
        """Bytes of memory that the kernel did not have for a wish; such a wish is not written again at each look."""

    def drifted(self, wish: Wish, reading: Reading) -> bool:
        """Whether a value that others changed is to be reported only, not put back."""


class Plain(ABC):
    """What most tunables share: one file a target, compared as text."""

    kind: ClassVar[Kind]
    sizes: ClassVar[Sizes] = ""
    parallel: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    remedy: ClassVar[tuple[Write, ...]] = ()
    transient: ClassVar[frozenset[int]] = frozenset()
    moved_by: ClassVar[str] = ""

    @abstractmethod
    def normal_value(self, value: str) -> str: ...

    def normal(self, instances: str) -> str:
        return PATTERNS[self.kind].normal(instances)

    def exact(self, instances: str) -> bool:
        return PATTERNS[self.kind].exact(instances)

    def matcher(self, instances: str) -> Matcher:
        return PATTERNS[self.kind].matcher(instances)

    def matches(self, instances: str, target: Target) -> bool:
        return self.matcher(instances)(target)

    @abstractmethod
    def read(self, kernel: KernelView, target: Target) -> Reading: ...

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        return {target: self.read(kernel, target) for target in targets}

    def check(self, instances: str, value: str) -> None:  # noqa: B027
        """Take every value in normal form, unless a subclass knows better."""

    def restorable(self, value: str) -> bool:
        try:
            return self.normal_value(value) == value
        except InvalidValue:
            return False

    def group(self, target: Target) -> str:
        return target.instance

    def speed(self, value: str) -> int:  # noqa: ARG002
        return 0

    def sums(self, asking: Asking, own: Mapping[Target, int]) -> Mapping[Target, Total]:
        return apart(asking, own)

    def takes(self, target: Target, value: str) -> int:  # noqa: ARG002
        return 0

    def foreseen(self, steps: Sequence[Step], memory: Memory) -> Memory:  # noqa: ARG002
        return memory

    def elsewhere(
        self,
        steps: Sequence[Step],  # noqa: ARG002
        old: Mapping[Target, Reading],  # noqa: ARG002
        now: Mapping[Target, Reading],  # noqa: ARG002
    ) -> Mapping[Target, Reading]:
        return {}

    def pieces(self, kernel: KernelView, write: Write) -> Iterable[Write]:  # noqa: ARG002
        return (write,)

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value == wish.value:
            return SATISFIED
        return unlike(reading)

    def lacking(self, wish: Wish, reading: Reading) -> int:  # noqa: ARG002
        return 0

    def drifted(self, wish: Wish, reading: Reading) -> bool:  # noqa: ARG002
        return False

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        return refused_write(reading.target, value, code)


def as_number(tunable: Tunable, instances: str, value: str) -> str:
    """Return a size (64G) as a number of what the tunable counts, and any other value as it is.

    `instances` is in normal form. Raise InvalidValue for a size that is not a whole number of pages.
    """
    match tunable.sizes:
        case "pages":
            return in_pages(value, parse_pool(instances).size)
        case "KiB":
            return in_kib(value)
        case _:
            return value


def bracketed(text: str) -> tuple[str, tuple[str, ...]]:
    """Return what is chosen and what there is in a file such as `none [mq-deadline] bfq`.

    Without brackets the first word is what is chosen; `none` and `[none]` are not the same to IoScheduler.
    """
    words = text.split()
    chosen = next((word for word in words if word.startswith("[")), words[0] if words else "")
    return chosen.strip("[]"), tuple(word.strip("[]") for word in words)


def unlike(reading: Reading) -> Verdict:
    """The verdict on a value that is not the one asked for."""
    if reading.value is None:
        return unreadable(reading)
    return Verdict(
        State.FAILED,
        Reason.READ_BACK_DIFFERS,
        f"the write was accepted, but {reading.target} still reads {reading.value}: "
        "a driver ignored it, or something else changed it back at once",
    )


def unreadable(reading: Reading) -> Verdict:
    """The verdict on a target that cannot be read."""
    return Verdict(State.UNSUPPORTED, reading.reason, reading.detail)


def refused_write(target: Target, value: str, code: int) -> Verdict:
    """The verdict on an errno that needs no knowledge of the tunable."""
    why = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
    match code:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return Verdict(State.UNSUPPORTED, Reason.NO_SUCH_TARGET, f"{target} went away while it was set: {why}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            detail = f"{target} is read-only here: {why}; in a container the host must set it"
            return Verdict(State.UNSUPPORTED, Reason.READ_ONLY, detail)
        case _:
            return Verdict(State.FAILED, Reason.KERNEL_REJECTED, f"the kernel refused {value} for {target}: {why}")
