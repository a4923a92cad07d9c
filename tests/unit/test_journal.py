"""Messages to the journal: in order, with their fields, and nobody waits for a journal that does not read."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from kerntune.journal import Aside
from tests.unit.lab import BOUND


class Journal(logging.Handler):
    """Takes records while `reads` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[logging.LogRecord] = []
        self.arrived = threading.Condition()
        self.reads, self.busy = threading.Event(), threading.Event()
        self.reads.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.busy.set()
        self.reads.wait(BOUND)
        with self.arrived:
            self.taken.append(record)
            self.arrived.notify_all()

    def until(self, count: int) -> list[str]:
        """Wait for so many records, and return what they say."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.taken) >= count, BOUND), self.said
        return self.said

    @property
    def said(self) -> list[str]:
        return [record.getMessage() for record in self.taken]


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal()
    yield journal
    journal.reads.set()


@pytest.fixture
def log(journal: Journal) -> logging.Logger:
    log = logging.Logger("test")
    log.addHandler(Aside(journal))
    return log


def test_records_keep_their_order_and_fields(log: logging.Logger, journal: Journal) -> None:
    for number in range(100):
        log.info("message %d", number, extra={"MESSAGE_ID": str(number)})
    assert journal.until(100) == [f"message {number}" for number in range(100)]
    assert [record.MESSAGE_ID for record in journal.taken] == [str(number) for number in range(100)]  # type: ignore[attr-defined]
    assert {record.threadName for record in journal.taken} == {"MainThread"}


def test_a_message_says_what_was_so_when_it_was_logged(log: logging.Logger, journal: Journal) -> None:
    journal.reads.clear()
    found = ["before"]
    log.info("%s", found)
    log.info("%s", found)
    found[0] = "after"
    journal.reads.set()
    assert journal.until(2) == ["['before']"] * 2


def test_a_traceback_comes_with_it(log: logging.Logger, journal: Journal) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("it failed")
    journal.until(1)
    assert "ValueError: wrong" in logging.Formatter("%(message)s").format(journal.taken[0])


def test_a_journal_that_does_not_read_is_not_waited_for(
    log: logging.Logger, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerntune.journal.MAX_RECORDS", 5)
    journal.reads.clear()
    began = time.monotonic()
    log.info("first")
    assert journal.busy.wait(BOUND)
    for number in range(20):
        log.info("%d", number)
    logging.shutdown([weakref.ref(log.handlers[0]), weakref.ref(journal)])
    assert time.monotonic() - began < BOUND / 2
    journal.reads.set()
    told = "15 messages were dropped, for the journal did not take them"
    assert journal.until(7) == ["first", *map(str, range(5)), told]
    log.info("and on")
    assert journal.until(8)[-2:] == [told, "and on"]


def test_a_message_that_does_not_fit_its_words_ends_nothing(
    log: logging.Logger, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    log.info("%d", "word")
    log.info("and on")
    assert journal.until(1) == ["and on"]
    assert "Logging error" in capsys.readouterr().err


def test_a_record_that_cannot_be_handed_over_does_not_end_the_others(
    log: logging.Logger, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fails(record: logging.LogRecord) -> None:
        failed.set()
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(journal, "emit", fails)
        log.info("lost")
        assert failed.wait(BOUND)
    log.info("told")
    assert journal.until(1) == ["told"]
