"""The legs of a measurement: which ones a change bears on, what makes runs of no use, and each one in a process."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune.bench import legs, traps
from kerntune.bench.file import ModelFile, synthetic
from kerntune.bench.model import Round, Sample
from kerntune.bench.tensors import Part
from kerntune.bench.worker import SHORTER, Trouble, _read, ended, following, percentile
from kerntune.errors import NotSupported, OverLimit, Usage
from kerntune.run import allocator
from tests.harness.workers import LIMIT, MIB, ends_with_its_parent, hogging, words, work

GIB = 1 << 30
PAGE = 2 * MIB


@pytest.mark.parametrize(
    ("tunables", "has_shield", "found"),
    [
        (["hugepages"], False, ["copy", "mmap"]),
        (["overcommit", "hugepages"], False, ["copy", "mmap"]),
        (["read-ahead"], False, ["io"]),
        (["io-scheduler", "hugepages"], False, ["copy", "mmap", "io"]),
        (["cpu-governor"], False, ["copy", "cpu"]),
        ([], True, ["cpu"]),
        (["read-ahead"], True, ["io", "cpu"]),
        (["swappiness"], False, ["copy", "mmap", "io"]),
    ],
)
def test_a_change_has_its_legs(tunables: list[str], has_shield: bool, found: list[str]) -> None:
    assert legs.chosen((), tunables, has_shield=has_shield, has_command=False) == found


def test_who_names_legs_gets_these_in_order_and_once() -> None:
    named = ["cpu", "memory", "copy"]
    assert legs.chosen(named, ["read-ahead"], has_shield=False, has_command=False) == ["copy", "mmap", "cpu"]
    assert legs.chosen(["torch"], ["hugepages"], has_shield=False, has_command=False) == ["torch"]


def test_a_command_is_timed_alone() -> None:
    assert legs.chosen((), ["hugepages"], has_shield=True, has_command=True) == ["cmd"]
    with pytest.raises(Usage, match="timed alone"):
        legs.chosen(["io"], ["hugepages"], has_shield=False, has_command=True)


@pytest.mark.parametrize(
    ("leg", "setting", "figure"),
    [
        ("copy", "hugepages=8", "hugetlb_bytes"),
        ("copy", "hugepages-overcommit=8", "hugetlb_bytes"),
        ("torch", "hugepages@1G=1", "hugetlb_bytes"),
        ("cmd", "hugepages=8", "pool_taken_bytes"),
        ("mmap", "hugepages=8", ""),
        ("copy", "hugepages=0", ""),
        ("copy", "thp@enabled=madvise", "anon_huge_bytes"),
        ("copy", "thp@enabled=never", ""),
        ("copy", "thp@defrag=defer", ""),
        ("cmd", "thp@enabled=always", ""),
        ("copy", "read-ahead@*=4096", ""),
    ],
)
def test_which_figure_shows_that_huge_pages_are_used(leg: str, setting: str, figure: str) -> None:
    assert legs.pages_figure(leg, allocator.hugetlb([setting, "overcommit=always:90"], PAGE)) == figure


def test_pages_for_a_load_as_they_were_counted() -> None:
    """Of 32 tensors with 32 MiB each 544 pages were in use, and 42 for what the interpreter had imported."""
    assert legs.pages_for([32 * MIB] * 32, PAGE) == 544 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([GIB], PAGE) == 513 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([1000] * 5000, PAGE) == 3 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([MIB] * 50, PAGE) == legs.FOR_THE_INTERPRETER


def test_a_pool_that_cannot_hold_a_load_is_told_with_one_that_can() -> None:
    with synthetic("/var/tmp", 128 * MIB) as file:
        leg = legs.workload("copy", file, ["hugepages"], malloc=2, command="", cpus="")
        told = legs.foreseen(leg, file, page_size=PAGE, free=8)
        assert told.startswith("copy: 8 pages of 2 MiB hold 16 of 128 MiB"), told
        enough = int(told.rpartition("hugepages=")[2].split()[0])
        assert legs.foreseen(leg, file, page_size=PAGE, free=enough) == ""
        mapped = legs.workload("mmap", file, ["hugepages"], malloc=2, command="", cpus="")
        assert legs.foreseen(mapped, file, page_size=PAGE, free=8) == ""


def test_tensors_below_a_page_are_told_for_no_pool_reaches_them() -> None:
    with synthetic("/var/tmp", 32 * MIB) as file:
        leg = legs.workload("copy", file, ["hugepages"], malloc=2, command="", cpus="")
        told = legs.foreseen(leg, file, page_size=PAGE, free=1000)
        assert told == "copy: 32 of 32 MiB are tensors of less than 2 MiB, for which glibc takes no huge pages"


def test_no_more_than_sixty_percent_of_what_is_available() -> None:
    legs.check_room(["copy"], GIB, pool=GIB, available=5 * GIB)
    with pytest.raises(OverLimit, match=r"take 3 072 MiB; 60 % of the memory that is available are 3 071 MiB"):
        legs.check_room(["copy", "mmap"], GIB, pool=GIB, available=5 * GIB - MIB)
    legs.check_room(["mmap", "io"], GIB, pool=GIB, available=5 * GIB - MIB)
    with pytest.raises(OverLimit):
        legs.check_room(["cmd"], 0, pool=2 * GIB, available=3 * GIB)


def test_what_lies_in_memory_is_not_read_from_a_disk() -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.fail("there is no tmpfs at /dev/shm")
    with synthetic("/dev/shm", MIB) as file:
        legs.check_disk(["copy", "mmap"], file)
        with pytest.raises(NotSupported, match="tmpfs"):
            legs.check_disk(["io"], file)


def test_words_for_a_file(tmp_path: Path) -> None:
    with synthetic(str(tmp_path), 3 * MIB) as file:
        assert legs.described(file) == "3 MiB of random data"


# What makes runs of no use, told with its figures; and what a change cannot reach


CPUS = 4


def run(**figures: float) -> Sample:
    return Sample(1.0, figures)


def rounds(after: Sample, *, count: int = 10, before: Sample | None = None) -> list[Round]:
    return [Round(before or run(), after, before or run()) for _ in range(count)]


def test_huge_pages_that_hold_next_to_nothing_are_not_used() -> None:
    measured = rounds(run(hugetlb_bytes=2 * MIB, loaded_bytes=1024 * MIB))
    why = traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS)
    assert why == "huge pages not used: 2 of 1 024 MiB lay on them"


@pytest.mark.parametrize(("used", "is_enough"), [(0, False), (511, False), (512, True), (1028, True)])
def test_half_of_a_load_has_to_lie_on_them(used: int, is_enough: bool) -> None:
    measured = rounds(run(hugetlb_bytes=used * MIB, loaded_bytes=1024 * MIB))
    assert (traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS) == "") == is_enough


def test_what_before_has_on_huge_pages_does_not_count() -> None:
    before = run(hugetlb_bytes=1024 * MIB, loaded_bytes=1024 * MIB)
    measured = rounds(run(hugetlb_bytes=0, loaded_bytes=1024 * MIB), before=before)
    assert traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS).startswith(
        "huge pages not used: 0 of 1 024"
    )


def of_command(taken: int, **more: float) -> Sample:
    """A run with so many MiB of huge pages, and 1 000 MiB of other memory."""
    return run(pool_taken_bytes=taken * MIB, resident_bytes=1000 * MIB, **more)


@pytest.mark.parametrize(
    ("taken", "why"), [(0, "0 of 1 000"), (2, "2 of 1 002"), (10, "10 of 1 010"), (12, ""), (1000, "")]
)
def test_a_command_has_to_take_more_than_next_to_nothing(taken: int, why: str) -> None:
    found = traps.found(rounds(of_command(taken)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)
    assert found == (why and f"huge pages not used: {why} MiB lay on them")


def test_how_little_of_a_command_lay_on_huge_pages_is_told() -> None:
    assert list(traps.notes(rounds(of_command(100)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == [
        "huge pages held 100 of the 1 100 MiB of the command's memory"
    ]
    assert list(traps.notes(rounds(of_command(1000)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == []
    assert list(traps.notes(rounds(of_command(100)), "cmd", on_pages="", cpus=CPUS)) == []
    assert list(traps.notes([], "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == []


def test_a_run_that_is_too_short_to_be_seen_ends_nothing() -> None:
    unseen, seen = (Sample(seconds, {"pool_taken_bytes": 0}) for seconds in (0.4, 0.6))
    assert traps.unused_at_once(unseen, traps.TAKEN) == ""
    assert traps.unused_at_once(seen, traps.TAKEN) == "huge pages not used: 0 of 0 MiB lay on them"
    short = Sample(0.1, {"hugetlb_bytes": 0, "loaded_bytes": MIB})
    assert traps.unused_at_once(short, "hugetlb_bytes") == "huge pages not used: 0 of 1 MiB lay on them"


def test_a_pool_that_was_used_up_is_told() -> None:
    measured = rounds(of_command(1000, pool_left_bytes=0), count=7) + rounds(
        of_command(1000, pool_left_bytes=MIB), count=3
    )
    assert list(traps.notes(measured, "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == [
        "the command took the last free huge page in 7 of 10 runs: more may help"
    ]


@pytest.mark.parametrize(("read", "is_told"), [(0, False), (10, False), (11, True), (1024, True)])
def test_a_load_from_memory_that_came_from_the_disk_is_told(read: int, is_told: bool) -> None:
    cold, warm = (run(loaded_bytes=1024 * MIB, read_bytes=part * MIB) for part in (read, 0))
    told = list(
        traps.notes([Round(warm, warm, warm), Round(cold, warm, warm)], "copy", on_pages="hugetlb_bytes", cpus=CPUS)
    )
    assert told == (["1 of 6 runs read from the disk: the file did not stay in memory"] if is_told else [])


def test_pages_count_only_where_they_are_compared() -> None:
    assert traps.found(rounds(run(hugetlb_bytes=0, loaded_bytes=MIB)), "copy", on_pages="", cpus=CPUS) == ""


@pytest.mark.parametrize(("hot", "is_too_many"), [(1, False), (3, False), (4, True)])
def test_a_tenth_of_the_runs_may_be_on_throttled_cpus(hot: int, is_too_many: bool) -> None:
    cold_runs = rounds(run(throttled=0), before=run(throttled=0), count=10 - hot)
    measured = [*cold_runs, *rounds(run(throttled=2), before=run(throttled=0), count=hot)]
    why = traps.found(measured, "copy", on_pages="", cpus=CPUS)
    assert why == (f"clocks throttled: the CPUs were too hot in {hot} of 30 runs" if is_too_many else "")


@pytest.mark.parametrize(("others", "is_busy"), [(0.1, False), (2.0, False), (2.1, True), (4.0, True)])
def test_a_machine_is_busy_when_others_use_half_of_it(others: float, is_busy: bool) -> None:
    measured = rounds(run(others_cpus=others), before=run(others_cpus=others))
    assert bool(traps.found(measured, "copy", on_pages="", cpus=CPUS)) == is_busy


def test_beside_a_command_others_are_only_told() -> None:
    """Children that it does not wait for would make every machine a busy one."""
    measured = rounds(run(others_cpus=3.0), before=run(others_cpus=3.0))
    assert traps.found(measured, "cmd", on_pages="", cpus=CPUS) == ""
    assert list(traps.notes(measured, "cmd", on_pages="", cpus=CPUS)) == [
        "other programs used 3.0 of 4 CPUs in most of the runs, or the command itself with what it does not wait for"
    ]
    assert list(traps.notes(measured, "copy", on_pages="", cpus=CPUS)) == []


def test_a_moment_of_others_makes_no_machine_busy() -> None:
    quiet, loud = (run(others_cpus=count) for count in (0.0, 4.0))
    measured = [*rounds(quiet, count=6, before=quiet), *rounds(loud, count=4, before=loud)]
    assert traps.found(measured, "copy", on_pages="", cpus=CPUS) == ""


def test_a_run_with_trouble_ends_it_at_once() -> None:
    broken = Sample(0.0, trouble="the file has become shorter while it was read")
    assert traps.at_once(Round(run(), run(), run())) == ""
    for each in (Round(broken, run(), run()), Round(run(), broken), Round(run(), run(), broken)):
        assert traps.at_once(each) == broken.trouble


def test_why_a_change_does_not_reach_a_leg() -> None:
    assert "no huge pages of a pool reach it" in traps.out_of_reach("mmap", ["hugepages", "overcommit"])
    assert traps.out_of_reach("mmap", ["hugepages", "cpu-governor"]) == ""
    assert traps.out_of_reach("copy", ["hugepages"]) == ""
    assert traps.out_of_reach("cpu", []) == ""


# Each leg in a process of its own as in `kerntune bench`, on small files


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
