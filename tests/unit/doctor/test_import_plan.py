"""From lines to settings: what wins, what is merged, and what is left with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from kerntune.doctor import import_plan
from kerntune.doctor.files import Files
from kerntune.doctor.types import Cause, Survey
from kerntune.errors import InvalidValue
from kerntune.kernel.files import HostKernel, KernelView
from kerntune.model import Target
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.knobs import CPU_GOVERNOR, IO_SCHEDULER, READ_AHEAD
from kerntune.tunables.overcommit import Overcommit
from tests.hosts import lay_out
from tests.unit.doctor.lab import handmade, write

BY_ID = "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123"


class Named(Overcommit):
    """Files by name, as thp and sysctl have them."""

    instances: ClassVar[tuple[str, ...]] = ()

    def normal(self, instances: str) -> str:
        if instances not in self.instances:
            raise InvalidValue(f"{instances} is not on the list")
        return instances

    def normal_value(self, value: str, typed: str = "") -> str:
        return value

    def missing(self, kernel: KernelView) -> str:
        return ""

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        return [Target(self.name, instance) for instance in self.instances]


class Thp(Named):
    name = "thp"
    instances = ("enabled", "defrag")


class Sysctl(Named):
    name = "sysctl"
    instances = ("vm.swappiness", "kernel.numa_balancing")


NOW: tuple[Tunable, ...] = (HugePages(), Overcommit(), CPU_GOVERNOR, IO_SCHEDULER)
LATER: tuple[Tunable, ...] = (*NOW, Thp(), Sysctl(), READ_AHEAD, replace(CPU_GOVERNOR, name="cpu-epp"))


def survey(root: Path, tunables: Sequence[Tunable] = NOW) -> Survey:
    return import_plan.survey(Files(root), HostKernel(root), tunables)


def pasted(root: Path, *lines: str, tunables: Sequence[Tunable] = NOW, host: str = "two-sockets") -> Survey:
    lay_out(host, root)
    write(root, {"etc/rc.local": "\n".join(["#!/bin/sh", *lines])})
    (root / "etc/rc.local").chmod(0o755)
    return survey(root, tunables)


def said(found: Survey) -> list[str]:
    return [
        f"{tunable}@{instances}={value}" if instances else f"{tunable}={value}"
        for tunable, instances, value in (proposal.setting for proposal in found.proposals)
    ]


def policies(root: Path, count: int) -> None:
    """A host with CPU frequency scaling."""
    for number in range(count):
        folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
        write(
            root,
            {
                f"{folder}/scaling_governor": "powersave\n",
                f"{folder}/scaling_available_governors": "performance powersave\n",
                f"{folder}/related_cpus": f"{number}\n",
            },
        )


def test_a_host_with_years_of_advice(tmp_path: Path) -> None:
    found = survey(handmade(tmp_path))
    assert said(found) == [
        "hugepages@1G=24",
        "io-scheduler@nvme[0-9]*=none",
        "overcommit=always:95",
        "hugepages@2M=512",
        f"io-scheduler@{BY_ID}=none",
    ]
    pool = found.proposals[3]
    assert [str(place) for place in pool.places] == ["/etc/rc.local:3"]
    assert [str(place) for place in pool.overridden] == ["/etc/sysctl.d/10-llm.conf:2"]
    assert [str(place) for place in found.proposals[2].places] == ["/etc/sysctl.conf:1", "/etc/sysctl.conf:2"]
    assert {(str(one.place), one.cause) for one in found.left} == {
        ("/etc/rc.local:4", Cause.NOT_POSSIBLE),
        ("/etc/rc.local:7", Cause.NOT_UNDERSTOOD),
        ("/etc/rc.local:9", Cause.NOT_UNDERSTOOD),
        ("/etc/rc.local:11", Cause.NO_EFFECT),
        ("/etc/sysctl.conf:4", Cause.NOT_TUNED),
        ("/etc/sysctl.d/10-llm.conf:3", Cause.NOT_TUNED),
        ("/etc/udev/rules.d/60-io.rules:2", Cause.NOT_UNDERSTOOD),
        ("/proc/cmdline:1", Cause.NO_EFFECT),
    }


def test_what_other_tunables_take_once_they_are_there(tmp_path: Path) -> None:
    lines = (
        "echo never > /sys/kernel/mm/transparent_hugepage/enabled",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag",
        "sysctl -w vm.swappiness=1 vm.dirty_ratio=5 net.ipv4.ip_forward=1",
        "echo 4096 > /sys/class/block/nvme1n1/queue/read_ahead_kb",
        "blockdev --setra 512 /dev/sda",
    )
    found = pasted(tmp_path, *lines, tunables=LATER)
    assert said(found) == [
        "thp@enabled=never",
        "thp@defrag=madvise",
        "sysctl@vm.swappiness=1",
        "read-ahead@by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500124=4096",
        "read-ahead@by-id/ata-ST4000NM000A_WJG0ABCD=256",
    ]
    assert [one.cause for one in found.left] == [Cause.NOT_TUNED]
    known = survey(tmp_path)
    assert said(known) == []
    assert {one.why for one in known.left if one.cause is Cause.NOT_POSSIBLE} == {
        "this kerntune has no tunable thp",
        "this kerntune has no tunable read-ahead",
    }


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["sysctl vm.overcommit_memory=0"], ["overcommit=heuristic"]),
        (["sysctl vm.overcommit_memory=1"], ["overcommit=always:95"]),
        (["sysctl vm.overcommit_memory=2"], ["overcommit=never:50"]),
        (["sysctl vm.overcommit_memory=2 vm.overcommit_ratio=80"], ["overcommit=never:80"]),
        (["sysctl vm.overcommit_ratio=80"], []),
        (["sysctl vm.overcommit_memory=7"], []),
        (["sysctl vm.overcommit_memory=2 vm.overcommit_kbytes=1000"], []),
        (["sysctl vm.overcommit_memory=1", "sysctl vm.overcommit_memory=0"], ["overcommit=heuristic"]),
        (["sysctl vm.overcommit_memory=2 vm.overcommit_ratio=800"], []),
    ],
)
def test_overcommit_is_one_setting(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    found = pasted(tmp_path, *lines)
    assert said(found) == expected
    assert bool(found.left) != bool(expected)


def test_the_last_stage_of_a_boot_wins(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    write(
        tmp_path,
        {"proc/cmdline": "hugepages=1\n", "etc/sysctl.d/a.conf": "vm.nr_hugepages=2\nvm.nr_hugepages=3\n"},
    )
    (proposal,) = survey(tmp_path).proposals
    assert proposal.setting == ("hugepages", "2M", "3")
    assert [place.text for place in proposal.overridden] == ["hugepages=1", "vm.nr_hugepages=2"]


def test_a_file_that_only_a_script_reads_is_in_force(tmp_path: Path) -> None:
    lines = "vm.nr_hugepages = 8\nvm.overcommit_memory = 1\nvm.max_map_count = 9\n"
    write(tmp_path, {"etc/sysctl.conf": lines})
    found = pasted(tmp_path, "sysctl -p")
    assert said(found) == ["hugepages@2M=8", "overcommit=always:95"]
    assert [(str(one.place), one.cause) for one in found.left] == [("/etc/sysctl.conf:3", Cause.NOT_TUNED)]


def test_a_file_that_is_read_twice_does_not_beat_itself(tmp_path: Path) -> None:
    write(tmp_path, {"etc/sysctl.d/a.conf": "vm.nr_hugepages = 8\nvm.overcommit_memory = 1\n"})
    found = pasted(tmp_path, "sysctl -w vm.nr_hugepages=4", "sysctl -p /etc/sysctl.d/a.conf")
    assert said(found) == ["hugepages@2M=8", "overcommit=always:95"]
    pool, mode = found.proposals
    assert [str(place) for place in pool.overridden] == ["/etc/rc.local:2"]
    assert mode.overridden == ()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["sysctl --system"], ["hugepages@2M=4", "overcommit=heuristic"]),
        (["sysctl -w vm.nr_hugepages=9", "sysctl -q --system"], ["hugepages@2M=4", "overcommit=heuristic"]),
        (["sysctl --system", "sysctl -w vm.nr_hugepages=9"], ["overcommit=heuristic", "hugepages@2M=9"]),
        (
            ["sysctl -p /etc/sysctl.d/a.conf", "sysctl vm.nr_hugepages=9", "sysctl -p /etc/sysctl.d/a.conf"],
            ["hugepages@2M=8", "overcommit=always:95"],
        ),
    ],
)
def test_a_file_is_read_where_a_script_reads_it(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    write(tmp_path, {"etc/sysctl.d/a.conf": "vm.nr_hugepages = 8\nvm.overcommit_memory = 1\n"})
    write(tmp_path, {"etc/sysctl.conf": "vm.nr_hugepages = 4\nvm.overcommit_memory = 0\n"})
    found = pasted(tmp_path, *lines)
    assert said(found) == expected
    idle = {str(one.place) for one in found.left if one.cause is Cause.NO_EFFECT}
    assert idle == (set() if "system" in "".join(lines) else {"/etc/sysctl.conf:1", "/etc/sysctl.conf:2"})


def test_what_depends_on_more_than_a_claim_can_say_is_not_proposed(tmp_path: Path) -> None:
    lines = (
        'die() { echo "$1"; exit 1; }',
        "if lspci | grep -qi nvidia; then",
        "  echo 8 > /proc/sys/vm/nr_hugepages",
        "fi",
        "sysctl -w vm.overcommit_memory=1",
    )
    found = pasted(tmp_path, *lines)
    assert said(found) == ["overcommit=always:95"]
    (left,) = found.left
    assert (str(left.place), left.cause) == ("/etc/rc.local:4", Cause.NOT_UNDERSTOOD)
    assert left.why.startswith("it stands inside the 'if' of line 3")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo 8 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "hugepages@1G=8"),
        ("echo 8 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "hugepages@2M/node1=8"),
        ("echo 8 | tee /sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages", "hugepages@2M/*=8"),
        ("echo none | tee /sys/block/nvme*/queue/scheduler", "io-scheduler@nvme*=none"),
        ("echo none > /sys/block/../block/nvme0n1//queue/scheduler", f"io-scheduler@{BY_ID}=none"),
    ],
)
def test_instances(tmp_path: Path, line: str, expected: str) -> None:
    assert said(pasted(tmp_path, line)) == [expected]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("echo none > /sys/block/nvme7n1/queue/scheduler", "io-scheduler@nvme7n1 is not there now"),
        ("echo noop > /sys/block/nvme0n1/queue/scheduler", "nvme0n1 offers none, mq-deadline, not noop"),
        ("echo many > /proc/sys/vm/nr_hugepages", "'many' is not a number of huge pages"),
        ("echo 1 > /sys/devices/system/node/node9/hugepages/hugepages-2048kB/nr_hugepages", "is not there now"),
        ("cpupower frequency-set -g performance", "this host does not support cpu-governor"),
    ],
)
def test_what_is_not_possible_here_says_why(tmp_path: Path, line: str, why: str) -> None:
    found = pasted(tmp_path, line)
    assert said(found) == []
    (left,) = found.left
    assert (left.cause, str(left.place)) == (Cause.NOT_POSSIBLE, "/etc/rc.local:2")
    assert why in left.why


def test_governors_of_single_cpus_are_one_setting(tmp_path: Path) -> None:
    policies(tmp_path, 4)
    lines = [
        f"echo performance > /sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor" for n in (0, 1, 3)
    ]  # fmt: skip
    found = pasted(tmp_path, *lines)
    assert said(found) == ["cpu-governor@0-1,3=performance"]
    assert len(found.proposals[0].places) == 3


@pytest.mark.parametrize("file", ["unit", "etc/cron.d/cpus", "etc/tmpfiles.d/cpus.conf", "etc/rc.local"])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["cpu0 powersave", "cpu* performance"], ["0=powersave", "*=performance"]),
        (["cpu* performance", "cpu0 powersave"], ["*=performance", "0=powersave"]),
        (
            ["cpu0 performance", "cpu* powersave", "cpu1 performance", "cpu3 performance"],
            ["0=performance", "*=powersave", "1,3=performance"],
        ),
        (["cpu2 powersave", "cpu1 performance", "cpu3 powersave"], ["1=performance", "2-3=powersave"]),
    ],
)
def test_claims_come_in_the_order_of_the_lines(
    tmp_path: Path, file: str, lines: list[str], expected: list[str]
) -> None:
    policies(tmp_path, 4)
    lay_out("two-sockets", tmp_path)
    words = [line.split() for line in lines]
    paths = [(f"/sys/devices/system/cpu/{cpus}/cpufreq/scaling_governor", value) for cpus, value in words]
    shell = [f"echo {value} | tee {path}" for path, value in paths]
    if file == "unit":
        text = "[Service]\nType=oneshot\n" + "".join(f"ExecStart=/bin/sh -c '{line}'\n" for line in shell)
        write(tmp_path, {f"etc/systemd/system/{folder}a.service": text for folder in ("", "multi-user.target.wants/")})
    elif file.startswith("etc/cron.d"):
        write(tmp_path, {file: f"@reboot root {'; '.join(shell)}\n"})
    elif file.startswith("etc/tmpfiles.d"):
        write(tmp_path, {file: "".join(f"w {path} - - - - {value}\n" for path, value in paths)})
    else:
        write(tmp_path, {file: "\n".join(["#!/bin/sh", *shell])})
        (tmp_path / file).chmod(0o755)
    assert said(survey(tmp_path)) == [f"cpu-governor@{one}" for one in expected]


@pytest.mark.parametrize(
    "line",
    [
        "blockdev --setra 8192 /dev/disk/by-id/nvme-x",
        "blockdev --setra 8192 /dev/mapper/x",
        "echo none > /sys/dev/block/8:0/queue/scheduler",
        "echo none > /sys/devices/pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1/queue/scheduler",
        "echo never | tee /sys/kernel/mm/trans*/enabled",
        "echo 8 | tee /proc/sys/vm/nr_huge*",
    ],
)
def test_a_tuned_file_of_another_name_is_left(tmp_path: Path, line: str) -> None:
    found = pasted(tmp_path, line, "echo 0 > /sys/kernel/mm/transparent_hugepage/khugepaged/defrag", tunables=REGISTRY)
    assert said(found) == []
    (left,) = found.left
    assert (left.cause, left.place.text) == (Cause.NOT_UNDERSTOOD, line)
    assert left.why.endswith("translate it by hand")


@pytest.mark.parametrize(
    ("line", "instances"),
    [
        ("for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done", "*"),
        ("cpupower frequency-set -g performance", "*"),
        ("cpupower -c 0-2 frequency-set -g performance", "0-2"),
        ("echo performance > /sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "policy1"),
        ("echo performance | tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor", "*"),
    ],
)
def test_governors(tmp_path: Path, line: str, instances: str) -> None:
    policies(tmp_path, 4)
    assert said(pasted(tmp_path, line)) == [f"cpu-governor@{instances}=performance"]


def test_what_a_package_ships_is_marked(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    rule = 'ACTION=="add|change", SUBSYSTEM=="block", KERNEL=="nvme*", ATTR{queue/scheduler}="none"\n'
    write(tmp_path, {"usr/lib/udev/rules.d/60-block-scheduler.rules": rule})
    (proposal,) = survey(tmp_path).proposals
    assert proposal.shipped


def test_of_tmpfiles_units_rc_local_and_cron_the_later_one_wins(tmp_path: Path) -> None:
    unit = "[Service]\nExecStart=/bin/sh -c 'echo 3 > /proc/sys/vm/nr_hugepages'\n"
    files = {
        "etc/sysctl.d/a.conf": "vm.nr_hugepages=1\n",
        "etc/tmpfiles.d/a.conf": "w /proc/sys/vm/nr_hugepages - - - - 2\n",
        "etc/systemd/system/llm.service": unit,
        "etc/systemd/system/multi-user.target.wants/llm.service": unit,
        "etc/cron.d/llm": "@reboot root sysctl -w vm.nr_hugepages=3\n",
    }
    write(tmp_path, files)
    found = pasted(tmp_path, "echo 4 > /proc/sys/vm/nr_hugepages")
    assert said(found) == ["hugepages@2M=3"]
    assert [str(place) for place in found.proposals[0].overridden] == [
        "/etc/sysctl.d/a.conf:1",
        "/etc/tmpfiles.d/a.conf:1",
        "/etc/systemd/system/llm.service:2",
        "/etc/rc.local:2",
    ]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/sysctl.d/90-numa.conf", "kernel.numa_balancing = 0\n"),
        ("proc/cmdline", "numa_balancing=disable\n"),
    ],
)
def test_what_only_others_may_write_is_left_to_them(tmp_path: Path, file: str, text: str) -> None:
    """The kernel wants CAP_SYS_ADMIN for it: a claim would be one on paper, and the line is what works."""
    lay_out("two-sockets", tmp_path)
    write(tmp_path, {file: text, "proc/sys/kernel/numa_balancing": "0\n"})
    found = survey(tmp_path, REGISTRY)
    assert said(found) == []
    (left,) = found.left
    assert (left.cause, str(left.place)) == (Cause.NOT_OURS, f"/{file}:1")
    assert "CAP_SYS_ADMIN" in left.why
    assert "Leave the line as it is" in left.why


def test_a_host_without_huge_pages(tmp_path: Path) -> None:
    found = pasted(tmp_path, "echo 8 > /proc/sys/vm/nr_hugepages", host="no-hugetlb")
    assert said(found) == []
    assert len(found.left) == 1
