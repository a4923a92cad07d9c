"""io-scheduler: names, patterns, what a queue says, and drives that come and go."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NoSuchTarget
from kerntune.model import Reading, Reason, State, Target
from kerntune.tunables.knobs import IO_SCHEDULER as SCHEDULERS
from tests.hosts import lay_out, plant
from tests.unit.lab import BOUND, large_host, queue, running

DRIVE = Target("io-scheduler", "nvme0n1", aliases=("by-id/nvme-First", "by-id/nvme-eui.01"))


@pytest.mark.parametrize(
    ("text", "value", "choices", "schedulable"),
    [
        ("[none] mq-deadline", "none", ("none", "mq-deadline"), True),
        ("none [mq-deadline] kyber bfq ", "mq-deadline", ("none", "mq-deadline", "kyber", "bfq"), True),
        # No queue to schedule; the other has one, and no scheduler is loaded.
        ("none", "none", ("none",), False),
        ("[none]", "none", ("none",), True),
        ("mq-deadline none [bfq]", "bfq", ("mq-deadline", "none", "bfq"), True),
    ],
)
def test_what_a_queue_says(
    tmp_path: Path, text: str, value: str, choices: tuple[str, ...], *, schedulable: bool
) -> None:
    reading = SCHEDULERS.read(plant(tmp_path, f"{queue('nvme0n1')}\t{text}"), DRIVE)
    assert (reading.value, reading.choices, reading.reason) == (value, choices, Reason.OK)
    assert bool(reading.figures["schedulable"]) is schedulable


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("nvme0n1", True),
        ("nvme*", True),
        ("*", True),
        ("nvme[0-3]n1", True),
        ("nvme?n1", True),
        ("by-id/nvme-First", True),
        ("by-id/nvme-eui.*", True),
        ("by-id/*", True),
        ("nvme0n", False),
        ("nvme0n1p1", False),
        ("NVME*", False),
        ("nvme1*", False),
        ("sda", False),
        ("by-id/nvme-Second", False),
        ("by-id/nvme-Firs", False),
        ("nvme-First", False),
    ],
)
def test_matching(pattern: str, matches: bool) -> None:
    assert SCHEDULERS.normal(pattern) == pattern
    assert SCHEDULERS.matches(pattern, DRIVE) is matches


@pytest.mark.parametrize(
    ("pattern", "exact"),
    [("nvme0n1", True), ("by-id/nvme-First", True), ("nvme*", False), ("nvme?n1", False), ("sd[ab]", False)],
)
def test_what_names_one_drive(pattern: str, exact: bool) -> None:
    assert SCHEDULERS.exact(pattern) is exact


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../nvme0n1",
        "nvme0n1/..",
        "nvme0n1/queue",
        "/dev/nvme0n1",
        "nvme0n1\n",
        "\n",
        "nvme0n1 ",
        "nvme 0",
        "nvme0n1\0",
        "by-id/",
        "by-id/..",
        "by-id/../nvme0n1",
        "by-path/pci-0000:00",
        "n\u00fc",
        "x" * 257,
    ],
)
def test_what_cannot_name_a_drive(name: str) -> None:
    with pytest.raises(InvalidValue):
        SCHEDULERS.normal(name)


@pytest.mark.parametrize("name", ["nvme0n1", "sda", "dm-0", "md127", "cciss!c0d0", "mmcblk0boot0", "nvme0c0n1"])
def test_names_the_kernel_gives(name: str) -> None:
    assert SCHEDULERS.normal(name) == name


@pytest.mark.parametrize("value", ["none", "mq-deadline", "bfq", "kyber", "adios", "my_own-2"])
def test_values(value: str) -> None:
    assert SCHEDULERS.normal_value(value) == value


@pytest.mark.parametrize("value", ["None", "none\n", "-none"])
def test_what_cannot_be_a_scheduler(value: str) -> None:
    with pytest.raises(InvalidValue):
        SCHEDULERS.normal_value(value)


def test_only_what_the_kernel_can_load_is_tried() -> None:
    reading = Reading(DRIVE, "none", choices=("none", "mq-deadline"))
    for value in ("none", "mq-deadline", "bfq", "kyber"):
        SCHEDULERS.validate(reading, value)
    with pytest.raises(InvalidValue, match="offers none, mq-deadline, not adios"):
        SCHEDULERS.validate(reading, "adios")


def test_the_drives_of_a_server(tmp_path: Path) -> None:
    targets = SCHEDULERS.targets(lay_out("two-sockets", tmp_path))
    assert [target.instance for target in targets] == ["dm-0", "nvme0n1", "nvme1n1", "nvme10n1", "sda"]
    assert len({target.key for target in targets}) == 5
    drive = targets[1]
    assert drive.aliases == (
        "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123",
        "by-id/nvme-eui.36344830525001230025384500000001",
    )
    assert not any(SCHEDULERS.matches("by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123-part1", t) for t in targets)
    assert not any(SCHEDULERS.matches(partition, t) for t in targets for partition in ("nvme0n1p1", "nvme*p*", "sda1"))


def test_a_device_without_a_queue_is_no_target(tmp_path: Path) -> None:
    names = [target.instance for target in SCHEDULERS.targets(lay_out("small-vm", tmp_path))]
    assert names == [*(f"loop{number}" for number in range(8)), "vda"]


def test_no_device_has_a_queue(tmp_path: Path) -> None:
    kernel = plant(tmp_path, "proc/sys/kernel/osrelease\t6.1\nboot/config-6.1\tCONFIG_X=y\nsys/block/zram0/diskseq\t1")
    assert SCHEDULERS.missing(kernel) == (
        "no block device below /sys/block has a queue/scheduler file. "
        "/boot/config-6.1 does not set CONFIG_BLOCK: this kernel was built without it"
    )
    assert SCHEDULERS.missing(large_host()) == ""


async def test_a_pattern_sets_what_it_covers_and_nothing_else() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("io-scheduler", "nvme*", "mq-deadline"))
        assert answer.changed
        assert [(o.target.instance, o.before, o.actual, o.state) for o in answer.outcomes] == [
            ("nvme0n1", "none", "mq-deadline", State.SATISFIED),
            ("nvme1n1", "none", "mq-deadline", State.SATISFIED),
        ]
        assert sorted(lab.writes()) == [(queue("nvme0n1"), "mq-deadline"), (queue("nvme1n1"), "mq-deadline")]


async def test_a_persistent_name_sets_its_drive() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "by-id/ata-Disk", "bfq"))
        assert lab.writes() == [(queue("sda"), "bfq")]


async def test_a_scheduler_in_a_module_is_tried_and_believed_when_it_reads_so() -> None:
    async with running(large_host()) as lab:
        assert "kyber" not in lab.kernel.disks["nvme0n1"].offered
        outcome = await lab.one("io-scheduler", "nvme0n1", "kyber")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "kyber")
        assert lab.writes() == [(queue("nvme0n1"), "kyber")]


async def test_a_scheduler_without_its_module_is_not_offered() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("nvme0n1")] = errno.EINVAL
        with pytest.raises(
            InvalidValue, match="nvme0n1 offers none, mq-deadline, not bfq, and the kernel has no module"
        ):
            await lab.set(("io-scheduler", "nvme0n1", "bfq"))
        assert lab.claims == []


async def test_a_device_that_offers_only_none_is_not_written() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("ram0", offered=())
        with pytest.raises(
            InvalidValue, match="ram0 offers none, not mq-deadline, because it has no queue to schedule"
        ):
            await lab.set(("io-scheduler", "ram0", "mq-deadline"))
        assert lab.writes() == []
        answer = await lab.set(("io-scheduler", "*", "mq-deadline"))
        states = {o.target.instance: (o.state, o.reason) for o in answer.outcomes}
        assert states["ram0"] == (State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert states["nvme0n1"] == states["sda"] == (State.SATISFIED, Reason.OK)
        assert sorted(path for path, _ in lab.writes()) == [queue("nvme0n1"), queue("nvme1n1")]


async def test_a_queue_whose_schedulers_are_not_loaded_yet_is_written() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("sdb", offered=("none",))
        outcome = await lab.one("io-scheduler", "sdb", "mq-deadline")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "mq-deadline")
        assert lab.writes() == [(queue("sdb"), "mq-deadline")]
        await lab.unset(("io-scheduler", "sdb"))
        assert lab.kernel.disks["sdb"].scheduler == "none"


async def test_a_value_that_no_covered_device_can_take_is_refused_before_any_write() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match="not adios"):
            await lab.set(("io-scheduler", "nvme*", "adios"))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_a_partition_is_no_target() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(NoSuchTarget, match="io-scheduler has no 'nvme0n1p1'"):
            await lab.set(("io-scheduler", "nvme0n1p1", "none"))


async def test_two_drives_are_written_at_the_same_time() -> None:
    kernel = large_host()
    meeting = threading.Barrier(2)
    # Each write waits until the other has begun; one after the other, the barrier would break.
    kernel.before_write = lambda path, text: (meeting.wait(BOUND), None)[1]
    async with running(kernel) as lab:
        answer = await lab.set(("io-scheduler", "nvme*", "mq-deadline"))
        assert [o.state for o in answer.outcomes] == [State.SATISFIED] * 2
        assert not meeting.broken


async def test_a_drive_pulled_in_the_middle_of_its_write() -> None:
    kernel = large_host()

    def pull(path: str, text: str) -> None:
        if path == queue("nvme1n1"):
            kernel.unplug("nvme1n1")

    kernel.before_write = pull
    async with running(kernel) as lab:
        answer = await lab.set(("io-scheduler", "nvme*", "mq-deadline"))
        assert [(o.target.instance, o.state, o.reason, o.actual) for o in answer.outcomes] == [
            ("nvme0n1", State.SATISFIED, Reason.OK, "mq-deadline"),
            ("nvme1n1", State.UNSUPPORTED, Reason.NO_SUCH_TARGET, ""),
        ]
        assert lab.claims == ["runtime:io-scheduler@nvme*=mq-deadline"]


async def test_the_only_drive_pulled_in_the_middle_of_its_write() -> None:
    kernel = large_host()
    kernel.before_write = lambda path, text: kernel.unplug("nvme1n1")
    async with running(kernel) as lab:
        with pytest.raises(NoSuchTarget, match="went away"):
            await lab.set(("io-scheduler", "nvme1n1", "mq-deadline"))
        assert lab.claims == []


async def test_another_drive_under_the_same_name_has_a_baseline_of_its_own() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "nvme*", "mq-deadline"))
        old = next(target for target in lab.store.baselines if target.instance == "nvme0n1")
        assert lab.store.baselines[old] == "none"
        lab.kernel.unplug("nvme0n1")
        lab.kernel.plug("nvme0n1", scheduler="kyber", offered=("none", "mq-deadline", "kyber"))
        await lab.engine.reconcile("hotplug")
        assert lab.kernel.disks["nvme0n1"].scheduler == "mq-deadline"
        new = next(target for target in lab.store.baselines if target.instance == "nvme0n1")
        assert new != old
        assert old not in lab.store.baselines
        await lab.unset(("io-scheduler", "nvme*"))
        assert lab.kernel.disks["nvme0n1"].scheduler == "kyber"
        assert lab.kernel.disks["nvme1n1"].scheduler == "none"
        assert not lab.store.baselines


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.EBUSY, "the controller resets"),
        (errno.EAGAIN, "the controller resets"),
        (errno.ENOENT, "the drive is just being added or removed"),
    ],
)
async def test_a_queue_that_is_busy_says_so_and_is_no_queue_without_the_module(code: int, cause: str) -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = code
        answer = await lab.set(("io-scheduler", "*", "bfq"))
        (outcome,) = (outcome for outcome in answer.outcomes if outcome.target.instance == "sda")
        assert (outcome.actual, outcome.state, outcome.reason) == ("mq-deadline", State.FAILED, Reason.KERNEL_REJECTED)
        assert cause in outcome.detail
        assert "tries again" in outcome.detail
        assert "module" not in outcome.detail
        with pytest.raises(KernelRejected, match=f"sda keeps mq-deadline.*{errno.errorcode[code]}"):
            await lab.set(("io-scheduler", "sda", "none"))


async def test_a_drive_that_went_away_is_not_called_busy() -> None:
    gone = Reading(DRIVE, None, reason=Reason.DEVICE_GONE)
    verdict = SCHEDULERS.explain_errno(gone, "bfq", errno.ENOENT)
    assert (verdict.state, verdict.reason) == (State.UNSUPPORTED, Reason.NO_SUCH_TARGET)
