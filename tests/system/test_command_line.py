"""Lines that people type: `kerntune import` takes over what was set by hand, and the README's lines replace theirs.

`kerntune bench` measures what read-ahead is worth on a drive that answers each request after 2 ms (dm-delay).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.harness import CHECKOUT
from tests.harness.documented import code, table
from tests.system.host import DRIVE, Host, plug
from tests.system.machine import Machine

CPUS: Final = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
LOOKS: Final[dict[str, Callable[[Host], object]]] = {
    "hugepages": lambda host: host.pages(),
    "cpu-governor": lambda host: (host.governor(0), host.governor(1)),
    "io-scheduler": lambda host: host.scheduler("nvme0n1"),
    "overcommit": lambda host: host.overcommit()[0],
}
# These make the host differ from what each line of the table sets.
BEFORE: Final = (
    "echo 0 > /proc/sys/vm/nr_hugepages",
    f"for f in {CPUS}; do echo powersave > $f; done",
    f"echo mq-deadline > {DRIVE}/scheduler",
    "sysctl -q vm.overcommit_memory=0",
)
# Lines that fail, and words of what kerntune says then.
WRONG: Final = {
    "hugepages": ("kerntune set hugepages=99999999", ("99999999", "possible", "Nothing was written")),
    "cpu-governor": ("kerntune set cpu-governor=performance", ("cpu-offline", "policy1")),
    "io-scheduler": ("kerntune set 'io-scheduler@nvme*=fast'", ("nvme0n1 offers", "none", "mq-deadline")),
    "overcommit": ("kerntune set overcommit=never:1", ("commit limit", "committed already", "A ratio of at least")),
}
ROWS: Final = {re.findall(r"set '?([a-z-]+)", row[1])[0]: row for row in table(CHECKOUT / "README.md")}
UDEVD: Final = "systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service"
BY_HAND: Final = {
    "/etc/sysctl.d/90-llm.conf": "vm.swappiness = 3\nvm.overcommit_memory = 1\n",
    "/etc/rc.local": "#!/bin/sh\necho 24 > /proc/sys/vm/nr_hugepages\nhugeadm --thp-always\n",
    "/etc/udev/rules.d/60-llm.rules": 'ACTION=="add|change", KERNEL=="nvme*n1", ATTR{queue/scheduler}="mq-deadline"\n',
    "/etc/tmpfiles.d/llm.conf": "w /proc/sys/vm/zone_reclaim_mode - - - - 0\n",
    "/etc/cron.d/llm": "@reboot root echo 2048 > /sys/block/nvme0n1/queue/read_ahead_kb\n",
    "/etc/systemd/system/llm.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo 10 > /proc/sys/vm/"
    "watermark_scale_factor'\n[Install]\nWantedBy=multi-user.target\n",
}
# The last two stand on the kernel's command line.
PROPOSED: Final = {
    ("sysctl", "vm.swappiness", "3"),
    ("overcommit", "", "always:95"),
    ("hugepages", "2M", "24"),
    ("io-scheduler", "nvme*n1", "mq-deadline"),
    ("sysctl", "vm.zone_reclaim_mode", "0"),
    ("read-ahead", "nvme0n1", "2048"),
    ("sysctl", "vm.watermark_scale_factor", "10"),
    ("hugepages", "1G/node0", "1"),
    ("hugepages", "1G/node1", "1"),
}
LOOK: Final = "cd /proc/sys/vm; cat swappiness overcommit_memory nr_hugepages /sys/block/nvme0n1/queue/scheduler"


@pytest.fixture
def by_hand(host: Host, vm: Machine) -> Iterator[Host]:
    """Give a machine with a drive and the files BY_HAND, which no program has read yet."""
    for path, text in BY_HAND.items():
        vm.write(path, text, mode="755" if path == "/etc/rc.local" else "644")
    vm.check("systemctl enable llm.service")
    vm.check(f"modprobe nvme; systemctl stop {UDEVD}")
    plug(vm, "llm")
    yield host
    host.release()
    vm.check("systemctl disable llm.service")
    vm.check(["rm", *BY_HAND])
    vm.check("systemctl daemon-reload")
    vm.check(f"systemctl start {UDEVD}")
    vm.nvme_del("llm")


def test_what_was_set_by_hand_is_found_and_taken_over(by_hand: Host, vm: Machine) -> None:
    own = vm.check(LOOK)
    examined = json.loads(vm.run("kerntune doctor --json").out)
    assert examined["daemon"] is True
    evidence = "\n".join(line for finding in examined["findings"] for line in finding["evidence"])
    assert [path for path in BY_HAND if path not in evidence] == []

    proposed = json.loads(vm.check("kerntune import --json"))
    assert {(row["tunable"], row["instances"], row["value"]) for row in proposed["claims"]} == PROPOSED
    assert [row["text"] for row in proposed["left"] if row["file"] == "/etc/rc.local"] == ["hugeadm --thp-always"]
    assert (vm.check(LOOK), by_hand.claims()) == (own, {}), "import without --apply has changed something"

    applied = vm.run("kerntune import --apply --json")
    assert applied.status == 0, applied.out + applied.err
    assert {row["state"] for row in json.loads(applied.out)["outcomes"]} == {"satisfied"}
    assert vm.check(LOOK).splitlines()[:3] == ["3", "1", "24"]
    assert by_hand.scheduler("nvme0n1") == "mq-deadline"
    assert {claim["origin"] for claim in by_hand.describe()["claims"]} == {"persistent"}


@pytest.fixture(scope="class")
def plugged(vm: Machine) -> Iterator[Machine]:
    """Give the machine with a drive; put the governors back afterwards."""
    plug(vm, "pasted")
    yield vm
    vm.nvme_del("pasted")
    vm.check(f"for f in {CPUS}; do echo schedutil > $f; done")


@pytest.fixture
def untuned(plugged: Machine, host: Host) -> Iterator[Host]:
    """Give a host that nobody has tuned; put it back without kerntune."""
    for line in BEFORE:
        plugged.check(line)
    yield host
    host.release()
    for line in BEFORE:
        plugged.check(line)


def told(host: Host, tunable: str) -> int:
    """Run the line that fails, check what it says, and return its exit status."""
    line, words = WRONG[tunable]
    done = host.vm.run(line, user="bob")
    said = done.out + done.err
    assert [word for word in words if word not in said] == [], said
    return done.status


class TestTableOfTheReadme:
    def test_the_table_has_a_row_for_each(self) -> None:
        assert list(ROWS) == list(LOOKS)

    @pytest.mark.parametrize("tunable", LOOKS)
    def test_our_line_does_what_theirs_does(self, untuned: Host, tunable: str) -> None:
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
    def test_ours_tells_when_it_fails(self, untuned: Host, tunable: str) -> None:
        before = LOOKS[tunable](untuned)
        assert told(untuned, tunable) in (1, 2)
        assert LOOKS[tunable](untuned) == before

    def test_ours_tells_of_an_offline_cpu(self, untuned: Host) -> None:
        untuned.set_online(1, online=False)
        try:
            assert told(untuned, "cpu-governor") == 6, "done in part"
        finally:
            untuned.set_online(1, online=True)


# kerntune bench


SLOW_DRIVE, SLOW = "slow", "kerntune-slow"
PLACE = "/run/kerntune-slow"
SIZE = 24  # MiB: 192 requests of 128 KiB
LIMIT = 240.0


@pytest.fixture
def slow_disk(vm: Machine) -> Iterator[str]:
    """Give the name of a device that answers late and holds a file system, which is at PLACE."""
    path = f"/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{SLOW_DRIVE}"
    vm.nvme_add(SLOW_DRIVE, megabytes=4 * SIZE)
    try:
        vm.wait_for(f"test -b {path}")
        vm.check(
            f"modprobe dm-delay && size=$(blockdev --getsz {path}) && "
            f'dmsetup create {SLOW} --table "0 $size delay {path} 0 2" && '
            f"mkfs.ext4 -q -E lazy_itable_init=0 /dev/mapper/{SLOW} && "
            f"mkdir -p {PLACE} && mount /dev/mapper/{SLOW} {PLACE}"
        )
        yield vm.check(f"basename $(readlink -f /dev/mapper/{SLOW})").strip()
    finally:
        vm.run(f"umount {PLACE}; dmsetup remove {SLOW}")
        vm.nvme_del(SLOW_DRIVE)


def bench(vm: Machine, *words: str) -> dict[str, Any]:
    argv = ["kerntune", "bench", "--leg", "io", "--dir", PLACE, "--size", f"{SIZE}M", "--pairs", "6", "--json", *words]
    done = vm.run(argv, limit=LIMIT)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    leg: dict[str, Any]
    (leg,) = found["legs"]
    assert {run["cold"] for side in ("before", "after") for run in leg[side]} <= {
        "blocks read",
        "not in the page cache",
    }
    return leg


def test_read_ahead_halves_the_time_on_a_drive_that_answers_late(host: Host, vm: Machine, slow_disk: str) -> None:
    vm.check(f"echo 128 > /sys/block/{slow_disk}/queue/read_ahead_kb")
    leg = bench(vm, "--set", f"read-ahead@{slow_disk}=4096", "--no-control")
    assert leg["verdict"] == "faster"
    assert leg["looks"][-1]["ratio"] <= 0.5, leg["pairs"]
    assert vm.read(f"/sys/block/{slow_disk}/queue/read_ahead_kb").strip() == "128"


@pytest.mark.soak
def test_read_ahead_beside_itself_changes_nothing(host: Host, vm: Machine, slow_disk: str) -> None:
    vm.check(f"echo 128 > /sys/block/{slow_disk}/queue/read_ahead_kb")
    leg = bench(vm, "--set", f"read-ahead@{slow_disk}=128")
    assert leg["looks"][-1]["ratio"] == pytest.approx(1, abs=0.25), leg["pairs"]
