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
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel.files import KernelError, KernelView
from kerntune.model import SATISFIED, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import Sizes, unlike, unreadable
from kerntune.tunables.scopes import BY_HAND, OnDrives

KIB = re.compile(r"[0-9]{1,20}", re.ASCII)
# Sixteen times what helped any loader that was measured; more fills the page cache with what nobody asked for.
LARGEST = 65_536


class ReadAhead(OnDrives):
    """Of a multipath drive the drive itself: the page cache is filled through it, not through its paths."""

    name: ClassVar[str] = "read-ahead"
    summary: ClassVar[str] = "read-ahead of a block device"
    file: ClassVar[str] = "queue/read_ahead_kb"
    on_paths: ClassVar[bool] = False
    sizes: ClassVar[Sizes] = "KiB"
    by_hand: ClassVar[tuple[str, ...]] = (rf"{BY_HAND}/(?:queue|bdi)/read_ahead_kb",)
    explained: ClassVar[Explanation] = Explanation(
        what="How many KiB of a file that is read in order are read before they are asked for.",
        helps="Loaders that map the file (safetensors, llama.cpp): 2048 to 4096 on the drive with the models. Loaders "
        "that use O_DIRECT are not reached.",
        evidence=(
            Evidence(
                Grade.MEASURED,
                "from 2048 on ext4 keeps the file in pages of 2 MiB and maps them whole: 0 before, about 1000 of 1024 "
                "MiB after",
            ),
        ),
        risk="Wastes page cache on random reads; 4096 does less than 1024 for who reads tensor by tensor.",
        files=("/sys/block/*/queue/read_ahead_kb",),
        document="Documentation/ABI/stable/sysfs-block",
        instances="a device (nvme0n1), a pattern (nvme*) or a name below /dev/disk (by-id/...); left out: all of them",
        values="KiB, a whole number, or a size (2M); the kernel keeps whole pages of it",
        example=Example("read-ahead@nvme*=2048", "mapped models are read in pages of 2 MiB"),
    )

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            text = kernel.read(self.path(target))
        except KernelError as error:
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")
        return Reading(target, text, figures={"page": page_kib()})

    def normal_value(self, value: str) -> str:
        if not KIB.fullmatch(value) or int(value) > LARGEST:
            raise InvalidValue(f"{value!r} is no read-ahead", f"Give KiB, a whole number from 0 to {LARGEST}")
        kib, page = int(value), page_kib()
        if 0 < kib < page:
            raise InvalidValue(
                f"a read-ahead of {kib} KiB would be none: the kernel rounds down to whole pages of {page} KiB",
                f"Give {page} or more, or 0 to switch it off",
            )
        return str(kib)

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


def page_kib() -> int:
    """The page size of the running kernel, in KiB."""
    return os.sysconf("SC_PAGE_SIZE") >> 10


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
