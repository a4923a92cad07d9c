"""The connection and its messages: serials, replies, descriptors, and a bus that pauses, stops reading or goes.

Also what it counts of replies that nobody reads; how a stream is cut into messages, what is remembered of them, and how
their values and errors are read.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
from dbus_next.signature import SignatureTree

from kerntune import errors
from kerntune.dbus import backpressure, messages
from kerntune.dbus import connection as module
from kerntune.dbus.backpressure import ALL, CLIENT, CLIENTS, LARGE, OURSELVES, SILENCE, SMALL, USER, Unread
from kerntune.dbus.connection import Connection
from kerntune.dbus.framing import Cutter, Frame, StreamError
from kerntune.dbus.messages import (
    MAX_SIGNATURES,
    REMEMBERED,
    Message,
    MessageFlag,
    MessageType,
    ParseCache,
    Variant,
    exception,
    marshalled,
    parse,
    unwrap,
)
from kerntune.dbus.service import Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.hostile import raw
from tests.hostile.raw import Writer, message


class TestLife:
    async def test_the_environment_names_the_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/elsewhere")
        assert Connection(lambda _: None).address == "unix:path=/elsewhere"
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
        assert Connection(lambda _: None).address == messages.SYSTEM_BUS

    async def test_a_call_before_and_after_the_connection_is_refused(self, bus: PrivateBus) -> None:
        link = Connection(lambda _: None, address=bus.address)
        with pytest.raises(errors.Unreachable):
            await link.call_bus("GetId")
        await link.connect()
        await link.close()
        with pytest.raises(errors.Unreachable):
            await link.call_bus("GetId")
        await link.close()

    async def test_the_end_of_the_bus_ends_a_service(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            await asyncio.to_thread(bus.stop)
            await service.connection.closed()
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})  # goes nowhere, and hurts nobody

    async def test_a_stream_that_is_no_dbus_ends_the_connection(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            listener.setblocking(False)

            async def play_the_bus() -> None:
                loop = asyncio.get_running_loop()
                served, _ = await loop.sock_accept(listener)
                with served:
                    await loop.sock_recv(served, 100)
                    await loop.sock_sendall(served, b"OK 1234\r\n")
                    await loop.sock_recv(served, 1000)
                    await loop.sock_sendall(served, b"this is not a message")
                    while await loop.sock_recv(served, 1000):
                        pass

            connecting = Connection(lambda _: None, address=f"unix:path={tmp_path}/socket").connect(timeout=10)
            with pytest.raises(errors.Unreachable):
                await asyncio.gather(play_the_bus(), connecting)


class TestCalls:
    async def test_serials_begin_again_and_pass_over_those_that_wait(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LAST_SERIAL", 8)
        async with lab.Raw(bus) as service, lab.client(bus) as client:
            await service.link.call_bus("RequestName", "su", lab.NAME, 4)
            waiting = [asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait")) for _ in range(3)]
            held = [await service.method_call() for _ in waiting]
            later = []
            for _ in range(12):
                task = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Echo"))
                call = await service.method_call()
                later.append(call.serial)
                service.link.send(Message.new_method_return(call))
                assert await task == []
            for call in held:
                service.link.send(Message.new_method_return(call, "s", [str(call.serial)]))
            serials = [call.serial for call in held]
            assert await asyncio.gather(*waiting) == [[str(serial)] for serial in serials]
        free = [serial for serial in range(1, 9) if serial not in serials]
        assert set(later) == set(free)

    async def test_errors_of_the_bus_have_a_class(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            link = service.connection
            with pytest.raises(errors.InvalidArgs):
                await link.call_bus("GetNameOwner", "u", 1)
            with pytest.raises(errors.Unreachable):
                await link.call_bus("GetNameOwner", "s", "org.kerntune.Nobody")
            with pytest.raises(errors.AccessDenied):
                await link.call_bus("RequestName", "su", "org.kerntune.Other", 0)

    async def test_no_descriptor_ever_arrives(self, bus: PrivateBus) -> None:
        """The bus refuses a message with descriptors, because the service has not said that it takes any."""
        async with lab.serving(bus), lab.client(bus) as client:
            await client.call(lab.ROOT, lab.PEER, "Ping")
            before = len(os.listdir("/proc/self/fd"))
            assert await asyncio.to_thread(send_descriptors, bus, 20) == 20
            assert len(os.listdir("/proc/self/fd")) == before
            await client.call(lab.ROOT, lab.PEER, "Ping")


def send_descriptors(bus: PrivateBus, count: int) -> int:
    """Call Echo so often with a descriptor, and return the number of error replies."""
    with raw.Raw(bus.address, descriptors=True) as client:
        for serial in range(2, count + 2):
            where = (lab.NAME, lab.ROOT, lab.IFACE, "Echo")
            data = raw.message(serial, *where, "h", bytes(4), more=[(9, ("u", 1))])
            socket.send_fds(client.socket, [data], [0])
        return sum(client.next_reply().kind == raw.ERROR for _ in range(count))


def emit_long_ticks(service: Service, count: int) -> None:
    """Emit numbered signals of 20 kB; a dozen of them fill a socket."""
    for n in range(count):
        service.emit(lab.ROOT, lab.IFACE, "Tick", n, {"text": Variant("s", "x" * 20_000)})


class TestWriteQueue:
    async def test_a_bus_that_pauses_loses_nothing(self, bus: PrivateBus) -> None:
        """Far more is written than the socket takes (EAGAIN); all of it arrives in order once the bus reads again."""
        async with (
            lab.serving(bus) as service,
            lab.client(bus) as client,
            client.listen(lab.ROOT, lab.IFACE, "Tick") as ticks,
        ):
            os.kill(bus.pid, signal.SIGSTOP)
            try:
                emit_long_ticks(service, 200)
            finally:
                os.kill(bus.pid, signal.SIGCONT)
            assert [(await anext(ticks)).args[0] for _ in range(200)] == list(range(200))

    async def test_queued_messages_are_sent_before_the_connection_closes(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            async with lab.serving(bus) as service:
                signals = client.listen(lab.ROOT, lab.IFACE, "Tick")
                await signals.__aenter__()
                emit_long_ticks(service, 100)
            assert [(await anext(signals)).args[0] for _ in range(100)] == list(range(100))

    @pytest.mark.parametrize(("limit", "value"), [("STALLED", 0.01), ("MAX_QUEUE", 1 << 20)])
    async def test_a_bus_that_stops_reading_is_left(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
    ) -> None:
        monkeypatch.setattr(backpressure, limit, value)
        async with lab.serving(bus) as service:
            os.kill(bus.pid, signal.SIGSTOP)
            try:
                emit_long_ticks(service, 200)
                await service.connection.closed()
            finally:
                os.kill(bus.pid, signal.SIGCONT)


# What a connection has sent and clients have not read


class Bus:
    """A played bus: the bytes that it keeps for each client; a client without an entry has left."""

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


class TestUnread:
    async def test_a_client_that_was_sent_little_costs_no_question(self) -> None:
        bus = Bus()
        account = bus.account()
        account.sent(SMALL, ":1.1")
        await account.wait_for_room(":1.1")
        await account.wait_for_room(":1.2")
        assert not bus.asked

    async def test_a_client_that_has_read_all_goes_on(self) -> None:
        bus = Bus(c1=0)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        await asyncio.gather(*(account.wait_for_room(":1.1") for _ in range(32)))
        assert bus.asked[":1.1"] == 1

    async def test_calls_that_come_while_the_bus_is_asked_share_its_answer(self) -> None:
        bus, asked, answers = Bus(c1=0), asyncio.Event(), asyncio.Event()

        async def ask(name: str) -> tuple[int, int]:
            found = await bus.ask(name)
            asked.set()
            await answers.wait()
            return found

        account = Unread(ask, bus.uid_of)
        account.sent(CLIENT + 1, ":1.1")
        calls = [asyncio.create_task(account.wait_for_room(":1.1")) for _ in range(32)]
        await asked.wait()
        answers.set()
        await asyncio.gather(*calls)
        assert bus.asked[":1.1"] == 1

    async def test_bytes_that_are_sent_while_the_bus_is_asked_count(self) -> None:
        bus = Bus(c1=0)

        async def ask(name: str) -> tuple[int, int]:
            account.sent(CLIENT + 1, ":1.1")
            return await bus.ask(name)

        account = Unread(ask, bus.uid_of)
        account.sent(CLIENT + 1, ":1.1")
        with pytest.raises(errors.LimitsExceeded, match="to you wait"):
            await account.wait_for_room(":1.1")

    async def test_a_client_is_refused_until_it_has_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    async def test_the_bus_is_not_asked_at_each_refusal(self) -> None:
        bus = Bus(c1=CLIENT + 1)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        for _ in range(10):
            with pytest.raises(errors.LimitsExceeded):
                await account.wait_for_room(":1.1")
        assert bus.asked[":1.1"] == 1

    async def test_all_clients_of_a_user_have_one_limit(self) -> None:
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

    @pytest.mark.parametrize(("others", "is_forgotten"), [(CLIENTS - 1, False), (CLIENTS, True)])
    async def test_the_oldest_clients_that_were_sent_little_are_forgotten(
        self, others: int, is_forgotten: bool
    ) -> None:
        bus = Bus(c0=0)
        account = bus.account()
        account.sent(SMALL, ":1.0")
        for n in range(1, others + 1):
            account.sent(1, f":1.{n}")
        assert not bus.asked
        account.sent(CLIENT - SMALL + 1, ":1.0")
        await account.wait_for_room(":1.0")
        assert bus.asked[":1.0"] == (0 if is_forgotten else 1), "only the sum is above the limit"

    async def test_a_client_that_is_sent_much_has_none_of_the_others_forgotten(self) -> None:
        bus = Bus(c0=0)
        account = bus.account()
        account.sent(SMALL, ":1.0")
        for n in range(1, CLIENTS):
            account.sent(1, f":1.{n}")
        account.sent(SMALL, ":1.1")
        account.sent(1, ":1.9999")
        account.sent(CLIENT - SMALL + 1, ":1.0")
        await account.wait_for_room(":1.0")
        assert bus.asked[":1.0"] == 1

    async def test_clients_that_were_sent_much_and_left_are_forgotten(self) -> None:
        """One that is still there, and has not read, is kept."""
        bus = Bus(c0=0, c1=CLIENT + 1)
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        for n in range(2, 10 * LARGE):
            account.sent(SMALL + 1, f":1.{n}")
            await account.too_much(":1.0")
        left = [name for name in bus.asked if name not in (":1.0", ":1.1")]
        assert len(left) >= 8 * LARGE
        assert max(bus.asked[name] for name in left) == 1
        with pytest.raises(errors.LimitsExceeded):
            await account.wait_for_room(":1.1")

    @pytest.mark.parametrize("error", [errors.AccessDenied("no"), errors.UnknownMethod("no")])
    async def test_a_bus_that_does_not_tell_is_asked_once(self, error: errors.KerntuneError) -> None:
        bus = Bus()
        bus.error = error
        account = bus.account()
        for _ in range(3):
            account.sent(2 * CLIENT, ":1.1")
            await account.wait_for_room(":1.1")
        assert bus.asked[":1.1"] == 1
        assert not await account.too_much(":1.0")

    async def test_a_bus_that_is_slow_to_tell_lets_nobody_have_more(self) -> None:
        bus = Bus()
        bus.error = errors.Failed("timed out")
        account = bus.account()
        account.sent(CLIENT + 1, ":1.1")
        with pytest.raises(errors.LimitsExceeded):
            await account.wait_for_room(":1.1")

    async def test_all_clients_together_have_a_limit(self) -> None:
        bus = Bus(c0=100)
        account = bus.account()
        assert await account.too_much(":1.0") == 0
        assert not bus.asked
        for kept, said in ((ALL, 0), (ALL + 1, ALL + 1)):
            bus.kept[":1.0"] = kept
            account.sent(OURSELVES, None)
            assert await account.too_much(":1.0") == said


# The messages that come and go


def call(
    *body: object,
    serial: int = 1,
    signature: str = "s",
    sender: str = ":1.7",
    member: str = "Get",
    flags: MessageFlag = MessageFlag.NONE,
) -> bytes:
    fields = {"signature": signature, "body": list(body), "serial": serial, "sender": sender, "flags": flags}
    return marshalled(Message("a.b", "/", "a.b", member, **fields))  # type: ignore[arg-type]  # of different types


def passed_on(order: str = "<", text: str = "", serial: int = 3, more: tuple[int, str, object] | None = None) -> bytes:
    """Return a call as the bus passes it on, its sender last; `more` is a header field before it."""
    fields = [(more[0], more[1:])] if more else []
    body = bytes(Writer(order).all("s", [text]))
    return message(serial, "a.b", "/a", "a.b", "M", "s", body, order=order, more=[*fields, (7, ("s", ":1.42"))])


class TestCutter:
    def test_any_chunks_give_the_same_messages(self) -> None:
        sent = [call("x" * size) for size in (0, 1, 7, 500)]
        stream = b"".join(sent)
        dice = random.Random(1)
        for _ in range(50):
            cutter, at = Cutter(1000), 0
            got: list[Frame] = []
            while at < len(stream):
                size = dice.randint(1, 300)
                got += cutter.feed(stream[at : at + size])
                at += size
            assert got == [Frame(each) for each in sent]

    @pytest.mark.parametrize("size", [1, 16, 100, 100_000])
    def test_a_long_body_is_left_out_and_the_next_message_is_found(self, size: int) -> None:
        stream = call("x" * 50_000) + call("short")
        cutter = Cutter(1000)
        got = [frame for at in range(0, len(stream), size) for frame in cutter.feed(stream[at : at + size])]
        assert [frame.whole for frame in got] == [False, True]
        assert struct.unpack_from("<I", got[0].data, 4) == (0,)
        assert got[1].data == call("short")

    def test_a_message_with_a_long_header_is_left_out(self) -> None:
        long = marshalled(Message("a.b", "/" + "x" * 5000, "a.b", "M", serial=1))
        assert list(Cutter(1000).feed(long + call(""))) == [Frame(b"", whole=False), Frame(call(""))]

    @pytest.mark.parametrize("start", [b"x\1\0\1", b"l\1\0\2"])
    def test_a_stream_that_is_no_dbus_ends(self, start: bytes) -> None:
        with pytest.raises(StreamError):
            list(Cutter(1000).feed(start + bytes(12)))

    def test_a_message_longer_than_the_protocol_allows_ends_the_stream(self) -> None:
        with pytest.raises(StreamError, match="bytes"):
            list(Cutter(1000).feed(b"l\1\0\1" + struct.pack("<III", 0xFFFFFFFF, 1, 0)))


class TestFrame:
    def test_a_call_without_a_reply_is_unanswered(self) -> None:
        assert Frame(call("", flags=MessageFlag.NO_REPLY_EXPECTED)).unanswered
        assert not Frame(call("")).unanswered
        assert not Frame(b"", whole=False).unanswered

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_the_sender_is_found_in_both_byte_orders(self, order: str) -> None:
        assert Frame(passed_on(order)).sender == b":1.42"

    def test_a_frame_may_have_no_sender(self) -> None:
        assert Frame(marshalled(Message("a.b", "/", "a.b", "M", serial=1))).sender == b""
        assert Frame(b"", whole=False).sender == b""
        assert Frame(passed_on()[:40]).sender == b""

    def test_no_sender_is_found_behind_a_field_of_an_unknown_type(self) -> None:
        assert Frame(passed_on(more=(99, "as", ["x"]))).sender == b""

    def test_a_cut_frame_has_its_header_or_nothing(self) -> None:
        cut = Frame(call("x" * 1000)).cut()
        assert not cut.whole
        assert len(cut.data) < 200
        assert cut.cut() is cut
        assert not Frame(call("")).cut().whole, "the body is the length of the text"
        long = Message("a.b", "/" + "x" * 5000, "a.b", "M", signature="y", body=[1], serial=1)
        assert Frame(marshalled(long)).cut() == Frame(b"", whole=False)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often each message is parsed."""
    counts: Counter[bytes] = Counter()

    def counted(data: bytes) -> Message:
        counts[data] += 1
        return parse(data)

    monkeypatch.setattr(messages, "parse", counted)
    return counts


class TestParseCache:
    @pytest.mark.parametrize(
        ("signature", "body"), [("ss", ("a", "b")), ("s", ("a",)), ("", ()), ("as", (["a"],)), ("u", (1,))]
    )
    def test_it_returns_what_parsing_gives(self, signature: str, body: tuple[object, ...]) -> None:
        cache = ParseCache()
        for serial in (1, 2, 0x01020304, 2**32 - 1):
            data = call(*body, serial=serial, signature=signature)
            assert vars(cache.parse(data)) == vars(parse(data))

    def test_it_tells_senders_members_bodies_and_flags_apart(self) -> None:
        cache = ParseCache()
        for data in (
            call("a"), call("a", serial=2, sender=":1.8"), call("a", serial=3, member="Set"), call("b", serial=4),
            call("a", serial=5, flags=MessageFlag.NO_REPLY_EXPECTED),
        ):  # fmt: skip
            assert vars(cache.parse(data)) == vars(parse(data))

    def test_two_calls_share_nothing_that_can_change(self) -> None:
        cache = ParseCache()
        first, second = cache.parse(call("a")), cache.parse(call("a", serial=2))
        assert (first.serial, second.serial) == (1, 2)
        lists = [cache.parse(call(["a"], serial=serial, signature="as")) for serial in (1, 2)]
        assert lists[0].body[0] is not lists[1].body[0]

    def test_it_reads_serials_in_both_byte_orders(self, parsed: Counter[bytes]) -> None:
        cache = ParseCache()
        for order in ("<", ">"):
            found = [cache.parse(passed_on(order, serial=serial)) for serial in (3, 0x01020304)]
            assert [each.serial for each in found] == [3, 0x01020304]
        assert parsed.total() == 2, "the second of each is remembered"

    def test_it_remembers_a_limited_number_of_short_calls(self, parsed: Counter[bytes]) -> None:
        cache = ParseCache()
        short = [call(str(number)) for number in range(REMEMBERED + 1)]
        long = call("x" * 10_000)
        for data in (*short[:REMEMBERED], *short[:REMEMBERED], long, long):
            cache.parse(data)
        assert {parsed[data] for data in short[:REMEMBERED]} == {1}
        assert parsed[long] == 2
        cache.parse(short[REMEMBERED])
        for data in short:
            cache.parse(data)
        assert parsed[short[0]] == 2, "one too many, and all are forgotten"


def test_a_limited_number_of_signatures_is_kept() -> None:
    kinds = ["".join(dice) for dice in itertools.islice(itertools.product("bdinqstuxy", repeat=5), MAX_SIGNATURES // 4)]
    kinds += ["".join(dice) for dice in itertools.islice(itertools.product("uxt", repeat=250), 100)]
    for each in kinds:
        parse(call([], signature=f"a({each})"))
        assert sum(len(kept) for kept in SignatureTree._cache) <= MAX_SIGNATURES


def test_unwrapped_values_have_no_variants() -> None:
    nested = {"a": Variant("a{sv}", {"b": Variant("v", Variant("as", ["c"]))}), "d": [[Variant("u", 1)]]}
    assert unwrap(nested) == {"a": {"b": ["c"]}, "d": [[1]]}


@pytest.mark.parametrize(
    "name", ["org.freedesktop.systemd1.UnitMasked", "org.freedesktop.DBus.Error.Spawn.ChildExited"]
)
def test_a_service_that_cannot_be_started_is_not_reachable(name: str) -> None:
    text = "Unit kerntuned.service is masked."
    refused = Message(message_type=MessageType.ERROR, error_name=name, reply_serial=1, signature="s", body=[text])
    found = exception(refused)
    assert isinstance(found, errors.Unreachable)
    assert text in str(found)
