"""The connection: size limits, a bus that stops, a bus that goes, descriptors, and what cannot be parsed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dbus_next.signature import SignatureTree

from kerntune import errors
from kerntune.dbus import backpressure, messages, standard
from kerntune.dbus import connection as connection_module
from kerntune.dbus import server as server_module
from kerntune.dbus.connection import LAST_SERIAL, MAX_SENT, Connection
from kerntune.dbus.framing import Cutter, Frame, StreamError
from kerntune.dbus.messages import Message, MessageFlag, MessageType, Variant
from kerntune.dbus.server import MAX_CALL
from kerntune.dbus.service import Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus


def marshalled(member: str = "M", text: str = "", *, flags: MessageFlag = MessageFlag.NONE) -> bytes:
    message = Message("a.b", "/", "a.b", member, flags=flags, signature="s", body=[text], serial=1)
    return bytes(message._marshall())  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


class TestCutter:
    def test_any_chunking_gives_the_same_frames(self) -> None:
        messages = [marshalled(text="x" * size) for size in (0, 1, 7, 500)]
        stream = b"".join(messages)
        dice = random.Random(1)
        for _ in range(50):
            cutter, at = Cutter(1000), 0
            got: list[Frame] = []
            while at < len(stream):
                size = dice.randint(1, 300)
                got += cutter.feed(stream[at : at + size])
                at += size
            assert got == [Frame(message) for message in messages]

    @pytest.mark.parametrize("size", [1, 16, 100, 100_000])
    def test_a_long_body_is_left_out_and_the_next_message_is_found(self, size: int) -> None:
        stream = marshalled("Long", "x" * 50_000) + marshalled("Short")
        cutter = Cutter(1000)
        got = [frame for at in range(0, len(stream), size) for frame in cutter.feed(stream[at : at + size])]
        assert [frame.whole for frame in got] == [False, True]
        assert struct.unpack_from("<I", got[0].data, 4) == (0,)
        assert got[1].data == marshalled("Short")

    def test_a_long_header_is_left_out_altogether(self) -> None:
        path = "/" + "x" * 5000
        message = Message("a.b", path, "a.b", "M", serial=1)
        long = bytes(message._marshall())  # type: ignore[no-untyped-call]  # as above
        assert list(Cutter(1000).feed(long + marshalled())) == [Frame(b"", whole=False), Frame(marshalled())]

    @pytest.mark.parametrize("start", [b"x\1\0\1", b"l\1\0\2"])
    def test_what_is_not_dbus_ends_it(self, start: bytes) -> None:
        with pytest.raises(StreamError):
            list(Cutter(1000).feed(start + bytes(12)))

    def test_more_than_the_protocol_allows_ends_it(self) -> None:
        with pytest.raises(StreamError, match="bytes"):
            list(Cutter(1000).feed(b"l\1\0\1" + struct.pack("<III", 0xFFFFFFFF, 1, 0)))

    def test_unanswered(self) -> None:
        assert Frame(marshalled(flags=MessageFlag.NO_REPLY_EXPECTED)).unanswered
        assert not Frame(marshalled()).unanswered
        assert not Frame(b"", whole=False).unanswered


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket where a bus should be."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        listening.setblocking(False)
        yield listening


def address_of(listener: socket.socket) -> str:
    return f"unix:path={listener.getsockname()}"


class TestConnect:
    @pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "tcp:host=localhost", "nonsense", "unix:path"])
    async def test_no_bus(self, address: str) -> None:
        with pytest.raises(errors.Unreachable, match=r"bus at .*is dbus running"):
            await Connection(lambda _: None, address=address).connect()

    async def test_the_environment_names_the_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/elsewhere")
        assert Connection(lambda _: None).address == "unix:path=/elsewhere"
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
        assert Connection(lambda _: None).address == messages.SYSTEM_BUS

    async def test_a_later_address_is_tried(self, bus: PrivateBus) -> None:
        link = Connection(lambda _: None, address=f"unix:path=/nonexistent;{bus.address}")
        await link.connect()
        assert link.unique_name.startswith(":")
        await link.close()

    @pytest.mark.parametrize("answer", [b"", b"OK", b"REJECTED EXTERNAL\r\n", b"x" * 70_000])
    async def test_a_bus_that_hangs_up_or_refuses(self, listener: socket.socket, answer: bytes) -> None:
        async def accept() -> None:
            loop = asyncio.get_running_loop()
            served, _ = await loop.sock_accept(listener)
            with served:
                await loop.sock_recv(served, 100)
                await loop.sock_sendall(served, answer)

        connecting = Connection(lambda _: None, address=address_of(listener)).connect(timeout=10)
        with pytest.raises(errors.Unreachable, match=r"closed the connection|refused to authenticate"):
            await asyncio.gather(accept(), connecting)

    async def test_a_silent_bus(self, listener: socket.socket) -> None:
        with pytest.raises(errors.Unreachable, match="did not answer within"):
            await Connection(lambda _: None, address=address_of(listener)).connect(timeout=0.05)

    async def test_a_call_before_and_after(self, bus: PrivateBus) -> None:
        link = Connection(lambda _: None, address=bus.address)
        with pytest.raises(errors.Unreachable):
            await link.call_bus("GetId")
        await link.connect()
        await link.close()
        with pytest.raises(errors.Unreachable):
            await link.call_bus("GetId")
        await link.close()


class TestReplies:
    async def test_serials_begin_again_and_pass_over_those_that_wait(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench), lab.client(bus) as client:
            client._connection._serial = LAST_SERIAL - 2
            waiting = [asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait")) for _ in range(4)]
            await bench.started.wait()
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "a") == ["a"]
            assert set(client._connection._replies) == {
                LAST_SERIAL - 1,
                LAST_SERIAL,
                1,
                2,
            }
            client._connection._serial = LAST_SERIAL - 2
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "b") == ["b"]
            assert client._connection._serial == 3
            bench.release.set()
            await asyncio.gather(*waiting)

    async def test_only_who_was_asked_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bus fills in the sender and lets no other reply pass: what it may not do is played here."""
        link = Connection(lambda _: None, address="unix:path=/nowhere")

        def comes(sender: str, text: str) -> None:
            reply = Message(
                message_type=MessageType.METHOD_RETURN, reply_serial=7, signature="s", body=[text], serial=1
            )
            reply.sender = sender
            monkeypatch.setattr(link, "_parse", lambda _: reply)
            link._receive(Frame(messages.marshalled(reply)))

        for destination in (":1.5", standard.BUS):
            future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            link._replies[7] = connection_module.Waiting(destination, future)
            comes(":1.6", "forged")
            assert not future.done()
            comes(destination, "true")
            assert future.result().body == ["true"]


class TestLoss:
    async def test_calls_that_wait_end_with_the_bus(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, lab.client(bus) as client:
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
            await bench.started.wait()
            await asyncio.to_thread(bus.stop)
            with pytest.raises(errors.Unreachable):
                await call
            await service.connection.closed()
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})  # goes nowhere, and hurts nobody

    async def test_a_stream_that_is_not_dbus_ends_it(self, listener: socket.socket) -> None:
        async def accept() -> None:
            loop = asyncio.get_running_loop()
            served, _ = await loop.sock_accept(listener)
            with served:
                await loop.sock_recv(served, 100)
                await loop.sock_sendall(served, b"OK 1234\r\n")
                await loop.sock_recv(served, 1000)
                await loop.sock_sendall(served, b"this is not a message")
                while await loop.sock_recv(served, 1000):
                    pass

        connecting = Connection(lambda _: None, address=address_of(listener)).connect(timeout=10)
        with pytest.raises(errors.Unreachable):
            await asyncio.gather(accept(), connecting)


class TestLimits:
    async def test_a_body_above_the_limit_is_refused_unparsed(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(errors.LimitsExceeded, match="too long"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "x" * (MAX_CALL + 1))
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "x" * (MAX_CALL - 5)) == ["x" * (MAX_CALL - 5)]

    async def test_a_header_above_the_limit_is_ignored(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.Raw(bus) as raw, lab.client(bus) as client:
            raw.send("Echo", "s", "text", path="/" + "x" * (MAX_CALL + 1))
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "still there") == ["still there"]

    async def test_a_reply_that_is_too_long_becomes_an_error(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(errors.LimitsExceeded):
                await client.call(lab.ROOT, lab.IFACE, "Big", "u", MAX_SENT)
            assert await client.call(lab.ROOT, lab.IFACE, "Big", "u", MAX_SENT - 4096) == [bytes(MAX_SENT - 4096)]

    async def test_a_reply_above_what_we_take_is_an_error_here(self, bus: PrivateBus) -> None:
        link = Connection(lambda _: None, address=bus.address, max_body=1000)
        async with lab.serving(bus):
            await link.connect()
            with pytest.raises(errors.LimitsExceeded):
                await link.call(lab.NAME, lab.ROOT, lab.IFACE, "Big", "u", 2000, timeout=5)
            await link.close()

    async def test_signatures_are_forgotten(self, bus: PrivateBus) -> None:
        kinds = "bdinqstuxy"
        async with lab.serving(bus), lab.client(bus) as client:
            for n in range(messages.MAX_SIGNATURES // 8 + 50):
                name = "".join(kinds[int(digit)] for digit in f"{n:05}")
                with pytest.raises(errors.InvalidArgs):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", f"a({name})", [])
            assert sum(len(kept) for kept in SignatureTree._cache) <= messages.MAX_SIGNATURES
            long = [f"a({''.join(dice)})" for dice in itertools.islice(itertools.product("uxt", repeat=250), 100)]
            for each in long:
                with pytest.raises(errors.InvalidArgs):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", each, [])
            assert sum(len(kept) for kept in SignatureTree._cache) <= messages.MAX_SIGNATURES

    async def test_a_long_body_that_nobody_takes_is_not_parsed(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[int] = []

        def parse(data: bytes) -> Message:
            parsed.append(len(data))
            return messages_parse(data)

        messages_parse = messages.parse
        monkeypatch.setattr(messages, "parse", parse)
        long = [bytes(server_module.SHORT)]
        options = {"long": Variant("ay", long[0])}
        async with lab.serving(bus), lab.Raw(bus) as raw, lab.client(bus) as client:
            with pytest.raises(errors.InvalidArgs, match='Echo takes "s", not "ay"'):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "ay", *long)
            with pytest.raises(errors.UnknownMethod):
                await client.call(lab.ROOT, lab.IFACE, "Nothing", "ay", *long)
            with pytest.raises(errors.UnknownObject):
                await client.call("/nowhere", lab.IFACE, "Echo", "ay", *long)
            raw.link.send(Message(lab.NAME, lab.ROOT, lab.IFACE, "Tick", MessageType.SIGNAL, signature="ay", body=long))
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", {}) == [[]]
            assert not [size for size in parsed if size > server_module.SHORT]
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", options) == [["long:ay"]]
            assert [size for size in parsed if size > server_module.SHORT]

    async def test_calls_nobody_waits_for_go_first(self, bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
        async with lab.serving(bus), lab.Raw(bus) as raw, lab.client(bus) as client:
            for _ in range(20_000):
                raw.send("Echo", "s", "flood", flags=MessageFlag.NO_REPLY_EXPECTED)
            await client.call(lab.ROOT, lab.PEER, "Ping", timeout=5)
        assert caplog.text.count("sends too much at once: dropped some of it") == 1


class TestDescriptors:
    async def test_none_ever_arrives(self, bus: PrivateBus) -> None:
        """A message that carries descriptors is refused by the bus: we have not told it that we take them."""
        async with lab.serving(bus), lab.client(bus) as client:
            await client.call(lab.ROOT, lab.PEER, "Ping")
            before = len(os.listdir("/proc/self/fd"))
            replies = await asyncio.to_thread(send_descriptors, bus, 20)
            assert replies == 20
            assert len(os.listdir("/proc/self/fd")) == before
            await client.call(lab.ROOT, lab.PEER, "Ping")


def send_descriptors(bus: PrivateBus, count: int) -> int:
    """Call Echo `count` times with a descriptor; how many error replies came back."""
    message = Message(lab.NAME, lab.ROOT, lab.IFACE, "Echo", signature="h", body=[0], unix_fds=[0])
    with bare_client(bus) as bare:
        for serial in range(2, count + 2):
            message.serial = serial
            data = message._marshall(negotiate_unix_fd=True)  # type: ignore[no-untyped-call]  # as above
            socket.send_fds(bare, [data], [0])
        cutter, answered = Cutter(MAX_CALL), 0
        while answered < count:
            answered += sum(frame.data[1] == 3 for frame in cutter.feed(bare.recv(10_000)))
    return answered


@contextmanager
def bare_client(bus: PrivateBus) -> Iterator[socket.socket]:
    """A connection that may send descriptors, and reads only what it wants to."""
    with socket.socket(socket.AF_UNIX) as bare:
        bare.settimeout(10)
        bare.connect(bus.address.removeprefix("unix:path="))
        bare.sendall(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
        bare.recv(1000)
        bare.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        assert bare.recv(1000) == b"AGREE_UNIX_FD\r\n"
        hello = Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", serial=1)
        bare.sendall(b"BEGIN\r\n" + hello._marshall())  # type: ignore[no-untyped-call]  # as above
        bare.recv(1000)  # what comes with BEGIN in one read may carry no descriptors
        yield bare


def emit_long_ticks(service: Service, count: int) -> None:
    """Numbered signals of 20 kB: a dozen of them fill a socket."""
    for n in range(count):
        service.emit(lab.ROOT, lab.IFACE, "Tick", n, {"text": Variant("s", "x" * 20_000)})


class TestWriter:
    async def test_a_bus_that_pauses_loses_nothing(self, bus: PrivateBus) -> None:
        """Far more is written than the socket takes (EAGAIN); all of it arrives, in order, once the bus reads again."""
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

    async def test_what_is_queued_is_sent_before_we_leave(self, bus: PrivateBus) -> None:
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

    async def test_a_client_that_hoards_replies_harms_nobody(self, bus: PrivateBus) -> None:
        hoard = Message(lab.NAME, lab.ROOT, lab.IFACE, "Big", signature="u", body=[1 << 20])
        async with lab.serving(bus, in_flight=100), lab.client(bus) as client:
            with bare_client(bus) as hoarder:
                for serial in range(2, 42):
                    hoard.serial = serial
                    hoarder.sendall(hoard._marshall())  # type: ignore[no-untyped-call]  # as above
                for _ in range(20):
                    assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "fine") == ["fine"]


@pytest.mark.parametrize(
    "name", ["org.freedesktop.systemd1.UnitMasked", "org.freedesktop.DBus.Error.Spawn.ChildExited"]
)
def test_a_service_that_cannot_be_started_is_not_reachable(name: str) -> None:
    text = "Unit kerntuned.service is masked."
    refused = Message(message_type=MessageType.ERROR, error_name=name, reply_serial=1, signature="s", body=[text])
    found = messages.exception(refused)
    assert isinstance(found, errors.Unreachable)
    assert text in str(found)


class TestComplaints:
    async def test_what_cannot_be_parsed_is_dropped_with_one_line(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        parse = messages.parse

        def fussy(data: bytes) -> Message:
            if b"poison" in data:
                raise ValueError("cannot take this")
            return parse(data)

        async with lab.serving(bus), lab.Raw(bus) as raw, lab.client(bus) as client:
            monkeypatch.setattr(messages, "parse", fussy)
            with caplog.at_level(logging.WARNING):
                for _ in range(5):
                    raw.send("Echo", "s", "poison")
                assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "fine") == ["fine"]
        assert caplog.text.count("could not be parsed") == 1
