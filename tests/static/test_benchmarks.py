"""The benchmark without running it: its modules import, and its table says what the figures say."""

from __future__ import annotations

import importlib
import json

import pytest
from benchmarks import commands, figures, gains, guard, run, table, watching, wire
from benchmarks.figures import FLOOR, KERNTUNE, TUNED, Book
from benchmarks.floor import reply_to
from benchmarks.lab import OUR_READ, unit_environment

from tests.harness import CHECKOUT

MACHINE = {"cpus": 2, "cpu": "CPU", "memory_gib": 8, "kernel": "6.1", "versions": {"kerntune": "0", "TuneD": "2"}}
RUN = {
    "date": "2026-01-01",
    "quick": True,
    "rounds": 3,
    "seconds": 60.0,
    "load": [0.1, 0.1, 0.1],
    "idle_before_rounds": [0.99, 0.97],
    "quiet": True,
}


def rendered(book: Book, **run: object) -> list[str]:
    return table.render({"machine": MACHINE, "run": RUN | run, "rows": book.summary()}).splitlines()


@pytest.mark.parametrize("module", sorted(path.stem for path in (CHECKOUT / "benchmarks").glob("*.py")))
def test_module_imports(module: str) -> None:
    importlib.import_module(f"benchmarks.{module}")


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in figures.ROWS}) == len(figures.ROWS)


def test_a_row_is_the_median_with_the_ratio_of_each_round() -> None:
    book = Book()
    for ours, theirs in ((0.2, 2.0), (0.4, 2.0), (0.25, 1.0)):
        book.note("read-user", KERNTUNE, ours, ours * 2)
        book.note("read-user", TUNED, theirs)
        book.note("read-user", FLOOR, 0.1)
    (row,) = book.summary()
    assert row["subjects"][KERNTUNE] == {"median": 0.25, "low": 0.2, "high": 0.4, "p99": 0.5}
    assert row["ratios"][TUNED] == pytest.approx(0.2)
    assert not row["met"], "0.25 ms is soon enough, and 2.5 times the floor is too much"
    found = next(line for line in rendered(book) if line.startswith("| read, one client, one string, ordinary user"))
    assert found.endswith("| 0.25 / 0.5 | 2 | 0.1 | 0.2 | ≤ 0.3, ≤ 2.2 floors (2.5) **missed** |")


def test_the_floor_is_the_peer_where_there_is_no_other() -> None:
    book = Book()
    book.note("rate-user", KERNTUNE, 3000.0)
    book.note("rate-user", FLOOR, 6000.0)
    (line,) = (line for line in rendered(book) if line.startswith("| reads, 32 clients"))
    assert line.endswith("| 3000 |  | 6000 | *0.5* | ≥ 8000 **missed** |")


def test_who_does_not_answer_has_no_ratio() -> None:
    book = Book()
    book.note("read-user-stopped", KERNTUNE, 0.2)
    book.note("read-user-stopped", TUNED, float("inf"))
    (row,) = book.summary()
    assert row["ratios"] == {}
    assert any("| 0.2 | no answer |" in line for line in rendered(book))


def test_a_busy_machine_and_remarks_are_told() -> None:
    book = Book()
    book.note("pass-files", KERNTUNE, 50.0)
    book.remark("pass-files", "reads are most of it")
    text = "\n".join(rendered(book, quiet=False))
    assert "was not quiet" in text
    assert "files on tmpfs: reads are most of it" in text


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(KeyError):
        Book().note("read-nobody", KERNTUNE, 1.0)


def test_messages_are_cut_and_matched_by_serial() -> None:
    reply = bytes(reply_to(":1.7"))
    held = bytearray(wire.hello() + reply + reply[:-1])
    first, second = wire.cut(held)
    assert (wire.reply_serial(first), wire.reply_serial(second)) == (0, 1)
    assert held == reply[:-1]
    assert OUR_READ.marshalled(5)[wire.SERIAL_AT] == 5


def test_the_daemon_is_measured_with_the_environment_of_its_unit() -> None:
    assert unit_environment("[Service]\nEnvironment=A=b\n# Environment=C=d\nUser=x\n") == {"A": "b"}


def test_commands_are_compared_run_by_run() -> None:
    times = {commands.TRUE: [1.0, 2.0], commands.BUSCTL: [4.0, 4.0], "kerntune --help": [20.0, 40.0]}
    rows = commands.summary(times)
    assert rows["kerntune --help"] == {"median_ms": 30.0, "to true": 20.0, "to busctl --version": 7.5}
    text = table.typed({"date": "2026-01-01", "runs": 2, "rows": rows})
    assert text.endswith("| kerntune --help | 30 | 20 | 7.5 |\n")


def round_of(**changed: object) -> dict[str, object]:
    asked = {"cuda": 0.5, "fork": 0.02, "shm": 0.4}
    common = {"threshold": 12.0, "acted": 11.9, "least": 5.0, "pause": 0.04, "ended": guard.REFUSED}
    return common | {"neighbour": "lives", "bystanders": asked} | changed


def test_who_stops_a_program_is_told_by_the_worst_round() -> None:
    worse = {"cuda": 0.9, "fork": 0.01, "shm": 0.3}
    rows = guard.summary({"kerntuned": [round_of(), round_of(acted=11.5, least=4.7, pause=0.2, bystanders=worse)]})
    assert table.harm("kerntuned", rows["kerntuned"]) == (
        "| kerntuned | 12 | 11.7 / 11.5 | 4.7 | 0.2 | refused, lives | lives | 0.9 | 0.02 | 0.4 |"
    )


def test_what_differs_between_rounds_is_counted() -> None:
    none = {"cuda": None, "fork": 0.01, "shm": 0.3}
    killed = round_of(threshold="pressure", ended=guard.KILLED, neighbour="killed", bystanders=none)
    rows = guard.summary({"systemd-oomd": [round_of(threshold="pressure"), killed, killed]})
    line = table.harm("systemd-oomd", rows["systemd-oomd"])
    assert line.startswith("| systemd-oomd | pressure | 11.9 / 11.9 |")
    assert line.endswith("| 2 x killed, 1 x refused, lives | 2 x killed, 1 x lives | 0.5, 2 x nothing | 0.02 | 0.4 |")


def test_the_price_of_watching_is_held_against_its_target() -> None:
    here = {watching.OURS: (0.15, 3.0), "earlyoom": (0.01, 1.0), watching.OFTEN: (0.6, 50.0)}
    rows = watching.rows(here, {watching.OURS: 9.0, "systemd-oomd": 0.2})
    assert [table.price(name, row) for name, row in rows.items()] == [
        "| kerntuned | 3 | 0.15 | 0.05 | ≤ 0.1 for one look met | 9 |",
        f"| {watching.OFTEN} | 50 | 0.6 | 0.012 | ≤ 0.5 **missed** |  |",
        "| earlyoom | 1 | 0.01 | 0.01 |  |  |",
        "| systemd-oomd |  |  |  |  | 0.2 |",
    ]
    assert not watching.is_cheap(rows)
    assert watching.is_cheap(watching.rows(here | {watching.OFTEN: (0.4, 50.0)}, {}))


# Nine rounds of wake-ups: the slice helps in all of them but one.
WAKES = [0.004] * 9
SAMPLES = {
    gains.BASE: [{"mean": seconds} for seconds in WAKES],
    gains.AGAIN: [{"mean": seconds * part} for seconds, part in zip(WAKES, [1.1, 0.9] * 4 + [1.0], strict=True)],
    gains.SLICED: [{"mean": seconds * part} for seconds, part in zip(WAKES, [0.5] * 8 + [1.2], strict=True)],
}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            gains.Row("slice", "mean", gains.SLICED, most=0.7),
            "| slice | 4 | 2 | 0.5 [0.5, 0.5] | ≤ 0.7, interval below 1 met |",
        ),
        (
            gains.Row("slice", "mean", gains.SLICED, most=0.4),
            "| slice | 4 | 2 | 0.5 [0.5, 0.5] | ≤ 0.4, interval below 1 **missed** |",
        ),
        (gains.Row("slice", "mean", gains.SLICED), "| slice | 4 | 2 | 0.5 [0.5, 0.5] |  |"),
        (gains.Row("slice", "mean", gains.SLICED, same=True), "no difference **missed** |"),
        (gains.Row("again", "mean", gains.AGAIN, same=True), "| again | 4 | 4 | 1 [0.9, 1.1] | no difference met |"),
        (gains.Row("again", "mean", gains.AGAIN, most=1.05), "≤ 1.05, interval below 1 **missed** |"),
    ],
    ids=["met", "missed", "no target", "differs", "no difference", "wide"],
)
def test_a_gain_is_the_median_of_the_rounds_with_its_interval(row: gains.Row, line: str) -> None:
    assert table.gain(row.of(SAMPLES)).endswith(line)


def test_the_page_of_gains_says_what_was_left_out() -> None:
    load = gains.Row("pages", "mean", gains.SLICED, most=0.7).of(SAMPLES)
    hugetlb = {"without": 0.0, "least": 999.6, "target": 1000, "met": False}
    groups = [
        {"what": "a read", "rows": [load], "hugetlb": hugetlb},
        {"what": "wake-ups", "rows": [], "notes": ["`--slice=100us` is left out"]},
    ]
    facts = {"date": "2026-01-01", "rounds": 9, "load": 0.1, "thp": "madvise", "machine": MACHINE}
    text = table.gained({**facts, "torch": "", "groups": groups})
    assert "| Private_Hugetlb, the least of all runs (MiB) | 0 | 999 | | ≥ 1000 **missed** |" in text
    assert "- `--slice=100us` is left out" in text
    assert "PyTorch was not there" in text


def test_the_page_is_made_from_the_results() -> None:
    assert run.TABLE.read_text() == run.document(json.loads(run.RESULTS.read_text()))


def test_there_are_results_of_every_benchmark() -> None:
    assert [
        file.name for file in (run.RESULTS, run.PLUGS, run.COMMANDS, run.GUARD, run.GAINS) if not file.exists()
    ] == []
