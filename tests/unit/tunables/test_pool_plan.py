"""The arithmetic of huge pages: how a total is divided, what the host can bear, and what holds add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kerntune.model import Claim, DesiredState, Limits, Memory, Origin, Reading, State, Step, Target
from kerntune.tunables.overcommit import needed_limit, predicted_limit
from kerntune.tunables.pool_plan import plan_pools, share, spread
from kerntune.tunables.pool_room import Room
from kerntune.tunables.pool_writes import in_order
from kerntune.tunables.sums import apart, of_pools
from tests.unit.lab import GIB, PAGE

MANY = 1 << 20
counts = st.integers(0, 5000)


def node(number: int) -> Target:
    return Target("hugepages", f"2M/node{number}")


WHOLE = Target("hugepages", "2M")


def pool(target: Target, asked: int, *, used: int = 0, room: int = MANY) -> Reading:
    """A pool in which programs have `used` pages; `room` is what its node has free memory for."""
    total = max(asked, used)
    figures = {
        "size": PAGE,
        "total": total,
        "asked": asked,
        "free": total - used,
        "surplus": total - asked,
        "borrow": 0,
        "reserved": 0,
        "room": room,
    }
    return Reading(target, str(total), restore=str(asked), figures=figures)


pools = st.lists(st.tuples(counts, counts, counts), min_size=1, max_size=6).map(
    lambda rows: {node(n): pool(node(n), asked, used=used, room=room) for n, (asked, used, room) in enumerate(rows)}
)


def by_node(*values: int) -> dict[Target, int]:
    return {node(number): value for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("amount", "room", "shares"),
    [
        (4, (10, 10), (2, 2)),
        (5, (10, 10), (3, 2)),
        (5, (10, 10, 10, 10), (2, 1, 1, 1)),
        (10, (3, 10), (3, 7)),
        (10, (0, 10), (0, 10)),
        (10, (2, 2), (5, 5)),
        (0, (2, 2), (0, 0)),
    ],
)
def test_share(amount: int, room: tuple[int, ...], shares: tuple[int, ...]) -> None:
    assert share(amount, by_node(*room)) == by_node(*shares)


@given(amount=counts, room=st.lists(counts, min_size=1, max_size=8))
def test_all_is_shared_out_and_within_room_while_there_is_any(amount: int, room: list[int]) -> None:
    shares = share(amount, by_node(*room))
    assert sum(shares.values()) == amount
    assert min(shares.values()) >= 0
    if amount <= sum(room):
        assert all(shares[node(n)] <= bound for n, bound in enumerate(room))


@given(amount=counts, bounds=st.lists(st.tuples(counts, counts).map(sorted), min_size=1, max_size=8))
def test_nobody_gives_more_than_it_has(amount: int, bounds: list[list[int]]) -> None:
    room, most = by_node(*(low for low, _ in bounds)), by_node(*(high for _, high in bounds))
    shares = share(amount, room, most)
    assert sum(shares.values()) == min(amount, sum(most.values()))
    assert all(shares[target] <= most[target] for target in most)


@given(amount=counts, room=st.lists(counts, min_size=1, max_size=8))
def test_shares_are_even(amount: int, room: list[int]) -> None:
    assume(amount <= sum(room))
    shares = share(amount, by_node(*room))
    open_ = [shares[node(n)] for n, bound in enumerate(room) if shares[node(n)] < bound]
    # Whoever has room left got as much as anybody, but for the one page that cannot be halved.
    assert all(max(shares.values()) - taken <= 1 for taken in open_)


def test_nobody_to_share_with() -> None:
    assert share(5, {}) == {}


@given(total=st.integers(0, 40_000), pools=pools)
def test_a_spread_total_is_the_total(total: int, pools: dict[Target, Reading]) -> None:
    wants = spread(total, pools)
    assert sum(wants.values()) == total
    assert min(wants.values()) >= 0


@given(total=st.integers(0, 40_000), pools=pools)
def test_growing_takes_from_nobody_and_shrinking_gives_to_nobody(total: int, pools: dict[Target, Reading]) -> None:
    asked = {target: reading.figures["asked"] for target, reading in pools.items()}
    wants = spread(total, pools)
    if total >= sum(asked.values()):
        assert all(wants[target] >= asked[target] for target in pools)
    else:
        assert all(wants[target] <= asked[target] for target in pools)


@given(pools=pools)
def test_a_sum_that_is_right_is_left_as_it_is(pools: dict[Target, Reading]) -> None:
    asked = {target: reading.figures["asked"] for target, reading in pools.items()}
    assert spread(sum(asked.values()), pools) == asked


def test_growth_goes_where_memory_is() -> None:
    two = {node(0): pool(node(0), 10, room=5), node(1): pool(node(1), 10)}
    assert spread(120, two) == by_node(15, 105)


def test_shrinking_takes_free_pages_first() -> None:
    two = {node(0): pool(node(0), 100, used=90), node(1): pool(node(1), 100)}
    assert spread(100, two) == by_node(90, 10)
    assert spread(60, two) == by_node(60, 0)


def memory(
    total: int, available: int, hugetlb: int = 0, committed: int = 0, *, mode: int = 0, ratio: int = 50, kbytes: int = 0
) -> Memory:
    return Memory(total, available, available, hugetlb, 0, committed, 0, mode, ratio, kbytes)


def desired(target: Target, value: int, *, strict: bool = True, origin: Origin = Origin.RUNTIME) -> DesiredState:
    claim = Claim(origin, "hugepages", target.instance, str(value))
    return DesiredState(target, claim.value, claim, strict=strict)


hosts = st.builds(
    lambda gib, free, huge, promised, mode, ratio: memory(
        gib * GIB, int(gib * GIB * free), int(gib * GIB * huge), int(gib * GIB * promised), mode=mode, ratio=ratio
    ),
    st.integers(1, 2048),
    st.floats(0, 1),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.sampled_from([0, 1, 2]),
    st.integers(1, 100),
)


def possible(host: Memory, limits: Limits) -> int:
    """The pages that a claim may take."""
    room = Room.on(host, limits, {})
    return min(bound.pages(PAGE) for bound in (room.for_memory(), room.for_pools))


@given(host=hosts, percent=st.integers(1, 100))
def test_what_there_is_room_for_leaves_the_host_alive(host: Memory, percent: int) -> None:
    taken = possible(host, Limits(hugepages_percent=percent)) * PAGE
    assert taken >= 0
    if taken:
        assert host.available - taken >= host.reserve
        assert host.hugetlb + taken <= host.total * percent // 100
        if host.overcommit_mode == 2:
            # A byte may be lost in rounding.
            limit = predicted_limit(host, ratio=host.overcommit_ratio, more_hugetlb=taken)
            assert limit >= needed_limit(host) - 1


@given(host=hosts, percent=st.integers(1, 100))
def test_there_is_no_room_for_a_page_more(host: Memory, percent: int) -> None:
    taken = (possible(host, Limits(hugepages_percent=percent)) + 1) * PAGE
    assert (
        host.available - taken < host.reserve
        or host.hugetlb + taken > host.total * percent // 100
        or (
            host.overcommit_mode == 2
            and predicted_limit(host, ratio=host.overcommit_ratio, more_hugetlb=taken) <= needed_limit(host)
        )
    )


@pytest.mark.parametrize(("ratio", "kbytes"), [(0, 8 << 20), (0, 0), (-5, 0)])
def test_without_a_ratio_huge_pages_lower_no_commit_limit(ratio: int, kbytes: int) -> None:
    """In mode never with overcommit_kbytes, or with a ratio that is none, the limit does not depend on huge pages."""
    bound = memory(16 * GIB, 15 * GIB, committed=7 * GIB, mode=2, ratio=50)
    free = memory(16 * GIB, 15 * GIB, committed=7 * GIB, mode=2, ratio=ratio, kbytes=kbytes)
    assert possible(bound, Limits()) < possible(free, Limits()) == 6144


def steps_for(
    group: dict[Target, Reading],
    *desired_states: DesiredState,
    host: Memory | None = None,
    limits: Limits | None = None,
) -> Sequence[Step]:
    """Plan on a host with plenty of memory, if no other is given; the path of a pool is its name."""
    return plan_pools(
        group,
        {desired.target: desired for desired in desired_states},
        host or memory(64 * GIB, 60 * GIB),
        limits or Limits(),
        path_of=lambda target: target.instance,
    )


def in_turn(
    group: dict[Target, Reading], *desired_states: DesiredState, host: Memory | None = None
) -> list[tuple[str, str]]:
    """Return what would be written, one after the other; a refused one writes nothing."""
    steps = steps_for(group, *desired_states, host=host)
    return [(write.path, write.text) for step in steps for write in step.writes]


def two_nodes(*asked: int, whole: bool = True) -> dict[Target, Reading]:
    group = {node(n): pool(node(n), count) for n, count in enumerate(asked)}
    return group | ({WHOLE: pool(WHOLE, sum(asked))} if whole else {})


def busy_nodes(*counts: tuple[int, int]) -> dict[Target, Reading]:
    """Nodes with pages asked for and pages in use."""
    group = {node(n): pool(node(n), asked, used=used) for n, (asked, used) in enumerate(counts)}
    total = sum(reading.figures["total"] for reading in group.values())
    figures = {name: sum(r.figures[name] for r in group.values()) for name in ("total", "asked", "free", "surplus")}
    whole = replace(pool(WHOLE, 0), value=str(total), figures={**pool(WHOLE, 0).figures, **figures})
    return group | {WHOLE: whole}


def host_own(target: Target, value: int) -> DesiredState:
    return desired(target, value, strict=False, origin=Origin.BASELINE)


@pytest.mark.parametrize(
    ("total", "used", "written"),
    [
        (100, 0, ["100"]),
        (4, 8, ["4"]),
        (16, 8, []),
        (12, 4, ["12"]),
        (20, 8, ["20"]),
    ],
    ids=["growth", "below what is in use", "as it is", "free pages are enough", "growth while pages are in use"],
)
def test_a_total_is_written_as_a_total(total: int, used: int, written: list[str]) -> None:
    assert in_turn(busy_nodes((8, used), (8, used)), desired(WHOLE, total)) == [("2M", text) for text in written]


def test_a_total_with_surplus_is_made_whole_before_it_shrinks() -> None:
    """Else the kernel keeps free pages for those in use, and makes surplus of them."""
    group = busy_nodes((2, 8), (20, 0))
    assert in_turn(group, desired(WHOLE, 6)) == [("2M", "28"), ("2M", "6")]
    assert in_turn(group, desired(WHOLE, 24)) == [("2M", "24")]
    assert in_turn(group, desired(WHOLE, 22)) == []


def test_surplus_that_nobody_will_give_back_is_made_whole_and_freed() -> None:
    """A pool that was asked for nothing, and has ten free pages."""
    group = busy_nodes((0, 10), (5, 0))
    for target in (node(0), WHOLE):
        figures = group[target].figures
        group[target] = replace(group[target], figures={**figures, "free": figures["free"] + 10})
    assert in_turn(group, desired(WHOLE, 5)) == [("2M", "15"), ("2M", "5")]
    assert in_turn(group, host_own(node(0), 0), host_own(node(1), 5)) == [("2M", "15"), ("2M/node0", "0")]
    assert in_turn(group, desired(node(1), 5)) == []
    group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 10})
    assert in_turn(group, desired(WHOLE, 5)) == []


def test_nodes_shrink_while_a_program_has_pages_of_one() -> None:
    """First what is free, then what is in use: no number is written while another node has surplus."""
    group = busy_nodes((32, 16), (32, 0))
    own = [host_own(node(0), 0), host_own(node(1), 4)]
    assert in_turn(group, *own) == [("2M/node1", "4"), ("2M/node0", "16"), ("2M/node0", "0")]
    assert in_turn(busy_nodes((0, 16), (32, 0)), *own) == [("2M", "48"), ("2M/node1", "4"), ("2M/node0", "0")]
    assert in_turn(busy_nodes((0, 16), (4, 0)), *own) == []


def test_nodes_shrink_while_programs_have_pages_of_several() -> None:
    """The total's number puts the sum right on kernels that count the surplus of the other nodes."""
    own = [host_own(node(0), 0), host_own(node(1), 2)]
    assert in_turn(busy_nodes((32, 16), (32, 16)), *own) == [
        *[(f"2M/node{n}", "16") for n in (0, 1)],
        ("2M/node1", "2"),
        ("2M/node0", "0"),
        ("2M", "2"),
    ]
    # The sum is right, and which node has it is settled when pages are given back.
    assert in_turn(busy_nodes((1, 16), (1, 16)), *own) == []
    assert in_turn(busy_nodes((1, 16), (1, 1)), *own) == [
        ("2M", "17"),
        ("2M/node1", "2"),
        ("2M/node0", "0"),
    ]


def test_the_total_takes_no_free_pages_from_a_node_that_is_to_keep_them() -> None:
    own = [host_own(node(0), 10), host_own(node(1), 0), host_own(node(2), 0)]
    assert in_turn(busy_nodes((10, 0), (20, 20), (20, 20)), *own) == [("2M/node1", "0"), ("2M/node2", "0")]


def test_no_number_is_written_that_a_kernel_would_make_pages_for() -> None:
    """With the surplus of the first, the number for the third is more than it has on a kernel that counts both."""
    own = [host_own(node(n), 0) for n in range(3)]
    written = in_turn(busy_nodes((57, 57), (20, 20), (21, 21)), *own)
    assert written == [("2M/node1", "0"), ("2M/node2", "0"), ("2M/node0", "0"), ("2M", "0")]
    written = in_turn(busy_nodes((30, 30), (20, 20), (21, 21)), *own)
    assert written == [("2M/node1", "0"), ("2M/node2", "0"), ("2M", "0")]


def test_pages_that_are_promised_count_as_surplus_to_come() -> None:
    """Ten pages stay, on the node that is freed last: no number is written that a kernel would make pages for."""
    own = [host_own(node(n), 0) for n in range(2)]
    for used, last in ((5, []), (10, [("2M/node1", "0")])):
        group = busy_nodes((20, 0), (used, used))
        group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 10})
        assert in_turn(group, *own) == [("2M/node0", "0"), *last, ("2M", "0")]


def test_while_pages_are_promised_and_the_sum_is_right_nothing_is_written() -> None:
    """Which node has the pages is settled when programs give some back."""
    group = busy_nodes((0, 4), (4, 4))
    goals = desired(node(0), 4), desired(node(1), 0)
    group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 2})
    assert in_turn(group, *goals) == []
    group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 0})
    assert in_turn(group, *goals) != []


def test_growth_comes_first_where_pages_are_promised() -> None:
    group = busy_nodes((20, 0), (5, 0))
    group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 12})
    assert in_turn(group, desired(node(0), 0), desired(node(1), 8)) == [
        ("2M/node1", "8"),
        ("2M/node0", "0"),
        ("2M", "8"),
    ]
    group[WHOLE] = replace(group[WHOLE], figures={**group[WHOLE].figures, "reserved": 8})
    assert in_turn(group, desired(node(0), 0), desired(node(1), 8)) == [("2M/node0", "0"), ("2M/node1", "8")]


def test_a_node_grows_while_another_has_borrowed_pages() -> None:
    """The other's surplus is in its number on kernels up to 6.13: it is made whole first, and surplus again at last."""
    group = busy_nodes((0, 0), (5, 20))
    written = in_turn(group, desired(node(0), 80))
    assert written == [("2M", "20"), ("2M/node0", "80"), ("2M/node1", "5")]


def test_the_steps_that_another_carries_out_are_touched_by_it() -> None:
    group = busy_nodes((0, 0), (5, 20), (7, 0))
    steps = steps_for(group, desired(node(0), 80), desired(node(2), 3))
    (carrier,) = [step for step in steps if step.writes]
    assert set(carrier.touched) == {node(0), node(1), node(2)}
    assert {step.desired.target for step in steps} == {node(0), node(2)}


def test_the_total_goes_back_to_what_its_nodes_go_back_to() -> None:
    """Its own number was saved while one of them had another one."""
    whole = host_own(WHOLE, 90)
    steps = steps_for(two_nodes(9, 9, 5), whole, host_own(node(0), 4), host_own(node(1), 4))
    assert {step.desired.target: bool(step.writes) for step in steps} == {WHOLE: False, node(0): True, node(1): True}
    assert {step.desired.value for step in steps if step.desired.target == WHOLE} == {"13"}
    assert in_turn(two_nodes(9, 9), whole) == [("2M", "90")]


def test_nodes_get_theirs_and_the_others_the_rest() -> None:
    written = in_turn(two_nodes(0, 0), desired(WHOLE, 200), desired(node(0), 80))
    assert sorted(written) == [("2M/node0", "80"), ("2M/node1", "120")]


def test_a_total_below_the_nodes_is_beaten_by_them() -> None:
    steps = steps_for(two_nodes(80, 5), desired(WHOLE, 40), desired(node(0), 80))
    overridden = next(step for step in steps if step.desired.target == WHOLE)
    assert overridden.capped is not None
    assert overridden.capped.state is State.OVERRIDDEN
    assert "80 pages in all" in overridden.capped.detail
    assert [(write.path, write.text) for step in steps for write in step.writes] == [("2M/node1", "0")]


def test_shrinking_comes_before_growing() -> None:
    """Their memory may be what the others need: the host as a whole is never asked for more than it ends with."""
    paths = [path for path, _ in in_turn(two_nodes(100, 0), desired(node(1), 100), desired(node(0), 0))]
    assert paths == ["2M/node0", "2M/node1"]
    paths = [path for path, _ in in_turn(two_nodes(100, 0, 0), desired(WHOLE, 20), desired(node(2), 10))]
    assert paths == ["2M/node0", "2M/node2"]
    pools = {node(0): pool(node(0), 10), node(1): pool(node(1), 300), node(2): pool(node(2), 200)}
    assert in_order(by_node(90, 20, 190), pools) == [(node(1), 20), (node(2), 190), (node(0), 90)]


@given(
    asked=st.lists(counts, min_size=2, max_size=4),
    total=st.none() | st.integers(0, 20_000),
    own=st.dictionaries(st.integers(0, 1), counts),
    percent=st.integers(10, 100),
    strict=st.booleans(),
)
def test_a_plan_grows_within_the_room_and_its_outcome_needs_no_plan(
    asked: list[int], total: int | None, own: dict[int, int], percent: int, strict: bool
) -> None:
    group = two_nodes(*asked)
    taken = sum(asked) * PAGE
    host = memory(64 * GIB, 60 * GIB - taken, taken)
    limits = Limits(hugepages_percent=percent)
    desired_states = [desired(node(n), count, strict=strict) for n, count in own.items()]
    desired_states += [desired(WHOLE, total, strict=strict)] if total is not None else []
    steps = steps_for(group, *desired_states, host=host, limits=limits)
    assert {step.desired for step in steps} == set(desired_states)
    after = {node(n): count for n, count in enumerate(asked)}
    for step in steps:
        assert not (step.verdict and step.writes)
        for write in step.writes:
            if write.path == "2M":
                after |= spread(int(write.text), two_nodes(*after.values(), whole=False))
            else:
                after[Target("hugepages", write.path)] = int(write.text)
    assert sum(after.values()) <= max(sum(asked), sum(asked) + possible(host, limits))
    if any(step.verdict or step.capped for step in steps):
        return
    taken = sum(after.values()) * PAGE
    host = memory(64 * GIB, 60 * GIB - taken, taken)
    again = steps_for(two_nodes(*after.values()), *desired_states, host=host, limits=limits)
    assert not any(step.writes for step in again)


@pytest.mark.parametrize("used", [0, 50])
def test_a_pool_may_shrink_on_a_host_that_is_full(used: int) -> None:
    group = {WHOLE: pool(WHOLE, 100, used=used)}
    full = memory(GIB, 0, GIB)
    assert in_turn(group, desired(WHOLE, 20), host=full) == [("2M", "20")]
    assert in_turn(group, desired(WHOLE, 100), host=full) == []
    assert in_turn(group, desired(WHOLE, 101), host=full) == []


# Numbers that holds have a part in, on hosts of none, one and two nodes


OWN = 7  # pages that each pool has by itself


def claims(*asked: tuple[Origin, str, int]) -> list[Claim]:
    """Each is newer than the one before."""
    return [
        Claim(origin, "hugepages", instances, str(value), seq=seq, hold=seq if origin is Origin.HOLD else 0)
        for seq, (origin, instances, value) in enumerate(asked)
    ]


def numbers(there: tuple[str, ...], asked: list[Claim]) -> Mapping[str, tuple[int, bool]]:
    """What the pools should be, each exactly or at least."""
    own = {Target("hugepages", name): OWN for name in there}
    covering = {each: [c for c in reversed(asked) if c.instances == each.instance] for each in own}
    found = of_pools(covering, own)
    return {target.instance: (total.value, total.sum.at_least) for target, total in found.items()}


HOLD, SET = Origin.HOLD, Origin.RUNTIME
ONE, TWO = ("2M", "2M/node0"), ("2M", "2M/node0", "2M/node1")


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (("2M",), [(HOLD, "2M", 5)], {"2M": (12, False)}),
        (("2M",), [(HOLD, "2M", 5), (SET, "2M", 20)], {"2M": (25, False)}),
        (ONE, [(HOLD, "2M", 5), (HOLD, "2M/node0", 3)], {"2M": (15, False), "2M/node0": (15, False)}),
        (ONE, [(HOLD, "2M", 5), (SET, "2M/node0", 3)], {"2M": (8, False), "2M/node0": (8, False)}),
        (TWO, [(SET, "2M", 20)], {}),
        (TWO, [(HOLD, "2M", 5)], {"2M": (19, False)}),
        (TWO, [(HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
        (TWO, [(SET, "2M", 20), (HOLD, "2M/node0", 5)], {"2M": (25, False), "2M/node0": (5, True)}),
        (TWO, [(HOLD, "2M", 4), (HOLD, "2M/node0", 5)], {"2M": (23, False), "2M/node0": (12, True)}),
        (TWO, [(HOLD, "2M", 4), (SET, "2M/node0", 9)], {"2M": (20, False), "2M/node0": (9, True)}),
        (TWO, [(SET, "2M/node1", 9), (HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
        # Without the host's own pool, which is going away.
        (("2M/node0",), [(HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
    ],
)
def test_what_is_held_is_added(
    there: tuple[str, ...], asked: list[tuple[Origin, str, int]], expected: dict[str, tuple[int, bool]]
) -> None:
    assert numbers(there, claims(*asked)) == expected


def test_each_page_size_for_itself() -> None:
    asked = claims((HOLD, "2M", 5), (HOLD, "1G", 1))
    assert numbers(("2M", "1G"), asked) == {"2M": (12, False), "1G": (8, False)}


def test_apart_each_target_has_its_own() -> None:
    first, second, nothing = (Target("hugepages", size) for size in ("2M", "1G", "64K"))
    asked = claims((SET, "2M", 20), (HOLD, "2M", 5), (HOLD, "1G", 1))
    found = apart({first: asked[1::-1], second: asked[2:], nothing: []}, dict.fromkeys((first, second, nothing), OWN))
    assert {target.instance: total.value for target, total in found.items()} == {"2M": 25, "1G": 8}
    assert found[first].sum.base == asked[0]
    assert found[second].sum.base is None
