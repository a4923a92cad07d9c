"""The legs of a measurement, each in a process of its own as in `kerntune bench`, on small files."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune.bench.file import ModelFile, synthetic
from kerntune.bench.tensors import Part
from kerntune.bench.worker import SHORTER, Trouble, _read, ended, following, free_pages, percentile
from tests.harness.workers import LIMIT, MIB, ends_with_its_parent, hogging, words, work

SIZE = 4 * MIB
COMMON = {"user_seconds", "system_seconds", "minor_faults", "major_faults", "read_bytes"}


@pytest.fixture(scope="module")
def model() -> Iterator[ModelFile]:
    with synthetic(tempfile.gettempdir(), SIZE) as made:
        yield made


@pytest.mark.parametrize(("leg", "loaded"), [("copy", SIZE - 4096), ("mmap", SIZE), ("io", SIZE)])
def test_what_a_leg_says(leg: str, loaded: int, model: ModelFile) -> None:
    done = work(leg, model.fd)
    assert done.status == 0
    assert done.said is not None
    assert done.said.keys() == {"seconds", "figures", "cold", "trouble"}
    assert (done.said["trouble"], done.figures["loaded_bytes"]) == ("", loaded)
    assert 0 < done.said["seconds"] < LIMIT
    assert done.figures.keys() >= COMMON


def test_copying_touches_every_page_of_the_buffers(model: ModelFile) -> None:
    """On pages of 4 KiB; where the kernel gives larger ones to all, there are fewer."""
    figures = work("copy", model.fd).figures
    pages = (SIZE - figures.get("anon_huge_bytes", 0)) // os.sysconf("SC_PAGE_SIZE")
    assert figures["minor_faults"] > 0
    assert figures["minor_faults"] < pages + 3 * 32 + 10


def test_a_plain_file_is_one_buffer() -> None:
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), b"GGUF" + bytes(MIB), 0)
        assert work("copy", file.fileno()).figures["loaded_bytes"] == MIB + 4


@pytest.mark.parametrize("leg", ["copy", "mmap", "io", "torch"])
def test_a_file_that_is_shorter_than_it_was(leg: str, model: ModelFile) -> None:
    assert work(leg, model.fd, SIZE + 1).trouble == "the file has become shorter while it was read"


def test_a_file_that_becomes_shorter_during_the_read(model: ModelFile) -> None:
    with pytest.raises(Trouble, match=SHORTER):
        _read(model.fd, Part(SIZE - 1, 2))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Trouble, match=r"the file cannot be read \(Is a directory\)"):
            _read(folder, Part(0, 1))
    finally:
        os.close(folder)


def test_memory_that_is_not_to_be_had() -> None:
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), 512 * MIB)
        limited = ["sh", "-c", 'ulimit -v 400000; exec "$@"', "sh"]
        assert work("copy", file.fileno(), before=limited).trouble == "there was no memory for a buffer of 512 MiB"
        told = "the file cannot be mapped (Cannot allocate memory)"
        assert work("mmap", file.fileno(), before=limited).trouble == told
        told = "there was no memory to touch 512 MiB (Cannot allocate memory)"
        assert work("touch", bytes=512 * MIB, before=limited).trouble == told


FAKE_TORCH = """\
import os
print("a library that talks")
imported = b"x" * ({mib} << 20)
def load(path, map_location, weights_only):
    print("and goes on")
    with open(path, "rb") as file:
        data = file.read()
    if os.environ.get("BROKEN"):
        raise {error}("no pickle\\nand more")
    assert map_location == "cpu"
    return data
"""


def fake_torch(folder: Path, error: str = "ValueError", mib: int = 0) -> dict[str, str]:
    """A PyTorch that reads the file, and has so much memory by its import; return the environment that has it."""
    (folder / "torch.py").write_text(FAKE_TORCH.format(error=error, mib=mib))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_pytorch_loads_the_very_file_and_may_talk(tmp_path: Path, model: ModelFile) -> None:
    done = work("torch", model.fd, env=fake_torch(tmp_path))
    assert done.trouble == ""
    assert done.figures["loaded_bytes"] == SIZE
    assert done.figures["minor_faults"] > SIZE // os.sysconf("SC_PAGE_SIZE") // 2 or done.figures["anon_huge_bytes"]


def test_the_import_of_pytorch_is_not_measured(tmp_path: Path, model: ModelFile) -> None:
    figures = work("torch", model.fd, env=fake_torch(tmp_path, mib=64)).figures
    assert figures["minor_faults"] < 64 * MIB // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("error", ["ValueError", "ImportError", "IndexError", "RuntimeError", "EOFError"])
def test_pytorch_that_cannot_load_the_file(error: str, tmp_path: Path, model: ModelFile) -> None:
    done = work("torch", model.fd, env=fake_torch(tmp_path, error) | {"BROKEN": "1"})
    assert (done.trouble, done.status) == ("PyTorch cannot load the file (no pickle)", 0)


def test_pytorch_that_cannot_be_imported(tmp_path: Path, model: ModelFile) -> None:
    (tmp_path / "torch.py").write_text("import no_such_library")
    done = work("torch", model.fd, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert done.trouble == "PyTorch cannot be imported (No module named 'no_such_library')"


def test_how_late_a_waker_is() -> None:
    done = work("cpu", wakes=20, period_us=1000, work_us=50)
    assert done.said is not None
    figures = done.figures
    assert 0 < figures["p50_seconds"] <= figures["p90_seconds"] <= figures["p99_seconds"]
    assert 0 < done.said["seconds"] < LIMIT
    assert figures["user_seconds"] + figures["system_seconds"] > 0


@pytest.mark.parametrize(
    ("now", "deadline"),
    [(1000, 4000), (1200, 4000), (3999, 4000), (4000, 7000), (9000, 12_000)],
)
def test_a_missed_deadline_is_not_caught_up(now: int, deadline: int) -> None:
    assert following(1000, now, 3000) == deadline


@pytest.mark.parametrize(("rank", "value"), [(1, 1), (50, 5), (90, 9), (91, 10), (99, 10), (100, 10)])
def test_percentiles(rank: int, value: int) -> None:
    assert percentile(range(1, 11), rank) == value
    assert percentile([7], rank) == 7


def test_a_hog_says_that_it_is_at_it_and_ends_with_its_parent() -> None:
    starter = (
        "import signal, subprocess; from kerntune.run.launch import command; from kerntune.run.shield import Shield;"
        f"hog = subprocess.Popen(command(Shield(), {words('hog', {})!r}), stdout=subprocess.PIPE);"
        "hog.stdout.readline(); print(hog.pid, flush=True); signal.pause()"
    )
    assert ends_with_its_parent(starter)


def test_a_worker_is_the_first_to_go_when_memory_is_short_and_leaves_no_core() -> None:
    with hogging("sh", "-c", 'ulimit -S -c "$(ulimit -H -c)"; exec "$@"', "sh") as process:
        assert process.poll() is None
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)


def test_touching_memory() -> None:
    figures = work("touch", bytes=8 * MIB).figures
    assert figures["loaded_bytes"] == 8 * MIB
    assert figures["minor_faults"] > 0
    assert work("touch", bytes=8 * MIB, hugetlb=12345).figures == {"loaded_bytes": 0}


def test_what_is_free_of_huge_pages(tmp_path: Path) -> None:
    pool = tmp_path / "hugepages-2048kB"
    pool.mkdir()
    assert free_pages(2 * MIB, str(tmp_path)) == 0
    (pool / "free_hugepages").write_text("10\n")
    (pool / "resv_hugepages").write_text("3\n")
    assert free_pages(2 * MIB, str(tmp_path)) == 7
    (pool / "resv_hugepages").write_text("13\n")
    assert free_pages(2 * MIB, str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("status", "leg", "why"),
    [
        (0, "mmap", ""),
        (1, "mmap", "it ended with status 1"),
        (-signal.SIGBUS, "mmap", SHORTER),
        (-signal.SIGBUS, "io", SHORTER),
        (-signal.SIGBUS, "copy", "it was killed by SIGBUS: huge pages were not to be had"),
        (-signal.SIGKILL, "copy", "it was killed by SIGKILL: memory may have been short (see the kernel's log)"),
        (-signal.SIGSEGV, "copy", "it was killed by signal 11 (Segmentation fault)"),
        (-36, "copy", "it was killed by signal 36 (Real-time signal 2)"),
    ],
)
def test_why_a_worker_has_ended(status: int, leg: str, why: str) -> None:
    assert ended(status, leg) == why
