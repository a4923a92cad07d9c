"""Clients that do not read: what is kept account of, when the bus is asked, who is refused."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter

import pytest

from kerntune import errors
from kerntune.dbus import backpressure, server
from kerntune.dbus.backpressure import CLIENT, CLIENTS, LARGE, OURSELVES, SILENCE, SMALL, USER, Unread
from kerntune.dbus.messages import Message
from kerntune.dbus.service import Caller
from tests.dbus import lab
from tests.dbus.test_connection import bare_client
from tests.harness.privatebus import PrivateBus


class Bus:
    """What a bus would tell: bytes kept for each client; a client without an entry has left."""

    def __init__(self, **kept: int) -> None:
        self.kept = {name.replace("c", ":1."): size for name, size in kept.items()}
        self.asked: Counter[str] = Counter()
        self.error: errors.KerntuneError | None = None
        self.users: dict[str, int] = {}

    async def ask(self, name: str) -> tuple[int, int]:
        self.asked[name] += 1
        if self.error:
            raise self.error
        if name not in self.kept:
            raise errors.Unreachable("has left")
        return self.kept[name], self.kept[name]

    async def uid_of(self, name: str) -> int:
        return self.users.get(name, 1000)

    def account(self) -> Unread:
        return Unread(self.ask, self.uid_of)


class TestAccount:
    async def test_small_ones_are_never_asked_about(self) -> None:
        bus = Bus()
        account = bus.account()
        account.sent(SMALL, ":1.1")
        await account.wait_for_room(":1.1")
        await account.wait_for_room(":1.2")
        assert not bus.asked

    async def test_who_has_read_all_goes_on(self) -> None:
        bus = Bus(c1=0)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        await asyncio.gather(*(account.wait_for_room(":1.1") for _ in range(32)))
        assert bus.asked[":1.1"] == 1

    async def test_who_has_not_is_refused_until_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backpressure, "INTERVAL", 0)
        bus = Bus(c1=CLIENT + 1)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        with pytest.raises(errors.LimitsExceeded, match="to you wait"):
            await account.wait_for_room(":1.1")
        assert not account.is_silent(":1.1")
        account.sent(SILENCE - CLIENT, ":1.1")
        assert account.is_silent(":1.1")
        bus.kept[":1.1"] = 10
        await account.wait_for_room(":1.1")
        assert not account.is_silent(":1.1")

    async def test_who_is_refused_is_not_asked_about_each_time(self) -> None:
        bus = Bus(c1=CLIENT + 1)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        for _ in range(10):
            with pytest.raises(errors.LimitsExceeded):
                await account.wait_for_room(":1.1")
        assert bus.asked[":1.1"] == 1

    async def test_all_clients_of_a_user_together(self) -> None:
        bus = Bus(**{f"c{n}": CLIENT for n in range(6)})
        bus.users[":1.5"] = 2000
        account = bus.account()
        for n in range(6):
            account.sent(CLIENT, f":1.{n}")
        assert USER < 5 * CLIENT
        for n in range(4):
            await account.wait_for_room(f":1.{n}")
        with pytest.raises(errors.LimitsExceeded, match="clients of uid 1000 wait"):
            await account.wait_for_room(":1.4")
        await account.wait_for_room(":1.5")
        account.sent(SMALL, ":1.6")
        await account.wait_for_room(":1.6")  # another of the user's, which was sent little

    async def test_clients_that_come_once_are_forgotten_without_a_question(self) -> None:
        bus = Bus()
        account = bus.account()
        for n in range(3 * CLIENTS):
            account.sent(1, f":1.{n}")
        assert len(account._small) == CLIENTS
        account.sent(SMALL, f":1.{3 * CLIENTS - 1}")
        await account.wait_for_room(f":1.{3 * CLIENTS - 1}")  # who is sent much pays for itself, and for nobody else
        assert len(account._small) == CLIENTS - 1
        assert not bus.asked

    async def test_clients_that_were_sent_much_and_left_are_forgotten(self) -> None:
        bus = Bus(c0=0, c1=SMALL + 1)
        account = bus.account()
        for n in range(1, 10 * LARGE):
            account.sent(SMALL + 1, f":1.{n}")
            await account.too_much(":1.0")
        assert len(account._large) <= 2 * LARGE
        assert ":1.1" in account._large  # it is still there, and has not read
        assert max(bus.asked[name] for name in bus.asked if name not in (":1.0", ":1.1")) == 1

    @pytest.mark.parametrize("error", [errors.AccessDenied("no"), errors.UnknownMethod("no")])
    async def test_a_bus_that_does_not_tell(self, error: errors.KerntuneError) -> None:
        bus = Bus()
        bus.error = error
        account = bus.account()
        for _ in range(3):
            account.sent(2 * CLIENT, ":1.1")
            await account.wait_for_room(":1.1")
        assert bus.asked[":1.1"] == 1
        assert not await account.too_much(":1.0")

    async def test_a_bus_that_is_slow_to_tell(self) -> None:
        bus = Bus()
        bus.error = errors.Failed("timed out")
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        with pytest.raises(errors.LimitsExceeded):
            await account.wait_for_room(":1.1")

    async def test_all_that_is_kept(self) -> None:
        bus = Bus(c0=100)
        account = bus.account()
        assert await account.too_much(":1.0") == 0
        assert not bus.asked
        for kept, said in ((backpressure.ALL, 0), (backpressure.ALL + 1, backpressure.ALL + 1)):
            bus.kept[":1.0"] = kept
            account.sent(OURSELVES, None)
            assert await account.too_much(":1.0") == said


BIG = 256 << 10


def ask_for_big(hoarder: socket.socket, serials: range) -> None:
    """Call Big and do not read the reply."""
    call = Message(lab.NAME, lab.ROOT, lab.IFACE, "Big", signature="u", body=[BIG])
    for serial in serials:
        call.serial = serial
        hoarder.sendall(call._marshall())  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


class TestOnABus:
    async def test_who_reads_nothing_gets_no_more(self, bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            with bare_client(bus) as hoarder:
                for start in range(2, 130, 8):
                    await asyncio.to_thread(ask_for_big, hoarder, range(start, start + 8))
                    await lab.settle(client, service)
                    await asyncio.gather(*service.connection._tasks)
                kept, _ = await service.connection._kept(service.connection.unique_name)
                assert CLIENT < kept < CLIENT + 10 * BIG
                assert await client.call(lab.ROOT, lab.IFACE, "Big", "u", 100) == [bytes(100)]
            await lab.settle(client, service)
            assert (await service.connection._kept(service.connection.unique_name))[0] < BIG

    async def test_who_reads_late_is_served_again(self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backpressure, "CLIENT", 8 * BIG)
        async with lab.serving(bus), lab.client(bus) as client:
            for _ in range(6):
                # At no moment more than the limit, and far more in all.
                calls = [client.call(lab.ROOT, lab.IFACE, "Big", "u", BIG) for _ in range(7)]
                assert await asyncio.gather(*calls) == [[bytes(BIG)]] * 7

    async def test_the_bus_is_left_before_it_stops_reading(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(backpressure, "OURSELVES", 4 * BIG)
        monkeypatch.setattr(backpressure, "ALL", 8 * BIG)
        async with lab.serving(bus) as service:
            with bare_client(bus) as hoarder, caplog.at_level(logging.ERROR):
                await asyncio.to_thread(ask_for_big, hoarder, range(2, 18))
                await service.connection.closed()
        assert "of ours that clients do not read; leaving the bus" in caplog.text

    async def test_a_long_reply_that_comes_too_late_is_not_sent(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The call was carried out, so no error can be sent instead."""
        monkeypatch.setattr(server, "SMALL", 1000)

        class Late(lab.Bench):
            done = False

            async def big(self, caller: Caller, size: int) -> bytes:
                self.done = True
                return bytes(size)

        bench = Late()
        async with lab.serving(bus, bench) as service, lab.Raw(bus) as raw:

            async def room(name: str) -> None:
                if bench.done:
                    raise errors.LimitsExceeded("reads nothing")

            monkeypatch.setattr(service.connection._unread, "wait_for_room", room)
            raw.send("Big", "u", 2000)
            last = raw.send("Both")
            assert (await raw.next_reply()).reply_serial == last.serial
        assert "did not send a reply to :1." in caplog.text
