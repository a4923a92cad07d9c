"""Workers of `kerntune bench` on the real kernel: huge pages, files that are not in memory, and what goes wrong."""

from __future__ import annotations

import errno
import mmap
import os
import re
import select
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kerntune.bench import cold
from kerntune.bench import host as facts
from kerntune.bench.disk import Disk, disk_at, disk_of
from kerntune.bench.file import ModelFile, synthetic
from kerntune.bench.worker import SHORTER, ended
from kerntune.errors import Failed
from kerntune.run.allocator import environment
from kerntune.run.launch import command
from kerntune.run.shield import Shield
from tests.harness import host
from tests.harness.workers import LIMIT, MIB, hogging, words, work

ON_DISK = Path("/var/tmp")  # /tmp may be in memory
SIZE = 256 * MIB
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
SAYS_WHAT_IS_CACHED = KERNEL >= (6, 5)
KEEPS_SLICES = KERNEL >= (6, 12)
ENDLESS = 256 << 30  # bytes of a file with holes: a read of it does not end before it is cut off


@pytest.fixture(scope="module")
def model() -> Iterator[ModelFile]:
    """Give a model on a disk."""
    with synthetic(str(ON_DISK), SIZE) as made:
        assert disk_of(made.fd).drives, f"{ON_DISK} is on no disk"
        yield made


@contextmanager
def reserved(pages: int) -> Iterator[None]:
    """Reserve so many huge pages more, that nobody has; afterwards there are as many as before."""
    before = host.pages()
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{host.page_size() >> 10}kB/nr_hugepages")
    pool.write_text(str(before + pages))
    try:
        assert host.pages() == before + pages, "the kernel has no room for them"
        yield
    finally:
        pool.write_text(str(before))


@contextmanager
def transparent(mode: str) -> Iterator[None]:
    """Set the mode of transparent huge pages; afterwards it is as before."""
    before = host.value(THP)
    THP.write_text(mode)
    try:
        yield
    finally:
        THP.write_text(before)


def with_settings(*settings: str) -> dict[str, str]:
    return environment({}, settings, default_page_size=host.page_size())


def test_a_copy_lies_on_the_huge_pages_that_are_reserved(model: ModelFile) -> None:
    pages = SIZE // host.page_size() + 72
    with reserved(pages):
        figures = work("copy", model.fd, env=with_settings(f"hugepages={pages}")).figures
        untold = work("copy", model.fd).figures
    assert figures["hugetlb_bytes"] >= SIZE
    assert figures["minor_faults"] < untold["minor_faults"]
    assert untold["hugetlb_bytes"] == 0


def test_without_huge_pages_a_copy_lies_on_none(model: ModelFile) -> None:
    with reserved(-facts.free_pages(host.page_size())):
        figures = work("copy", model.fd, env=with_settings("hugepages=200")).figures
    assert (figures["hugetlb_bytes"], figures["loaded_bytes"]) == (0, SIZE - 4096)


def test_a_pool_that_is_too_small_holds_a_part(model: ModelFile) -> None:
    with reserved(16):
        free = facts.free_pages(host.page_size())
        figures = work("copy", model.fd, env=with_settings("hugepages=16")).figures
    assert 0 < figures["hugetlb_bytes"] <= free * host.page_size()


def test_a_copy_lies_on_transparent_huge_pages_when_told(model: ModelFile) -> None:
    with transparent("madvise"):
        figures = work("copy", model.fd, env=with_settings("thp@enabled=madvise")).figures
        untold = work("copy", model.fd).figures
    assert figures["anon_huge_bytes"] > untold["anon_huge_bytes"]
    assert figures["minor_faults"] < untold["minor_faults"]


def test_a_mapped_file_lies_on_no_reserved_page(model: ModelFile) -> None:
    pages = SIZE // host.page_size()
    with reserved(pages):
        figures = work("mmap", model.fd, env=with_settings(f"hugepages={pages}")).figures
    assert figures["loaded_bytes"] == SIZE
    assert figures["hugetlb_bytes"] < SIZE // 2  # the program's own heap


def test_a_cold_read_comes_from_the_disk_each_time(model: ModelFile) -> None:
    for _ in range(2):
        done = work("io", model.fd)
        assert done.said is not None
        assert (done.said["cold"], done.trouble) == ("blocks read", "")
        assert done.figures["read_bytes"] >= 0.99 * SIZE
        assert done.figures["major_faults"] > 0
    warm = work("mmap", model.fd)
    assert warm.said is not None
    assert (warm.said["cold"], warm.figures["read_bytes"], warm.figures["major_faults"]) == ("", 0, 0)
    assert cold.in_memory(model.fd, SIZE) == (SIZE if SAYS_WHAT_IS_CACHED else None)


def test_what_was_just_written_is_read_from_the_disk_too() -> None:
    with tempfile.TemporaryFile(dir=ON_DISK) as file:
        os.pwrite(file.fileno(), os.urandom(MIB) * 32, 0)
        done = work("io", file.fileno())
        assert done.said is not None
        assert (done.said["cold"], done.trouble) == ("blocks read", "")


def test_a_file_that_another_program_has_mapped_is_not_cold(model: ModelFile) -> None:
    with mmap.mmap(model.fd, SIZE // 2, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ):
        done = work("io", model.fd)
    assert done.said is not None
    assert done.said["cold"] == ""
    if SAYS_WHAT_IS_CACHED:
        found = re.fullmatch(r"not cold: (\d+) of 256 MiB were in memory before the read", done.trouble)
        assert found is not None
        assert 128 <= int(found[1]) < 256
    assert work("io", model.fd).trouble == ""


def test_in_memory_nothing_is_cold() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        assert disk_of(file.fileno()) == Disk("tmpfs")
        os.pwrite(file.fileno(), bytes(8 * MIB), 0)
        told = "not cold: 8 of 8 MiB were in memory before the read" if SAYS_WHAT_IS_CACHED else ""
        done = work("io", file.fileno())
        assert done.said is not None
        assert (done.trouble, done.said["cold"]) == (told, "")


def test_of_a_file_with_holes_no_block_is_read() -> None:
    with tempfile.TemporaryFile(dir=ON_DISK) as file:
        os.truncate(file.fileno(), 8 * MIB)
        done = work("io", file.fileno())
        assert done.said is not None
        assert done.figures["read_bytes"] == 0
        assert done.said["cold"] == ("not in the page cache" if SAYS_WHAT_IS_CACHED else "")


@pytest.mark.parametrize("leg", ["mmap", "io"])
def test_a_file_that_is_cut_off_while_it_is_mapped(leg: str) -> None:
    with tempfile.TemporaryFile(dir=ON_DISK) as file:
        fd = file.fileno()
        os.truncate(fd, ENDLESS)
        asked = {"fd": fd, "bytes": ENDLESS}
        with subprocess.Popen(words(leg, asked), pass_fds=[fd], stdout=subprocess.PIPE) as process:
            try:
                wait_for_mapping(process.pid, os.fstat(fd).st_ino)
                os.truncate(fd, 4096)
                said, _ = process.communicate(timeout=LIMIT)
            finally:
                process.kill()
        assert said == b""
        assert ended(process.returncode, leg) == SHORTER


def wait_for_mapping(pid: int, inode: int) -> None:
    """Return when a process has mapped a file; it fails when the process ends before."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for _ in range(int(LIMIT * 1000)):
            if f" {inode} " in Path(f"/proc/{pid}/maps").read_text():
                return
            assert not poll.poll(1), "the worker has ended"
    finally:
        os.close(pidfd)
    pytest.fail("the worker has mapped nothing")


def test_touched_huge_pages_are_no_more_than_are_free() -> None:
    size = host.page_size()
    with reserved(8):
        free = facts.free_pages(size)
        few = work("touch", bytes=3 * size + 1, hugetlb=size)
        all_of_them = work("touch", bytes=1 << 40, hugetlb=size)
        assert facts.free_pages(size) == free
    assert (few.trouble, few.figures["loaded_bytes"], few.figures["hugetlb_bytes"]) == ("", 3 * size, 3 * size)
    assert (all_of_them.trouble, all_of_them.figures["hugetlb_bytes"]) == ("", free * size)


def test_the_work_of_hogs_is_seen_on_the_whole_host() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = facts.cpu_seconds()
    with hogging(*command(Shield(frozenset({cpu})), [])) as hog:
        waker = work("cpu", wakes=50, before=command(Shield(frozenset({cpu})), []))
        assert hog.poll() is None
    assert waker.trouble == ""
    # 50 wake-ups, 3 ms apart: that is several ticks of the kernel, and the hog has most of them.
    assert facts.cpu_seconds() > before


def test_a_slice_is_kept_by_a_worker() -> None:
    """The kernel of these tests may be too old for slices: then it is said, and no worker starts."""
    done = work("cpu", wakes=5, before=command(Shield(slice_us=100), []))
    assert (done.status, done.said is not None) == ((0, True) if KEEPS_SLICES else (125, False))


def test_the_drive_below_a_file_system_whose_numbers_no_device_has(tmp_path: Path) -> None:
    """As btrfs gives them to its subvolumes: then the mount names the device."""
    for folder in ("dev", "sys/dev/block", "sys/devices/sda", "proc/self"):
        (tmp_path / folder).mkdir(parents=True)
    os.mknod(tmp_path / "dev/my disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    (tmp_path / "sys/dev/block/8:0").symlink_to("../../devices/sda")
    mounts = "22 1 0:40 / / rw - btrfs /dev/my\\040disk rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    assert disk_at(os.makedev(0, 41), "22", tmp_path) == Disk("btrfs", ("sda",))


@contextmanager
def small_file_system(size: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kt-small-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "kt-small", name], check=True, timeout=LIMIT)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True, timeout=LIMIT)


def test_a_made_up_model_for_which_there_is_no_room() -> None:
    with small_file_system("4m") as folder:
        with pytest.raises(Failed) as caught:
            synthetic(str(folder), 64 * MIB)
        assert (
            caught.value.what
            == f"a made-up model of 64 MiB cannot be written to {folder} ({os.strerror(errno.ENOSPC)})"
        )
        assert caught.value.hint == "Make room there, name another folder, or take a smaller size"
        assert os.statvfs(folder).f_bfree == os.statvfs(folder).f_blocks, "nothing is left"


def test_a_made_up_model_is_gone_with_its_maker() -> None:
    with small_file_system("64m") as folder:
        script = (
            "import signal, sys; from kerntune.bench.file import synthetic\n"
            "made = synthetic(sys.argv[1], 32 << 20)\n"
            "print(made.size, flush=True); signal.pause()\n"
        )
        with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE) as maker:
            assert maker.stdout is not None
            try:
                assert int(maker.stdout.readline()) == 32 * MIB
                used = os.statvfs(folder).f_blocks - os.statvfs(folder).f_bfree
            finally:
                maker.kill()
        assert used * os.statvfs(folder).f_frsize >= 32 * MIB
        assert list(folder.iterdir()) == []
        assert os.statvfs(folder).f_bfree == os.statvfs(folder).f_blocks
