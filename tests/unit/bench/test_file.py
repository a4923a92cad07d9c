"""Which files are taken for a model, and how one is made up."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kerntune.bench.file import open_model, synthetic
from kerntune.bench.tensors import parts_of
from kerntune.errors import Failed, KerntuneError, Usage

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
