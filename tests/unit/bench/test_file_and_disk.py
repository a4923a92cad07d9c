"""Which files are taken for a model, how one is made up and loaded, and which drives carry a file that is read."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.bench import tensors
from kerntune.bench.cold import PAGE, in_memory, judge
from kerntune.bench.file import LEAST, header, open_model, synthetic
from kerntune.bench.tensors import Part, parts_of
from kerntune.errors import Failed, KerntuneError, Usage
from kerntune.kernel.disk import Disk, disk_at, disk_of, drives_of

MIB = 1 << 20


def test_a_model_is_opened_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100_000))
    with open_model(str(path)) as model:
        assert (model.size, model.name, model.made_up) == (100_004, str(path), False)
        assert model.allocated >= 100_004
        assert os.pread(model.fd, 4, 0) == b"GGUF"
        assert not os.get_inheritable(model.fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(model.fd, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(model.fd)


def test_a_file_with_holes_says_how_little_of_it_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch()
    os.truncate(path, 1 << 40)
    with open_model(str(path)) as model:
        assert (model.size, model.allocated) == (1 << 40, 0)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda path: None, Usage, "there is no file {}. Name the file of a model, or leave it out"),
        (Path.mkdir, Usage, "{} is a folder, not a file. Name one file of the model in it"),
        (pipe, Usage, "{} is a pipe, not a file. Name a plain file"),
        (bound, Usage, "{} is a socket, not a file. Name a plain file"),
        (lambda path: path.symlink_to("/dev/zero"), Usage, "{} is a device, not a file. Name a plain file"),
        (lambda path: path.symlink_to("/nowhere"), Usage, "there is no file {}. "),
        (Path.touch, Usage, "{} is empty. Name a file with the weights of a model"),
        (loop, Failed, "{} cannot be opened (Too many levels of symbolic links). Look at the path"),
    ],
)
def test_what_is_no_model(
    make: Callable[[Path], None], error: type[KerntuneError], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("it"))
    before = open_files()
    with pytest.raises(error) as caught:
        open_model("it")
    assert str(caught.value).startswith(told.format("it"))
    assert caught.value.hint
    assert open_files() == before


def open_files() -> list[str]:
    """The descriptors of this process, less the one that looks."""
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        ("", Usage, "there is no file . "),
        ("x" * 10_000, Failed, f"{'x' * 100}... cannot be opened (File name too long). "),
        ("nul\0", Usage, "nul? is no path. "),
        ("\x1b[31mred\n", Usage, "there is no file ?[31mred?. "),
        ("\udcff", Usage, "there is no file ?. "),
        ("/etc/passwd/model", Usage, "there is no file /etc/passwd/model. "),
        ("/proc/version", Usage, "/proc/version is empty. "),
        ("/sys/class/net/lo/duplex", Failed, "/sys/class/net/lo/duplex cannot be read (Invalid argument). See the"),
    ],
)
def test_paths_of_no_model(path: str, error: type[KerntuneError], told: str) -> None:
    with pytest.raises(error) as caught:
        open_model(path)
    assert str(caught.value).startswith(told)
    assert caught.value.hint


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(Failed, match=r"cannot be read \(Permission denied\)\. Ask its owner"):
            open_model(str(path))
        return
    script = (
        "import os, sys; from kerntune.bench.file import open_model; from kerntune.errors import Failed\n"
        "os.setuid(65534)\n"
        "try: open_model(sys.argv[1])\n"
        "except Failed as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        there = path.rename(Path(folder, "model"))
        done = subprocess.run([sys.executable, "-c", script, there], capture_output=True, text=True, check=False)
    assert (
        done.stdout
        == f"{there} cannot be read (Permission denied). Ask its owner, or run it as a user who may read it\n"
    )


@pytest.mark.parametrize("size", [1 << 16, MIB + 1, 20 * MIB])
def test_a_made_up_model(size: int, tmp_path: Path) -> None:
    with synthetic(str(tmp_path), size) as model:
        assert (model.size, os.fstat(model.fd).st_size, model.made_up) == (size, size, True)
        assert model.allocated >= size, "it has no holes"
        assert os.fstat(model.fd).st_nlink == 0
        assert list(tmp_path.iterdir()) == []
        assert stat.S_IMODE(os.fstat(model.fd).st_mode) == 0o600
        parts = parts_of(model.fd, size)
        assert len(parts) == 32
        assert sum(part.size for part in parts) == size - parts[0].offset
        assert len({os.pread(model.fd, 32, part.offset) for part in parts}) == 32


def test_made_up_models_of_a_size_are_the_same(tmp_path: Path) -> None:
    with synthetic(str(tmp_path), MIB) as one, synthetic(str(tmp_path), MIB) as other:
        assert os.pread(one.fd, MIB, 0) == os.pread(other.fd, MIB, 0)


def test_how_much_of_it_is_made_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    with synthetic(str(tmp_path), 40 * MIB, told.append) as model:
        assert model.size == 40 * MIB
    assert [done >> 20 for done in told] == [0, 16, 32]


def test_who_is_told_may_end_it(tmp_path: Path) -> None:
    def enough(done: int) -> None:
        if done > MIB:
            raise KeyboardInterrupt

    before = open_files()
    with pytest.raises(KeyboardInterrupt):
        synthetic(str(tmp_path), 40 * MIB, enough)
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


def test_a_made_up_model_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"a model of 65535 bytes is too small\. Take 64 KiB or more"):
        synthetic(str(tmp_path), 65_535)


@pytest.mark.parametrize(
    ("folder", "error", "told"),
    [
        ("/no/such/folder", Usage, "there is no folder /no/such/folder"),
        ("/etc/passwd", Usage, "there is no folder /etc/passwd"),
        ("/proc/self", Failed, "a made-up model of 1 MiB cannot be written to /proc/self ("),
    ],
)
def test_where_none_can_be_made_up(folder: str, error: type[KerntuneError], told: str) -> None:
    before = open_files()
    with pytest.raises(error) as caught:
        synthetic(folder, MIB)
    assert caught.value.what.startswith(told)
    assert caught.value.hint
    assert open_files() == before


def test_a_limit_for_the_size_of_files(tmp_path: Path) -> None:
    """The kernel would kill for it (SIGXFSZ), which Python ignores."""
    script = (
        "import sys; from kerntune.bench.file import synthetic; from kerntune.errors import Failed\n"
        "try: synthetic(sys.argv[1], 1 << 24)\n"
        "except Failed as error: print(error)\n"
    )
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", sys.executable, "-c", script, str(tmp_path)]
    told = subprocess.run(limited, capture_output=True, text=True, timeout=20, check=False).stdout
    assert "a made-up model of 16 MiB cannot be written to" in told
    assert "(File too large). Make room there, name another folder, or take a smaller size" in told
    assert list(tmp_path.iterdir()) == []


# The parts that are loaded into buffers of their own, whatever is in the header


Parts = Callable[[bytes], list[Part]]


@pytest.fixture
def parts() -> Iterator[Parts]:
    """The parts of a file that holds these bytes."""
    with tempfile.TemporaryFile() as file:

        def of(data: bytes) -> list[Part]:
            file.truncate(0)
            os.pwrite(file.fileno(), data, 0)
            return parts_of(file.fileno(), len(data))

        yield of


def safetensors(head: Any, data: int = 100) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def tensor(begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, end]}


def test_each_tensor_has_its_part(parts: Parts) -> None:
    data = safetensors(
        {"__metadata__": {"format": "pt"}, "b": tensor(60, 100), "none": tensor(60, 60), "a": tensor(0, 60)}
    )
    start = len(data) - 100
    assert parts(data) == [Part(start + 60, 40), Part(start, 60)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        bytes(8),
        b"GGUF" + bytes(1000),
        safetensors(b"{}"),
        safetensors(b"[1, 2]"),
        safetensors(b"\xff\xfe"),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"),
        safetensors({"a": tensor(0, 101)}),
        safetensors({"a": tensor(150, 160)}),
        safetensors({"a": tensor(-1, 100)}),
        safetensors({"a": tensor(60, 40)}),
        safetensors({"a": tensor(0.0, 40)}),
        safetensors({"a": tensor("0", 40)}),
        safetensors({"a": {"data_offsets": [0, 1, 2]}}),
        safetensors({"a": tensor(0, 10), "b": "no tensor"}),
        safetensors({"a": tensor(0, 10), "b": {}}),
        safetensors({f"{number}": tensor(0, 100) for number in range(2)}),
        safetensors({"a": tensor(0, 100)})[:-1],
        (1 << 63).to_bytes(8, "little") + bytes(100),
    ],
)
def test_a_file_without_a_sound_header_is_one_part(data: bytes, parts: Parts) -> None:
    assert parts(data) == [Part(0, len(data))]


def test_a_header_may_have_32_mib(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    data = safetensors({"a": tensor(0, 100)})
    assert tensors.LONGEST_HEADER == 32 << 20
    monkeypatch.setattr(tensors, "LONGEST_HEADER", len(data) - 108)
    assert parts(data) == [Part(len(data) - 100, 100)]
    monkeypatch.setattr(tensors, "LONGEST_HEADER", len(data) - 109)
    assert parts(data) == [Part(0, len(data))]


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(-5, 120), max_size=3) | st.none(), max_size=6))
def test_never_more_than_the_file_has(offsets: dict[str, list[int] | None]) -> None:
    data = safetensors({name: {"data_offsets": pair} for name, pair in offsets.items()})
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), data, 0)
        found = parts_of(file.fileno(), len(data))
    assert sum(part.size for part in found) <= len(data)
    assert all(part.offset >= 0 and part.size > 0 and part.offset + part.size <= len(data) for part in found)


@pytest.mark.parametrize("size", [LEAST, LEAST + 1, (1 << 20) + 77, 3 << 40])
def test_a_made_up_model_has_32_equal_tensors_up_to_its_end(size: int) -> None:
    head = header(size)
    offsets = [each["data_offsets"] for each in json.loads(head[8:]).values()]
    assert len(offsets) == 32
    assert [begin for begin, _ in offsets] == [0, *(end for _, end in offsets[:-1])]
    assert offsets[-1][1] == size - len(head)
    sizes = [end - begin for begin, end in offsets]
    assert len(set(sizes[:-1])) == 1
    assert 0 <= sizes[-1] - sizes[0] < 32
    assert int.from_bytes(head[:8], "little") == len(head) - 8


# Which drives carry a file


MOUNTS = r"""22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme2n1p2 rw
23 22 0:21 / /tmp rw - tmpfs tmpfs rw
24 22 0:50 / /var/lib/docker/merged rw - overlay overlay rw,lowerdir=/a,upperdir=/b
25 22 0:51 / /mnt/nfs rw - nfs4 server:/export rw
26 22 0:52 / /mnt/fuse rw - fuse.sshfs me@host:/ rw
27 22 0:40 /@home /home rw - btrfs /dev/nvme2n1p2 rw,subvol=/@home
28 22 0:41 / /gone rw - btrfs /dev/pulled\040out rw
"""


class Host:
    """A tree in which block devices are made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text(MOUNTS)

    def device(self, number: str, path: str, *below: str) -> None:
        """A device at a path below /sys/devices, made of the devices at others."""
        folder = self.root / "sys/devices" / path
        (folder / "slaves").mkdir(parents=True)
        for other in below:
            (folder / "slaves" / Path(other).name).symlink_to(
                os.path.relpath(self.root / "sys/devices" / other, folder / "slaves")
            )
        (self.root / "sys/dev/block" / number).symlink_to(f"../../devices/{path}")

    def partition(self, number: str, path: str) -> None:
        folder = self.root / "sys/devices" / path
        folder.mkdir(parents=True)
        (folder / "partition").write_text("2\n")
        (self.root / "sys/dev/block" / number).symlink_to(f"../../devices/{path}")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two drives with a partition each; a RAID of both, encrypted, with a volume on it."""
    made = Host(tmp_path)
    made.device("259:0", "pci/nvme/nvme2/nvme2n1")
    made.partition("259:2", "pci/nvme/nvme2/nvme2n1/nvme2n1p2")
    made.device("259:3", "pci/nvme/nvme10/nvme10n1")
    made.partition("259:4", "pci/nvme/nvme10/nvme10n1/nvme10n1p1")
    raid = ("pci/nvme/nvme10/nvme10n1/nvme10n1p1", "pci/nvme/nvme2/nvme2n1/nvme2n1p2")
    made.device("9:0", "virtual/block/md0", *raid)
    made.device("254:0", "virtual/block/dm-0", "virtual/block/md0")
    made.device("254:1", "virtual/block/dm-1", "virtual/block/dm-0", raid[1])
    made.device("7:0", "virtual/block/loop0")
    return made


@pytest.mark.parametrize(
    ("major", "minor", "drives"),
    [
        (259, 0, ("nvme2n1",)),
        (259, 2, ("nvme2n1",)),
        (9, 0, ("nvme2n1", "nvme10n1")),
        (254, 0, ("nvme2n1", "nvme10n1")),
        (254, 1, ("nvme2n1", "nvme10n1")),
        (7, 0, ("loop0",)),
        (0, 21, ()),
        (8, 1, ()),
    ],
)
def test_the_drives_of_a_device(major: int, minor: int, drives: tuple[str, ...], host: Host) -> None:
    assert drives_of(os.makedev(major, minor), host.root) == drives


def test_devices_that_are_made_of_each_other_end(host: Host) -> None:
    host.device("254:8", "virtual/block/dm-8", "virtual/block/dm-9")
    host.device("254:9", "virtual/block/dm-9", "virtual/block/dm-8")
    assert drives_of(os.makedev(254, 8), host.root) == ()


@pytest.mark.parametrize(
    ("mount", "major", "minor", "disk"),
    [
        ("22", 259, 2, Disk("ext4", ("nvme2n1",))),
        ("23", 0, 21, Disk("tmpfs")),
        ("24", 0, 50, Disk("overlay")),
        ("25", 0, 51, Disk("nfs4")),
        ("26", 0, 52, Disk("fuse.sshfs")),
        ("28", 0, 41, Disk("btrfs")),
        ("2", 259, 2, Disk("", ("nvme2n1",))),
        ("", 0, 99, Disk()),
    ],
)
def test_the_file_system_is_the_one_of_the_mount(mount: str, major: int, minor: int, disk: Disk, host: Host) -> None:
    assert disk_at(os.makedev(major, minor), mount, host.root) == disk


def test_on_this_host() -> None:
    with tempfile.TemporaryFile() as file, open("/proc/self/status", encoding="ascii") as of_proc:
        found = disk_of(file.fileno())
        assert found.file_system
        assert all((Path("/sys/block") / drive).exists() for drive in found.drives)
        assert disk_of(of_proc.fileno()) == Disk("proc")


# How it is known that a file was read from its disk


SIZE = 1024 * MIB


@pytest.mark.parametrize(
    ("before", "read", "proof", "trouble"),
    [
        (0, SIZE, "blocks read", ""),
        (None, SIZE, "blocks read", ""),
        (512 * MIB, SIZE, "blocks read", ""),
        (0, SIZE - 10 * MIB, "blocks read", ""),
        (0, SIZE - 11 * MIB, "not in the page cache", ""),
        (0, 0, "not in the page cache", ""),
        (None, 0, "", ""),
        (None, SIZE // 2, "", ""),
        (512 * MIB, 512 * MIB, "", "not cold: 512 of 1 024 MiB were in memory before the read"),
        (PAGE, 0, "", "not cold: 1 of 1 024 MiB were in memory before the read"),
    ],
)
def test_what_is_known(before: int | None, read: int, proof: str, trouble: str) -> None:
    assert judge(SIZE, before, read) == (proof, trouble)


def test_a_file_of_somebody_else_is_read_from_its_disk_or_it_was_in_memory() -> None:
    assert judge(SIZE, None, SIZE, on_disk=True) == ("blocks read", "")
    proof, trouble = judge(SIZE, None, 0, on_disk=True)
    assert proof == ""
    assert trouble.startswith("not cold: 0 of ")


def test_what_was_written_just_now_is_in_memory() -> None:
    # Not on an overlay, whose files have their pages below it.
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.pwrite(file.fileno(), bytes(3 * PAGE + 1), 0)
        # Kernels before 6.5 do not say.
        assert in_memory(file.fileno(), 3 * PAGE + 1) in (3 * PAGE + 1, None)


def test_of_no_file_nothing_is_known() -> None:
    assert in_memory(-1, PAGE) is None
