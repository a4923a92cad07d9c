"""What the tests go by: whatever the daemon may write is seen when it has changed, and is put back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.harness import host
from tests.harness.host import TUNED, in_order
from tests.live.conftest import differences

# Another value for each kind of file, which does no harm for a moment; the limits are beyond what any host promises. Of
# other sysctls it is the next number.
OTHERS: Final = {
    "overcommit_memory": ("0", "1"),
    "overcommit_ratio": ("95", "96"),
    "overcommit_kbytes": ("68719476736", "137438953472"),
    "enabled": ("madvise", "always"),
    "defrag": ("madvise", "defer"),
    "nr_hugepages": ("0", "1"),
    "nr_overcommit_hugepages": ("0", "1"),
    "scaling_governor": ("performance", "powersave"),
    "energy_performance_preference": ("balance_performance", "performance"),
    "scheduler": ("none", "mq-deadline"),
    "read_ahead_kb": ("128", "256"),
}


def change(pattern: str, loops: Sequence[str]) -> Path | None:
    """Write another value to one file of the pattern; where the host has none return None.

    A drive is one of the loop devices, for nothing waits for them; huge pages are those of the default size.
    """
    size = f"hugepages-{host.page_size() >> 10}kB"
    path = pattern.replace("sys/block/*", f"sys/block/{loops[0]}").replace("hugepages-*kB", size)
    found = sorted(host.HOST.glob(path))
    if not found:
        return None
    now = host.value(found[0])
    one, other = OTHERS.get(found[0].name) or (now, str(int(now) - 1 if int(now) > 1 else int(now) + 1))
    found[0].write_text(other if now == one else one)
    return found[0]


@pytest.mark.parametrize("pattern", TUNED)
def test_what_has_changed_is_seen_and_put_back(kernel_as_found: dict[str, str], pattern: str, loops: list[str]) -> None:
    changed = change(pattern, loops)
    seen = differences(kernel_as_found, host.snapshot())
    assert (str(changed.relative_to(host.HOST)) in seen) if changed else not seen
    host.restore(kernel_as_found)
    assert host.snapshot() == kernel_as_found


def test_nodes_get_their_own_pages_and_the_mode_comes_last() -> None:
    node, total = "sys/devices/system/node/node1/hugepages", "sys/kernel/mm/hugepages"
    vm, policy = "proc/sys/vm", "sys/devices/system/cpu/cpufreq/policy0"
    paths = {
        f"{vm}/overcommit_memory",
        f"{vm}/overcommit_ratio",
        f"{policy}/energy_performance_preference",
        f"{policy}/scaling_governor",
        f"{total}/hugepages-2048kB/nr_hugepages",
        f"{total}/hugepages-2048kB/nr_overcommit_hugepages",
        f"{total}/hugepages-1048576kB/nr_hugepages",
        f"{node}/hugepages-2048kB/nr_hugepages",
    }
    order = in_order(paths)
    assert paths - set(order) == {f"{total}/hugepages-2048kB/nr_hugepages"}, "its nodes have it"
    assert order[-4:] == [
        f"{policy}/scaling_governor",
        f"{policy}/energy_performance_preference",
        f"{vm}/overcommit_ratio",
        f"{vm}/overcommit_memory",
    ]
