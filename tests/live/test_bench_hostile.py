"""`kerntune bench` with what nobody means well: it says what is wrong in a line, and measures what can be measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kerntune.bench.tensors import COUNT, LONGEST_HEADER

LIMIT: Final = 60.0  # seconds
MIB: Final = 1 << 20
SIZE: Final = 500 * MIB
EVIL: Final = "<script>alert(1)<script>\x1b[2J\u202e\n" + "x" * 180
CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]")


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kerntune.cli", "bench", "--cpus", str(min(os.sched_getaffinity(0)))]
    return subprocess.run(
        [*argv, "--leg", "copy", "--pairs", "6", "--no-control", *map(str, words)],
        capture_output=True, text=True, timeout=LIMIT, check=False,
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
def full_file_system() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kt-full-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "kt-full", name], check=True, timeout=LIMIT)
        try:
            with open(Path(name, "all"), "wb", buffering=0) as file:
                file.write(bytes(64 << 10))
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True, timeout=LIMIT)


@pytest.mark.parametrize("length", [SIZE - COUNT, LONGEST_HEADER])
def test_a_file_of_500_mib_whose_header_is_a_trap(length: int, folder: Path) -> None:
    """It begins as a safetensors file does, goes on with brackets without an end, and has a name to be afraid of."""
    path, page = folder / EVIL, folder / "page.html"
    with open(path, "wb") as file:
        file.write(length.to_bytes(COUNT, "little"))
        for _ in range(SIZE // MIB - 1):
            file.write(b"[" * MIB)
    done = bench(path, "--html", page, "--json")
    (leg,) = json.loads(done.stdout)["legs"]
    assert done.returncode == (3 if leg["verdict"] == "invalid" else 0)
    assert {run["figures"]["loaded_bytes"] for run in leg["before"]} == {path.stat().st_size}
    assert told(done) == []
    assert not CONTROL.search(done.stdout)
    assert "<script" not in page.read_text()


def test_a_path_of_10_kb_is_told_in_two_lines(folder: Path) -> None:
    done = bench(folder / ("y" * 10_000))
    assert done.returncode == 1
    (said,) = told(done)
    assert len(said) < 400


def test_a_long_path_is_cut_in_the_table(folder: Path) -> None:
    deep = folder.joinpath(*["z" * 250] * 8)
    deep.mkdir(parents=True)
    (deep / "model").write_bytes(bytes(MIB))
    done = bench(deep / "model")
    assert done.returncode in (0, 3)
    assert "z" * 20 in done.stdout
    assert len(done.stdout) < 1500


def test_a_disk_that_is_full_for_the_page(folder: Path) -> None:
    """What was measured is told all the same."""
    with full_file_system() as full:
        done = bench("--size", "1M", "--html", full / "page.html", "--json")
        assert [path.name for path in full.iterdir()] == ["all"]
    (leg,) = json.loads(done.stdout)["legs"]
    assert len(leg["pairs"]) == 6
    assert done.returncode == (3 if leg["verdict"] == "invalid" else 1)
    (said,) = told(done)
    assert "No space left on device" in said
    assert "Make room there" in said


def test_a_disk_that_is_full_for_the_model() -> None:
    with full_file_system() as full:
        done = bench("--size", "1M", "--dir", full)
        assert [path.name for path in full.iterdir()] == ["all"]
    assert done.returncode == 1
    (said,) = told(done)
    assert "No space left on device" in said
    assert "Make room there" in said
