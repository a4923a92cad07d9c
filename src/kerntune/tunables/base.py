"""Owns what a tunable is: a description of knobs, their values and the writes that set them; it writes nothing."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from kerntune.errors import InvalidValue
from kerntune.kernel.files import KernelView
from kerntune.kernel.modules import Module
from kerntune.model import (
    SATISFIED,
    DesiredState,
    Lane,
    Limits,
    Memory,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
    Write,
)
from kerntune.patterns import PATTERNS, Kind, Matcher, parse_pool
from kerntune.tunables.sums import Asking, Total, apart
from kerntune.units import in_kib, in_pages

Action = Literal["set", "set-memory"]
# What a size with a unit (64G) becomes where it is taken as a value: pages of the instance's size, or KiB.
Sizes = Literal["", "pages", "KiB"]


class Tunable(ABC):
    """A family of kernel knobs. `plan` and `assess` are pure: they see readings, never the kernel."""

    name: str
    summary: str
    action: Action
    sizes: Sizes = ""
    # Its values are counts that grow as the kernel goes about a write: whoever waits is told how far it is.
    has_progress: bool = False
    # The numbers of holds add up: each client brings its own.
    adds: bool = False
    # Done once between two tries when the kernel gave less than asked, while that helps.
    retry_action: tuple[Write, ...] = ()
    # The errnos with which the kernel says that it is busy for a moment: such a write is made again at once.
    transient: frozenset[int] = frozenset()
    # The tunable whose writes change this one's values too, at the same instance: that is nobody else's work.
    moved_by: str = ""

    @property
    @abstractmethod
    def lane(self) -> Lane:
        """The lane in which it is written."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of its instances."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """The files it is for, as patterns of paths below the root.

        Each is also in WRITABLE (kernel/files.py), but for those whose values are only compared.
        """

    @property
    @abstractmethod
    def import_patterns(self) -> tuple[str, ...]:
        """The files as people name them in lines of their own, as regular expressions.

        Groups tell the instance (doctor/translate.py): `kb` and `node` of pools, `cpus` or `policy`, `drive`, `name`,
        and `part` where several files make one value.
        """

    @property
    def names(self) -> Mapping[str, str]:
        """The names that an instance can have, where there is a list of them, and what values each takes, as prose."""
        return {}

    @property
    def parallel(self) -> bool:
        """True if writes to different targets may run at the same time."""
        return False

    @abstractmethod
    def targets(self, kernel: KernelView) -> Sequence[Target]:
        """Return every target there is now."""

    @abstractmethod
    def missing(self, kernel: KernelView) -> str:
        """Return why this kernel has no such knob, and how that was found; "" when it may have."""

    def normal(self, instances: str) -> str:
        """Return a pattern in normal form. Raise InvalidValue when it cannot be one."""
        return PATTERNS[self.kind].normal(instances)

    def exact(self, instances: str) -> bool:
        """Return whether the pattern (in normal form) names one instance and no more."""
        return PATTERNS[self.kind].exact(instances)

    def matcher(self, instances: str) -> Matcher:
        """Return what says whether the pattern (in normal form) covers a target: it is parsed once for all of them."""
        return PATTERNS[self.kind].matcher(instances)

    def matches(self, instances: str, target: Target) -> bool:
        """Return whether the pattern (in normal form) covers the target."""
        return self.matcher(instances)(target)

    def group(self, target: Target) -> str:
        """Return the group of a target: those of one group are read back, named and contested together."""
        return target.instance

    @abstractmethod
    def read(self, kernel: KernelView, target: Target) -> Reading:
        """Return what the target holds now; of one that cannot be read, a reading with a reason."""

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        """Return the readings of many; what they have in common is read once."""
        return {target: self.read(kernel, target) for target in targets}

    @abstractmethod
    def normal_value(self, value: str, typed: str = "") -> str:
        """Return a value in normal form. Raise InvalidValue when no target could ever take it.

        `typed` is the size (64G) that the value was made of, which messages repeat.
        """

    @property
    def modules(self) -> Mapping[str, Module]:
        """The values for which the kernel loads a module when they are written, and that it lists only afterwards."""
        return {}

    def choices(self, reading: Reading, loads: Collection[str] = ()) -> list[str]:  # noqa: ARG002
        """Return the values that can be chosen, or a range (0..200); empty where only the host's size is a bound.

        `loads` are the values with a module that this host can load.
        """
        return list(reading.choices)

    def check(self, instances: str, value: str) -> None:  # noqa: B027  # most take every value in normal form
        """Raise InvalidValue when no kernel could ever take the value on these instances (both in normal form)."""

    def restorable(self, value: str) -> bool:
        """Return whether a saved baseline is a value that can be written back."""
        try:
            return self.normal_value(value) == value
        except InvalidValue:
            return False

    def validate(self, reading: Reading, value: str) -> None:  # noqa: B027  # many take every value in normal form
        """Raise InvalidValue when this target can never take the value (which is in normal form)."""

    def speed(self, value: str) -> int:  # noqa: ARG002
        """Return how fast a value is: of holds the fastest has its way, and of equal ones the newest."""
        return 0

    def sums(self, asking: Asking, own: Mapping[Target, int]) -> Mapping[Target, Total]:
        """Return the numbers of targets that holds have a part in; `own` are those without any claim."""
        return apart(asking, own)

    def takes(self, target: Target, value: str) -> int:  # noqa: ARG002
        """Return the bytes of memory that a hold of this value sets aside, or lets programs set aside."""
        return 0

    @abstractmethod
    def plan(
        self,
        readings: Mapping[Target, Reading],
        desired_states: Mapping[Target, DesiredState],
        memory: Memory,
        limits: Limits,
    ) -> Sequence[Step]:
        """Return a step for each desired state: the writes that get there, or the verdict that forbids them."""

    def foreseen(self, steps: Sequence[Step], memory: Memory) -> Memory:  # noqa: ARG002
        """Return the host's memory as it will be after these steps: a plan goes by it for the next tunable."""
        return memory

    def beside(
        self,
        readings: Mapping[Target, Reading],
        expected: Mapping[Target, Reading],  # noqa: ARG002
    ) -> Mapping[Target, Reading]:
        """Return the readings as they will be when the tunables before it in its lane read as `expected`.

        For a dry run, where what those write does not happen.
        """
        return readings

    def expected(self, steps: Sequence[Step], readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:  # noqa: ARG002
        """Return the readings that there will be after the writes of these steps, as far as a dry run can tell."""
        return readings

    def elsewhere(
        self,
        steps: Sequence[Step],  # noqa: ARG002
        old: Mapping[Target, Reading],  # noqa: ARG002
        now: Mapping[Target, Reading],  # noqa: ARG002
    ) -> Mapping[Target, Reading]:
        """Return the readings to plan by again at once: one place gave less than it was asked, another may give more.

        They are empty when there is no such place.
        """
        return {}

    def chunks(self, kernel: KernelView, write: Write) -> Iterable[Write]:  # noqa: ARG002
        """Return the writes that a planned one is carried out by, each done before the next is asked for."""
        return (write,)

    def assess(self, desired: DesiredState, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        """Return what a reading means for a desired state, after the writes (or without any)."""
        return SATISFIED if reading.value == desired.value else unlike(reading)

    def explain_errno(self, reading: Reading, value: str, code: int) -> Verdict:
        """Return what it means that the kernel refused a write with this errno."""
        return refused_write(reading.target, value, code)

    def shortfall(self, desired: DesiredState, reading: Reading) -> int:  # noqa: ARG002
        """Return the bytes of memory that the kernel did not have for a desired value.

        Such a value is not written again at each look.
        """
        return 0

    def report_only(self, desired: DesiredState, reading: Reading) -> bool:  # noqa: ARG002
        """Return whether a value that others changed is to be reported only, not put back."""
        return False


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


def unlike(reading: Reading) -> Verdict:
    """Return the verdict on a value that is not the one asked for."""
    if reading.value is None:
        return unreadable(reading)
    return Verdict(
        State.FAILED,
        Reason.READ_BACK_DIFFERS,
        f"the write was accepted, but {reading.target} still reads {reading.value}: "
        "a driver ignored it, or something else changed it back at once",
    )


def unreadable(reading: Reading) -> Verdict:
    """Return the verdict on a target that cannot be read."""
    return Verdict(State.UNSUPPORTED, reading.reason, reading.detail)


def refused_write(target: Target, value: str, code: int) -> Verdict:
    """Return the verdict on an errno that needs no knowledge of the tunable."""
    why = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
    match code:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return Verdict(State.UNSUPPORTED, Reason.NO_SUCH_TARGET, f"{target} went away while it was set: {why}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            detail = f"{target} is read-only here: {why}. In a container, run kerntuned on the host itself, as root"
            return Verdict(State.UNSUPPORTED, Reason.READ_ONLY, detail)
        case _:
            return Verdict(State.FAILED, Reason.KERNEL_REJECTED, f"the kernel refused {value} for {target}: {why}")
