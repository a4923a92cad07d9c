"""What was set by hand on a real system: kerntune doctor finds it, kerntune import takes it over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.system.host import Host
from tests.system.machine import Machine

BY_HAND: Final = {
    "/etc/sysctl.d/90-llm.conf": "vm.swappiness = 3\nvm.overcommit_memory = 1\n",
    "/etc/rc.local": "#!/bin/sh\necho 24 > /proc/sys/vm/nr_hugepages\nhugeadm --thp-always\n",
    "/etc/udev/rules.d/60-llm.rules": 'ACTION=="add|change", KERNEL=="nvme*n1", ATTR{queue/scheduler}="mq-deadline"\n',
    "/etc/tmpfiles.d/llm.conf": "w /proc/sys/vm/zone_reclaim_mode - - - - 0\n",
    "/etc/cron.d/llm": "@reboot root echo 2048 > /sys/block/nvme0n1/queue/read_ahead_kb\n",
    "/etc/systemd/system/llm.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo 10 > /proc/sys/vm/"
    "watermark_scale_factor'\n[Install]\nWantedBy=multi-user.target\n",
}
# The last two are the kernel's command line.
CLAIMS: Final = {
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
    """A machine with a drive and such files, which nothing has read yet."""
    for path, text in BY_HAND.items():
        vm.write(path, text, mode="755" if path == "/etc/rc.local" else "644")
    vm.check("systemctl enable llm.service")
    vm.check(
        "modprobe nvme; systemctl stop systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service"
    )
    vm.nvme_add("llm")
    vm.wait_for("[ -e /sys/block/nvme0n1/queue/scheduler ]")
    yield host
    host.release()
    vm.check("systemctl disable llm.service")
    vm.check(["rm", *BY_HAND])
    vm.check("systemctl daemon-reload")
    vm.check("systemctl start systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service")
    vm.nvme_del("llm")


def test_what_was_set_by_hand_is_found_and_taken_over(by_hand: Host, vm: Machine) -> None:
    own = vm.check(LOOK)
    examined = json.loads(vm.run("kerntune doctor --json").out)
    assert examined["daemon"] is True
    evidence = "\n".join(line for finding in examined["findings"] for line in finding["evidence"])
    assert [path for path in BY_HAND if path not in evidence] == []

    proposed = json.loads(vm.check("kerntune import --json"))
    assert {(row["tunable"], row["instances"], row["value"]) for row in proposed["claims"]} == CLAIMS
    assert [row["text"] for row in proposed["left"] if row["file"] == "/etc/rc.local"] == ["hugeadm --thp-always"]
    assert (vm.check(LOOK), by_hand.claims()) == (own, {}), "it has only looked"

    applied = vm.run("kerntune import --apply --json")
    assert applied.status == 0, applied.out + applied.err
    assert {row["state"] for row in json.loads(applied.out)["outcomes"]} == {"satisfied"}
    assert vm.check(LOOK).splitlines()[:3] == ["3", "1", "24"]
    assert by_hand.scheduler("nvme0n1") == "mq-deadline"
    assert {claim["origin"] for claim in by_hand.describe()["claims"]} == {"persistent"}
