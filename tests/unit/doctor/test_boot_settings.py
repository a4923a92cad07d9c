"""sysctl.d(5): which files are read, in which order, and what masks what."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import boot_settings
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment
from tests.unit.doctor.lab import write

RATIO = "vm.overcommit_ratio = {}\n"


def read(root: Path) -> list[Assignment]:
    return [line for line in boot_settings.read(Files(root)) if isinstance(line, Assignment)]


def in_force(root: Path) -> list[tuple[str, str]]:
    return [(str(line.place), line.value) for line in read(root) if not line.idle]


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("vm.nr_hugepages = 128", "vm/nr_hugepages", "128"),
        ("vm.nr_hugepages=128", "vm/nr_hugepages", "128"),
        ("  -vm/nr_hugepages =  128  ", "vm/nr_hugepages", "128"),
        ("net.ipv4.tcp_rmem = 4096\t87380   6291456", "net/ipv4/tcp_rmem", "4096 87380 6291456"),
        ("net.ipv4.conf.eth0/1.rp_filter=2", "net/ipv4/conf/eth0.1/rp_filter", "2"),
        ("net/ipv4/conf/eth0.1/rp_filter=2", "net/ipv4/conf/eth0.1/rp_filter", "2"),
        ("kernel.core_pattern=|/bin/x a=b", "kernel/core_pattern", "|/bin/x a=b"),
    ],
)
def test_a_line(tmp_path: Path, line: str, path: str, value: str) -> None:
    (found,) = read(write(tmp_path, {"etc/sysctl.d/a.conf": f"# x\n; y\n\n{line}\nno value\n=3\n-vm.x\n"}))
    assert (found.path, found.value, found.place.line) == (f"proc/sys/{path}", value, 4)


def test_files_are_read_by_name_whatever_their_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "usr/lib/sysctl.d/50-a.conf": RATIO.format(1),
            "etc/sysctl.d/40-b.conf": RATIO.format(2),
            "run/sysctl.d/60-c.conf": RATIO.format(3),
            "usr/local/lib/sysctl.d/45-d.conf": RATIO.format(4),
            "etc/sysctl.d/README": RATIO.format(5),
        },
    )
    assert in_force(tmp_path) == [
        ("/etc/sysctl.d/40-b.conf:1", "2"),
        ("/usr/local/lib/sysctl.d/45-d.conf:1", "4"),
        ("/usr/lib/sysctl.d/50-a.conf:1", "1"),
        ("/run/sysctl.d/60-c.conf:1", "3"),
    ]


def test_the_same_name_masks(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "usr/lib/sysctl.d/50-a.conf": RATIO.format(1),
            "run/sysctl.d/50-a.conf": RATIO.format(2),
            "usr/lib/sysctl.d/60-b.conf": RATIO.format(3),
        },
    )
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/60-b.conf").symlink_to("/dev/null")
    assert in_force(tmp_path) == [("/run/sysctl.d/50-a.conf:1", "2")]
    assert [line.idle for line in read(tmp_path) if line.idle] == [
        "/run/sysctl.d/50-a.conf has the same name and is read in its place",
        "/etc/sysctl.d/60-b.conf has the same name and is read in its place",
    ]


def test_lib_that_is_a_link_to_usr_lib_is_not_read_twice(tmp_path: Path) -> None:
    write(tmp_path, {"usr/lib/sysctl.d/a.conf": RATIO.format(1)})
    (tmp_path / "lib").symlink_to("usr/lib")
    assert [str(line.place) for line in read(tmp_path)] == ["/usr/lib/sysctl.d/a.conf:1"]


@pytest.mark.parametrize("link", ["../sysctl.conf", "/etc/sysctl.conf"])
def test_sysctl_conf_is_read_where_a_link_says(tmp_path: Path, link: str) -> None:
    write(
        tmp_path,
        {
            "etc/sysctl.conf": RATIO.format(1),
            "etc/sysctl.d/98-a.conf": RATIO.format(2),
            "etc/sysctl.d/zz.conf": RATIO.format(3),
        },
    )
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to(link)
    assert [place for place, _ in in_force(tmp_path)] == [
        "/etc/sysctl.d/98-a.conf:1",
        "/etc/sysctl.conf:1",
        "/etc/sysctl.d/zz.conf:1",
    ]


def test_sysctl_conf_without_a_link_is_not_read(tmp_path: Path) -> None:
    """Debian 13 has dropped the link."""
    (line,) = read(write(tmp_path, {"etc/sysctl.conf": RATIO.format(1)}))
    assert line.idle == boot_settings.NOT_READ
