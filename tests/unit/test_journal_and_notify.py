"""Messages to the journal and the service manager: in order, and nobody waits for one that does not read."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune import notify, sd_notify
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


# What the service manager is told: nothing fails because of it, gone, deaf or full


LAST_WORDS = "READY=1\nSTATUS=0 of 0 targets in the desired state"


class Manager:
    """A service manager's end, which reads when it is told to."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.bind(address)

    def read(self) -> list[str]:
        """All that has come."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found

    def fill(self) -> None:
        """So much has come that nothing more fits."""
        while sd_notify.sent("STATUS=busy"):
            pass


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> notify.Queue:
    monkeypatch.setattr(notify, "RETRY", 0.01)
    monkeypatch.setattr(notify, "_queue", fresh := notify.Queue())
    return fresh


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: notify.Queue) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    found = Manager(path)
    with found.socket:
        yield found


async def all_of(manager: Manager, wanted: str) -> list[str]:
    """What comes, until this one does."""
    loop, found = asyncio.get_running_loop(), list[str]()
    arrived = asyncio.Event()

    def read() -> None:
        found.extend(manager.read())
        if wanted in found:
            arrived.set()

    loop.add_reader(manager.socket, read)
    try:
        async with asyncio.timeout(BOUND):
            await arrived.wait()
    finally:
        loop.remove_reader(manager.socket)
    return [text for text in found if text != "STATUS=busy"]


def test_each_message_is_a_datagram(manager: Manager) -> None:
    notify.send(LAST_WORDS)
    notify.reloading()
    first, second = manager.read()
    assert first == LAST_WORDS
    assert second.startswith("RELOADING=1\nMONOTONIC_USEC=")


def test_an_abstract_name(monkeypatch: pytest.MonkeyPatch, queue: notify.Queue) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@kerntune-test-notify")
    manager = Manager("\0kerntune-test-notify")
    with manager.socket:
        notify.send("READY=1")
        assert manager.read() == ["READY=1"]


@pytest.mark.parametrize("name", ["", "vsock:2:1", "/nowhere/notify", "@nobody-listens-here", "/etc/passwd", "/" * 300])
def test_nobody_who_listens_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch, queue: notify.Queue) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify.send("READY=1")


def test_no_descriptor_is_no_error(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_room)
    notify.send("READY=1")


async def test_a_full_socket_is_not_waited_for(manager: Manager) -> None:
    manager.fill()
    began = time.monotonic()
    for number in range(1000):
        notify.send(f"STATUS={number}")
        notify.send("WATCHDOG=1")
    assert time.monotonic() - began < 1


async def test_what_is_waited_for_comes_later_in_its_order_and_a_status_may_be_lost(manager: Manager) -> None:
    manager.fill()
    notify.send(LAST_WORDS)
    notify.send("STATUS=lost")
    notify.send("WATCHDOG=1")
    notify.send("WATCHDOG=1")
    notify.send("STOPPING=1")
    assert await all_of(manager, "STOPPING=1") == [LAST_WORDS, "WATCHDOG=1", "STOPPING=1"]
    notify.send("STATUS=heard")
    assert manager.read() == ["STATUS=heard"]


async def test_only_so_many_wait(manager: Manager) -> None:
    manager.fill()
    notify.send("READY=1")
    for number in range(notify.MAX_WAITING * 2):
        notify.send(f"STOPPING=1\nSTATUS={number}")
    last = f"STOPPING=1\nSTATUS={notify.MAX_WAITING * 2 - 1}"
    came = await all_of(manager, last)
    assert (len(came), came[-1]) == (notify.MAX_WAITING, last)


async def test_it_gives_up_and_keeps_nothing(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TRIES", 3)
    tries, given_up = itertools.count(), asyncio.Event()

    def full(_text: str) -> bool:
        if next(tries) == 3:
            asyncio.get_running_loop().call_soon(given_up.set)
        return False

    with monkeypatch.context() as broken:
        broken.setattr(notify, "sent", full)
        notify.send("READY=1")
        notify.send("STOPPING=1")
        await asyncio.wait_for(given_up.wait(), BOUND)
    notify.send("STATUS=heard")
    assert manager.read() == ["STATUS=heard"]


def test_before_there_is_a_loop_it_is_tried_once(manager: Manager) -> None:
    manager.fill()
    notify.send("READY=1")
    manager.read()
    notify.send("STATUS=heard")
    assert manager.read() == ["STATUS=heard"]


def test_who_may_wait_for_room_waits_so_long_and_no_longer(manager: Manager) -> None:
    manager.fill()
    began = time.monotonic()
    assert not sd_notify.sent("READY=1", wait=0.2)
    assert 0.2 <= time.monotonic() - began < BOUND
    reader = threading.Timer(0.1, manager.read)
    reader.start()
    assert sd_notify.sent("READY=1", wait=BOUND)
    reader.join()


@pytest.mark.parametrize(
    ("names", "speaks"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": "/run/notify"}, True),
        ({"NOTIFY_SOCKET": "/run/notify", "SYSTEMD_EXEC_PID": str(os.getpid())}, True),
        ({"NOTIFY_SOCKET": "/run/notify", "SYSTEMD_EXEC_PID": "1"}, False),
    ],
    ids=["no-manager", "old-manager", "the-service", "its-command"],
)
def test_who_speaks_for_a_service(names: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, speaks: bool) -> None:
    for name in ("NOTIFY_SOCKET", "SYSTEMD_EXEC_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert sd_notify.is_service() is speaks


def test_a_status_is_one_line_and_says_nothing_else() -> None:
    assert sd_notify.status("no\nREADY=1\x1b[1m  it is\t\u2028") == "STATUS=no READY=1 [1m it is"
    assert len(sd_notify.status("x" * 9999)) < 600
