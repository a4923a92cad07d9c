"""hugepages-overcommit: pages that may be borrowed, within the limit of the pools."""

from __future__ import annotations

import errno

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NoSuchTarget, NotSupported, OverLimit
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Lane, Limits, Origin, Reason, State
from kerntune.tunables.hugepages_overcommit import HugePagesOvercommit
from tests.unit.lab import GIB, PAGE, claim, have_pages, running, small_host, told

TUNABLE = HugePagesOvercommit()
NAME = HugePagesOvercommit.name
FILE = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"


def test_a_page_size_of_the_whole_host() -> None:
    assert TUNABLE.normal("2048K") == "2M"
    assert [target.instance for target in TUNABLE.targets(small_host())] == ["1G", "2M"]
    assert TUNABLE.lane is Lane.MEMORY


@pytest.mark.parametrize("instances", ["", "*", "2M/node0", "2M/*", "node0", "2", "0M", "2M\n"])
def test_what_is_none(instances: str) -> None:
    with pytest.raises(InvalidValue):
        TUNABLE.normal(instances)


@pytest.mark.parametrize("value", ["", "-1", "64G", "1.5", "9" * 21, "1\n"])
def test_what_is_no_count(value: str) -> None:
    with pytest.raises(InvalidValue):
        TUNABLE.normal_value(value)


async def test_a_set_is_read_back_put_right_and_leaves_with_unset() -> None:
    async with running(small_host()) as lab:
        assert told(await lab.one(NAME, "2M", 128)) == ("2M", "128", State.SATISFIED, Reason.OK)
        assert lab.writes() == [(FILE, "128")]
        lab.kernel.borrow[PAGE] = 5
        await lab.engine.reconcile("drift")
        assert lab.kernel.borrow[PAGE] == 128
        await lab.unset((NAME, "2M"))
        assert lab.kernel.borrow[PAGE] == 0


async def test_pools_and_loans_share_one_limit() -> None:
    kernel = small_host()
    have_pages(kernel, 1000)
    async with running(kernel, limits=Limits(50)) as lab:
        with pytest.raises(OverLimit, match="3097 pages to borrow asked for 2M, 3096 possible, 0 there now"):
            await lab.set((NAME, "2M", 3097))
        assert (lab.writes(), lab.claims) == ([], [])
        assert (await lab.one(NAME, "2M", 3096)).state is State.SATISFIED
        with pytest.raises(OverLimit, match="0 possible"):
            await lab.set((NAME, "1G", 1))


async def test_less_than_there_is_is_never_too_much() -> None:
    kernel = small_host()
    kernel.borrow[PAGE] = 99_999
    async with running(kernel) as lab:
        assert (await lab.one(NAME, "2M", 90_000)).state is State.SATISFIED
        await lab.unset((NAME, "2M"))
        assert kernel.borrow[PAGE] == 99_999


async def test_a_configured_number_beyond_the_limit_is_not_written() -> None:
    async with running(small_host(), claims=[claim(Origin.CONFIG, NAME, "2M", 99_999)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert [told(o)[2:] for o in lab.engine.outcomes.values()] == [(State.REFUSED, Reason.OVER_LIMIT)]
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [(errno.EINVAL, NotSupported, "borrows no pages of 2M"), (errno.EROFS, KernelRejected, "read-only here")],
)
async def test_a_refusal(code: int, error: type[Exception], said: str) -> None:
    async with running(small_host()) as lab:
        lab.kernel.refuse[FILE] = code
        with pytest.raises(error, match=said):
            await lab.set((NAME, "2M", 7))
        assert lab.claims == []


async def test_a_kernel_that_is_late_and_one_that_ignores_it() -> None:
    async with running(small_host()) as lab:
        lab.kernel.late[FILE] = 1
        assert (await lab.one(NAME, "2M", 7)).state is State.SATISFIED
        del lab.kernel.late[FILE]
        lab.kernel.ignore.add(FILE)
        with pytest.raises(KernelRejected, match="still reads 7"):
            await lab.set((NAME, "2M", 9))


async def test_a_size_that_is_not_there_and_a_kernel_without_them() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(NoSuchTarget):
            await lab.set((NAME, "64K", 7))
    async with running(SimulatedKernel([Node(GIB)], sizes=())) as lab:
        with pytest.raises(NotSupported, match="CONFIG_HUGETLBFS"):
            await lab.set((NAME, "2M", 7))
