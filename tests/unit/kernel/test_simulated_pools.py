"""The simulated kernel's pools do what set_max_huge_pages of mm/hugetlb.c does, up to Linux 6.13 and since."""

from __future__ import annotations

import pytest

from kerntune.kernel.simulated import Node, SimulatedKernel
from tests.hosts.simulated import pool_host, use_pages
from tests.unit.lab import GIB, PAGE, POOL, node_pool


def pools(kernel: SimulatedKernel) -> list[tuple[int, int, int]]:
    """Pages, surplus and free ones of each node."""
    return [(pool.total, pool.surplus, pool.free) for pool in (node.pools[PAGE] for node in kernel.nodes)]


def test_a_total_goes_round_the_nodes_and_on_where_one_has_no_memory() -> None:
    kernel = pool_host(0, 0, 0)
    kernel.nodes[1].programs = GIB - 2 * PAGE
    kernel.write(POOL, "10")
    assert pools(kernel) == [(4, 0, 4), (2, 0, 2), (4, 0, 4)]
    kernel.write(POOL, "4")
    assert sum(total for total, _, _ in pools(kernel)) == 4


def test_page_cache_makes_room_for_pages() -> None:
    kernel = SimulatedKernel([Node(GIB, cache=GIB - 3 * PAGE)], sizes=(PAGE,))
    assert "MemFree: 6144 kB" in kernel.read("proc/meminfo")
    assert "MemAvailable: 1048576 kB" in kernel.read("proc/meminfo")
    kernel.write(POOL, "100")
    assert (pools(kernel), kernel.nodes[0].free, kernel.nodes[0].cache) == ([(100, 0, 100)], 0, GIB - 100 * PAGE)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_number_for_a_node_counts_the_surplus_of_others_on_old_kernels(foreign: bool) -> None:
    """What Linux 6.1 does with 16 pages in use on each of two nodes when 0 is written to both; newer ones too."""
    kernel = pool_host(32, 32, used=(16, 16), foreign=foreign)
    for number in (0, 1):
        kernel.write(node_pool(number), "0")
    assert pools(kernel) == [(16, 16, 0), (32, 16 if foreign else 32, 16)]
    use_pages(kernel, 0, 0)
    assert [total for total, _, _ in pools(kernel)] == [0, 16]


def test_pages_that_are_in_use_elsewhere_keep_free_ones_which_become_surplus() -> None:
    kernel = pool_host(20, 20, used=(20, 0), foreign=False)
    kernel.write(node_pool(0), "0")
    kernel.write(node_pool(1), "0")
    assert pools(kernel) == [(20, 20, 0), (20, 20, 20)]
    use_pages(kernel, 0, 0)
    assert pools(kernel) == [(0, 0, 0), (20, 20, 20)]
    kernel.write(POOL, "0")
    assert pools(kernel) == [(0, 0, 0), (20, 20, 20)]
    kernel.write(POOL, "20")
    kernel.write(POOL, "0")
    assert pools(kernel) == [(0, 0, 0), (0, 0, 0)]


def test_growth_takes_pages_out_of_surplus_first() -> None:
    kernel = pool_host(10, 10, used=(10, 10))
    kernel.write(POOL, "4")
    assert sum(surplus for _, surplus, _ in pools(kernel)) == 16
    kernel.write(POOL, "20")
    assert pools(kernel) == [(10, 0, 0), (10, 0, 0)]


def test_programs_borrow_beyond_the_pool_and_their_pages_go_when_they_end() -> None:
    kernel = pool_host(2, 0)
    kernel.borrow[PAGE] = 3
    assert kernel.take(0, 4, PAGE) == 4
    assert kernel.take(1, 4, PAGE) == 1
    assert pools(kernel) == [(4, 2, 0), (1, 1, 0)]
    use_pages(kernel, 0, 0)
    assert pools(kernel) == [(2, 0, 2), (0, 0, 0)]


def test_what_is_promised_stays_when_a_pool_shrinks_and_goes_when_it_is_let_go() -> None:
    kernel = pool_host(8, 8)
    assert kernel.reserve(5, PAGE)
    assert kernel.read(POOL.replace("nr_", "resv_")) == "5"
    kernel.write(POOL, "0")
    assert sum(total for total, _, _ in pools(kernel)) == 5
    assert kernel.take(0, 1, PAGE) == 0
    kernel.reserve(-5, PAGE)
    assert pools(kernel) == [(0, 0, 0), (0, 0, 0)]


def test_pages_are_borrowed_for_what_is_promised() -> None:
    kernel = pool_host(1, 1)
    assert not kernel.reserve(6, PAGE)
    kernel.borrow[PAGE] = 4
    assert kernel.reserve(6, PAGE)
    assert sum(surplus for _, surplus, _ in pools(kernel)) == 4
    kernel.reserve(-6, PAGE)
    assert sum(total for total, _, _ in pools(kernel)) == 2
