"""Pools of huge pages on two nodes, in both sizes, and in memory that has few to give."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.host import ONE_GIB, Host, fragment

pytestmark = pytest.mark.own_machine

HUGE = "hugepages"
NODE = 1
MORE = 150  # pages: the node has the memory for them, but in pieces
HOLD = """
import mmap, signal
held = mmap.mmap(-1, 16 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
for page in range(16):
    held[page << 21] = 1
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def fragmented(host: Host) -> Iterator[Host]:
    """Give a host whose node 1 has 700 MiB free, most of it in pieces."""
    spoiler = fragment(host, NODE)
    yield host
    spoiler.kill(9)
    spoiler.wait()
    host.release()
    host.vm.check("echo 0 > /proc/sys/vm/nr_hugepages")


@pytest.mark.every_system
def test_each_node_gets_its_own(host: Host) -> None:
    answer = host.set((HUGE, "2M/node0", "32"), (HUGE, "2M/node1", "64"), user="bob")
    assert answer.short == [("2M/node0", "satisfied", "ok"), ("2M/node1", "satisfied", "ok")]
    assert [host.pages(node) for node in (0, 1, None)] == [32, 64, 96]
    host.set((HUGE, "2M", "128"), user="bob")
    assert [host.pages(node) for node in (0, 1, None)] == [32, 64, 96], "the claims on the nodes decide"
    host.unset((HUGE, "2M/node0"), user="bob")
    assert [host.pages(node) for node in (0, 1, None)] == [64, 64, 128]
    host.unset((HUGE, "*"), user="bob")
    assert host.pages() == 0


def test_pages_of_1_gib_go_and_come_back(host: Host) -> None:
    assert [host.pages(node, size=ONE_GIB) for node in (0, 1)] == [1, 1], "of boot"
    host.set((HUGE, "1G/node0", "0"), (HUGE, "2M/node0", "16"), user="bob")
    assert [host.pages(node, size=ONE_GIB) for node in (0, 1)] == [0, 1]
    assert host.pages(0) == 16
    answer = host.unset((HUGE, "*"), user="bob")
    assert host.pages() == 0
    assert host.pages(1, size=ONE_GIB) == 1
    if host.pages(0, size=ONE_GIB) == 0:
        # Something that cannot be moved has come to lie there meanwhile: whoever withdraws the claim is told, and it is
        # owed until the next boot, which this is for kerntuned.
        assert ("1G/node0", "partial", "partially-allocated") in answer.short
        host.vm.check("systemctl stop kerntuned && rm /run/kerntune/runtime.json && systemctl start kerntuned")


@pytest.mark.every_system
def test_fragmented_memory_gives_the_true_number_and_all_or_nothing_puts_back(fragmented: Host) -> None:
    own = fragmented.pages(NODE)
    wanted = own + MORE
    compacted = compactions(fragmented)
    answer = fragmented.set((HUGE, f"2M/node{NODE}", str(wanted)), user="bob")
    found = re.search(rf"{wanted} pages asked for 2M/node{NODE}, (\d+) had", answer.refusal)
    assert found, answer.refusal
    had = int(found[1])
    assert own < had < wanted
    assert compactions(fragmented) > compacted, "compaction comes before giving up"
    assert fragmented.pages(NODE) == own, "put back"
    assert fragmented.claims() == {}


def test_fragmented_memory_gives_what_it_has_when_a_part_will_do(fragmented: Host) -> None:
    own = fragmented.pages(NODE)
    wanted = own + MORE
    answer = fragmented.set((HUGE, f"2M/node{NODE}", str(wanted)), user="bob", allow_partial=True)
    (row,) = answer.outcomes
    assert (row.state, row.reason, row.requested) == ("partial", "partially-allocated", str(wanted))
    assert own < int(row.actual) == fragmented.pages(NODE) < wanted
    assert fragmented.describe()["degraded"] == ["partially-allocated"]
    fragmented.unset((HUGE, "*"), user="bob")
    assert fragmented.pages(NODE) == own


def test_pages_in_use_stay_and_their_holder_is_named(host: Host) -> None:
    host.set((HUGE, "2M", "16"), user="bob")
    holder = host.vm.spawn(["python3", "-c", HOLD], user="alice")
    holder.wait_output("held")
    answer = host.set((HUGE, "2M", "4"), user="bob", allow_partial=True)
    assert not answer.refusal
    (row,) = answer.outcomes
    assert (row.state, row.reason, row.actual) == ("partial", "pages-in-use", "16")
    assert "python3" in row.detail
    holder.kill(9)
    holder.wait()
    host.vm.wait_for("[ $(cat /proc/sys/vm/nr_hugepages) = 4 ]")


def compactions(host: Host) -> int:
    """Return how many pages compaction has looked at so far."""
    return int(host.vm.check("awk '/compact_migrate_scanned/ {print $2}' /proc/vmstat"))
