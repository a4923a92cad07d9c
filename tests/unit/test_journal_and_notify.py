"""What the service manager is told: nothing waits for it and nothing fails because of it, gone, deaf or full."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerntune import notify
from tests.unit.lab import BOUND

LAST_WORDS = "READY=1\nSTATUS=0 targets managed"


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
        while notify.sent("STATUS=busy"):
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
