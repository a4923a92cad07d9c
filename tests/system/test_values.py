"""Values of files that no other test here writes: set, read from the kernel, and the host's own again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.system.host import Host, Setting
from tests.system.machine import Machine

# What is desired, the file, and what it then reads.
VALUES: Final[tuple[tuple[Setting, str, str], ...]] = (
    (("thp", "enabled", "never"), "/sys/kernel/mm/transparent_hugepage/enabled", "[never]"),
    (("thp", "defrag", "defer+madvise"), "/sys/kernel/mm/transparent_hugepage/defrag", "[defer+madvise]"),
    (("read-ahead", "nvme0n1", "4096"), "/sys/block/nvme0n1/queue/read_ahead_kb", "4096"),
    (("hugepages-overcommit", "2M", "24"), "/proc/sys/vm/nr_overcommit_hugepages", "24"),
    (("sysctl", "vm.swappiness", "11"), "/proc/sys/vm/swappiness", "11"),
    (("sysctl", "vm.zone_reclaim_mode", "1"), "/proc/sys/vm/zone_reclaim_mode", "1"),
    (("sysctl", "vm.watermark_scale_factor", "125"), "/proc/sys/vm/watermark_scale_factor", "125"),
)


@pytest.fixture(scope="module")
def drive(vm: Machine) -> Iterator[None]:
    vm.nvme_add("values")
    vm.wait_for("[ -e /sys/block/nvme0n1/queue/read_ahead_kb ]")
    yield
    vm.nvme_del("values")


@pytest.mark.every_system
@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize(
    ("desired", "file", "reads"), VALUES, ids=[f"{desired[0]}@{desired[1]}" for desired, _, _ in VALUES]
)
def test_the_service_sets_it_and_lets_go_again(host: Host, desired: Setting, file: str, reads: str) -> None:
    own = host.vm.read(file)
    assert reads not in own.split(), "it is not so by itself"
    answer = host.set(desired, user="bob")
    assert answer.short == [(desired[1], "satisfied", "ok")], answer.refusal
    assert reads in host.vm.read(file).split()
    assert not host.unset(desired[:2], user="bob").refusal
    assert host.vm.read(file) == own


def test_metrics_are_written_where_node_exporter_reads_them(host: Host) -> None:
    folder = "/var/lib/prometheus/node-exporter"
    host.vm.check(f"mkdir -p {folder} && systemctl start kerntune-metrics.service")
    lines = host.vm.check(f"cat {folder}/kerntune.prom; rm -r /var/lib/prometheus").splitlines()
    samples = [line for line in lines if line.startswith("kerntune_")]
    assert [line for line in lines if line not in samples and not line.startswith("# ")] == []
    assert any('page_size="2097152"' in line for line in samples), "the host's pools are among them"
    assert host.unit("Result", "kerntune-metrics.service") == "success"
