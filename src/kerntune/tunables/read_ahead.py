"""read-ahead: how far a block device reads ahead of a file that is read in order (queue/read_ahead_kb).

Documentation/ABI/stable/sysfs-block. The kernel counts in pages: it rounds what is written down to whole ones
(queue_ra_store of block/blk-sysfs.c).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.kernel.files import KernelError, KernelView
from kerntune.model import SATISFIED, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import unlike, unreadable
from kerntune.tunables.drives import OnDrives

KIB = re.compile(r"[0-9]{1,20}", re.ASCII)
# Sixteen times what helped any loader that was measured; more fills the page cache with what nobody asked for.
LARGEST = 65_536


class ReadAhead(OnDrives):
    """Of a multipath drive the drive itself: the page cache is filled through it, not through its paths."""

    name: ClassVar[str] = "read-ahead"
    summary: ClassVar[str] = "read-ahead of a block device"
    file: ClassVar[str] = "queue/read_ahead_kb"
    on_paths: ClassVar[bool] = False

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            text = kernel.read(self.path(target))
        except KernelError as error:
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")
        return Reading(target, text, figures={"page": os.sysconf("SC_PAGE_SIZE") >> 10})

    def normal_value(self, value: str) -> str:
        if not KIB.fullmatch(value) or int(value) > LARGEST:
            raise InvalidValue(f"{value!r} is no read-ahead", f"Give KiB, a whole number from 0 to {LARGEST}")
        return str(int(value))

    def restorable(self, value: str) -> bool:
        """The host's own may be larger than what is taken here."""
        return bool(KIB.fullmatch(value))

    def validate(self, reading: Reading, value: str) -> None:
        """Every device takes any number."""

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target], self.path(target)) for target, wish in wishes.items()]

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        return judged(wish, reading)

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EINVAL and reading.value is not None:
            why = f"{reading.target.instance} takes no read-ahead of {value} KiB and keeps {reading.value}"
            return Verdict(State.UNSUPPORTED, Reason.OUT_OF_RANGE, why)
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading, path: str) -> Step:
    """Nothing where the value is in place, rounded as the kernel rounds it."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    writes = () if judged(wish, before).state is State.SATISFIED else (Write(path, wish.value),)
    return Step(wish, before, writes)


def judged(wish: Wish, reading: Reading) -> Verdict:
    """As wished, also when it was rounded down to whole pages."""
    if reading.value == wish.value:
        return SATISFIED
    wanted, page = int(wish.value), reading.figures.get("page", 1)
    if reading.value == str(wanted - wanted % page):
        return Verdict(State.SATISFIED, Reason.OK, f"the kernel keeps whole pages of {page} KiB")
    return unlike(reading)
