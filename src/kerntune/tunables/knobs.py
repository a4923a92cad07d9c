"""Owns the knobs that have one file a target: a row for each.

What a quirk of the kernel needs beside its row stands above it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kerntune.errors import InvalidValue
from kerntune.kernel.cpufreq import why_no_cpufreq
from kerntune.kernel.files import KernelView, read_or_none
from kerntune.kernel.modules import Module
from kerntune.model import DesiredState, Reading, Reason, State, Target, Verdict
from kerntune.tunables.knob import Knob, Number, Range, Word, cpus_offline, no_module, not_offered, offers
from kerntune.tunables.scopes import POLICIES, Drives, Names, Policies, first

# thp: when the kernel uses transparent huge pages, and how hard it tries (Documentation/admin-guide/mm/transhuge.rst).


def no_such_word(reading: Reading, value: str) -> Verdict | None:
    if reading.value is None:
        return None
    return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, offers(str(reading.target), reading, value))


def not_among_words(desired: DesiredState, before: Reading) -> Verdict | None:
    """Return the verdict on a word that the file does not have, as defer+madvise before Linux 4.11."""
    return None if desired.value in before.choices else no_such_word(before, desired.value)


THP = Knob(
    "thp",
    "transparent huge pages",
    Names(
        "sys/kernel/mm/transparent_hugepage",
        ("enabled", "defrag"),
        option="TRANSPARENT_HUGEPAGE",
        tunable="thp",
        not_together="thp has two files, and their values differ in what they cost",
        hint="Give enabled (who gets huge pages) or defrag (who waits for them)",
    ),
    Word(
        shape=re.compile(r"[a-z][a-z+_]{0,31}"),
        wrong="is no word of transparent huge pages",
        examples="always, madvise, never",
        words={
            "enabled": ("always", "madvise", "never"),
            "defrag": ("always", "defer", "defer+madvise", "madvise", "never"),
        },
        defaults={"enabled": "always", "defrag": "madvise"},
    ),
    action="set-memory",
    refusals={errno.EINVAL: no_such_word},
    forbidden=not_among_words,
)


# sysctl: the few that are known to matter to hosts of large models (Documentation/admin-guide/sysctl/vm.rst and
# kernel.rst). Others are refused: nothing is known to speak for another value of vfs_cache_pressure, the dirty ratios
# or min_free_kbytes there.

SYSCTLS: Mapping[str, Range] = {
    # How readily programs are swapped out to keep page cache: 1 to 10 keeps a server's memory (vendors).
    "vm.swappiness": Range(0, 200, default=60),
    # Bits: 0 takes memory of another node before the page cache, with the model in it, is dropped (vendors).
    "vm.zone_reclaim_mode": Range(0, 7, default=0),
    # Fractions of 10,000 of memory between the watermarks: how early kswapd begins, and how long it goes on.
    "vm.watermark_scale_factor": Range(1, 3000, default=10),
    # Bits: 0 moves no pages after threads, which is felt as pauses (vendors).
    "kernel.numa_balancing": Range(0, 3, default=1),
}
# These are only compared with the desired value. To own the file is not enough: sysctl_numa_balancing of
# kernel/sched/core.c asks for CAP_SYS_ADMIN, and the service has no capability.
REPORTED = frozenset({"kernel.numa_balancing"})


def not_for_us(desired: DesiredState, _before: Reading) -> Verdict | None:
    """Return the verdict on a sysctl that is only reported."""
    name = desired.target.instance
    if name not in REPORTED:
        return None
    return Verdict(State.UNSUPPORTED, Reason.READ_ONLY, f"{only_reported(name)}. {how_to_set(name, desired.value)}")


def only_reported(name: str) -> str:
    """Return why a sysctl of REPORTED is not written, as prose."""
    return f"the kernel lets only a process with CAP_SYS_ADMIN write {name}, and kerntuned has no capability"


def how_to_set(name: str, value: str) -> str:
    """Return what sets such a sysctl in place of a claim, as prose."""
    return f"A line {name} = {value} in /etc/sysctl.d sets it at boot, and sudo sysctl -w {name}={value} now"


def too_new(reading: Reading, value: str) -> Verdict:
    why = f"this kernel takes no {value} for {reading.target.instance}, though later ones may"
    return Verdict(State.UNSUPPORTED, Reason.OUT_OF_RANGE, why)


SYSCTL = Knob(
    "sysctl",
    "sysctl that kerntune tunes",
    Names(
        "proc/sys",
        tuple(SYSCTLS),
        option="SYSCTL",
        tunable="sysctl",
    ),
    Number(noun="value of a sysctl", ranges=SYSCTLS),
    action="set-memory",
    refusals={errno.EINVAL: too_new},
    forbidden=not_for_us,
    compared=REPORTED,
)


# cpu-governor: how a CPU frequency policy chooses its frequency (Documentation/admin-guide/pm/cpufreq.rst).

# Drivers that choose frequencies by themselves; their governor performance decides the preference too.
ACTIVE = frozenset({"intel_pstate", "amd-pstate-epp"})


def no_policies(kernel: KernelView) -> str:
    if kernel.glob(f"{POLICIES}/policy*"):
        return ""
    cause = why_no_cpufreq(kernel)
    why = f"there is no scaling_governor, for /{POLICIES} has no policy: {cause.why}"
    return "".join((why, *(f" ({evidence})" for evidence in cause.evidence), f". {cause.fix}"))


# request_module("cpufreq_%s") of drivers/cpufreq/cpufreq.c.
GOVERNORS: Final = {
    name: Module(f"cpufreq_{name}", f"CPU_FREQ_GOV_{name.upper()}", f"cpufreq_{name}")
    for name in ("performance", "schedutil", "ondemand", "conservative", "powersave", "userspace")
}
# All that such a driver has instead of governors (show_scaling_available_governors of drivers/cpufreq/cpufreq.c).
POLICIES_OF_DRIVER: Final = {"performance", "powersave"}


def decides_itself(reading: Reading) -> str:
    """Return that the driver chooses frequencies by itself, where it does and so loads no governor."""
    is_so = reading.target.key in ACTIVE and set(reading.choices) == POLICIES_OF_DRIVER
    return f"because its driver {reading.target.key} chooses frequencies by itself" if is_so else ""


CPU_GOVERNOR = Knob(
    "cpu-governor",
    "CPU frequency governor",
    Policies("scaling_governor", no_policies),
    Word(
        shape=re.compile(r"[a-z][a-z0-9_-]{0,31}"),
        wrong="cannot be the name of a governor",
        examples="performance, powersave",
        listed_in="scaling_available_governors",
        modules=GOVERNORS,
        closed=decides_itself,
        hint="Choose one of these; the kernel loads the module of another of its own governors when it is named",
        # One that is not among them is between `powersave` and those that follow the load.
        by_speed=("powersave", "", "userspace", "conservative", "ondemand", "schedutil", "performance"),
    ),
    refusals={errno.EBUSY: cpus_offline, errno.EINVAL: no_module},
)


# cpu-epp: what CPUs that choose their own frequency prefer, speed or power (Documentation/admin-guide/pm/
# intel_pstate.rst and amd-pstate.rst). While such a driver is active and the governor is performance, the preference is
# performance and the kernel takes no other (EBUSY); the one before comes back with the governor. So the governor comes
# first in a pass, and a preference that it forbids stays desired.
#
# The firmware may have set a preference that amd-pstate-epp has no name for: a read gives EINVAL
# (show_energy_performance_preference of drivers/cpufreq/amd-pstate.c). It reads `unknown` here, may be written, and
# goes back by `default`, which is what the firmware had.

PERFORMANCE = "performance"
# Not a preference but the way back to the firmware's, which then reads as one of the others, or as none.
DEFAULT = "default"
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Preference(Word):
    """A word of energy_performance_preference."""

    def normal(self, value: str, typed: str = "") -> str:
        if value == self.nameless:
            raise InvalidValue(f"{value!r} {self.wrong}", f"Examples: {self.examples}")
        if value == DEFAULT:
            raise InvalidValue(
                f"{DEFAULT} is no preference that can be kept: it reads as another",
                "Choose one of the others, or unset cpu-epp to have the host's own",
            )
        return super().normal(value, typed)

    def reading(self, target: Target, text: str, listed: Sequence[str], figures: Mapping[str, int]) -> Reading:
        named = tuple(choice for choice in listed if choice != DEFAULT)
        if text == self.nameless:
            why = f"the driver has no name for the preference that the firmware set for {target.instance}"
            return Reading(target, text, named, detail=why, restore=DEFAULT, figures=figures)
        return super().reading(target, text, named, figures)

    def held(self, value: str) -> str:
        return self.nameless if value == DEFAULT else value

    def is_in_place(self, value: str, reading: Reading) -> bool:
        """Return whether the target holds the value; one without a name is what `default` brought back."""
        return super().is_in_place(value, reading) or (value == DEFAULT and reading.value == self.nameless)


def governor_and_driver(kernel: KernelView, target: Target, _text: str) -> Mapping[str, int]:
    folder = f"{POLICIES}/{target.instance}"
    return {
        "fastest": int(read_or_none(kernel, f"{folder}/scaling_governor") == PERFORMANCE),
        "active": int(read_or_none(kernel, f"{folder}/scaling_driver") in ACTIVE),
    }


def under_governors(readings: Mapping[Target, Reading], expected: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
    """Return the readings of the preferences when the governors read as expected.

    Which preference comes back with another governor only the kernel knows: the one of now stands for it.
    """
    governors = {t.instance: reading.value for t, reading in expected.items() if t.tunable == CPU_GOVERNOR.name}
    found = {}
    for target, reading in readings.items():
        if (governor := governors.get(target.instance)) and reading.value is not None:
            fastest = governor == PERFORMANCE
            value = PERFORMANCE if fastest and reading.figures["active"] else reading.value
            figures = {**reading.figures, "fastest": int(fastest)}
            reading = replace(reading, value=value, figures=figures)  # noqa: PLW2901
        found[target] = reading
    return found


def no_preferences(kernel: KernelView) -> str:
    file = "energy_performance_preference"
    policies = (path.split("/")[-2] for path in kernel.glob(f"{POLICIES}/policy*/scaling_driver"))
    driver = first(kernel, policies, "scaling_driver")
    if not driver and not kernel.glob(f"{POLICIES}/policy*"):
        return (
            f"there is no {file}, for /{POLICIES} has no policy: the CPUs run at a fixed frequency, as in "
            "most virtual machines (their host decides) and where the firmware decides"
        )
    return (
        f"the frequency driver {driver or 'here'} has no {file}. intel_pstate (on CPUs with HWP) and "
        "amd_pstate (mode active, on CPUs with CPPC) have; acpi-cpufreq and virtual machines have not"
    )


def governor_decides(desired: DesiredState, reading: Reading) -> Verdict | None:
    """Return the verdict on any other preference where the governor lets the kernel take none but performance."""
    if reading.value == PERFORMANCE and reading.figures.get("fastest") and reading.figures.get("active"):
        return decided(desired.value)
    return None


def decided(value: str) -> Verdict:
    """Return the verdict on a preference while the governor decides, which is until there is another."""
    return Verdict(
        State.UNSUPPORTED,
        Reason.GOVERNOR_DECIDES,
        f"the governor is {PERFORMANCE}, with which the kernel takes no preference but {PERFORMANCE}; {value} is set "
        "when there is another governor (kerntune set cpu-governor=powersave)",
    )


def other_preference(desired: DesiredState, reading: Reading) -> Verdict | None:
    if verdict := governor_decides(desired, reading):
        return verdict
    return no_way_back(reading) if desired.value == DEFAULT and reading.value is not None else None


def preference_busy(reading: Reading, value: str) -> Verdict:
    """Return the verdict on EBUSY: the CPUs are offline, the governor decides, or the driver takes no preference now.

    For the last see store_energy_performance_preference of drivers/cpufreq/amd-pstate.c: dynamic_epp.
    """
    if reading.value is None:
        return cpus_offline(reading, value)
    if reading.figures.get("fastest"):
        return decided(value)
    return Verdict(
        State.FAILED,
        Reason.KERNEL_REJECTED,
        f"{reading.target.instance} keeps {reading.value}: the frequency driver takes no preference now "
        f"({os.strerror(errno.EBUSY)}, EBUSY). Likely: it chooses them itself (dynamic_epp of amd_pstate), or the CPUs "
        "went offline for a moment. Try again, after dynamic_epp was turned off where there is one",
    )


def no_such_preference(reading: Reading, value: str) -> Verdict | None:
    if value == DEFAULT:
        return no_way_back(reading)
    return None if reading.value is None else not_offered(reading, value)


def no_way_back(reading: Reading) -> Verdict:
    """Return the verdict on a preference without a name that `default` did not bring back: to ask again is no use.

    Older kernels refuse it with EINVAL (amd_pstate_set_energy_pref_index of drivers/cpufreq/amd-pstate.c). So nothing
    stays owed.
    """
    return Verdict(
        State.UNMANAGED,
        Reason.VALUE_NOT_OFFERED,
        f"the driver has no name for the preference that {reading.target.instance} had by itself, and this kernel does "
        f"not bring it back by its word {DEFAULT}: it is {reading.value or UNKNOWN} until the next boot. Choose "
        "another (kerntune set cpu-epp=...), or leave it so",
    )


CPU_EPP = Knob(
    "cpu-epp",
    "CPU energy performance preference",
    Policies("energy_performance_preference", no_preferences),
    Preference(
        shape=re.compile(r"[a-z][a-z_]{0,31}"),
        wrong="is no preference",
        examples="performance, balance_performance, power",
        listed_in="energy_performance_available_preferences",
        nameless=UNKNOWN,
        # A number is what a file reads after somebody wrote a number (0 to 255) to it.
        own=re.compile(rf"[0-9]{{1,3}}|{DEFAULT}", re.ASCII),
    ),
    refusals={errno.EBUSY: preference_busy, errno.EINVAL: no_such_preference},
    forbidden=governor_decides,
    otherwise=other_preference,
    figures=governor_and_driver,
    moved=under_governors,
    moved_by="cpu-governor",
)


# io-scheduler: which scheduler orders a block device's requests (Documentation/block/switching-sched.rst). Of a
# multipath drive the targets are the hidden paths: the drive itself has nothing to schedule.

NONE = "none"
# All that the file says where there is no queue to schedule. In brackets it is the choice of a queue whose schedulers
# are modules that are not loaded yet (elv_iosched_show of block/elevator.c).
NO_QUEUE = NONE
NOTHING_TO_SCHEDULE = "because it has no queue to schedule"
RESETS = "the controller resets, or changes the number of its queues"


def no_queue(desired: DesiredState, before: Reading) -> Verdict | None:
    """Return the verdict on a device without a choice, which is not even asked."""
    if before.figures["schedulable"]:
        return None
    return not_offered(before, desired.value, NOTHING_TO_SCHEDULE)


def no_scheduler(reading: Reading, value: str) -> Verdict | None:
    return None if reading.value is None else no_module(reading, value)


def queue_busy(code: int, cause: str) -> Callable[[Reading, str], Verdict | None]:
    """Return what makes the verdict on a queue that takes no scheduler at this moment."""

    def verdict(reading: Reading, value: str) -> Verdict | None:
        if reading.value is None:
            return None
        return Verdict(
            State.FAILED,
            Reason.KERNEL_REJECTED,
            f"{reading.target.instance} keeps {reading.value}: the kernel does not change it to {value} at this moment "
            f"({os.strerror(code)}, {errno.errorcode[code]}). Likely: {cause}. kerntuned tries again by itself "
            "while the setting is wanted; if the call failed, make it again",
        )

    return verdict


# request_module("%s-iosched") of block/elevator.c.
SCHEDULERS: Final = {
    "mq-deadline": Module("mq_deadline", "MQ_IOSCHED_DEADLINE", "mq_deadline_iosched"),
    "kyber": Module("kyber_iosched", "MQ_IOSCHED_KYBER", "kyber_iosched"),
    "bfq": Module("bfq", "IOSCHED_BFQ", "bfq_iosched"),
}


IO_SCHEDULER = Knob(
    "io-scheduler",
    "I/O scheduler of a block device",
    Drives("scheduler", on_paths=True),
    Word(
        shape=re.compile(r"[a-z0-9][a-z0-9_-]{0,31}"),
        wrong="cannot be the name of a scheduler",
        examples="none, mq-deadline, bfq, kyber",
        modules=SCHEDULERS,
        everywhere=frozenset({NONE}),
        closed=lambda reading: "" if reading.figures.get("schedulable", 1) else NOTHING_TO_SCHEDULE,
        hint="Choose one of these; a scheduler in a module of another name must be loaded first (modprobe)",
    ),
    # Errnos of elv_iosched_store (block/elevator.c) that pass by the next try. EBUSY: somebody else holds
    # update_nr_hwq_lock. ENOENT: the queue is not registered, or has QUEUE_FLAG_NO_ELV_SWITCH.
    refusals={
        errno.EINVAL: no_scheduler,
        errno.EBUSY: queue_busy(errno.EBUSY, RESETS),
        errno.EAGAIN: queue_busy(errno.EAGAIN, RESETS),
        errno.ENOENT: queue_busy(errno.ENOENT, "the drive is just being added or removed"),
    },
    forbidden=no_queue,
    figures=lambda _kernel, _target, text: {"schedulable": int(text != NO_QUEUE)},
    # Not ENOENT: of a drive that was pulled it is the last word.
    transient=frozenset({errno.EBUSY, errno.EAGAIN}),
)


# read-ahead: how far a block device reads ahead of a file that is read in order (Documentation/ABI/stable/sysfs-block).
# Of a multipath drive the target is the drive itself: the page cache is filled through it, not through its paths.

# The kernel counts in pages: it rounds what is written down to whole ones (queue_ra_store of block/blk-sysfs.c).
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10


def no_read_ahead(reading: Reading, value: str) -> Verdict | None:
    if reading.value is None:
        return None
    why = f"{reading.target.instance} takes no read-ahead of {value} KiB and keeps {reading.value}"
    return Verdict(State.UNSUPPORTED, Reason.OUT_OF_RANGE, why)


READ_AHEAD = Knob(
    "read-ahead",
    "read-ahead of a block device",
    Drives("read_ahead_kb", others=("bdi",)),
    Number(
        noun="read-ahead",
        unit="KiB",
        # Sixteen times what helped any loader that was measured; more fills the page cache with what nobody asked for.
        most=65_536,
        step=PAGE_KIB,
        digits=20,
        # The host's own may be larger than what is taken here.
        own=re.compile(r"[0-9]{1,20}", re.ASCII),
    ),
    sizes="KiB",
    refusals={errno.EINVAL: no_read_ahead},
)


# In the order in which a lane serves them. The governor comes before the preference: with some governors the kernel
# takes no other than performance.
KNOBS: Final[tuple[Knob, ...]] = (THP, SYSCTL, CPU_GOVERNOR, CPU_EPP, IO_SCHEDULER, READ_AHEAD)
