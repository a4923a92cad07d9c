"""overcommit: mode and ratio as one value, and the limit that would lock everybody out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.errors import InvalidValue, NotSupported, OverLimit
from kerntune.kernel.memory import read_memory
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Memory, Origin, Reading, Reason, State, Target, Write
from kerntune.tunables.overcommit import (
    TARGET,
    Overcommit,
    least_ratio,
    meaning,
    needed_limit,
    predicted_limit,
    split,
    writes_for,
)
from tests.hosts import lay_out, plant
from tests.unit.lab import GIB, MIB, VM, claim, running, small_host

OVERCOMMIT = Overcommit()
MEMORY, RATIO, KBYTES = f"{VM}memory", f"{VM}ratio", f"{VM}kbytes"


def host(mode: int = 0, ratio: int = 50, kbytes: int = 0) -> SimulatedKernel:
    kernel = small_host()
    kernel.overcommit = {"memory": mode, "ratio": ratio, "kbytes": kbytes}
    return kernel


@pytest.mark.parametrize(
    ("mode", "ratio", "kbytes", "value", "restore"),
    [
        (0, 50, 0, "heuristic", "heuristic:50"),
        (0, 150, 0, "heuristic", "heuristic:150"),
        (1, 50, 0, "always:50", "always:50"),
        (2, 80, 0, "never:80", "never:80"),
        (2, 0, 1048576, "never:1048576k", "never:1048576k"),
        (2, 0, 0, "never:0", "never:0"),
        (0, 0, 0, "heuristic", "heuristic:0"),
        (1, 0, 0, "always:0", "always:0"),
        (1, -5, 0, "always:-5", "always:-5"),
        (0, 0, 1 << 32, "heuristic", "heuristic:4294967296k"),
    ],
)
def test_what_the_files_say(mode: int, ratio: int, kbytes: int, value: str, restore: str) -> None:
    reading = OVERCOMMIT.read(host(mode, ratio, kbytes), TARGET)
    assert (reading.value, reading.restore) == (value, restore)


def reading(restore: str) -> Reading:
    """A host that holds such a value."""
    _mode, ratio, kbytes = split(restore)
    return Reading(TARGET, restore, restore=restore, figures={"ratio": ratio or 0, "kbytes": kbytes or 0})


@pytest.mark.parametrize(
    ("now", "desired", "writes"),
    [
        # The limit comes before the mode that enforces it, and after the mode that stops enforcing it.
        ("heuristic:50", "never:80", [(RATIO, "80"), (MEMORY, "2")]),
        ("always:50", "never:80", [(RATIO, "80"), (MEMORY, "2")]),
        ("never:80", "always:5", [(MEMORY, "1"), (RATIO, "5")]),
        ("never:80", "heuristic:5", [(MEMORY, "0"), (RATIO, "5")]),
        ("never:80", "never:90", [(RATIO, "90")]),
        ("never:80", "heuristic", [(MEMORY, "0")]),
        # With neither ratio nor kilobytes, as `vm.overcommit_kbytes=0` leaves a host.
        ("always:95", "heuristic:0", [(MEMORY, "0"), (RATIO, "0")]),
        ("always:1048576k", "always:0", [(RATIO, "0")]),
        ("never:80", "always:0", [(MEMORY, "1"), (RATIO, "0")]),
        ("always:95", "never:0", [(RATIO, "0"), (MEMORY, "2")]),
        ("always:0", "always:0", []),
        ("always:0", "always:95", [(RATIO, "95")]),
        ("heuristic:0", "always", [(MEMORY, "1")]),
        ("always:95", "heuristic:-5", [(MEMORY, "0"), (RATIO, "-5")]),
        # Without a ratio, whatever there is stays.
        ("heuristic:150", "always", [(MEMORY, "1")]),
        ("heuristic:1048576k", "always", [(MEMORY, "1")]),
        # Kilobytes and ratio set each other to 0.
        ("never:1048576k", "never:80", [(RATIO, "80")]),
        ("always:95", "never:1048576k", [(KBYTES, "1048576"), (MEMORY, "2")]),
        ("always:95", "heuristic:150", [(MEMORY, "0"), (RATIO, "150")]),
        # In place already.
        ("never:80", "never:80", []),
        ("never:1048576k", "never:1048576k", []),
        ("always:150", "always", []),
        ("always:95", "always:95", []),
        ("heuristic:5", "heuristic", []),
    ],
)
def test_the_writes_and_their_order(now: str, desired: str, writes: list[tuple[str, str]]) -> None:
    assert writes_for(desired, reading(now)) == tuple(Write(*write) for write in writes)


@pytest.mark.parametrize("changes", [{"ratio": 150}, {"ratio": 0, "kbytes": 8 * MIB}])
async def test_always_without_a_ratio_is_always_95_and_reads_back_so(changes: dict[str, int]) -> None:
    async with running(host(**changes)) as lab:
        outcome = await lab.one("overcommit", "", "always")
        assert (outcome.state, outcome.requested, outcome.actual) == (State.SATISFIED, "always:95", "always:95")
        assert lab.writes() == [(MEMORY, "1"), (RATIO, "95")]
        assert (await lab.one("overcommit", "", "always:95")).state is State.SATISFIED
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("mode", "ratio", "kbytes"),
    [
        (0, 50, 0),
        (0, 150, 0),
        (1, 150, 0),
        (2, 150, 0),
        (2, 0, 8 * MIB),
        (0, 0, 8 * MIB),
        (1, 0, 8 * MIB),
        (1, 0, 1 << 32),
        (0, 0, 0),
        (1, 0, 0),
        (0, -5, 0),
        (1, -5, 0),
        (2, -5, 0),
    ],
)
@pytest.mark.parametrize("value", ["heuristic", "always", "always:95", "never:80"])
async def test_the_hosts_own_value_comes_back_exactly(mode: int, ratio: int, kbytes: int, value: str) -> None:
    kernel = host(mode, ratio, kbytes)
    before = dict(kernel.overcommit)
    async with running(kernel) as lab:
        await lab.set(("overcommit", "", value))
        answer = await lab.unset(("overcommit", ""))
        assert kernel.overcommit == before
        assert [(o.state, o.actual) for o in answer.outcomes] in (
            [(State.UNMANAGED, OVERCOMMIT.read(kernel, TARGET).value)],
            [],
        )
        assert not lab.store.baselines


async def test_no_write_on_the_way_back_enforces_a_limit_that_is_not_the_hosts() -> None:
    """The ratio 0 is a limit too, of the swap alone: it may be in force in mode never only where the host had it so."""
    kernel = host(2, 0)
    kernel.swap = 8 * GIB
    async with running(kernel) as lab:
        await lab.set(("overcommit", "", "always:95"))
        kernel.before_write = lambda path, text: enforced.append(dict(kernel.overcommit))
        enforced: list[dict[str, int]] = []
        await lab.unset(("overcommit", ""))
        assert kernel.overcommit == {"memory": 2, "ratio": 0, "kbytes": 0}
        assert [state["memory"] for state in enforced] == [1, 1]


async def test_a_limit_of_nothing_is_not_put_back_where_it_locks_everybody_out() -> None:
    kernel = host(2, 0)
    kernel.swap = 8 * GIB
    async with running(kernel) as lab:
        await lab.set(("overcommit", "", "always"))
        kernel.swap = 0
        (outcome,) = (await lab.unset(("overcommit", ""))).outcomes
        assert (outcome.state, outcome.reason) == (State.FAILED, Reason.OVER_LIMIT)
        assert lab.store.baselines == {TARGET: "never:0"}


def test_files_that_cannot_be_read_are_no_zero(tmp_path: Path) -> None:
    kernel = plant(tmp_path, f"{MEMORY}\t0")
    assert OVERCOMMIT.read(kernel, TARGET).restore == "heuristic"


async def test_a_ratio_that_would_lock_everybody_out_is_refused_with_both_figures() -> None:
    async with running(host()) as lab:
        with pytest.raises(OverLimit) as caught:
            await lab.set(("overcommit", "", "never:1"))
        for figure in (
            "commit limit 163 MiB",
            "2048 MiB are committed",
            "819 MiB must stay free",
            "at least 18 is needed",
        ):
            assert figure in str(caught.value)
        assert (lab.writes(), lab.claims) == ([], [])


async def test_the_least_ratio_is_just_enough() -> None:
    async with running(host()) as lab:
        least = least_ratio(read_memory(lab.kernel))
        with pytest.raises(OverLimit):
            await lab.set(("overcommit", "", f"never:{least - 1}"))
        assert (await lab.one("overcommit", "", f"never:{least}")).state is State.SATISFIED


async def test_a_lower_ratio_is_refused_while_the_mode_is_never() -> None:
    async with running(host(2, 80)) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("overcommit", "", "never:5"))
        assert lab.writes() == []


async def test_a_low_ratio_harms_nobody_in_mode_always() -> None:
    async with running(host()) as lab:
        assert (await lab.one("overcommit", "", "always:1")).state is State.SATISFIED


@pytest.mark.parametrize(("left", "refused"), [(2.24, True), (2.26, False)])
async def test_always_with_a_ratio_of_which_hardly_anything_is_left_is_refused(left: float, refused: bool) -> None:
    """With always:50 the guard keeps 8 of 16 GiB, and at a quarter of that it promises nobody anything."""
    kernel = host()
    kernel.nodes[0].programs = int((16 - left) * GIB)
    async with running(kernel) as lab:
        if refused:
            with pytest.raises(OverLimit) as caught:
                await lab.set(("overcommit", "", "always:50"))
            assert "2293 MiB are left, and with 2304 MiB not even a shell can start" in str(caught.value)
            assert (lab.writes(), lab.claims) == ([], [])
        else:
            assert (await lab.one("overcommit", "", "always:50")).state is State.SATISFIED


async def test_swap_counts_in_full() -> None:
    kernel = host()
    kernel.swap = 4 * GIB
    async with running(kernel) as lab:
        assert (await lab.one("overcommit", "", "never:1")).state is State.SATISFIED


async def test_a_saved_claim_that_would_lock_out_is_refused_at_boot_too() -> None:
    async with running(host(), claims=[claim(Origin.PERSISTENT, "overcommit", "", "never:1")]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        outcome = lab.engine.observed.outcomes[TARGET]
        assert (outcome.state, outcome.reason) == (State.REFUSED, Reason.OVER_LIMIT)
        assert lab.engine.observed.troubles == {Reason.OVER_LIMIT}
        assert lab.writes() == []


async def test_a_baseline_that_would_lock_out_waits_until_it_does_not() -> None:
    async with running(host(2, 30)) as lab:
        await lab.set(("overcommit", "", "always"))
        lab.kernel.committed = 6 * GIB
        lab.writes()
        (outcome,) = (await lab.unset(("overcommit", ""))).outcomes
        assert (outcome.state, outcome.reason, outcome.actual) == (State.FAILED, Reason.OVER_LIMIT, "always:95")
        assert (outcome.requested, outcome.is_owed) == ("never:30", True)
        assert lab.writes() == []
        assert lab.store.baselines == {TARGET: "never:30"}
        lab.kernel.committed = 2 * GIB
        await lab.engine.reconcile("later")
        assert lab.kernel.overcommit == {"memory": 2, "ratio": 30, "kbytes": 0}
        assert not lab.store.baselines


@given(
    total=st.integers(1, 1 << 12).map(lambda gib: gib * GIB),
    hugetlb=st.floats(0, 0.75),
    committed=st.floats(0, 1.2),
    swap=st.integers(0, 64).map(lambda gib: gib * GIB),
)
def test_the_least_ratio_is_the_least(total: int, hugetlb: float, committed: float, swap: int) -> None:
    memory = Memory(total, total, total, int(total * hugetlb), swap, int(total * committed), 0, 0, 50, 0)
    least = least_ratio(memory)
    assert predicted_limit(memory, ratio=least) >= needed_limit(memory)
    if least > 1:
        assert predicted_limit(memory, ratio=least - 1) < needed_limit(memory)


def test_the_predicted_limit_is_the_kernels() -> None:
    kernel = SimulatedKernel([Node(16 * GIB)], swap=GIB, overcommit={"memory": 2, "ratio": 40, "kbytes": 0})
    kernel.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024")
    memory = read_memory(kernel)
    assert predicted_limit(memory, ratio=40) // 1024 == memory.commit_limit // 1024
    more = replace(memory, hugetlb=0)
    assert predicted_limit(more, ratio=40, more_hugetlb=2 * GIB) == predicted_limit(memory, ratio=40)
    assert predicted_limit(memory, ratio=40, kbytes=MIB) == 2 * GIB


@pytest.mark.parametrize("instances", ["", "*"])
async def test_it_is_one_setting_of_the_host(instances: str) -> None:
    async with running(host()) as lab:
        await lab.set(("overcommit", instances, "always"))
        assert lab.claims == ["runtime:overcommit=always:95"]


async def test_it_has_no_instances() -> None:
    async with running(host()) as lab:
        with pytest.raises(InvalidValue, match="Leave it out"):
            await lab.set(("overcommit", "node0", "always"))


def test_on_captured_hosts(tmp_path: Path) -> None:
    board = lay_out("no-hugetlb", tmp_path / "board")
    assert OVERCOMMIT.read(board, TARGET).value == "always:50"
    assert list(OVERCOMMIT.targets(board)) == [TARGET]
    bare = plant(tmp_path / "bare", "proc/meminfo\tMemTotal: 1 kB")
    assert list(OVERCOMMIT.targets(bare)) == []
    assert "/proc/sys/vm/overcommit_memory is missing" in OVERCOMMIT.missing(bare)
    assert OVERCOMMIT.read(bare, TARGET).reason is Reason.NO_KERNEL_SUPPORT


async def test_the_detail_says_what_the_ratio_does() -> None:
    async with running(host()) as lab:
        for value, means in [
            ("never:80", "refuses memory beyond 80 % of RAM less huge pages, plus swap"),
            ("always:95", r"the ratio (95 % of RAM) caps nothing"),
            ("heuristic", "not read in this mode"),
        ]:
            assert means in (await lab.one("overcommit", "", value)).detail


def test_huge_pages_are_taken_off_a_ratio_and_not_off_kilobytes() -> None:
    assert meaning(reading("never:80")).endswith("beyond 80 % of RAM less huge pages, plus swap")
    assert meaning(reading("never:1048576k")).endswith("beyond 1048576 KiB, plus swap")


async def test_a_host_without_it_does_not_support_it() -> None:
    kernel = host()
    kernel.overcommit = {}
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match="overcommit_memory is missing"):
            await lab.set(("overcommit", "", "always"))
        assert lab.claims == []
        assert Target("overcommit") not in lab.engine.observed.readings


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("2", "the mode never needs a ratio of RAM, such as never:80"),
        ("never", "the mode never needs a ratio of RAM, such as never:80"),
        ("0:50", "the mode heuristic takes no ratio"),
    ],
)
def test_a_mode_says_what_it_lacks(value: str, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        OVERCOMMIT.normal_value(value)
