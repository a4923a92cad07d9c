"""What all tunables share: one table has the values of each, another the files; a test goes through all rows.

Values: normal form, refusals, what may be put back. Files: set, read back, withdrawn; refused, ignored, late, gone.
A sysctl, or another name of a list, that is added to a row of knobs.py is tested here by that. At the end is what
is peculiar to thp and sysctl, whose files are those of a list.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, KerntuneError, NoSuchName, NoSuchTarget, NotSupported
from kerntune.kernel.files import HostKernel, KernelError, KernelView
from kerntune.kernel.simulated import NAMELESS, Policy, SimulatedKernel
from kerntune.model import Lane, Origin, Reading, Reason, State, Target
from kerntune.patterns import Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable
from kerntune.tunables.knob import Knob
from kerntune.tunables.knobs import CPU_EPP, CPU_GOVERNOR, IO_SCHEDULER, KNOBS, READ_AHEAD, REPORTED, SYSCTL, THP
from tests.hosts import NAMES, lay_out, plant
from tests.hosts.simulated import OWN_PREFERENCE, cpu_host, strip
from tests.unit.lab import THP as THP_FOLDER
from tests.unit.lab import Lab, claim, large_host, running, small_host, told

TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
LOANS = TUNABLES["hugepages-overcommit"]
HUGE_PAGES = "sys/kernel/mm/hugepages/hugepages-2048kB"
CPUFREQ = "sys/devices/system/cpu/cpufreq"


# The values of each


@dataclass(frozen=True, slots=True)
class Values:
    """Values in normal form, and as they may be given; texts that are none; what only a host may have by itself.

    `unrestorable` are values that no baseline has.
    """

    normal: tuple[str, ...]
    none: tuple[str, ...]
    given: tuple[tuple[str, str], ...] = ()
    own: tuple[str, ...] = ()
    unrestorable: tuple[str, ...] = ()


NO_COUNTS = ("", "-1", "1.5", "64G", "0x10", "1 ", "1\n", "1e3", "9" * 21, "two words", "\u0663")
# No value of any knob of one file; Arabic digits are not the kernel's.
NOTHING = ("", "-1", "1.5", "two words", "../x", "10\n", "x" * 33, "[none]", "\u0663")
VALUES = {
    "hugepages": Values(("0", "128", "9" * 20), NO_COUNTS, (("0128", "128"),), unrestorable=NO_COUNTS),
    "hugepages-overcommit": Values(("0", "128"), NO_COUNTS, (("0128", "128"),), unrestorable=NO_COUNTS),
    "overcommit": Values(
        ("heuristic", "always:95", "always:1", "never:80", "never:100"),
        ("never", "never:0", "never:101", "never:", "never:-5", "never:50.5", "never:80 ", "never:80\n", "never:80:80",
         "never:80k", "always:0", "always:100", "always:101", "always:5k", "heuristic:5", "heuristic:", "Never:80",
         "3", "2", "0:5", "1:100", "2:0", "00", "\u0661", ""),
        (("always", "always:95"), ("never:080", "never:80"), ("0", "heuristic"), ("1", "always:95"),
         ("1:90", "always:90"), ("2:80", "never:80")),
        # A baseline may say more than a caller: 4 TiB, for one, and the largest number that the kernel takes.
        own=("never:150", "always:150", "heuristic:150", "heuristic:50", "heuristic:0", "always:0", "never:0",
             "heuristic:-5", "never:4294967296k", "always:18446744073709551615k", "always:2147483647", "never"),
        unrestorable=("", "sometimes:5", "never:x", "never:-1k", "never:--1", "never:", "5"),
    ),
    "thp": Values(
        ("always", "madvise", "never", "defer", "defer+madvise"),
        ("Always", "always\n", "always never", "1", *NOTHING),
        unrestorable=NOTHING,
    ),
    "sysctl": Values(("0", "10"), ("0x1", "ten", "9" * 11, *NOTHING), (("010", "10"),), unrestorable=NOTHING),
    "cpu-governor": Values(
        ("performance", "schedutil", "my_governor-2"),
        ("Performance", "performance\n", "-x", *NOTHING),
        unrestorable=NOTHING,
    ),
    "cpu-epp": Values(
        ("power", OWN_PREFERENCE),
        ("default", "unknown", "Power", "power\n", "128", *NOTHING),
        own=("96", "default"),
        unrestorable=("unknown", *NOTHING),
    ),
    "io-scheduler": Values(
        ("none", "mq-deadline", "bfq", "kyber", "adios", "my_own-2"),
        ("None", "none\n", "-none", *NOTHING),
        unrestorable=NOTHING,
    ),
    "read-ahead": Values(
        ("0", "128", "65536"),
        ("4M", "0x10", "65537", "9" * 30, "many", *NOTHING),
        (("004096", "4096"),),
        own=("1048576", "1"),
        unrestorable=("much", *NOTHING),
    ),
}  # fmt: skip


def test_every_tunable_has_values() -> None:
    assert VALUES.keys() == TUNABLES.keys()


@pytest.mark.parametrize(
    ("name", "given", "normal"),
    [
        (name, given, normal)
        for name, values in VALUES.items()
        for given, normal in (*values.given, *zip(values.normal, values.normal, strict=True))
    ],
)
def test_a_value_in_normal_form(name: str, given: str, normal: str) -> None:
    assert TUNABLES[name].normal_value(given) == normal
    assert TUNABLES[name].restorable(normal)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, values in VALUES.items() for text in values.none])
def test_what_is_no_value(name: str, text: str) -> None:
    with pytest.raises(InvalidValue):
        TUNABLES[name].normal_value(text)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, values in VALUES.items() for text in values.own])
def test_what_a_host_had_by_itself_can_be_put_back(name: str, text: str) -> None:
    assert TUNABLES[name].restorable(text)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, values in VALUES.items() for text in values.unrestorable]
)
def test_a_baseline_that_is_none(name: str, text: str) -> None:
    assert not TUNABLES[name].restorable(text)


def test_no_kernel_takes_what_is_beyond_the_range_or_not_on_the_list() -> None:
    for knob in KNOBS:
        for name, taken in knob.names.items():
            beyond = "defer+always" if knob.value.choices(name) else str(int(taken.rpartition(" ")[2]) + 1)
            assert knob.normal_value(beyond) == beyond
            with pytest.raises(InvalidValue, match=f"{name} is "):
                knob.check(name, beyond)


@pytest.mark.parametrize(
    ("knob", "instance", "offered", "tried", "said"),
    [
        (THP, "enabled", "always madvise never", "never", "thp@enabled offers always, madvise, never, not adios"),
        # What is not listed, but comes in a module.
        (CPU_GOVERNOR, "policy4", "performance schedutil", "powersave ondemand conservative userspace schedutil",
         "policy4 offers performance, schedutil, not adios"),
        (CPU_EPP, "policy0", "performance power", "power", "policy0 offers performance, power, not adios"),
        (IO_SCHEDULER, "nvme0n1", "none mq-deadline", "none mq-deadline bfq kyber",
         "nvme0n1 offers none, mq-deadline, not adios"),
    ],
    ids=["thp", "cpu-governor", "cpu-epp", "io-scheduler"],
)  # fmt: skip
def test_a_word_is_tried_where_it_is_offered_or_could_be_loaded(
    knob: Knob, instance: str, offered: str, tried: str, said: str
) -> None:
    target, choices = Target(knob.name, instance), tuple(offered.split())
    reading = Reading(target, choices[0], choices=choices)
    for value in tried.split():
        knob.validate(reading, value)
    with pytest.raises(InvalidValue, match=said):
        knob.validate(reading, "adios")
    # Nothing is known of one that cannot be read now.
    knob.validate(Reading(target, None, reason=Reason.CPU_OFFLINE), "adios")


# The files of each


@dataclass(frozen=True, slots=True)
class Case:
    """One file: what it holds on `host()`, and another value that it takes."""

    tunable: Tunable
    instance: str
    own: str
    value: str
    path: str

    def __str__(self) -> str:
        return f"{self.tunable.name}@{self.instance}"

    @property
    def target(self) -> Target:
        return Target(self.tunable.name, self.instance)

    def held(self, kernel: KernelView) -> str | None:
        """Return what the kernel holds."""
        return self.tunable.read(kernel, self.target).value


def host() -> SimulatedKernel:
    kernel = large_host()
    kernel.policies = cpu_host().policies
    return kernel


def of_knob(knob: Knob, instance: str, own: str, value: str) -> Case:
    return Case(knob, instance, own, value, knob.scope.path(instance))


def listed() -> Iterator[Case]:
    """Yield a case for each name of a list that can be written, from its row."""
    for knob in KNOBS:
        for name in knob.names:
            if name not in REPORTED:
                own = knob.value.default(name)
                words = knob.value.choices(name) or knob.names[name].split(" to ")
                yield of_knob(knob, name, own, next(word for word in words if word != own))


CASES = (
    *listed(),
    of_knob(CPU_GOVERNOR, "policy0", "powersave", "schedutil"),
    of_knob(CPU_EPP, "policy0", OWN_PREFERENCE, "power"),
    of_knob(IO_SCHEDULER, "sda", "mq-deadline", "bfq"),
    of_knob(READ_AHEAD, "sda", "128", "4096"),
    Case(LOANS, "2M", "0", "128", f"{HUGE_PAGES}/nr_overcommit_hugepages"),
)
# What is said where the kernel refuses a value with EINVAL.
NOT_TAKEN: dict[str, tuple[type[KerntuneError], str]] = {
    "thp": (InvalidValue, "offers .*, not"),
    "sysctl": (InvalidValue, "this kernel takes no"),
    "cpu-governor": (InvalidValue, "offers .*, and the kernel has no module for it"),
    "cpu-epp": (InvalidValue, "offers .*, not power"),
    "io-scheduler": (InvalidValue, "offers .*, and the kernel has no module for it"),
    "read-ahead": (InvalidValue, "takes no read-ahead of 4096 KiB and keeps 128"),
    "hugepages-overcommit": (NotSupported, "this kernel borrows no pages of 2M"),
}
each_case = pytest.mark.parametrize("case", CASES, ids=str)


async def put(lab: Lab, case: Case) -> tuple[str, str, State, Reason]:
    return told(await lab.one(case.tunable.name, case.instance, case.value))


def test_every_knob_has_a_case() -> None:
    assert {case.tunable for case in CASES} == {*KNOBS, LOANS}


@each_case
async def test_a_set_is_read_back_and_leaves_with_unset(case: Case) -> None:
    async with running(host()) as lab:
        assert case.held(lab.kernel) == case.own
        assert await put(lab, case) == (case.instance, case.value, State.SATISFIED, Reason.OK)
        assert lab.writes() == [(case.path, case.value)]
        assert case.held(lab.kernel) == case.value
        await lab.unset((case.tunable.name, case.instance))
        assert lab.writes() == [(case.path, case.own)]
        assert case.held(lab.kernel) == case.own
        assert not lab.store.baselines


@each_case
async def test_what_is_in_place_is_not_written(case: Case) -> None:
    async with running(host()) as lab:
        await lab.set((case.tunable.name, case.instance, case.own))
        await lab.engine.reconcile("again")
        assert lab.writes() == []
        assert (await lab.set((case.tunable.name, case.instance, case.own))).changed is False


@each_case
async def test_a_claim_of_the_configuration_is_in_force_after_boot(case: Case) -> None:
    async with running(host(), claims=[claim(Origin.CONFIG, case.tunable.name, case.instance, case.value)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.observed.outcomes.values()
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
        (errno.EINVAL, None, ""),
        (errno.EROFS, KernelRejected, r"read-only here: Read-only file system \(EROFS\)"),
        (errno.EACCES, KernelRejected, "In a container, run kerntuned on the host itself"),
        (errno.EIO, KernelRejected, r"the kernel refused .* \(EIO\)"),
        (errno.ENODEV, NoSuchTarget, "went away while it was set"),
    ],
    ids=lambda one: errno.errorcode[one] if isinstance(one, int) else "",
)
async def test_a_refusal_is_told_and_leaves_no_claim(
    case: Case, code: int, error: type[KerntuneError] | None, said: str
) -> None:
    error, said = (error, said) if error else NOT_TAKEN[case.tunable.name]
    async with running(host()) as lab:
        lab.kernel.refuse[case.path] = code
        with pytest.raises(error, match=said):
            await put(lab, case)
        assert lab.claims == []
        assert case.held(lab.kernel) == case.own


@each_case
async def test_a_host_without_it_does_not_support_it_and_keeps_no_claim(case: Case) -> None:
    kernel = host()
    strip(kernel)
    assert case.tunable.targets(kernel) == []
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match=f"this host has no {case.tunable.summary}"):
            await put(lab, case)
        assert lab.claims == []


@each_case
def test_one_that_is_gone_is_a_reading_with_a_reason(case: Case) -> None:
    kernel = host()
    assert case.tunable.missing(kernel) == ""
    strip(kernel)
    reading = case.tunable.read(kernel, case.target)
    reasons = {Kind.NAMES: Reason.NO_KERNEL_SUPPORT, Kind.POOLS: Reason.NO_SUCH_TARGET}
    assert (reading.value, reading.reason) == (None, reasons.get(case.tunable.kind, Reason.DEVICE_GONE))
    assert ("cannot be read: No such file" in reading.detail) == (case.tunable is not LOANS)


@pytest.mark.parametrize("name", sorted(REPORTED))
def test_what_is_only_compared_cannot_be_written(name: str) -> None:
    """Such a sysctl takes a capability, and the service has none."""
    with pytest.raises(KernelError) as raised:
        host().write(SYSCTL.scope.path(name), "0")
    assert raised.value.errno == errno.EPERM


@pytest.mark.parametrize("tunable", REGISTRY, ids=lambda one: one.name)
def test_its_lane_is_that_of_its_kind(tunable: Tunable) -> None:
    lanes = {Kind.CPUS: Lane.CPU, Kind.DRIVES: Lane.BLOCK}
    assert tunable.lane is lanes.get(tunable.kind, Lane.MEMORY)


# The targets of each


def held(tunable: Tunable, kernel: KernelView) -> dict[str, str | None]:
    """Return what each target holds."""
    readings = tunable.read_all(kernel, tunable.targets(kernel))
    return {target.instance: reading.value for target, reading in readings.items()}


@pytest.mark.parametrize(
    ("name", "pattern", "value", "covered"),
    [
        ("thp", "defrag", "defer+madvise", "defrag"),
        ("sysctl", "vm/swappiness", "10", "vm.swappiness"),
        ("cpu-governor", "*", "schedutil", "policy0 policy2"),
        ("cpu-governor", "3", "schedutil", "policy2"),
        ("cpu-epp", "*", "power", "policy0 policy2"),
        ("cpu-epp", "policy2", "power", "policy2"),
        ("io-scheduler", "nvme*", "mq-deadline", "nvme0n1 nvme1n1"),
        ("io-scheduler", "by-id/ata-Disk", "bfq", "sda"),
        ("read-ahead", "nvme*", "4096", "nvme0n1 nvme1n1"),
        ("read-ahead", "*", "4096", "nvme0n1 nvme1n1 sda"),
    ],
)
async def test_a_pattern_sets_what_it_covers_and_nothing_else(
    name: str, pattern: str, value: str, covered: str
) -> None:
    knob = TUNABLES[name]
    assert isinstance(knob, Knob)
    async with running(host()) as lab:
        before = held(knob, lab.kernel)
        answer = await lab.set((name, pattern, value))
        assert [told(outcome) for outcome in answer.outcomes] == [
            (each, value, State.SATISFIED, Reason.OK) for each in covered.split()
        ]
        assert sorted(lab.writes()) == [(knob.scope.path(each), value) for each in covered.split()]
        assert (await lab.set((name, pattern, value))).changed is False
        await lab.unset((name, pattern))
        assert held(knob, lab.kernel) == before


@pytest.mark.parametrize(
    ("name", "absent", "value"),
    [
        ("sysctl", "vm.zone_reclaim_mode", "1"),  # a kernel without NUMA
        ("cpu-governor", "policy9", "schedutil"),
        ("cpu-epp", "9", "power"),
        ("io-scheduler", "sdb", "none"),
        ("io-scheduler", "nvme0n1p1", "none"),  # a partition has no queue
        ("read-ahead", "sdb", "2048"),
        ("hugepages", "2M/node7", "1"),
        ("hugepages", "64K", "1"),
        ("hugepages-overcommit", "64K", "7"),
    ],
)
async def test_a_target_that_is_not_there(name: str, absent: str, value: str) -> None:
    kernel = host()
    del kernel.plain[SYSCTL.scope.path("vm.zone_reclaim_mode")]
    async with running(kernel) as lab:
        with pytest.raises(NoSuchTarget, match=rf"(no {name}|{name} has no) .*{absent}\b.*\. There are? "):
            await lab.set((name, absent, value))
        assert (lab.writes(), lab.claims) == ([], [])


BUILT = "proc/sys/kernel/osrelease\t6.1\nboot/config-6.1\tCONFIG_X=y\n"


@pytest.mark.parametrize(
    ("name", "listing", "said"),
    [
        ("hugepages", BUILT, "/sys/kernel/mm/hugepages is missing; /boot/config-6.1 does not set CONFIG_HUGETLBFS: "),
        ("hugepages-overcommit", BUILT, "/boot/config-6.1 does not set CONFIG_HUGETLBFS: "),
        ("overcommit", BUILT, "/proc/sys/vm/overcommit_memory is missing"),
        ("thp", BUILT, "/boot/config-6.1 does not set CONFIG_TRANSPARENT_HUGEPAGE: "),
        ("sysctl", "boot/", "whether the kernel has CONFIG_SYSCTL cannot be read here"),
        ("cpu-governor", "sys/", "has no policy: no frequency driver is loaded"),
        ("cpu-epp", f"{CPUFREQ}/policy0/scaling_driver\tacpi-cpufreq", "the frequency driver acpi-cpufreq has no"),
        ("cpu-epp", f"{CPUFREQ}/policy0/related_cpus\t0", "the frequency driver here has no"),
        ("cpu-epp", "sys/", "as in most virtual machines"),
        ("io-scheduler", f"{BUILT}sys/block/zram0/diskseq\t1",
         "no block device below /sys/block has a queue/scheduler file. "
         "/boot/config-6.1 does not set CONFIG_BLOCK: this kernel was built without it"),
        ("read-ahead", "sys/block/zram0/diskseq\t1", "has a queue/read_ahead_kb file"),
    ],
)  # fmt: skip
def test_a_host_without_it_says_why(tmp_path: Path, name: str, listing: str, said: str) -> None:
    assert said in TUNABLES[name].missing(plant(tmp_path, listing))


# Whatever a host may hold can be saved as its own value, and be put back after a restart of the daemon.


def values(kernel: KernelView) -> dict[str, bool]:
    """Return every value there is, and whether its baseline could be put back."""
    found = {}
    for tunable in REGISTRY:
        for target, reading in tunable.read_all(kernel, tunable.targets(kernel)).items():
            if reading.value is not None:
                found[f"{target}={reading.value}"] = tunable.restorable(reading.restore or reading.value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_all_of_captured_hosts_can_be_put_back(name: str, tmp_path: Path) -> None:
    found = values(lay_out(name, tmp_path))
    assert found
    assert [value for value, restorable in found.items() if not restorable] == []


def odd_host() -> SimulatedKernel:
    """Values that no caller may ask for, and that the kernel takes from others."""
    kernel = large_host()
    kernel.plug("ram0", offered=(), read_ahead=0)
    kernel.plug("sdb", offered=("none",), read_ahead=1 << 22)
    kernel.policies = {
        "policy0": Policy((0,), "userspace", epp="96"),
        "policy1": Policy((1,), "powersave", epp=NAMELESS),
        "policy2": Policy((2,), "performance", epp="power"),
    }
    kernel.overcommit = {"memory": 1, "ratio": 0, "kbytes": 0}
    kernel.plain[SYSCTL.scope.path("vm.zone_reclaim_mode")].value = str((1 << 31) - 1)
    kernel.plain[THP.scope.path("defrag")].value = "defer+madvise"
    return kernel


def test_all_of_a_host_with_odd_values_can_be_put_back() -> None:
    found = values(odd_host())
    for odd in ("sysctl@vm.zone_reclaim_mode=2147483647", "cpu-epp@policy1=unknown", "overcommit=always:0"):
        assert odd in found
    assert [value for value, restorable in found.items() if not restorable] == []


def test_all_of_this_host_can_be_put_back() -> None:
    assert [value for value, restorable in values(HostKernel()).items() if not restorable] == []


# thp and sysctl: which names are on their lists, and where the others are to be had


ZONES = "proc/sys/vm/zone_reclaim_mode"
BALANCING = "kernel.numa_balancing"


@pytest.mark.parametrize("instances", ["", "shmem_enabled", "khugepaged/defrag", "enabled\n", "hugepages-64kB"])
def test_what_names_no_file_of_huge_pages(instances: str) -> None:
    with pytest.raises(NoSuchName, match="There are defrag, enabled"):
        THP.normal(instances)


def test_both_files_of_huge_pages_at_once_are_not_named() -> None:
    with pytest.raises(InvalidValue, match="two files") as refusal:
        THP.normal("*")
    assert not isinstance(refusal.value, NoSuchName)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vm.overcommit_memory", "kerntune set overcommit="),
        ("vm/overcommit_ratio", "kerntune set overcommit="),
        ("vm.nr_hugepages", "kerntune set hugepages="),
        ("vm.nr_overcommit_hugepages", "kerntune set hugepages-overcommit="),
        ("nr_hugepages", "kerntune set hugepages="),
        ("/proc/sys/vm/overcommit_memory", "kerntune set overcommit="),
        ("vm.swapiness", "Did you mean vm.swappiness? There are"),
        (
            "vm.dirty_ratio",
            "There are kernel.numa_balancing, vm.swappiness, vm.watermark_scale_factor, vm.zone_reclaim_mode",
        ),
        ("vm.min_free_kbytes", "There are"),
        ("kernel.core_pattern", "There are"),
        ("*", "There are"),
        ("vm.*", "There are"),
        ("", "There are"),
        ("../swappiness", "There are"),
    ],
)
def test_a_sysctl_that_is_not_on_the_list_is_told_where_to_go(name: str, said: str) -> None:
    with pytest.raises(InvalidValue) as raised:  # as every reader of names expects
        SYSCTL.normal(name)
    assert said in (raised.value.hint or "")
    assert (raised.value.dbus_name, raised.value.exit_code) == (NoSuchTarget.dbus_name, NoSuchTarget.exit_code)


@pytest.mark.parametrize("name", ["*", "vm.*", "/proc/sys/vm/sw?ppiness"])
def test_a_pattern_of_sysctls_is_called_a_pattern(name: str) -> None:
    with pytest.raises(NoSuchName, match="is a pattern, and of sysctl each is named by itself"):
        SYSCTL.normal(name)


# thp and sysctl: the values of each name


def test_what_a_file_of_words_says(tmp_path: Path) -> None:
    kernel = plant(tmp_path, f"{THP_FOLDER}/defrag\talways defer defer+madvise [madvise] never")
    assert THP.targets(kernel) == [Target("thp", "defrag")]
    reading = THP.read(kernel, Target("thp", "defrag"))
    assert (reading.value, reading.choices) == ("madvise", ("always", "defer", "defer+madvise", "madvise", "never"))


def test_a_word_of_the_other_file_is_none() -> None:
    THP.check("defrag", "defer")
    with pytest.raises(InvalidValue, match="enabled is one of always, madvise, never, not defer"):
        THP.check("enabled", "defer")


async def test_a_configured_word_that_only_later_kernels_have_is_not_written() -> None:
    kernel = small_host()
    kernel.plain[f"{THP_FOLDER}/defrag"].words = ("always", "defer", "madvise", "never")  # Linux 4.10
    async with running(kernel, claims=[claim(Origin.CONFIG, "thp", "defrag", "defer+madvise")]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == ("defrag", "madvise", State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("vm.swappiness", 0, 200), ("vm.zone_reclaim_mode", 0, 7), ("vm.watermark_scale_factor", 1, 3000),
     (BALANCING, 0, 3)],
)  # fmt: skip
async def test_a_number_out_of_range_is_refused_before_any_write_and_no_claim(name: str, least: int, most: int) -> None:
    SYSCTL.check(name, str(least))
    SYSCTL.check(name, str(most))
    saved = [claim(Origin.PERSISTENT, "sysctl", name, most), claim(Origin.RUNTIME, "sysctl", name, most + 1)]
    async with running(small_host(), claims=saved) as lab:
        assert [str(unsound.value) for unsound in lab.engine.edits.unsound] == [str(most + 1)]
        for beyond in {max(0, least - 1), most + 1} - {least}:
            with pytest.raises(InvalidValue, match=f"{name} is a whole number from {least} to {most}, not {beyond}"):
                await lab.set(("sysctl", name, beyond))
        assert lab.writes() == []


async def test_a_number_that_only_the_host_itself_had_is_put_back() -> None:
    kernel = small_host()
    kernel.plain[ZONES].value = "8"
    async with running(kernel) as lab:
        await lab.set(("sysctl", "vm.zone_reclaim_mode", 0))
        await lab.unset(("sysctl", "vm.zone_reclaim_mode"))
        assert kernel.plain[ZONES].value == "8"


# A sysctl that is only compared


async def test_what_cannot_be_written_is_told_where_it_is_set_and_not_tried() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(KernelRejected, match=r"= 0 in /etc/sysctl\.d sets it at boot"):
            await lab.set(("sysctl", BALANCING, 0))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_what_cannot_be_written_may_be_as_it_is_claimed() -> None:
    kernel = small_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "sysctl", BALANCING, 0)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == (BALANCING, "1", State.UNSUPPORTED, Reason.READ_ONLY)
        kernel.plain["proc/sys/kernel/numa_balancing"].value = "0"  # by systemd-sysctl, or by hand
        await lab.engine.reconcile("drift")
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == (BALANCING, "0", State.SATISFIED, Reason.OK)
        assert (await lab.one("sysctl", BALANCING, 0)).state is State.SATISFIED
        await lab.unset(("sysctl", BALANCING))
        assert lab.writes() == []
