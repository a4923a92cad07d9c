"""io-scheduler and read-ahead: what a queue says, drives that come, go and change places, paths of multipath drives."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NoSuchTarget
from kerntune.kernel.files import HostKernel
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Reading, Reason, State, Target
from kerntune.tunables.knob import Knob
from kerntune.tunables.knobs import IO_SCHEDULER, READ_AHEAD
from tests.hosts import lay_out, plant
from tests.hosts.simulated import multipath_host, plug_path
from tests.unit.lab import BOUND, large_host, queue, running, told

DRIVE = Target("io-scheduler", "nvme0n1")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10


# What a queue says


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
    reading = IO_SCHEDULER.read(plant(tmp_path, f"{queue('nvme0n1')}\t{text}"), DRIVE)
    assert (reading.value, reading.choices, reading.reason) == (value, choices, Reason.OK)
    assert bool(reading.figures["schedulable"]) is schedulable


def test_the_drives_of_a_server(tmp_path: Path) -> None:
    targets = IO_SCHEDULER.targets(lay_out("two-sockets", tmp_path))
    assert [target.instance for target in targets] == ["dm-0", "nvme0n1", "nvme1n1", "nvme10n1", "sda"]
    assert len({target.key for target in targets}) == 5
    assert targets[1].aliases == (
        "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123",
        "by-id/nvme-eui.36344830525001230025384500000001",
    )


def test_a_device_without_a_queue_is_no_target(tmp_path: Path) -> None:
    names = [target.instance for target in IO_SCHEDULER.targets(lay_out("small-vm", tmp_path))]
    assert names == [*(f"loop{number}" for number in range(8)), "vda"]


# Schedulers


async def test_a_scheduler_in_a_module_is_tried_and_believed_when_it_reads_so() -> None:
    async with running(large_host()) as lab:
        assert "kyber" not in lab.kernel.disks["nvme0n1"].offered
        outcome = await lab.one("io-scheduler", "nvme0n1", "kyber")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "kyber")
        assert lab.writes() == [(queue("nvme0n1"), "kyber")]


async def test_a_device_that_offers_only_none_is_not_written() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("dm-0", offered=())
        with pytest.raises(
            InvalidValue, match="dm-0 offers none, not mq-deadline, because it has no queue to schedule"
        ):
            await lab.set(("io-scheduler", "dm-0", "mq-deadline"))
        assert lab.writes() == []
        answer = await lab.set(("io-scheduler", "*", "mq-deadline"))
        states = {o.target.instance: (o.state, o.reason) for o in answer.outcomes}
        assert states["dm-0"] == (State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert states["nvme0n1"] == states["sda"] == (State.SATISFIED, Reason.OK)
        assert sorted(path for path, _ in lab.writes()) == [queue("nvme0n1"), queue("nvme1n1")]


async def test_all_drives_are_no_loop_ram_or_zram_devices() -> None:
    async with running(large_host()) as lab:
        for name in ("loop0", "ram1", "zram0", "dm-0", "md127", "nbd0", "sr0"):
            lab.kernel.plug(name)
        answer = await lab.set(("read-ahead", "*", "2048"))
        assert {o.target.instance for o in answer.outcomes} == {
            "nvme0n1", "nvme1n1", "sda", "dm-0", "md127", "nbd0", "sr0",
        }  # fmt: skip
        answer = await lab.set(("read-ahead", "loop*", "64"), ("read-ahead", "ram1", "32"))
        assert {o.target.instance for o in answer.outcomes} == {"loop0", "ram1"}


async def test_a_drive_s_path_below_dev_and_a_range_are_names() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("read-ahead", "/dev/nvme0n1", "2048"))
        assert [o.target.instance for o in answer.outcomes] == ["nvme0n1"]
        answer = await lab.set(("read-ahead", "nvme0n1-nvme9n1", "1024"))
        assert [o.target.instance for o in answer.outcomes] == ["nvme0n1", "nvme1n1"]
        assert not (await lab.unset(("read-ahead", "/dev/sda"))).changed
        assert (await lab.unset(("read-ahead", "/dev/nvme0n1"))).changed
        with pytest.raises(NoSuchTarget, match="no 'nvme5n1-nvme9n1'"):
            await lab.set(("read-ahead", "nvme5n1-nvme9n1", "1024"))


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


def test_a_drive_that_went_away_is_not_called_busy() -> None:
    gone = Reading(DRIVE, None, reason=Reason.DEVICE_GONE)
    verdict = IO_SCHEDULER.explain_errno(gone, "bfq", errno.ENOENT)
    assert (verdict.state, verdict.reason) == (State.UNSUPPORTED, Reason.NO_SUCH_TARGET)


# Read-ahead in whole pages


@pytest.mark.parametrize("kib", [1, PAGE_KIB - 1])
async def test_less_than_a_page_would_switch_read_ahead_off_and_is_refused(kib: int) -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match=f"whole pages of {PAGE_KIB} KiB") as raised:
            await lab.set(("read-ahead", "sda", kib))
        assert "0 to switch it off" in raised.value.hint
        assert lab.writes() == []
        for least in (PAGE_KIB, 0):
            assert told(await lab.one("read-ahead", "sda", least)) == ("sda", str(least), State.SATISFIED, Reason.OK)


async def test_what_is_rounded_to_pages_is_as_asked_and_written_once() -> None:
    async with running(large_host()) as lab:
        outcome = await lab.one("read-ahead", "sda", 4 * PAGE_KIB + 1)
        assert told(outcome) == ("sda", str(4 * PAGE_KIB), State.SATISFIED, Reason.OK)
        assert "whole pages" in outcome.detail
        await lab.engine.reconcile("again")
        assert len(lab.writes()) == 1


# Drives that come and go


@pytest.mark.parametrize(
    ("knob", "value"), [(IO_SCHEDULER, "mq-deadline"), (READ_AHEAD, "2048")], ids=lambda one: getattr(one, "name", one)
)
async def test_a_drive_that_comes_has_it_too(knob: Knob, value: str) -> None:
    async with running(large_host()) as lab:
        await lab.set((knob.name, "nvme*", value))
        lab.kernel.plug("nvme2n1")
        await lab.engine.reconcile("hotplug")
        assert knob.read(lab.kernel, Target(knob.name, "nvme2n1")).value == value


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


# Which drive a host's own value belongs to: the queue that had it, whatever medium is in the drive

CLAIM = ("read-ahead", "sda", "4096")
# Kernels before 5.15 have no /sys/block/X/diskseq.
KERNELS = pytest.mark.parametrize("diskseq", [True, False], ids=["diskseq", "no diskseq"])


def host(*, diskseq: bool) -> SimulatedKernel:
    kernel = large_host()
    kernel.has_diskseq = diskseq
    return kernel


@KERNELS
async def test_another_medium_leaves_the_drive_its_own_value(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        await lab.set(CLAIM)
        lab.kernel.change_medium("sda")
        lab.reports.clear()
        await lab.engine.reconcile("change sda")
        assert [outcome for report in lab.reports for outcome in report.outcomes] == []
        await lab.unset(("read-ahead", "sda"))
        assert lab.kernel.disks["sda"].read_ahead == 128
        assert not lab.store.baselines


@KERNELS
async def test_a_new_drive_of_the_same_name_never_gets_the_former_ones_value(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        lab.kernel.disks["sda"].read_ahead = 8192
        await lab.set(CLAIM)
        lab.kernel.unplug("sda")
        lab.kernel.plug("sda", read_ahead=256)
        await lab.engine.reconcile("add sda")
        assert lab.kernel.disks["sda"].read_ahead == 4096
        await lab.unset(("read-ahead", "sda"))
        assert lab.kernel.disks["sda"].read_ahead == 256
        assert not lab.store.baselines


@KERNELS
async def test_a_new_drive_that_nobody_claims_is_left_alone(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        await lab.set(CLAIM)
        lab.kernel.unplug("sda")
        await lab.unset(("read-ahead", "*"))
        lab.kernel.plug("sda", read_ahead=256)
        lab.writes()
        await lab.engine.reconcile("add sda")
        assert lab.writes() == []
        assert lab.kernel.disks["sda"].read_ahead == 256


async def test_a_value_that_was_saved_under_another_kind_of_key_is_dropped() -> None:
    former = Target("read-ahead", "sda", key="diskseq of a former release")
    async with running(large_host(), baselines={former: "999"}) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.writes() == []
        assert not lab.store.baselines


def test_in_a_tree_the_inode_of_the_queues_folder_serves(tmp_path: Path) -> None:
    kernel = plant(tmp_path, "sys/block/sda/queue/read_ahead_kb\t128\nsys/block/sda/diskseq\t7")
    (target,) = READ_AHEAD.targets(kernel)
    assert target.key == str((tmp_path / "sys/block/sda/queue").stat().st_ino)
    assert list(READ_AHEAD.targets(HostKernel(tmp_path))) == [target]


class Leaving(SimulatedKernel):
    """sda goes between the look at the folders and the look at its queue."""

    def identity(self, path: str) -> str:
        return "" if path == "sys/block/sda/queue" else super().identity(path)


def test_a_drive_that_leaves_while_it_is_looked_at_is_no_target() -> None:
    kernel = Leaving([], disks=large_host().disks)
    assert [target.instance for target in READ_AHEAD.targets(kernel)] == ["nvme0n1", "nvme1n1"]


# NVMe's native multipath: the drive has nothing to schedule, its hidden paths do and go by its names


def of_paths(kernel: SimulatedKernel) -> dict[str, str]:
    """Return the scheduler of each hidden path."""
    return {name: disk.scheduler for name, disk in kernel.disks.items() if disk.hidden}


def test_of_a_multipath_drive_the_paths_have_a_scheduler_and_the_drive_reads_ahead() -> None:
    kernel = multipath_host()
    names = ["nvme0c9n9", "nvme0n1", "nvme1c1n1", "nvme1c2n1"]
    assert [target.instance for target in IO_SCHEDULER.targets(kernel)] == names
    assert [target.instance for target in READ_AHEAD.targets(kernel)] == ["nvme0c9n9", "nvme0n1", "nvme1n1"]


@pytest.mark.parametrize("pattern", ["nvme1n1", "nvme1n?", "by-id/nvme-Shared", "nvme*", "nvme1c*", "*"])
async def test_the_drives_names_reach_its_paths(pattern: str) -> None:
    async with running(multipath_host()) as lab:
        answer = await lab.set(("io-scheduler", pattern, "mq-deadline"))
        assert {o.state for o in answer.outcomes} == {State.SATISFIED}
        assert of_paths(lab.kernel) == {"nvme1c1n1": "mq-deadline", "nvme1c2n1": "mq-deadline"}


async def test_one_path_by_its_own_name() -> None:
    async with running(multipath_host()) as lab:
        await lab.one("io-scheduler", "nvme1c2n1", "mq-deadline")
        assert of_paths(lab.kernel) == {"nvme1c1n1": "none", "nvme1c2n1": "mq-deadline"}


async def test_a_path_that_appears_later_is_set_on_the_next_pass() -> None:
    async with running(multipath_host()) as lab:
        await lab.set(("io-scheduler", "nvme1n1", "mq-deadline"))
        plug_path(lab.kernel, 3)
        await lab.engine.reconcile("change nvme3")
        assert of_paths(lab.kernel)["nvme1c3n1"] == "mq-deadline"


async def test_a_drive_that_has_lost_its_paths_offers_nothing_and_is_no_failure() -> None:
    async with running(multipath_host()) as lab:
        await lab.set(("io-scheduler", "nvme1n1", "mq-deadline"))
        for controller in (1, 2):
            lab.kernel.unplug(f"nvme1c{controller}n1")
        await lab.engine.reconcile("change nvme1")
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == ("nvme1n1", "none", State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert lab.engine.observed.troubles == set()
