"""What people paste, and the README's line for it: both do the same to the kernel, and ours tells when it fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.harness import CHECKOUT
from tests.harness.documented import code, table
from tests.system.host import Host
from tests.system.machine import Machine

CPUS: Final = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
DRIVE: Final = "/sys/block/nvme0n1/queue/scheduler"
LOOKS: Final[dict[str, Callable[[Host], object]]] = {
    "hugepages": lambda host: host.pages(),
    "cpu-governor": lambda host: (host.governor(0), host.governor(1)),
    "io-scheduler": lambda host: host.scheduler("nvme0n1"),
    "overcommit": lambda host: host.overcommit()[0],
}
# What the host is before, that each line has something to do.
BEFORE: Final = (
    "echo 0 > /proc/sys/vm/nr_hugepages",
    f"for f in {CPUS}; do echo powersave > $f; done",
    f"echo mq-deadline > {DRIVE}",
    "sysctl -q vm.overcommit_memory=0",
)
# What goes wrong, and words of what is said then.
WRONG: Final = {
    "hugepages": ("kerntune set hugepages=99999999", ("99999999", "possible", "Nothing was written")),
    "cpu-governor": ("kerntune set cpu-governor=performance", ("cpu-offline", "policy1")),
    "io-scheduler": ("kerntune set 'io-scheduler@nvme*=fast'", ("nvme0n1 offers", "none", "mq-deadline")),
    "overcommit": ("kerntune set overcommit=never:1", ("commit limit", "committed already", "A ratio of at least")),
}
ROWS: Final = {re.findall(r"set '?([a-z-]+)", row[1])[0]: row for row in table(CHECKOUT / "README.md")}


@pytest.fixture(scope="module")
def plugged(vm: Machine) -> Iterator[Machine]:
    vm.nvme_add("pasted")
    vm.wait_for(f"[ -e {DRIVE} ]")
    yield vm
    vm.nvme_del("pasted")
    vm.check(f"for f in {CPUS}; do echo schedutil > $f; done")


@pytest.fixture
def untuned(plugged: Machine, host: Host) -> Iterator[Host]:
    """Put back without kerntune: nobody has asked it for anything yet."""
    for line in BEFORE:
        plugged.check(line)
    yield host
    host.release()
    for line in BEFORE:
        plugged.check(line)


def test_the_table_has_a_row_for_each() -> None:
    assert list(ROWS) == list(LOOKS)


@pytest.mark.parametrize("tunable", LOOKS)
def test_our_line_does_what_theirs_does(untuned: Host, tunable: str) -> None:
    look, (theirs, ours, _) = LOOKS[tunable], ROWS[tunable]
    before = look(untuned)
    untuned.vm.check(code(theirs))
    wanted = look(untuned)
    assert wanted != before
    untuned.vm.check(BEFORE[list(LOOKS).index(tunable)])
    assert look(untuned) == before
    untuned.vm.check(code(ours), user="bob")
    assert look(untuned) == wanted
    untuned.release()
    assert look(untuned) == before


@pytest.mark.parametrize("tunable", [name for name in LOOKS if name != "cpu-governor"])
def test_ours_tells_when_it_fails(untuned: Host, tunable: str) -> None:
    before = LOOKS[tunable](untuned)
    assert told(untuned, tunable) in (1, 2)
    assert LOOKS[tunable](untuned) == before


def test_ours_tells_of_an_offline_cpu(untuned: Host) -> None:
    untuned.set_online(1, online=False)
    try:
        assert told(untuned, "cpu-governor") == 6, "done in part"
    finally:
        untuned.set_online(1, online=True)


def told(host: Host, tunable: str) -> int:
    """How the line that goes wrong ends, when it has said what it should."""
    line, words = WRONG[tunable]
    done = host.vm.run(line, user="bob")
    said = done.out + done.err
    assert [word for word in words if word not in said] == [], said
    return done.status
