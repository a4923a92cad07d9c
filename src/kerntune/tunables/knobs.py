"""io-scheduler: which scheduler orders a block device's requests (Documentation/block/switching-sched.rst)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue, NotOffered
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel.files import KernelError, KernelView
from kerntune.model import Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import bracketed, unreadable
from kerntune.tunables.scopes import BY_HAND, OnDrives

# Modules that the kernel loads when their name is written, though the file does not list them before.
ON_DEMAND = frozenset({"bfq", "kyber", "mq-deadline"})
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
NONE = "none"
# All that the file says where there is no queue to schedule. In brackets it is the choice of a queue whose schedulers
# are modules that are not loaded yet (elv_iosched_show of block/elevator.c).
NO_QUEUE = NONE
# The causes of errnos of elv_iosched_store (block/elevator.c) that pass by the next try. EBUSY: somebody
# else holds update_nr_hwq_lock. ENOENT: the queue is not registered, or has QUEUE_FLAG_NO_ELV_SWITCH.
MOMENTARY: Mapping[int, str] = {
    errno.EBUSY: "the controller resets, or changes the number of its queues",
    errno.EAGAIN: "the controller resets, or changes the number of its queues",
    errno.ENOENT: "the drive is just being added or removed",
}


class IoScheduler(OnDrives):
    """Of a multipath drive the hidden paths: the drive itself has nothing to schedule."""

    name: ClassVar[str] = "io-scheduler"
    summary: ClassVar[str] = "I/O scheduler of a block device"
    file: ClassVar[str] = "queue/scheduler"
    on_paths: ClassVar[bool] = True
    # Not ENOENT: of a drive that was pulled it is the last word.
    transient: ClassVar[frozenset[int]] = frozenset({errno.EBUSY, errno.EAGAIN})
    by_hand: ClassVar[tuple[str, ...]] = (rf"{BY_HAND}/queue/scheduler",)
    explained: ClassVar[Explanation] = Explanation(
        what="Who puts the requests to a block device in order: the kernel (mq-deadline, bfq, kyber), or nobody "
        "('none').",
        helps="'none' for NVMe and virtual disks, which order their own queue; 'mq-deadline' for disks that turn.",
        evidence=(
            Evidence(Grade.VENDOR, "'none' for NVMe, 'mq-deadline' for disks"),
            Evidence(Grade.MEASURED, "no gain for loading a model by itself"),
        ),
        risk="Low.",
        files=("/sys/block/*/queue/scheduler",),
        document="Documentation/block/switching-sched.rst",
        instances="a device (nvme0n1), a pattern (nvme*) or a name below /dev/disk (by-id/...); left out: all of them",
        values="the name of a scheduler that the device offers",
        example=Example("io-scheduler@nvme*=none", "every NVMe drive, those plugged later too"),
    )

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            text = kernel.read(self.path(target))
        except KernelError as error:
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")
        return Reading(target, *bracketed(text), figures={"schedulable": int(text != NO_QUEUE)})

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value):
            raise InvalidValue(
                f"{value!r} cannot be the name of a scheduler", "Examples: none, mq-deadline, bfq, kyber"
            )
        return value

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in reading.choices and value not in ON_DEMAND | {NONE}:
            raise NotOffered(
                f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}",
                "Choose one of these; a scheduler in a module of another name must be loaded first (modprobe)",
            )

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target], self.path(target)) for target, wish in wishes.items()]

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if reading.value is None:
            return super().rejected(reading, value, code)
        if code == errno.EINVAL:
            return not_offered(reading, value, "and the kernel has no module for it")
        if code in MOMENTARY:
            return busy(reading, value, code)
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading, path: str) -> Step:
    """Nothing where the value is in place; a device without a choice is not even asked."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if before.value == wish.value:
        return Step(wish, before)
    if not before.figures["schedulable"]:
        return Step(wish, before, verdict=not_offered(before, wish.value, "because it has no queue to schedule"))
    return Step(wish, before, (Write(path, wish.value),))


def busy(reading: Reading, value: str, code: int) -> Verdict:
    """Return the verdict on a queue that takes no scheduler at this moment."""
    return Verdict(
        State.FAILED,
        Reason.KERNEL_REJECTED,
        f"{reading.target.instance} keeps {reading.value}: the kernel does not change it to {value} at this moment "
        f"({os.strerror(code)}, {errno.errorcode[code]}). Likely: {MOMENTARY[code]}. kerntuned tries again by itself "
        "while the setting is wanted; if the call failed, make it again",
    )


def not_offered(reading: Reading, value: str, why: str) -> Verdict:
    """The device does not have this scheduler."""
    offered = ", ".join(reading.choices)
    return Verdict(
        State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, f"{reading.target.instance} offers {offered}, not {value}, {why}"
    )
