"""`kerntune bench` on the real kernel: it shows what happened, leaves the host as it was, and says what is wrong.

Its workers, tried one by one, load from huge pages and from files that are not in memory.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from kerntune.api.names import HOLD, MANAGER
from kerntune.bench import cold
from kerntune.bench import host as facts
from kerntune.bench.file import ModelFile, synthetic
from kerntune.bench.tensors import COUNT, LONGEST_HEADER
from kerntune.bench.worker import SHORTER, ended
from kerntune.errors import Exit, Failed
from kerntune.kernel.disk import Disk, disk_at, disk_of
from kerntune.run.allocator import environment
from kerntune.run.launch import command
from kerntune.run.shield import Shield
from tests.harness import host
from tests.harness.command import COMMAND
from tests.harness.daemon import Daemon
from tests.harness.workers import MIB, hogging, words, work
from tests.live.pages import reserved, transparent
from tests.live.users import LIMIT, User, until

SIZE: Final = 128  # MiB, in tensors of 4
PAGES: Final = 16
FEW: Final = 8
MEASURED: Final = (Exit.OK, Exit.NOT_FOUND)  # invalid where the machine is busy
SHORT: Final = ("--leg", "copy", "--pairs", "6", "--size", f"{SIZE}M")
NAP: Final = 60.25  # seconds for which nobody else sleeps
# One of the two leaves its session, as daemons do.
ENDLESS: Final = ("--", "sh", "-c", f"setsid sleep {NAP} & exec sleep {NAP}")


def bench(user: User, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        user.python("kerntune.cli", "bench", *words), env=user.environment, cwd="/", capture_output=True, text=True,
        timeout=3 * LIMIT, check=False,
    )  # fmt: skip


def figures(leg: dict[str, Any], side: str, name: str) -> float:
    return float(median(run["figures"][name] for run in leg[side]))


@contextmanager
def going_on(user: User, *words: str, sleepers: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Give a measurement that has changed the host and runs its command."""
    before = host.pages()
    argv = user.python("kerntune.cli", "bench", *words)
    with subprocess.Popen(
        argv, env=user.environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            until(lambda: host.pages() != before and len(sleeping()) == sleepers)
            yield running
        finally:
            running.kill()


def sleeping() -> set[int]:
    """Return the processes of the command that is timed."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().split(b"\0")[:2] == [b"sleep", str(NAP).encode()]:
                    found.add(int(pid))
        except OSError:
            continue
    return found


def test_pages_that_cannot_hold_a_load_are_told_with_those_that_can(daemon: Daemon, member: User) -> None:
    before = host.pages()
    done = bench(member, "--set", f"hugepages={FEW}", *SHORT)
    assert done.returncode == 3, done.stderr
    assert f"{FEW} pages of 2 MiB hold {2 * FEW} of {SIZE} MiB" in done.stderr
    assert "huge pages not used: " in done.stdout
    assert f"of {SIZE} MiB lay on them" in done.stdout
    enough = int(done.stderr.partition("; hugepages=")[2].split()[0])
    again = bench(member, "--set", f"hugepages={enough}", "--json", *SHORT)
    (leg,) = json.loads(again.stdout)["legs"]
    assert "huge pages" not in leg["reason"]
    assert figures(leg, "before", "hugetlb_bytes") == 0
    # The last bytes of the random data lie in no tensor.
    assert figures(leg, "after", "hugetlb_bytes") >= figures(leg, "after", "loaded_bytes") > (SIZE - 1) << 20
    assert figures(leg, "after", "minor_faults") < figures(leg, "before", "minor_faults") / 4
    assert len(leg["pairs"]) == len(leg["aa"]) == 6
    assert host.pages() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left(daemon: Daemon, root: User, number: signal.Signals) -> None:
    before = host.pages()
    with going_on(root, "--set", f"hugepages={PAGES}", *ENDLESS, sleepers=2) as running:
        running.send_signal(number)
        _, said = running.communicate(timeout=LIMIT)
    until(lambda: host.pages() == before and not sleeping() and not root.describe()["holds"])
    if number != signal.SIGKILL:
        assert running.returncode == 130
        assert "the host is as it was" in said


def test_a_hold_that_somebody_ends_is_drift(daemon: Daemon, root: User, tmp_path: Path) -> None:
    os.mkfifo(end := tmp_path / "end")
    command = ("--", "sh", "-c", f"sleep {NAP} & read end <{end}; kill $!")
    with going_on(root, "--set", f"hugepages={PAGES}", "--pairs", "6", "--json", *command) as running:
        (hold,) = root.get(MANAGER, "Holds")
        root.call(HOLD, "Release", "a{sv}", {}, path=hold)
        end.write_text("now\n")
        out, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 3, said
    (leg,) = json.loads(out)["legs"]
    assert leg["verdict"] == "invalid"
    assert leg["reason"].startswith("settings drifted: hugepages@2M is ")


def test_a_daemon_that_is_restarted_meanwhile_keeps_the_hold(daemon: Daemon, root: User, tmp_path: Path) -> None:
    """As by an upgrade; only the first run waits for it."""
    before, over = host.pages(), tmp_path / "over"
    os.mkfifo(end := tmp_path / "end")
    command = ("--", "sh", "-c", f"test -e {over} || {{ sleep {NAP} & read end <{end}; kill $!; }}")
    with going_on(root, "--set", f"hugepages={PAGES}", "--pairs", "6", "--json", *command) as running:
        daemon.restart()
        over.touch()
        end.write_text("now\n")
        out, said = running.communicate(timeout=LIMIT)
    assert running.returncode in MEASURED, said
    (leg,) = json.loads(out)["legs"]
    assert "drift" not in leg["reason"]
    assert len(leg["pairs"]) == 6 or "huge pages not used" in leg["reason"]
    until(lambda: host.pages() == before and not root.describe()["holds"])


def test_a_daemon_that_has_gone_is_told_and_undoes_it_when_it_is_back(daemon: Daemon, root: User) -> None:
    before = host.pages()
    with going_on(root, "--set", f"hugepages={PAGES}", *ENDLESS, sleepers=2) as running:
        daemon.terminate()
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 5
    assert "cannot be reached" in said
    assert not sleeping()
    daemon.start()
    until(lambda: host.pages() == before and not root.describe()["holds"])


def test_who_may_not_hold_may_not_measure_with_a_hold(daemon: Daemon, other: User) -> None:
    before = host.pages()
    done = bench(other, "--set", f"hugepages={PAGES}", *SHORT)
    assert done.returncode == 4
    assert host.pages() == before


def test_who_may_not_hold_may_measure_what_is_his_own(daemon: Daemon, other: User) -> None:
    done = bench(other, "--cpus", str(min(os.sched_getaffinity(0))), "--json", *SHORT)
    assert done.returncode in MEASURED, done.stderr
    (leg,) = json.loads(done.stdout)["legs"]
    assert len(leg["pairs"]) == 6


# What nobody means well


TRAP: Final = 500 * MIB
EVIL: Final = "<script>alert(1)<script>\x1b[2J\u202e\n" + "x" * 180
CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]")


def copied(*words: object) -> subprocess.CompletedProcess[str]:
    """Measure a copy on one CPU: it needs no daemon, and the measurement itself is not in question."""
    argv = [*COMMAND, "bench", "--cpus", str(min(os.sched_getaffinity(0)))]
    return subprocess.run(
        [*argv, "--leg", "copy", "--pairs", "6", "--no-control", *map(str, words)],
        capture_output=True, text=True, timeout=3 * LIMIT, check=False,
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the messages on standard error, without the note for virtual machines like this one may be."""
    found = [text.strip() for text in done.stderr.split("kerntune: ") if text]
    return [text for text in found if not text.startswith("The host of this virtual machine")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kt-hostile-") as name:
        yield Path(name)


@contextmanager
def small_file_system(size: str) -> Iterator[Path]:
    """Give a file system in memory of that size."""
    with tempfile.TemporaryDirectory(prefix="kt-small-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "kt-small", name], check=True, timeout=LIMIT)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True, timeout=LIMIT)


@contextmanager
def full_file_system() -> Iterator[Path]:
    with small_file_system("64k") as folder:
        with open(folder / "all", "wb", buffering=0) as file:
            file.write(bytes(64 << 10))
        yield folder


@pytest.mark.parametrize("length", [TRAP - COUNT, LONGEST_HEADER])
def test_a_file_of_500_mib_whose_header_is_a_trap(length: int, folder: Path) -> None:
    """It begins as a safetensors file does, goes on with brackets without an end, and has a name to be afraid of."""
    path, page = folder / EVIL, folder / "page.html"
    with open(path, "wb") as file:
        file.write(length.to_bytes(COUNT, "little"))
        for _ in range(TRAP // MIB - 1):
            file.write(b"[" * MIB)
    done = copied(path, "--html", page, "--json")
    (leg,) = json.loads(done.stdout)["legs"]
    assert done.returncode == (3 if leg["verdict"] == "invalid" else 0)
    assert {run["figures"]["loaded_bytes"] for run in leg["before"]} == {path.stat().st_size}
    assert told(done) == []
    assert not CONTROL.search(done.stdout)
    assert "<script" not in page.read_text()


def test_a_path_of_10_kb_is_told_in_two_lines(folder: Path) -> None:
    done = copied(folder / ("y" * 10_000))
    assert done.returncode == 1
    (said,) = told(done)
    assert len(said) < 400


def test_a_long_path_is_cut_in_the_table(folder: Path) -> None:
    deep = folder.joinpath(*["z" * 250] * 8)
    deep.mkdir(parents=True)
    (deep / "model").write_bytes(bytes(MIB))
    done = copied(deep / "model")
    assert done.returncode in MEASURED
    assert "z" * 20 in done.stdout
    assert len(done.stdout) < 1500


def test_a_disk_that_is_full_for_the_page(folder: Path) -> None:
    """What was measured is told all the same."""
    with full_file_system() as full:
        done = copied("--size", "1M", "--html", full / "page.html", "--json")
        assert [path.name for path in full.iterdir()] == ["all"]
    (leg,) = json.loads(done.stdout)["legs"]
    assert len(leg["pairs"]) == 6
    assert done.returncode == (3 if leg["verdict"] == "invalid" else 1)
    (said,) = told(done)
    assert "No space left on device" in said
    assert "Make room there" in said


def test_a_disk_that_is_full_for_the_model() -> None:
    with full_file_system() as full:
        done = copied("--size", "1M", "--dir", full)
        assert [path.name for path in full.iterdir()] == ["all"]
    assert done.returncode == 1
    (said,) = told(done)
    assert "No space left on device" in said
    assert "Make room there" in said


# The workers by themselves


ON_DISK = Path("/var/tmp")  # /tmp may be in memory
MODEL_SIZE = 256 * MIB
KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
SAYS_WHAT_IS_CACHED = KERNEL >= (6, 5)
KEEPS_SLICES = KERNEL >= (6, 12)
BIG_HOLE = 256 << 30  # bytes of a file with holes: a read of it does not end before it is cut off


@pytest.fixture(scope="module")
def model() -> Iterator[ModelFile]:
    """Give a model on a disk."""
    with synthetic(str(ON_DISK), MODEL_SIZE) as made:
        assert disk_of(made.fd).drives, f"{ON_DISK} is on no disk"
        yield made


def with_settings(*settings: str) -> dict[str, str]:
    return environment({}, settings, default_page_size=host.page_size())


def test_a_copy_lies_on_the_huge_pages_that_are_reserved(model: ModelFile) -> None:
    pages = MODEL_SIZE // host.page_size() + 72
    with reserved(pages):
        figures = work("copy", model.fd, env=with_settings(f"hugepages={pages}")).figures
        untold = work("copy", model.fd).figures
    assert figures["hugetlb_bytes"] >= MODEL_SIZE
    assert figures["minor_faults"] < untold["minor_faults"]
    assert untold["hugetlb_bytes"] == 0


def test_without_huge_pages_a_copy_lies_on_none(model: ModelFile) -> None:
    with reserved(-facts.free_pages(host.page_size())):
        figures = work("copy", model.fd, env=with_settings("hugepages=200")).figures
    assert (figures["hugetlb_bytes"], figures["loaded_bytes"]) == (0, MODEL_SIZE - 4096)


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
    pages = MODEL_SIZE // host.page_size()
    with reserved(pages):
        figures = work("mmap", model.fd, env=with_settings(f"hugepages={pages}")).figures
    assert figures["loaded_bytes"] == MODEL_SIZE
    assert figures["hugetlb_bytes"] < MODEL_SIZE // 2  # the program's own heap


def test_a_cold_read_comes_from_the_disk_each_time(model: ModelFile) -> None:
    for _ in range(2):
        done = work("io", model.fd)
        assert done.said is not None
        assert (done.said["cold"], done.trouble) == ("blocks read", "")
        assert done.figures["read_bytes"] >= 0.99 * MODEL_SIZE
        assert done.figures["major_faults"] > 0
    warm = work("mmap", model.fd)
    assert warm.said is not None
    assert (warm.said["cold"], warm.figures["read_bytes"], warm.figures["major_faults"]) == ("", 0, 0)
    assert cold.in_memory(model.fd, MODEL_SIZE) == (MODEL_SIZE if SAYS_WHAT_IS_CACHED else None)


def test_what_was_just_written_is_read_from_the_disk_too() -> None:
    with tempfile.TemporaryFile(dir=ON_DISK) as file:
        os.pwrite(file.fileno(), os.urandom(MIB) * 32, 0)
        done = work("io", file.fileno())
        assert done.said is not None
        assert (done.said["cold"], done.trouble) == ("blocks read", "")


def test_a_file_that_another_program_has_mapped_is_not_cold(model: ModelFile) -> None:
    with mmap.mmap(model.fd, MODEL_SIZE // 2, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ):
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
        os.truncate(fd, BIG_HOLE)
        asked = {"fd": fd, "bytes": BIG_HOLE}
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
