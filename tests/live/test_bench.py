"""`kerntune bench` on the real kernel: it shows what happened, leaves the host as it was, and says what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from kerntune.api.names import HOLD, MANAGER
from kerntune.bench.tensors import COUNT, LONGEST_HEADER
from kerntune.errors import Exit
from tests.harness import host
from tests.harness.command import COMMAND
from tests.harness.daemon import Daemon
from tests.live.users import LIMIT, User

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


def until(condition: Any) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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


MIB: Final = 1 << 20
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
def full_file_system() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kt-full-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "kt-full", name], check=True, timeout=LIMIT)
        try:
            with open(Path(name, "all"), "wb", buffering=0) as file:
                file.write(bytes(64 << 10))
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True, timeout=LIMIT)


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
