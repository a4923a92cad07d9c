"""What all knobs of one file share, whatever the row: set, read back, withdrawn; refused, ignored, late, gone.

A sysctl, or another name of a list, that is added to a row is tested here by that. Quirks have files of their own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kerntune.errors import InvalidValue, KernelRejected, KerntuneError, NoSuchTarget, NotSupported
from kerntune.kernel.files import WRITABLE_PATH, KernelError, KernelView
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Lane, Origin, Reason, State, Target
from kerntune.patterns import Kind
from kerntune.tunables.base import Tunable
from kerntune.tunables.knob import Knob
from kerntune.tunables.knobs import CPU_EPP, CPU_GOVERNOR, IO_SCHEDULER, KNOBS, READ_AHEAD, REPORTED
from tests.unit.lab import Lab, claim, large_host, running, told

# What is said where the kernel refuses a value with EINVAL.
NOT_TAKEN = {
    "thp": "offers .*, not",
    "sysctl": "this kernel takes no",
    "cpu-governor": "offers .*, and the kernel has no module for it",
    "cpu-epp": "offers .*, not power",
    "io-scheduler": "offers .*, and the kernel has no module for it",
    "read-ahead": "takes no read-ahead of 4096 KiB and keeps 128",
}
# No value of any knob; Arabic digits are not the kernel's.
NO_VALUES = ("", "-1", "1.5", "two words", "../x", "10\n", "x" * 33, "[none]", "\u0663")


@dataclass(frozen=True, slots=True)
class Case:
    """One file: what it holds on `host()`, and another value that it takes."""

    knob: Knob
    instance: str
    own: str
    value: str

    def __str__(self) -> str:
        return f"{self.knob.name}@{self.instance}"

    @property
    def path(self) -> str:
        return self.knob.scope.path(self.instance)

    def held(self, kernel: KernelView) -> str | None:
        """Return what the kernel holds."""
        return self.knob.read(kernel, Target(self.knob.name, self.instance)).value


def host() -> SimulatedKernel:
    kernel = large_host()
    for first in (0, 2):
        kernel.policies[f"policy{first}"] = Policy((first, first + 1), "powersave", epp="balance_performance")
    return kernel


def listed() -> Iterator[Case]:
    """Yield a case for each name of a list that can be written, from its row."""
    for knob in KNOBS:
        for name in knob.names:
            if name not in REPORTED:
                own = knob.value.default(name)
                words = knob.value.choices(name) or knob.names[name].split(" to ")
                yield Case(knob, name, own, next(word for word in words if word != own))


CASES = (
    *listed(),
    Case(CPU_GOVERNOR, "policy0", "powersave", "schedutil"),
    Case(CPU_EPP, "policy0", "balance_performance", "power"),
    Case(IO_SCHEDULER, "sda", "mq-deadline", "bfq"),
    Case(READ_AHEAD, "sda", "128", "4096"),
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_knob = pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)


async def put(lab: Lab, case: Case) -> tuple[str, str, State, Reason]:
    return told(await lab.one(case.knob.name, case.instance, case.value))


def test_every_knob_has_a_case() -> None:
    assert {case.knob.name for case in CASES} == {knob.name for knob in KNOBS} == NOT_TAKEN.keys()


@each_case
async def test_a_set_is_read_back_and_leaves_with_unset(case: Case) -> None:
    async with running(host()) as lab:
        assert case.held(lab.kernel) == case.own
        assert await put(lab, case) == (case.instance, case.value, State.SATISFIED, Reason.OK)
        assert lab.writes() == [(case.path, case.value)]
        assert case.held(lab.kernel) == case.value
        await lab.unset((case.knob.name, case.instance))
        assert lab.writes() == [(case.path, case.own)]
        assert case.held(lab.kernel) == case.own
        assert not lab.store.baselines


@each_case
async def test_what_is_in_place_is_not_written(case: Case) -> None:
    async with running(host()) as lab:
        await lab.set((case.knob.name, case.instance, case.own))
        await lab.engine.reconcile("again")
        assert lab.writes() == []
        assert (await lab.set((case.knob.name, case.instance, case.own))).changed is False


@each_case
async def test_a_claim_of_the_configuration_is_in_force_after_boot(case: Case) -> None:
    async with running(host(), claims=[claim(Origin.CONFIG, case.knob.name, case.instance, case.value)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.outcomes.values()
        assert told(outcome) == (case.instance, case.value, State.SATISFIED, Reason.OK)


@each_case
async def test_what_others_change_is_put_back(case: Case) -> None:
    async with running(host()) as lab:
        await put(lab, case)
        lab.kernel.write(case.path, case.own)
        await lab.engine.reconcile("drift")
        assert case.held(lab.kernel) == case.value


@each_case
async def test_a_kernel_that_ignores_it_is_told_of(case: Case) -> None:
    async with running(host()) as lab:
        lab.kernel.ignore.add(case.path)
        with pytest.raises(KernelRejected, match=f"still reads {case.own}"):
            await put(lab, case)
        assert lab.claims == []


@each_case
async def test_a_kernel_that_obeys_late_is_believed(case: Case) -> None:
    async with running(host()) as lab:
        lab.kernel.late[case.path] = 1
        assert await put(lab, case) == (case.instance, case.value, State.SATISFIED, Reason.OK)


@each_case
@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (errno.EINVAL, InvalidValue, ""),
        (errno.EROFS, KernelRejected, r"read-only here: Read-only file system \(EROFS\)"),
        (errno.EACCES, KernelRejected, "in a container the host must set it"),
        (errno.EIO, KernelRejected, r"the kernel refused .* \(EIO\)"),
        (errno.ENODEV, NoSuchTarget, "went away while it was set"),
    ],
    ids=lambda one: errno.errorcode[one] if isinstance(one, int) else "",
)
async def test_a_refusal_is_told_and_leaves_no_claim(
    case: Case, code: int, error: type[KerntuneError], said: str
) -> None:
    async with running(host()) as lab:
        lab.kernel.refuse[case.path] = code
        with pytest.raises(error, match=said or NOT_TAKEN[case.knob.name]):
            await put(lab, case)
        assert lab.claims == []
        assert case.held(lab.kernel) == case.own


@each_case
async def test_a_host_without_it_says_so_and_keeps_no_claim(case: Case) -> None:
    kernel = host()
    kernel.plain, kernel.policies, kernel.disks = {}, {}, {}
    assert case.knob.targets(kernel) == []
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match=f"this host has no {case.knob.summary}"):
            await put(lab, case)
        assert lab.claims == []


@each_case
def test_one_that_is_gone_is_a_reading_with_a_reason(case: Case) -> None:
    kernel = host()
    kernel.plain, kernel.policies, kernel.disks = {}, {}, {}
    reading = case.knob.read(kernel, Target(case.knob.name, case.instance))
    reason = Reason.NO_KERNEL_SUPPORT if case.knob.kind is Kind.NAMES else Reason.DEVICE_GONE
    assert (reading.value, reading.reason) == (None, reason)
    assert "cannot be read: No such file or directory" in reading.detail


@each_case
def test_its_own_value_and_any_that_it_takes_can_be_put_back(case: Case) -> None:
    assert case.knob.normal_value(case.value) == case.value
    assert case.knob.restorable(case.own)
    assert case.knob.restorable(case.value)
    case.knob.check(case.instance, case.value)
    assert case.knob.missing(host()) == ""


@each_case
def test_the_service_may_write_it(case: Case) -> None:
    assert WRITABLE_PATH.fullmatch(case.path), "WRITABLE in src/kerntune/kernel/files.py"


@pytest.mark.parametrize("name", sorted(REPORTED))
def test_what_is_only_compared_cannot_be_written(name: str) -> None:
    """Such a sysctl takes a capability, and the service has none."""
    with pytest.raises(KernelError) as raised:
        host().write(f"proc/sys/{name.replace('.', '/')}", "0")
    assert raised.value.errno == errno.EPERM


@each_knob
@pytest.mark.parametrize("value", NO_VALUES)
def test_what_is_no_value(knob: Tunable, value: str) -> None:
    with pytest.raises(InvalidValue):
        knob.normal_value(value)
    assert not knob.restorable(value)


@each_knob
def test_its_lane_is_that_of_its_kind(knob: Tunable) -> None:
    lanes = {Kind.NAMES: Lane.MEMORY, Kind.CPUS: Lane.CPU, Kind.DRIVES: Lane.BLOCK}
    assert knob.lane is lanes[knob.kind]


def test_no_kernel_takes_what_is_beyond_the_range_or_not_on_the_list() -> None:
    for knob in KNOBS:
        for name, taken in knob.names.items():
            beyond = "defer+always" if knob.value.choices(name) else str(int(taken.rpartition(" ")[2]) + 1)
            assert knob.normal_value(beyond) == beyond
            with pytest.raises(InvalidValue, match=f"{name} is "):
                knob.check(name, beyond)
