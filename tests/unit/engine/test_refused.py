"""A call that ends in an error was refused before any write, or leaves nothing behind."""

from __future__ import annotations

import errno
import os

import pytest

from kerntune.errors import (
    Failed,
    InvalidValue,
    KernelRejected,
    KerntuneError,
    LimitsExceeded,
    NoSuchName,
    NoSuchTarget,
    OverLimit,
    PartiallyAllocated,
    UnknownTunable,
)
from kerntune.model import Limits, Reason, State
from tests.unit.lab import (
    FULL,
    PAGE,
    SETTINGS,
    VM,
    have_pages,
    host_values,
    large_host,
    queue,
    running,
)

# Refused before anything is asked of the kernel


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        (("io-sched", "sda", "none"), UnknownTunable),
        (("io-scheduler", "sdz", "none"), NoSuchTarget),
        (("io-scheduler", "by-id/none-such", "none"), NoSuchTarget),
        (("io-scheduler", "sda", "no!"), InvalidValue),
        (("io-scheduler", "sda/..", "none"), InvalidValue),
        (("io-scheduler", "a" * 257, "none"), InvalidValue),
        (("hugepages", "2M", "many"), InvalidValue),
        (("hugepages", "3M", "1"), NoSuchName),
        (("hugepages", "4M", "1"), NoSuchTarget),
        (("sysctl", "vm.swappiness", "201"), InvalidValue),
        (("thp", "enabled", "sometimes"), InvalidValue),
        (("overcommit", "", "never"), InvalidValue),
    ],
)
async def test_one_bad_setting_refuses_the_whole_call(
    setting: tuple[str, str, str], error: type[KerntuneError]
) -> None:
    async with running(large_host()) as lab:
        with pytest.raises(error):
            await lab.set(("io-scheduler", "nvme*", "mq-deadline"), setting, ("hugepages", "2M", 10))
        assert (lab.writes(), lab.claims, lab.engine.generation) == ([], [], 0)


async def test_the_same_instances_twice_in_one_call() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match="name the same instances"):
            await lab.set(("hugepages", "2M", 1), ("hugepages", "2048K", 2))


async def test_claims_have_a_limit_and_replacing_is_no_new_one() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        await lab.set(("io-scheduler", "nvme*", "none"))
        await lab.set(("io-scheduler", "sda", "none"))
        with pytest.raises(LimitsExceeded, match="2 runtime claims already"):
            await lab.set(("io-scheduler", "vd*", "none"))
        await lab.set(("io-scheduler", "sda", "bfq"))
        await lab.set(("io-scheduler", "vd*", "none"), persist=True)
        await lab.unset(("io-scheduler", "nvme*"))
        await lab.set(("io-scheduler", "vd*", "none"))
        assert len(lab.claims) == 3


async def test_a_call_of_too_many_settings_writes_nothing() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        with pytest.raises(LimitsExceeded):
            await lab.set(*(("io-scheduler", name, "mq-deadline") for name in ("nvme0n1", "nvme1n1", "sda")))
        assert (lab.writes(), lab.claims) == ([], [])


# Errors leave nothing


async def test_a_failure_in_one_lane_withdraws_the_other_lanes_part() -> None:
    kernel = large_host()
    kernel.nodes[0].whole = kernel.nodes[1].whole = 10 * PAGE
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "kyber"))
        before = host_values(kernel)
        with pytest.raises(PartiallyAllocated):
            await lab.set(
                ("io-scheduler", "*", "bfq"), ("hugepages", "2M", 100), ("overcommit", "", "always"), persist=True
            )
        assert host_values(kernel) == before
        assert lab.claims == ["runtime:io-scheduler@nvme0n1=kyber"]
        assert [target.instance for target in lab.store.baselines] == ["nvme0n1"]


async def test_what_can_be_foreseen_is_refused_before_any_lane_writes() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("io-scheduler", "*", "bfq"), ("hugepages", "2M", 99_999_999))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_all_lanes_in_one_call() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("io-scheduler", "sda", "bfq"), ("hugepages", "2M", 10), ("overcommit", "", "always"))
        assert [(o.target.tunable, o.state) for o in answer.outcomes] == [
            ("io-scheduler", State.SATISFIED),
            ("hugepages", State.SATISFIED),
            ("overcommit", State.SATISFIED),
        ]


async def test_a_kernel_that_ignores_a_write() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        with pytest.raises(KernelRejected, match="accepted, but io-scheduler@sda still reads mq-deadline"):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.store.baselines


async def test_a_kernel_that_ignores_some_writes() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        answer = await lab.set(("io-scheduler", "*", "kyber"))
        assert [(o.state, o.reason) for o in answer.outcomes] == [
            (State.SATISFIED, Reason.OK),
            (State.SATISFIED, Reason.OK),
            (State.FAILED, Reason.READ_BACK_DIFFERS),
        ]
        assert lab.claims == ["runtime:io-scheduler@*=kyber"]
        assert lab.engine.troubles == {Reason.READ_BACK_DIFFERS}


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
async def test_a_kernel_that_obeys_late_is_waited_for(reads: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.late[queue("sda")] = reads
        outcome = await lab.one("io-scheduler", "sda", "bfq")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "bfq")
        assert lab.writes() == [(queue("sda"), "bfq")]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EPERM, errno.EBUSY, errno.ENODEV])
async def test_a_kernel_that_refuses(code: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = code
        with pytest.raises(KerntuneError):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.store.baselines


async def test_of_the_writes_of_a_step_none_follows_one_that_was_refused() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[f"{VM}ratio"] = errno.EINVAL
        with pytest.raises(KernelRejected, match="the kernel refused never:80"):
            await lab.set(("overcommit", "", "never:80"))
        assert (f"{VM}memory", "2") not in lab.writes()
        assert lab.kernel.overcommit == {"memory": 0, "ratio": 50, "kbytes": 0}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_a_claim_that_cannot_be_saved_is_withdrawn(setting: tuple[str, str, str]) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    before = host_values(kernel)
    async with running(kernel) as lab:
        lab.store.full_for_claims = FULL
        with pytest.raises(Failed, match="cannot be saved: No space left on device"):
            await lab.set(setting)
        assert host_values(kernel) == before
        assert (lab.claims, dict(lab.store.baselines)) == ([], {})


async def test_a_claim_that_cannot_be_saved_puts_back_the_one_before() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.store.full_for_claims = FULL
        with pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "none"), persist=True)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_without_a_saved_baseline_nothing_is_written(setting: tuple[str, str, str]) -> None:
    async with running(large_host()) as lab:
        lab.store.full = FULL
        with pytest.raises(Failed, match="own values cannot be saved"):
            await lab.set(setting)
        assert (lab.writes(), lab.claims) == ([], [])


@pytest.mark.parametrize("part", ["full", "full_for_claims"])
async def test_an_error_without_a_file_name_is_told_without_one(part: str) -> None:
    async with running(large_host()) as lab:
        setattr(lab.store, part, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert "None" not in str(caught.value)


async def test_baselines_that_cannot_be_dropped_do_not_fail_the_call() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.store.full = FULL
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        lab.store.full = None
        await lab.unset(("io-scheduler", "sda"))
        assert not lab.store.baselines


async def test_a_bug_in_a_pass_is_told_as_such_and_the_lane_goes_on() -> None:
    async with running(large_host()) as lab:

        def stumble(path: str, text: str) -> None:
            raise RuntimeError("no such thing should happen")

        lab.kernel.before_write = stumble
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert str(caught.value) == "internal error. The daemon's journal says more"
        lab.kernel.before_write = None
        assert lab.claims == []
        assert (await lab.one("io-scheduler", "sda", "bfq")).state is State.SATISFIED
