"""The two clients, with an event loop and without: values, errors and signals are the same with both."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune import errors
from kerntune.dbus import blocking, standard
from kerntune.dbus.blocking import BlockingClient, Signal
from kerntune.dbus.client import connect
from kerntune.dbus.connection import Connection
from kerntune.dbus.framing import Cutter
from kerntune.dbus.messages import Message, Variant, address_of, parse
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.hostile import raw

SOON: Final = 10.0  # seconds in which everything happens

AnyClient = Any  # a Client, or InThread


class InThread:
    """The blocking client with the methods of the other; each call blocks a thread of its own."""

    def __init__(self, client: BlockingClient) -> None:
        self.blocking, self.name = client, client.name

    async def call(self, *what: Any, **how: Any) -> list[Any]:
        return await asyncio.to_thread(self.blocking.call, *what, **how)

    async def get(self, *what: str) -> Any:
        return await asyncio.to_thread(self.blocking.get, *what)

    async def running(self) -> bool:
        return await asyncio.to_thread(self.blocking.running)

    @asynccontextmanager
    async def listen(self, *what: str, restarts: bool = False) -> AsyncIterator[InThread]:
        await asyncio.to_thread(self.blocking.listen, *what)
        yield self

    def __aiter__(self) -> InThread:
        return self

    async def __anext__(self) -> Signal:
        signal = await asyncio.to_thread(self.blocking.next_signal, timeout=SOON)
        assert signal is not None, "no signal came"
        return signal


@asynccontextmanager
async def with_loop(address: str, service: str = lab.NAME) -> AsyncIterator[AnyClient]:
    async with connect(service, address, hint=lab.HINT, late=lab.LATE) as client:
        yield client


class Late(BlockingClient):
    """A client that reads when its gate is open, so that an answer and what follows it come together."""

    def __init__(self, address: str, service: str) -> None:
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(address, service)

    def _read(self) -> None:
        self.gate.wait(SOON)
        super()._read()


@asynccontextmanager
async def in_thread(address: str, service: str = lab.NAME) -> AsyncIterator[AnyClient]:
    with await asyncio.to_thread(BlockingClient, address, service, lab.HINT, lab.LATE) as client:
        yield InThread(client)


Connecting = Callable[..., AbstractAsyncContextManager[AnyClient]]


@pytest.fixture(params=[with_loop, in_thread], ids=["loop", "blocking"])
def connecting(request: pytest.FixtureRequest) -> Connecting:
    """Return a function that connects one of the two clients to a bus at an address."""
    found: Connecting = request.param
    return found


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("blocking", {"asyncio", "kerntune.dbus.connection", "kerntune.dbus.client"}),
        ("client", {f"kerntune.dbus.{name}" for name in ("server", "service", "objects", "intake")}),
    ],
)
def test_a_client_imports_nothing_that_it_does_without(module: str, others: set[str]) -> None:
    check = f"import sys, kerntune.dbus.{module}; print({others} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "set()\n"


class TestCalls:
    async def test_values_are_plain(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with lab.serving(bus), connecting(bus.address) as client:
            assert await client.running()
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text") == ["text"]
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            options = {"who": Variant("s", "me")}
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", options) == [["who:s"]]
            assert await client.get(lab.ROOT, lab.IFACE, "Count") == 7
            who = await client.call(lab.ROOT, lab.IFACE, "Who", interactive=True)
            assert (who[0], who[3]) == (client.name, True)
            (data,) = await client.call(lab.ROOT, lab.IFACE, "Big", "u", 3 << 20)
            assert len(data) == 3 << 20

    async def test_an_error_keeps_its_class_and_its_text(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with lab.serving(bus), connecting(bus.address) as client:
            with pytest.raises(errors.OverLimit, match=r"too many pages.*ask for fewer"):
                await client.call(lab.ROOT, lab.IFACE, "Refuse")
            with pytest.raises(errors.Usage, match=r"'\\udcff' is no UTF-8"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "\udcff")

    @pytest.mark.parametrize(
        ("text", "shown"), [("so it is", r"com\.example\.Odd: so it is"), ("", r"com\.example\.Odd")]
    )
    async def test_an_error_of_a_foreign_name_shows_it(
        self, bus: PrivateBus, connecting: Connecting, text: str, shown: str
    ) -> None:
        async with lab.Raw(bus) as service, connecting(bus.address) as client:
            await service.link.call_bus("RequestName", "su", lab.NAME, 4)
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text"))
            answer = Message.new_error(await service.method_call(), "com.example.Odd", text)
            if not text:
                answer.signature, answer.body = "", []
            service.link.send(answer)
            with pytest.raises(errors.Failed, match=f"^{shown}$"):
                await call

    async def test_without_the_service_the_hint_says_what_to_try(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with connecting(bus.address) as client:
            assert not await client.running()
            with pytest.raises(errors.Unreachable, match=r"Lab cannot be reached.*systemctl status lab"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text")
            with pytest.raises(errors.Unreachable, match=r"Lab cannot be reached.*systemctl status lab"):
                async with client.listen(lab.ROOT, lab.IFACE):
                    pass

    async def test_a_call_starts_the_service_unless_told_not_to(self, tmp_path: Path, connecting: Connecting) -> None:
        marker, services = tmp_path / "started", tmp_path / "services"
        services.mkdir()
        program = f"/bin/sh -c 'touch {marker}; exit 1'"
        (services / "lab.service").write_text(f"[D-BUS Service]\nName={lab.NAME}\nExec={program}\n")
        include = tmp_path / "activation.conf"
        allowed = f'<policy context="default"><allow send_destination="{lab.NAME}"/></policy>'
        include.write_text(f"<busconfig><servicedir>{services}</servicedir>{allowed}</busconfig>\n")
        with PrivateBus(include=[include]) as bus:
            async with connecting(bus.address) as client:
                with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text", start=False)
                assert not marker.exists()
                with pytest.raises(errors.Unreachable):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text")
                assert marker.exists()

    async def test_a_late_answer_is_that_of_no_later_call(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench), connecting(bus.address) as client:
            with pytest.raises(
                errors.Unreachable, match=r"^org.kerntune.Lab did not answer Wait within 0.05 s.*still be at work"
            ):
                await client.call(lab.ROOT, lab.IFACE, "Wait", timeout=0.05)
            bench.release.set()
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "later") == ["later"]

    async def test_a_crash_of_the_service_ends_the_call(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with connecting(bus.address) as client:
            async with lab.serving(bus, bench) as service:
                call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
                await bench.started.wait()
                service.connection.disconnect("as a crash would")
            with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                await call

    async def test_a_stop_of_the_service_ends_the_call(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with connecting(bus.address) as client, lab.serving(bus, bench) as service:
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
            await bench.started.wait()
            await service.connection.close()
            with pytest.raises(errors.Failed, match=r"has stopped before this was done\. Ask again"):
                await call

    async def test_an_answer_that_is_too_long_is_an_error(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocking, "MAX_SENT", 1 << 20)
        with_limit = Connection(lambda _: None, address=bus.address, max_body=1 << 20)
        async with lab.serving(bus), in_thread(bus.address) as client:
            with pytest.raises(errors.LimitsExceeded, match="the answer is too long"):
                await client.call(lab.ROOT, lab.IFACE, "Big", "u", 2 << 20)
            await with_limit.connect()
            with pytest.raises(errors.LimitsExceeded, match="the answer is too long"):
                await with_limit.call(lab.NAME, lab.ROOT, lab.IFACE, "Big", "u", 2 << 20, timeout=SOON)
            await with_limit.close()


Attempt = Callable[[str], Awaitable[object]]


async def attempt_with_loop(address: str) -> None:
    await Connection(lambda _: None, address=address).connect(timeout=0.2)


async def attempt_in_thread(address: str) -> None:
    await asyncio.to_thread(BlockingClient, address, lab.NAME)


class TestBus:
    @pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "tcp:host=localhost", "nonsense", "unix:path"])
    async def test_there_is_no_bus(self, address: str, connecting: Connecting) -> None:
        with pytest.raises(errors.Unreachable, match=r"bus at .*Is dbus running"):
            async with connecting(address):
                pass

    async def test_the_environment_names_another_bus(
        self, connecting: Connecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=...")
        with pytest.raises(errors.Unreachable) as caught:
            async with connecting(address_of(None)):
                pass
        assert caught.value.what == "the bus at unix:path=... cannot be reached: No such file or directory"
        assert "The environment names this bus (DBUS_SYSTEM_BUS_ADDRESS)" in caught.value.hint

    async def test_the_second_address_is_tried(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with connecting(f"unix:path=/nonexistent;{bus.address}") as client:
            assert client.name.startswith(":")

    @pytest.mark.parametrize("answer", [b"", b"OK", b"REJECTED EXTERNAL\r\n", b"x" * 70_000])
    async def test_the_bus_hangs_up_or_refuses(self, tmp_path: Path, connecting: Connecting, answer: bytes) -> None:
        def refuse(peer: socket.socket) -> None:
            peer.recv(1024)
            peer.sendall(answer)

        async with played(tmp_path, refuse) as address:
            with pytest.raises(errors.Unreachable, match=r"closed the connection|refused to authenticate"):
                async with connecting(address):
                    pass

    @pytest.mark.parametrize("attempt", [attempt_with_loop, attempt_in_thread], ids=["loop", "blocking"])
    @pytest.mark.parametrize("words", [None, b"x", b"OK 0\r\n"], ids=["nothing", "a little", "no hello"])
    async def test_the_bus_is_silent_or_slow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: bytes | None, attempt: Attempt
    ) -> None:
        """It says nothing, or one letter after the other, or does not answer Hello."""
        monkeypatch.setattr(blocking, "CONNECT_SECONDS", 0.2)

        def speak(peer: socket.socket) -> None:
            with suppress(OSError):
                if words and len(words) > 1:
                    peer.recv(1024)
                    peer.sendall(words)
                while words == b"x":
                    peer.sendall(words)
                    time.sleep(0.05)
                while peer.recv(1024):
                    pass

        async with played(tmp_path, speak) as address:
            with pytest.raises(errors.Unreachable, match="did not answer"):
                await attempt(address)

    async def test_the_bus_goes(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench),
            connecting(bus.address) as client,
            connecting(bus.address) as other,
            client.listen(lab.ROOT) as signals,
        ):
            waiting = asyncio.create_task(other.call(lab.ROOT, lab.IFACE, "Wait"))
            heard = asyncio.create_task(anext(signals))
            await bench.started.wait()
            await asyncio.to_thread(bus.stop)
            with pytest.raises(errors.Unreachable, match="cannot be reached"):
                await waiting
            # The bus may still say that the service has left.
            with pytest.raises(errors.Unreachable, match=r"closed the connection|has left the bus|was lost"):
                await heard
            with pytest.raises(errors.Unreachable, match=r"closed the connection|is not connected"):
                await client.call(lab.ROOT, lab.IFACE, "Both", timeout=SOON)


@asynccontextmanager
async def played(folder: Path, part: Callable[[socket.socket], None]) -> AsyncIterator[str]:
    """Give the address of a bus that a thread plays; its part is over when the connection ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "bus"))
        listener.listen()

        def play() -> None:
            peer, _ = listener.accept()
            with peer:
                part(peer)

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        yield f"unix:path={folder}/bus"
        await asyncio.to_thread(thread.join, SOON)
        assert not thread.is_alive()


def says_before(words: bytes) -> Callable[[socket.socket], None]:
    """Return the part of a bus that says something else before it answers the second call."""

    def serve(peer: socket.socket) -> None:
        cutter = Cutter(1 << 20)
        peer.recv(1024)
        peer.sendall(b"OK 0\r\n")
        while data := peer.recv(65536):
            for frame in cutter.feed(data.removeprefix(b"BEGIN\r\n")):
                call = parse(frame.data)
                if call.serial == 2:
                    peer.sendall(words)
                peer.sendall(said(call.destination, "true", kind=raw.RETURN, serial=call.serial))

    return serve


def said(sender: str, text: str, *, kind: int, serial: int = 2) -> bytes:
    """Return a message with a text, as the bus delivers it, that names a call as the one that it answers."""
    fields = ((7, ("s", sender)), (5, ("u", serial)))
    body = bytes(raw.Writer().all("s", [text]))
    return raw.message(7, "", "/", "a.b", "c", "s", body, kind=kind, more=fields)


@pytest.mark.parametrize("kind", [9, raw.SIGNAL, raw.RETURN], ids=["unknown type", "signal", "stranger"])
async def test_only_the_reply_of_the_called_is_taken(tmp_path: Path, connecting: Connecting, kind: int) -> None:
    """A real bus lets no other reply pass."""
    sender = ":1.5" if kind == raw.RETURN else ":1.1"
    forged = said(sender, "forged", kind=kind)
    async with played(tmp_path, says_before(forged)) as address, connecting(address, ":1.1") as client:
        assert await client.call("/", "a.b", "c", timeout=SOON) == ["true"]


async def test_only_the_bus_itself_replies_for_the_bus(tmp_path: Path) -> None:
    async with played(tmp_path, says_before(said(":1.5", "forged", kind=raw.RETURN))) as address:
        link = Connection(lambda _: None, address=address)
        await link.connect()
        assert await link.call(*standard.THE_BUS, "GetId", timeout=SOON) == ["true"]
        await link.close()


class TestSignals:
    async def test_a_listener_hears_what_it_has_asked_for(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            connecting(bus.address) as client,
            client.listen(lab.ROOT, lab.IFACE, "Tick") as ticks,
        ):
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {"kind": Variant("s", "x")})
            bench.count += 1
            service.publish_changes(lab.ROOT)
            await client.call(lab.ROOT, lab.IFACE, "Both")
            service.emit(lab.ROOT, lab.IFACE, "Tick", 2, {})
            assert await anext(ticks) == Signal(lab.ROOT, lab.IFACE, "Tick", [1, {"kind": "x"}])
            assert (await anext(ticks)).args[0] == 2

    async def test_all_signals_of_an_object_come_in_one_order(self, bus: PrivateBus, connecting: Connecting) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            connecting(bus.address) as client,
            client.listen(lab.ROOT) as signals,
        ):
            for number in range(3):
                bench.count += 1
                service.publish_changes(lab.ROOT)
                service.emit(lab.ROOT, lab.IFACE, "Tick", number, {})
            heard = [(await anext(signals)).member for _ in range(6)]
            assert heard == ["PropertiesChanged", "Tick"] * 3

    async def test_strangers_cannot_send_them(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with (
            lab.serving(bus) as service,
            connecting(bus.address) as client,
            lab.Raw(bus) as stranger,
            client.listen(lab.ROOT, lab.IFACE) as ticks,
        ):
            await send_to(stranger, client, "Tick", "ua{sv}", 666, {})
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            assert (await anext(ticks)).args[0] == 1

    async def test_they_end_with_the_service_after_those_before(self, bus: PrivateBus, connecting: Connecting) -> None:
        async with connecting(bus.address) as client:
            async with lab.serving(bus) as service:
                listening = client.listen(lab.ROOT, restarts=False)
                ticks = await listening.__aenter__()
                service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            assert (await anext(ticks)).args[0] == 1
            with pytest.raises(errors.Unreachable, match=r"org\.kerntune\.Lab has left the bus.*systemctl status"):
                await anext(ticks)

    async def test_two_listeners_hear_their_own(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            lab.client(bus) as client,
            client.listen(lab.ROOT, lab.IFACE, "Tick") as ticks,
            client.listen(lab.ROOT, lab.PROPERTIES) as changes,
        ):
            bench.count += 1
            service.publish_changes(lab.ROOT)
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            assert (await anext(ticks)).member == "Tick"
            assert (await anext(changes)).member == "PropertiesChanged"

    async def test_to_iterate_is_enough(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            ticks = client.listen(lab.ROOT, lab.IFACE)
            first, n = asyncio.create_task(anext(ticks)), 0
            while not first.done():
                service.emit(lab.ROOT, lab.IFACE, "Tick", n, {})
                await lab.settle(client, service)
                n += 1
            service.emit(lab.ROOT, lab.IFACE, "Tick", n, {})
            heard = [(await first).args[0]]
            async for tick in ticks:
                heard.append(tick.args[0])
                if tick.args[0] == n:
                    break
            assert heard == list(range(heard[0], n + 1))

    async def test_they_go_on_after_a_restart_of_the_service(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            async with lab.serving(bus):
                ticks = client.listen(lab.ROOT, lab.IFACE)
                await ticks.__aenter__()
            async with lab.serving(bus) as again:
                again.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
                assert (await anext(ticks)).args[0] == 1


async def send_to(stranger: lab.Raw, client: AnyClient, member: str, signature: str, *args: object) -> None:
    """Send a signal to one client, and return when the bus has delivered it."""
    signal = Message.new_signal(lab.ROOT, lab.IFACE, member, signature, list(args))
    signal.destination = client.name
    stranger.link.send(signal)
    await stranger.link.call_bus("GetId")  # the bus takes messages in order


class TestBlockingSignals:
    async def test_to_listen_again_hears_the_next_service(self, bus: PrivateBus) -> None:
        async with in_thread(bus.address) as client:
            async with lab.serving(bus), client.listen(lab.ROOT):
                pass
            with pytest.raises(errors.Unreachable, match="has left the bus"):
                await anext(client)
            with pytest.raises(errors.Unreachable, match="cannot be reached"):
                async with client.listen(lab.ROOT):
                    pass
            async with lab.serving(bus) as again, client.listen(lab.ROOT):
                again.emit(lab.ROOT, lab.IFACE, "Tick", 2, {})
                assert (await anext(client)).args[0] == 2

    async def test_to_listen_again_takes_no_more_rules(self, bus: PrivateBus) -> None:
        """The bus lets a connection have 512 (dbus-daemon(1)), and a hold may outlive any number of daemons."""
        async with lab.serving(bus), in_thread(bus.address) as client:
            for _ in range(600):
                async with client.listen(lab.ROOT):
                    pass

    async def test_a_call_may_hand_them_over(self, bus: PrivateBus) -> None:
        bench, heard = lab.Bench(), list[Signal]()
        async with lab.serving(bus, bench) as service, in_thread(bus.address) as client:
            async with client.listen(lab.ROOT, lab.IFACE):
                client.blocking.on_signal = heard.append
                call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait", timeout=SOON))
                await bench.started.wait()
                service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
                bench.release.set()
                await call
            client.blocking.on_signal = None
            assert client.blocking.next_signal(timeout=0) is None
        assert [signal.args[0] for signal in heard] == [1]

    async def test_one_that_came_with_the_last_answer_is_heard_at_once(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            in_thread(bus.address) as witness,
            witness.listen(lab.ROOT, lab.IFACE),
        ):
            late = await asyncio.to_thread(Late, bus.address, lab.NAME)
            with late:
                client = InThread(late)
                async with client.listen(lab.ROOT, lab.IFACE):
                    late.gate.clear()
                    call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait", timeout=SOON))
                    await bench.started.wait()
                    bench.release.set()
                    await witness.call(lab.ROOT, lab.IFACE, "Both")  # by then the other call is answered
                    service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
                    await anext(witness)
                    late.gate.set()
                    await call
                    assert (await anext(client)).args[0] == 1

    async def test_a_long_one_of_a_stranger_ends_nothing(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocking, "MAX_SENT", 1 << 20)
        async with (
            lab.serving(bus) as service,
            lab.Raw(bus) as stranger,
            in_thread(bus.address) as client,
            client.listen(lab.ROOT, lab.IFACE),
        ):
            await send_to(stranger, client, "Tick", "ay", bytes(2 << 20))
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            await send_to(stranger, client, "Tick", "ay", bytes(2 << 20))
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            assert (await anext(client)).args[0] == 1

    async def test_a_flood_of_a_stranger_holds_up_no_deadline(self, bus: PrivateBus) -> None:
        ended = threading.Event()

        def flood(name: str) -> None:
            signal = raw.message(7, name, "/", "a.b", "c", "s", bytes(raw.Writer().all("s", ["x"])), kind=raw.SIGNAL)
            with raw.Raw(bus.address) as stranger:
                while not ended.is_set():
                    stranger.send(signal)

        async with lab.serving(bus), in_thread(bus.address) as client, client.listen(lab.ROOT):
            flooding = threading.Thread(target=flood, args=(client.name,), daemon=True)
            flooding.start()
            try:
                began = time.monotonic()
                with pytest.raises(errors.Unreachable, match="did not answer Wait within"):
                    await client.call(lab.ROOT, lab.IFACE, "Wait", timeout=0.2)
                assert await asyncio.to_thread(client.blocking.next_signal, timeout=0.2) is None
                assert time.monotonic() - began < SOON / 2
            finally:
                ended.set()
                await asyncio.to_thread(flooding.join, SOON)

    async def test_a_descriptor_beside_ends_the_wait(self, bus: PrivateBus) -> None:
        wake, woken = os.pipe()
        try:
            async with lab.serving(bus), in_thread(bus.address) as client, client.listen(lab.ROOT):
                threading.Timer(0.05, os.write, [woken, b"x"]).start()
                assert await asyncio.to_thread(client.blocking.next_signal, [wake], timeout=SOON) is None
        finally:
            os.close(wake)
            os.close(woken)

    async def test_that_the_service_has_left_is_told_without_waiting(self, bus: PrivateBus) -> None:
        async with in_thread(bus.address) as client:
            async with lab.serving(bus):
                client.blocking.listen(lab.ROOT)
                assert client.blocking.next_signal(timeout=0) is None
            assert await asyncio.to_thread(select.select, [client.blocking], [], [], SOON) != ([], [], [])
            with pytest.raises(errors.Unreachable, match="has left the bus"):
                client.blocking.next_signal(timeout=0)


class TestOneOfSeveralServices:
    """What the blocking client alone has: it turns to a service that runs, and has a deadline for all its calls."""

    async def test_it_turns_to_the_first_that_runs(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), in_thread(bus.address, "org.example.Absent") as client:
            blocking = client.blocking
            assert await asyncio.to_thread(blocking.bind, "org.example.Absent", lab.NAME, standard.BUS) == lab.NAME
            assert await asyncio.to_thread(blocking.pid) == os.getpid()
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            assert await asyncio.to_thread(blocking.bind, "org.example.Absent") == ""
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]

    async def test_what_follows_the_service_is_another(self, bus: PrivateBus) -> None:
        async with in_thread(bus.address) as client:
            async with lab.serving(bus):
                await asyncio.to_thread(client.blocking.bind, lab.NAME)
            async with lab.serving(bus):
                with pytest.raises(errors.Unreachable):
                    await client.call(lab.ROOT, lab.IFACE, "Both")

    async def test_the_deadline_is_that_of_all_calls_together(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), in_thread(bus.address) as client:
            began = time.monotonic()
            client.blocking.deadline = began + 0.3
            for timeout in (0.1, SOON, SOON):
                with pytest.raises(errors.Unreachable, match="did not answer Wait within"):
                    await client.call(lab.ROOT, lab.IFACE, "Wait", timeout=timeout)
            assert 0.3 <= time.monotonic() - began < SOON / 2
            client.blocking.deadline = None
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]

    async def test_the_deadline_holds_for_a_bus_that_is_silent(self, tmp_path: Path) -> None:
        def listen(peer: socket.socket) -> None:
            while peer.recv(1024):
                pass

        async with played(tmp_path, listen) as address:
            began = time.monotonic()
            with pytest.raises(errors.Unreachable, match=r"did not answer within 0\."):
                await asyncio.to_thread(BlockingClient, address, lab.NAME, deadline=began + 0.2)
            assert time.monotonic() - began < blocking.CONNECT_SECONDS
