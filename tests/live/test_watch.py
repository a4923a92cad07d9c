"""What the tests go by: a change of any file that the daemon may write is seen and put back; mode never is undone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from kerntune.errors import KernelRejected
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.harness.host import TUNED, in_order, kept_from
from tests.live.conftest import differences
from tests.live.users import User

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


MODE: Final = Path("/proc/sys/vm/overcommit_memory")


def test_a_forbidden_value_is_told_and_undone(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("0\n")
    with kept_from(file, "2") as seen:
        file.write_text("1\n")
        assert seen == []
        file.write_text("2\n")
    assert (seen, file.read_text()) == (["2"], "0\n")


def test_the_kernel_tells_of_what_a_daemon_writes(daemon: Daemon, root: User, kernel_as_found: dict[str, str]) -> None:
    """Here `always` is the mode that is forbidden, for it does no harm; the daemon may find out that it is undone."""
    with kept_from(MODE, "1") as seen, suppress(KernelRejected):
        root.set_overcommit("always")
    assert set(seen) == {"1"}
    assert MODE.read_text().strip() == kernel_as_found["proc/sys/vm/overcommit_memory"]


def test_the_host_s_own_value_is_not_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("2\n")
    with kept_from(file, "2") as seen:
        file.write_text("0\n")
        file.write_text("2\n")
    assert (seen, file.read_text()) == ([], "2\n")
