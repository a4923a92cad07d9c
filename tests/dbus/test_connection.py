"""The connection: serials, replies, descriptors, and a bus that pauses, stops reading or goes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from kerntune import errors
from kerntune.dbus import backpressure, messages
from kerntune.dbus import connection as module
from kerntune.dbus.connection import Connection
from kerntune.dbus.messages import Message, Variant
from kerntune.dbus.service import Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.hostile import raw


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
