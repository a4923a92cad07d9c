"""The blocking client: errors, plain values and signals, as those of the client with an event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME
from kerntune.dbus import blocking
from kerntune.dbus.blocking import BlockingClient, Signal, connect
from kerntune.dbus.framing import Cutter
from kerntune.dbus.messages import Message, Variant, marshalled, parse
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.hostile import raw

T = TypeVar("T")
SOON = 20.0  # seconds


async def aside(work: Callable[[BlockingClient], T], bus: PrivateBus) -> T:
    """Do what blocks in a thread, with a client of its own."""

    def run() -> T:
        with connect(lab.NAME, bus.address, hint=lab.HINT) as client:
            return work(client)

    async with asyncio.timeout(SOON):
        return await asyncio.to_thread(run)


@contextmanager
def played(folder: Path, part: Callable[[socket.socket], None]) -> Iterator[str]:
    """Give the address of a bus that is played by a thread; its part is over when the connection ends."""
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
        thread.join(SOON)
        assert not thread.is_alive()


def test_it_needs_no_event_loop() -> None:
    check = "import sys, kerntune.dbus.blocking; print({'asyncio', 'kerntune.dbus.connection'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "set()\n"


class TestCalls:
    async def test_values_are_plain(self, bus: PrivateBus) -> None:
        def work(client: BlockingClient) -> tuple[object, ...]:
            assert client.running()
            return (
                client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text"),
                client.call(lab.ROOT, lab.IFACE, "Both"),
                client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", {"who": Variant("s", "me")}),
                client.get(lab.ROOT, lab.IFACE, "Count"),
                client.call(lab.ROOT, lab.IFACE, "Who", interactive=True)[3],
                client.call(lab.ROOT, lab.IFACE, "Who")[0] == client.name,
            )

        async with lab.serving(bus):
            assert await aside(work, bus) == (["text"], [1, "two"], [["who:s"]], 7, True, True)

    async def test_a_long_answer(self, bus: PrivateBus) -> None:
        async with lab.serving(bus):
            (data,) = await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Big", "u", 3 << 20), bus)
            assert len(data) == 3 << 20

    async def test_an_answer_that_is_too_long(self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "MAX_BODY", 1 << 20)
        async with lab.serving(bus):
            with pytest.raises(errors.LimitsExceeded, match="the answer is too long"):
                await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Big", "u", 2 << 20), bus)

    async def test_errors_keep_their_class_and_their_text(self, bus: PrivateBus) -> None:
        async with lab.serving(bus):
            with pytest.raises(errors.OverLimit, match=r"too many pages.*ask for fewer"):
                await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Refuse"), bus)
            with pytest.raises(errors.Usage, match=r"'\\udcff' is no UTF-8"):
                await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Echo", "s", "\udcff"), bus)

    async def test_no_daemon(self, bus: PrivateBus) -> None:
        assert not await aside(BlockingClient.running, bus)
        with pytest.raises(errors.Unreachable, match=r"Lab cannot be reached.*systemctl status lab"):
            await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text"), bus)

    async def test_no_answer_in_time_spoils_no_later_one(self, bus: PrivateBus) -> None:
        bench = lab.Bench()

        def work(client: BlockingClient) -> list[object]:
            with pytest.raises(errors.Unreachable, match=r"^org.kerntune.Lab did not answer Wait within 0.05 s"):
                client.call(lab.ROOT, lab.IFACE, "Wait", timeout=0.05)
            loop.call_soon_threadsafe(bench.release.set)
            return client.call(lab.ROOT, lab.IFACE, "Echo", "s", "later")

        loop = asyncio.get_running_loop()
        async with lab.serving(bus, bench):
            assert await aside(work, bus) == ["later"]

    async def test_nobody_is_started_by_who_does_not_want_it(self, tmp_path: Path) -> None:
        marker, services = tmp_path / "started", tmp_path / "services"
        services.mkdir()
        (services / "lab.service").write_text(
            f"[D-BUS Service]\nName={lab.NAME}\nExec=/bin/sh -c 'touch {marker}; exit 1'\n"
        )
        include = tmp_path / "activation.conf"
        allowed = f'<policy context="default"><allow send_destination="{lab.NAME}"/></policy>'
        include.write_text(f"<busconfig><servicedir>{services}</servicedir>{allowed}</busconfig>\n")
        with PrivateBus(include=[include]) as bus:
            with pytest.raises(errors.Unreachable):
                await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Wait", start=False), bus)
            assert not marker.exists()
            with pytest.raises(errors.Unreachable):
                await aside(lambda client: client.call(lab.ROOT, lab.IFACE, "Wait"), bus)
            assert marker.exists()


class TestBus:
    @pytest.mark.parametrize("address", ["unix:path=/nonexistent", "tcp:host=localhost", "nonsense"])
    def test_no_bus(self, address: str) -> None:
        with pytest.raises(errors.Unreachable, match=r"bus at .*is dbus running"), connect(BUS_NAME, address):
            pass

    def test_a_later_address_is_tried(self, bus: PrivateBus) -> None:
        with connect(BUS_NAME, f"unix:path=/nonexistent;{bus.address}") as client:
            assert client.name.startswith(":")

    @pytest.mark.parametrize(
        ("answer", "what"), [(b"REJECTED EXTERNAL\r\n", "refused to authenticate us: REJECTED"), (b"", "closed")]
    )
    def test_a_bus_that_refuses(self, tmp_path: Path, answer: bytes, what: str) -> None:
        def refuse(peer: socket.socket) -> None:
            peer.recv(1024)
            peer.sendall(answer)

        with (
            played(tmp_path, refuse) as address,
            pytest.raises(errors.Unreachable, match=what),
            connect(BUS_NAME, address),
        ):
            pass

    def test_a_bus_that_says_a_little_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "CONNECT_SECONDS", 0.2)

        def trickle(peer: socket.socket) -> None:
            with suppress(OSError):
                while True:
                    peer.sendall(b"x")
                    time.sleep(0.05)

        with (
            played(tmp_path, trickle) as address,
            pytest.raises(errors.Unreachable, match="did not answer"),
            connect(BUS_NAME, address),
        ):
            pass

    def test_a_bus_that_does_not_say_hello(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "CONNECT_SECONDS", 0.2)

        def silent(peer: socket.socket) -> None:
            peer.recv(1024)
            peer.sendall(b"OK 0\r\n")
            while peer.recv(1024):
                pass

        with (
            played(tmp_path, silent) as address,
            pytest.raises(errors.Unreachable, match="did not answer Hello"),
            connect(BUS_NAME, address),
        ):
            pass

    def test_a_bus_that_says_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "CONNECT_SECONDS", 0.05)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "bus"))
            listener.listen()
            with (
                pytest.raises(errors.Unreachable, match="did not answer"),
                connect(BUS_NAME, f"unix:path={tmp_path}/bus"),
            ):
                pass

    async def test_a_bus_that_goes(self, bus: PrivateBus) -> None:
        def work(client: BlockingClient) -> None:
            client.listen(lab.ROOT)
            bus.stop()
            # The bus may still say that the service has left.
            with pytest.raises(errors.Unreachable, match=r"closed the connection|has left the bus"):
                client.next_signal(timeout=SOON)
            with pytest.raises(errors.Unreachable, match="closed the connection"):
                client.call(lab.ROOT, lab.IFACE, "Both", timeout=SOON)

        async with lab.serving(bus):
            await aside(work, bus)


def odd(before: bytes) -> Callable[[socket.socket], None]:
    """Return a bus that says something else before it answers the second call."""

    def serve(peer: socket.socket) -> None:
        cutter = Cutter(1 << 20)
        peer.recv(1024)
        peer.sendall(b"OK 0\r\n")
        while data := peer.recv(65536):
            for frame in cutter.feed(data.removeprefix(b"BEGIN\r\n")):
                call = parse(frame.data)
                if call.serial == 2:
                    peer.sendall(before)
                peer.sendall(said(call.destination, f"answer {call.serial}", 2, (5, ("u", call.serial))))

    return serve


def said(sender: str, text: str, kind: int, *more: tuple[int, tuple[str, Any]]) -> bytes:
    """Return a message of that kind with a text, as the bus delivers it; `more` are header fields."""
    fields = ((7, ("s", sender)), *more)
    return raw.message(7, "", "/", "a.b", "c", "s", bytes(raw.Writer().all("s", [text])), kind=kind, more=fields)


@pytest.mark.parametrize(
    "before",
    [
        said(":1.1", "of a type that D-Bus does not have yet", 9, (5, ("u", 2))),
        said(":1.1", "a signal", 4, (5, ("u", 2))),
        said(":1.5", "of a stranger", 2, (5, ("u", 2))),
    ],
    ids=["type", "signal", "stranger"],
)
def test_what_is_no_answer_is_none(tmp_path: Path, before: bytes) -> None:
    with played(tmp_path, odd(before)) as address, connect(":1.1", address) as client:
        assert client.call("/", "a.b", "c", timeout=SOON) == ["answer 2"]


class TestSignals:
    async def test_only_what_is_asked_for_also_during_a_call(self, bus: PrivateBus) -> None:
        def work(client: BlockingClient) -> list[Signal | None]:
            client.listen(lab.ROOT, lab.IFACE, "Tick")
            emit("Tick", 1)
            bench.count += 1
            loop.call_soon_threadsafe(service.publish_changes, lab.ROOT)
            client.call(lab.ROOT, lab.IFACE, "Both")
            emit("Tick", 2)
            return [client.next_signal(timeout=SOON), client.next_signal(timeout=SOON), client.next_signal(timeout=0)]

        def emit(member: str, number: int) -> None:
            details = {"kind": Variant("s", "x")}
            loop.call_soon_threadsafe(service.emit, lab.ROOT, lab.IFACE, member, number, details)

        loop, bench = asyncio.get_running_loop(), lab.Bench()
        async with lab.serving(bus, bench) as service:
            first, second, none = await aside(work, bus)
        assert first == Signal(lab.ROOT, lab.IFACE, "Tick", [1, {"kind": "x"}])
        assert second is not None
        assert second.args[0] == 2
        assert none is None

    async def test_a_call_may_give_them_away(self, bus: PrivateBus) -> None:
        bench, heard = lab.Bench(), list[Signal]()

        def work(client: BlockingClient) -> Signal | None:
            client.listen(lab.ROOT, lab.IFACE)
            client.on_signal = heard.append
            loop.call_soon_threadsafe(tick_and_release)
            client.call(lab.ROOT, lab.IFACE, "Wait", timeout=SOON)
            client.on_signal = None
            return client.next_signal(timeout=0)

        def tick_and_release() -> None:
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            bench.release.set()

        loop = asyncio.get_running_loop()
        async with lab.serving(bus, bench) as service:
            assert await aside(work, bus) is None
        assert [signal.args[0] for signal in heard] == [1]

    async def test_nobody_else_can_send_them(self, bus: PrivateBus) -> None:
        def work(client: BlockingClient) -> Signal | None:
            client.listen(lab.ROOT, lab.IFACE)
            asyncio.run_coroutine_threadsafe(lie(client.name), loop).result(SOON)
            return client.next_signal(timeout=SOON)

        async def lie(name: str) -> None:
            signal = Message.new_signal(lab.ROOT, lab.IFACE, "Tick", "ua{sv}", [666, {}])
            signal.destination = name
            liar.link.send(signal)
            await liar.link.call_bus("GetId")  # the bus takes messages in order: the lie has been delivered
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})

        loop = asyncio.get_running_loop()
        async with lab.serving(bus) as service, lab.Raw(bus) as liar:
            heard = await aside(work, bus)
        assert heard is not None
        assert heard.args[0] == 1

    async def test_a_long_one_of_a_stranger_ends_nothing(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blocking, "MAX_BODY", 1 << 20)

        def work(client: BlockingClient) -> tuple[object, Signal | None]:
            client.listen(lab.ROOT, lab.IFACE)
            asyncio.run_coroutine_threadsafe(flood(client.name), loop).result(SOON)
            answer = client.call(lab.ROOT, lab.IFACE, "Both")
            asyncio.run_coroutine_threadsafe(flood(client.name), loop).result(SOON)
            loop.call_soon_threadsafe(service.emit, lab.ROOT, lab.IFACE, "Tick", 1, {})
            return answer, client.next_signal(timeout=SOON)

        async def flood(name: str) -> None:
            signal = Message.new_signal(lab.ROOT, lab.IFACE, "Tick", "ay", [bytes(2 << 20)])
            signal.destination = name
            stranger.link.send(signal)
            await stranger.link.call_bus("GetId")  # the bus takes messages in order: the flood has been delivered

        loop = asyncio.get_running_loop()
        async with lab.serving(bus) as service, lab.Raw(bus) as stranger:
            answer, heard = await aside(work, bus)
        assert answer == [1, "two"]
        assert heard is not None
        assert heard.args[0] == 1

    async def test_to_listen_again_takes_no_more_rules(self, bus: PrivateBus) -> None:
        """The bus lets a connection have 512 (dbus-daemon(1)), and a hold may outlive any number of daemons."""

        def work(client: BlockingClient) -> None:
            for _ in range(600):
                client.listen(lab.ROOT)

        async with lab.serving(bus):
            await aside(work, bus)

    async def test_a_flood_of_a_stranger_holds_up_no_deadline(self, bus: PrivateBus) -> None:
        ended = threading.Event()

        def work(client: BlockingClient) -> None:
            client.listen(lab.ROOT)
            flooding = threading.Thread(target=flood, args=(client.name,), daemon=True)
            flooding.start()
            try:
                began = time.monotonic()
                with pytest.raises(errors.Unreachable, match="did not answer Wait within"):
                    client.call(lab.ROOT, lab.IFACE, "Wait", timeout=0.2)
                assert client.next_signal(timeout=0.2) is None
                assert time.monotonic() - began < SOON / 4
            finally:
                ended.set()
                flooding.join(SOON)

        def flood(name: str) -> None:
            signal = Message.new_signal("/", "a.b", "c", "s", ["x"])
            signal.destination = name
            with connect(BUS_NAME, bus.address) as stranger:
                while not ended.is_set():
                    signal.serial = 7
                    stranger._send(marshalled(signal))

        async with lab.serving(bus):
            await aside(work, bus)

    async def test_they_end_with_the_daemon_and_begin_anew(self, bus: PrivateBus) -> None:
        steps = [asyncio.Event() for _ in range(3)]

        def work(client: BlockingClient) -> Signal | None:
            client.listen(lab.ROOT)
            loop.call_soon_threadsafe(steps[0].set)
            first = client.next_signal(timeout=SOON)
            assert first is not None, "what came before is heard first"
            with pytest.raises(errors.Unreachable, match=r"org\.kerntune\.Lab has left the bus.*systemctl status"):
                client.next_signal(timeout=SOON)
            with pytest.raises(errors.Unreachable, match="cannot be reached"):
                client.listen(lab.ROOT)
            loop.call_soon_threadsafe(steps[1].set)
            asyncio.run_coroutine_threadsafe(steps[2].wait(), loop).result(SOON)
            client.listen(lab.ROOT)
            loop.call_soon_threadsafe(again.emit, lab.ROOT, lab.IFACE, "Tick", 2, {})
            return client.next_signal(timeout=SOON)

        loop = asyncio.get_running_loop()
        async with lab.serving(bus) as service:
            working = asyncio.create_task(aside(work, bus))
            await steps[0].wait()
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
        await steps[1].wait()
        async with lab.serving(bus) as again:
            steps[2].set()
            heard = await working
        assert heard is not None
        assert heard.args[0] == 2

    async def test_the_wait_ends_for_a_descriptor_beside(self, bus: PrivateBus) -> None:
        def work(client: BlockingClient) -> Signal | None:
            client.listen(lab.ROOT)
            threading.Timer(0.05, os.write, [woken, b"x"]).start()
            return client.next_signal([wake], timeout=SOON)

        wake, woken = os.pipe()
        try:
            async with lab.serving(bus):
                assert await aside(work, bus) is None
        finally:
            os.close(wake)
            os.close(woken)
