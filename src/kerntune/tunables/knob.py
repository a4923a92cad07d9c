"""Owns what a knob is that has one file a target: a scope, a value, and what is known of its errnos.

The scope says where the files are, the value what a file may hold. The rows are in knobs.py.
"""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kerntune.errors import InvalidValue, NotOffered
from kerntune.kernel.files import KernelError, KernelView
from kerntune.kernel.modules import Module
from kerntune.model import DesiredState, Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Write
from kerntune.patterns import Kind
from kerntune.tunables.base import Action, Sizes, Tunable, unlike, unreadable
from kerntune.tunables.scopes import Scope, first, offline
from kerntune.units import is_endless, spell_size


@dataclass(frozen=True, kw_only=True)
class Value(ABC):
    """The values that a file may hold."""

    # Values that the host may have by itself, beside those that a claim may ask for.
    own: re.Pattern[str] | None = None
    # What a value reads as that the driver has no name for, where the file may hold one: a read gives EINVAL.
    nameless: str = ""
    # The file beside it that lists what may be chosen.
    listed_in: str = ""

    @abstractmethod
    def normal(self, value: str, typed: str = "") -> str:
        """Return a value in normal form. Raise InvalidValue when no target could ever take it.

        `typed` is the size (64G) that the value was made of, which messages repeat.
        """

    @abstractmethod
    def check(self, instance: str, value: str) -> None:
        """Raise InvalidValue when no kernel could ever take the value on this instance."""

    @abstractmethod
    def prose(self, instance: str) -> str:
        """Return what values an instance of a list takes, in a few words."""

    @abstractmethod
    def default(self, instance: str) -> str:
        """Return the value that a kernel starts with, of an instance of a list."""

    def choices(self, instance: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return all values that an instance of a list takes on any kernel, where they are words."""
        return ()

    def offered(self, reading: Reading, loads: Collection[str]) -> list[str]:  # noqa: ARG002
        """Return the values that can be chosen, or a range; see Tunable.choices."""
        return list(reading.choices)

    def restorable(self, value: str) -> bool:
        """Return whether a saved baseline is a value that can be written back."""
        try:
            return (self.own is not None and self.own.fullmatch(value) is not None) or self.normal(value) == value
        except InvalidValue:
            return False

    @abstractmethod
    def reading(self, target: Target, text: str, listed: Sequence[str], figures: Mapping[str, int]) -> Reading:
        """Return what the text of a file says, with what another file beside it lists as choices."""

    def is_in_place(self, value: str, reading: Reading) -> bool:
        """Return whether the target holds the value."""
        return reading.value == value

    def remark(self, value: str, reading: Reading) -> str:  # noqa: ARG002
        """Return what there is to know of a value that is in place, as prose."""
        return ""

    def held(self, value: str) -> str:
        """Return what a file reads after this value was written."""
        return value

    def validate(self, reading: Reading, value: str, called: str) -> None:  # noqa: ARG002
        """Raise InvalidValue when the target of the reading, `called` so, can never take the value."""
        self.check(reading.target.instance, value)

    def speed(self, value: str) -> int:  # noqa: ARG002
        """Return how fast a value is; see Tunable.speed."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Word(Value):
    """One of the kernel's words. Without `listed_in` the file itself lists them, with the chosen one in brackets."""

    shape: re.Pattern[str]
    # What is said of a text that is no such word, and which words there are.
    wrong: str
    examples: str
    # Words that may not be listed and yet be taken: the kernel loads their module when one is written.
    modules: Mapping[str, Module] = field(default_factory=dict)
    # Words that are taken on every target, listed or not.
    everywhere: frozenset[str] = frozenset()
    # Why a target takes what it lists and nothing else, whatever modules there are; "" where it takes more.
    closed: Callable[[Reading], str] = lambda _reading: ""
    # What to do about a word that is not taken.
    hint: str = "Choose one of these"
    # Words by instance, where no kernel has others, and which of them a kernel starts with.
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    # All words from the slowest on, where holds go by that; "" stands for every other word.
    by_speed: tuple[str, ...] = ("",)

    def normal(self, value: str, typed: str = "") -> str:  # noqa: ARG002  # a word is no size
        if not self.shape.fullmatch(value):
            raise InvalidValue(f"{value!r} {self.wrong}", f"Examples: {self.examples}")
        return value

    def check(self, instance: str, value: str) -> None:
        if value not in (words := self.words.get(instance, (value,))):
            raise InvalidValue(f"{instance} is one of {', '.join(words)}, not {value}", "Choose one of these")

    def prose(self, instance: str) -> str:
        return ", ".join(self.words[instance])

    def default(self, instance: str) -> str:
        return self.defaults[instance]

    def choices(self, instance: str) -> tuple[str, ...]:
        return self.words[instance]

    def reading(self, target: Target, text: str, listed: Sequence[str], figures: Mapping[str, int]) -> Reading:
        if self.listed_in:
            return Reading(target, text, tuple(listed) or (text,), figures=figures)
        return Reading(target, *bracketed(text), figures=figures)

    def validate(self, reading: Reading, value: str, called: str) -> None:
        if reading.value is None or value in reading.choices or value in self.everywhere:
            return
        if value not in self.modules:
            raise NotOffered(offers(called, reading, value), self.hint)
        if why := self.closed(reading):
            raise NotOffered(f"{offers(called, reading, value)}, {why}", "Choose one of these")

    def offered(self, reading: Reading, loads: Collection[str]) -> list[str]:
        if reading.value is None or self.closed(reading):
            return list(reading.choices)
        return [*reading.choices, *(word for word in self.modules if word in loads and word not in reading.choices)]

    def speed(self, value: str) -> int:
        return self.by_speed.index(value if value in self.by_speed else "")


class Range(NamedTuple):
    """The whole numbers that a file takes, and the one that a kernel starts with."""

    least: int
    most: int
    default: int


@dataclass(frozen=True, kw_only=True)
class Number(Value):
    """A whole number of `unit`, of which the kernel keeps multiples of `step`."""

    noun: str
    unit: str = ""
    most: int | None = None
    step: int = 1
    digits: int = 10
    # By instance, where they differ: the numbers that the kernel gives a meaning.
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def normal(self, value: str, typed: str = "") -> str:
        said = typed or (f"{value:.40} {self.unit}" if self.unit else f"{value:.40}")
        unit = f"{self.unit}, " if self.unit else ""
        if re.fullmatch("[0-9]+", value, re.ASCII) and (
            len(value.lstrip("0")) > self.digits or int(value) > (self.most or int(value))
        ):
            raise InvalidValue(f"{said} is too large for a {self.noun}", self.at_most)
        if not re.fullmatch(rf"[0-9]{{1,{self.digits}}}", value, re.ASCII):
            bounds = ", 0 or more" if self.most is None else f" from 0 to {self.most}"
            what = f"{value:.40} is too large for a" if is_endless(value) else f"{value!r} is no"
            raise InvalidValue(f"{what} {self.noun}", f"Give {unit}a whole number{bounds}")
        if 0 < int(value) < self.step:
            raise InvalidValue(
                f"a {self.noun} of {said} would be none: the kernel rounds down to {self.whole}",
                f"Give {self.step} or more, or 0 to switch it off",
            )
        return str(int(value))

    @property
    def at_most(self) -> str:
        """The advice on what to give, as prose, where there is a largest number."""
        if self.most is None:
            return "Give a smaller one"
        size = f" ({spell_size(self.most << 10)})" if self.unit == "KiB" else ""
        return f"Give {self.most} {self.unit}{size} at most"

    @property
    def whole(self) -> str:
        """What the kernel keeps multiples of, as prose."""
        return f"whole pages of {self.step} {self.unit}"

    def check(self, instance: str, value: str) -> None:
        bounds = self.ranges.get(instance)
        if bounds and not bounds.least <= int(value) <= bounds.most:
            what = f"{instance} is a whole number from {bounds.least} to {bounds.most}, not {value}"
            raise InvalidValue(what, "Choose one in that range")

    def offered(self, reading: Reading, loads: Collection[str]) -> list[str]:  # noqa: ARG002
        bounds = self.ranges.get(reading.target.instance)
        least, most = (bounds.least, bounds.most) if bounds else (0, self.most)
        return [] if reading.value is None or most is None else [f"{least}..{most}"]

    def prose(self, instance: str) -> str:
        return f"{self.ranges[instance].least} to {self.ranges[instance].most}"

    def default(self, instance: str) -> str:
        return str(self.ranges[instance].default)

    def reading(self, target: Target, text: str, listed: Sequence[str], figures: Mapping[str, int]) -> Reading:  # noqa: ARG002
        return Reading(target, text, figures=figures)

    def is_in_place(self, value: str, reading: Reading) -> bool:
        return reading.value in (value, self.held(value))

    def held(self, value: str) -> str:
        return str(int(value) - int(value) % self.step)

    def remark(self, value: str, reading: Reading) -> str:
        return "" if reading.value == value else f"the kernel keeps {self.whole}"


def nothing(*_: object) -> None:
    """Return None: there is no such rule."""


def no_figures(_kernel: KernelView, _target: Target, _text: str) -> Mapping[str, int]:
    return {}


@dataclass(eq=False)
class Knob(Tunable):
    """A row: one file a target, compared as text."""

    name: str
    summary: str
    scope: Scope
    value: Value
    action: Action = "set"
    sizes: Sizes = ""
    # What a write means that the kernel refused with this errno; None: what it means everywhere.
    refusals: Mapping[int, Callable[[Reading, str], Verdict | None]] = field(default_factory=dict)
    # Why a value is not even tried on a target; None: it is.
    forbidden: Callable[[DesiredState, Reading], Verdict | None] = nothing
    # What it means that a target holds another value, after the writes; None: that a write was ignored.
    otherwise: Callable[[DesiredState, Reading], Verdict | None] = nothing
    # What else a rule goes by, from the file's text or from other files.
    figures: Callable[[KernelView, Target, str], Mapping[str, int]] = no_figures
    # It returns the readings that the kernel will have when the tunables before it read so; None: the same as now.
    moved: Callable[[Mapping[Target, Reading], Mapping[Target, Reading]], Mapping[Target, Reading] | None] = nothing
    transient: frozenset[int] = frozenset()
    moved_by: str = ""
    # Instances that are only compared with the desired value: nothing can be chosen for them.
    compared: frozenset[str] = frozenset()

    @property
    def lane(self) -> Lane:
        return self.scope.lane

    @property
    def kind(self) -> Kind:
        return self.scope.kind

    @property
    def files(self) -> tuple[str, ...]:
        return self.scope.files

    @property
    def import_patterns(self) -> tuple[str, ...]:
        return (self.scope.import_patterns,)

    @property
    def names(self) -> Mapping[str, str]:
        return {name: self.value.prose(name) for name in self.scope.names}

    @property
    def parallel(self) -> bool:
        return self.scope.parallel

    def path(self, target: Target) -> str:
        """Return the file of a target."""
        return self.scope.path(target.instance)

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        return self.scope.targets(self.name, kernel)

    def missing(self, kernel: KernelView) -> str:
        return self.scope.missing(kernel)

    def normal(self, instances: str) -> str:
        return self.scope.normal(instances)

    def normal_value(self, value: str, typed: str = "") -> str:
        return self.value.normal(value, typed)

    @property
    def modules(self) -> Mapping[str, Module]:
        return self.value.modules if isinstance(self.value, Word) else {}

    def choices(self, reading: Reading, loads: Collection[str] = ()) -> list[str]:
        return [] if reading.target.instance in self.compared else self.value.offered(reading, loads)

    def check(self, instances: str, value: str) -> None:
        self.value.check(instances, value)

    def restorable(self, value: str) -> bool:
        return self.value.restorable(value)

    def validate(self, reading: Reading, value: str) -> None:
        self.value.validate(reading, value, self.scope.called(reading.target))

    def speed(self, value: str) -> int:
        return self.value.speed(value)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        return self.read_all(kernel, [target])[target]

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        """Return the readings of many: one driver serves all policies, so all of them offer what one does."""
        listed = self.value.listed_in
        choices = first(kernel, (target.instance for target in targets), listed).split() if listed else ()
        return {target: self._read(kernel, target, choices) for target in targets}

    def _read(self, kernel: KernelView, target: Target, choices: Sequence[str]) -> Reading:
        try:
            text = kernel.read(self.path(target))
        except KernelError as error:
            if error.errno != errno.EINVAL or not self.value.nameless:
                return self.scope.unreadable(target, error)
            text = self.value.nameless
        return self.value.reading(target, text, choices, self.figures(kernel, target, text))

    def plan(
        self,
        readings: Mapping[Target, Reading],
        desired_states: Mapping[Target, DesiredState],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [self._step(desired, readings[target]) for target, desired in desired_states.items()]

    def _step(self, desired: DesiredState, before: Reading) -> Step:
        """Plan no write where the value is in place, or where a rule knows what would come of it."""
        if before.value is None:
            return Step(desired, before, verdict=unreadable(before))
        if self.value.is_in_place(desired.value, before):
            return Step(desired, before)
        if verdict := self.forbidden(desired, before):
            return Step(desired, before, verdict=verdict)
        return Step(desired, before, (Write(self.path(desired.target), desired.value),))

    def beside(
        self, readings: Mapping[Target, Reading], expected: Mapping[Target, Reading]
    ) -> Mapping[Target, Reading]:
        moved = self.moved(readings, expected)
        return readings if moved is None else moved

    def expected(self, steps: Sequence[Step], readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
        held = {
            step.desired.target: replace(step.before, value=self.value.held(step.desired.value), restore="")
            for step in steps
            if step.writes
        }
        return {**readings, **held}

    def assess(self, desired: DesiredState, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if self.value.is_in_place(desired.value, reading):
            also = self.scope.also_set(desired.winner.instances, desired.target)
            return Verdict(State.SATISFIED, Reason.OK, also or self.value.remark(desired.value, reading))
        return self.otherwise(desired, reading) or unlike(reading)

    def explain_errno(self, reading: Reading, value: str, code: int) -> Verdict:
        refusal = self.refusals.get(code, nothing)
        return refusal(reading, value) or super().explain_errno(reading, value, code)


def bracketed(text: str) -> tuple[str, tuple[str, ...]]:
    """Return what is chosen and what there is in a file such as `none [mq-deadline] bfq`.

    Without brackets the first word is what is chosen; `none` and `[none]` are not the same to `io-scheduler`.
    """
    words = text.split()
    chosen = next((word for word in words if word.startswith("[")), words[0] if words else "")
    return chosen.strip("[]"), tuple(word.strip("[]") for word in words)


def offers(name: str, reading: Reading, value: str) -> str:
    """Return what a target has instead of a value, as prose."""
    return f"{name} offers {', '.join(reading.choices)}, not {value}"


def not_offered(reading: Reading, value: str, why: str = "") -> Verdict:
    """Return the verdict on a target that does not have the value."""
    said = offers(reading.target.instance, reading, value)
    return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, f"{said}, {why}" if why else said)


def no_module(reading: Reading, value: str) -> Verdict:
    return not_offered(reading, value, "and the kernel has no module for it")


def cpus_offline(reading: Reading, _value: str) -> Verdict:
    return Verdict(State.UNSUPPORTED, Reason.CPU_OFFLINE, offline(reading.target))
