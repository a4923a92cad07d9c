"""What no client can do to a service: send too much, take all places, or leave replies unread."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from contextlib import AsyncExitStack

import pytest

from kerntune import errors
from kerntune.dbus import backpressure, messages
from kerntune.dbus.backpressure import CLIENT, SILENCE
from kerntune.dbus.intake import Intake
from kerntune.dbus.messages import MAX_SENT, Message, MessageFlag, MessageType, Variant
from kerntune.dbus.server import MAX_CALL, OF_A_CALL, OF_A_PLACE, OF_USER, SHORT
from kerntune.dbus.service import Caller, Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.hostile import raw


class TestLongMessages:
    async def test_a_call_above_the_limit_is_refused_unparsed(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(errors.LimitsExceeded, match="too long"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "x" * (MAX_CALL + 1))
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "x" * (MAX_CALL - 5)) == ["x" * (MAX_CALL - 5)]

    async def test_a_call_with_a_header_above_the_limit_is_ignored(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.Raw(bus) as client, lab.client(bus) as other:
            client.send("Echo", "s", "text", path="/" + "x" * (MAX_CALL + 1))
            assert await other.call(lab.ROOT, lab.IFACE, "Echo", "s", "still there") == ["still there"]

    async def test_a_reply_above_the_limit_becomes_an_error(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(errors.LimitsExceeded):
                await client.call(lab.ROOT, lab.IFACE, "Big", "u", MAX_SENT)
            assert await client.call(lab.ROOT, lab.IFACE, "Big", "u", MAX_SENT - 4096) == [bytes(MAX_SENT - 4096)]

    async def test_a_long_body_that_no_method_takes_is_not_parsed(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[int] = []
        parse = messages.parse

        def measured(data: bytes) -> Message:
            parsed.append(len(data))
            return parse(data)

        monkeypatch.setattr(messages, "parse", measured)
        long = bytes(SHORT)
        tick = Message(lab.NAME, lab.ROOT, lab.IFACE, "Tick", MessageType.SIGNAL, signature="ay", body=[long])
        async with lab.serving(bus), lab.client(bus) as client, lab.connected(bus) as stranger:
            for where, error, text in (
                ((lab.ROOT, lab.IFACE, "Echo"), errors.InvalidArgs, 'Echo takes "s", not "ay"'),
                ((lab.ROOT, lab.IFACE, "Nothing"), errors.UnknownMethod, "no method"),
                (("/nowhere", lab.IFACE, "Echo"), errors.UnknownObject, "no object"),
            ):
                with pytest.raises(error, match=text):
                    await client.call(*where, "ay", long)
            stranger.send(tick)
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", {}) == [[]]
            assert not [size for size in parsed if size > SHORT]
            options = {"long": Variant("ay", long)}
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", options) == [["long:ay"]]
            assert [size for size in parsed if size > SHORT]

    async def test_a_message_that_cannot_be_parsed_is_dropped_with_one_line(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        parse = messages.parse

        def fussy(data: bytes) -> Message:
            if b"poison" in data:
                raise ValueError("cannot take this")
            return parse(data)

        async with lab.serving(bus), lab.Raw(bus) as client, lab.client(bus) as other:
            monkeypatch.setattr(messages, "parse", fussy)
            with caplog.at_level(logging.WARNING):
                for _ in range(5):
                    client.send("Echo", "s", "poison")
                assert await other.call(lab.ROOT, lab.IFACE, "Echo", "s", "fine") == ["fine"]
        assert caplog.text.count("could not be parsed") == 1

    async def test_a_signal_above_the_limit_is_not_answered(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.Raw(bus) as client:
            tick = Message(lab.NAME, lab.ROOT, lab.IFACE, "Tick", MessageType.SIGNAL, signature="ay")
            tick.body = [bytes(MAX_CALL + 1)]
            client.link.send(tick)
            ping = client.send("Echo", "s", "first")
            assert (await client.next_reply()).reply_serial == ping.serial

    async def test_a_long_reply_to_the_service_is_parsed_whole(self, bus: PrivateBus) -> None:
        """No method or listener takes a reply: it is for the call that waits."""
        async with lab.serving(bus) as service:
            where = (lab.NAME, lab.ROOT, lab.IFACE, "Big")
            assert await service.connection.call(*where, "u", 2 * SHORT, timeout=5) == [bytes(2 * SHORT)]

    async def test_more_is_read_before_long_messages_have_their_turn(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[bool] = []
        run = Intake.run

        def noted(self: Intake, *, more: bool) -> None:
            told.append(more)
            run(self, more=more)

        monkeypatch.setattr(Intake, "run", noted)
        async with lab.serving(bus), lab.client(bus) as client:
            text = "x" * (MAX_CALL - 5)
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", text) == [text]
        assert set(told) == {True, False}


class TestManyCalls:
    async def test_calls_that_nobody_waits_for_are_dropped_first(
        self, bus: PrivateBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with lab.serving(bus), lab.connected(bus) as stranger, lab.client(bus) as client:
            flags = MessageFlag.NO_REPLY_EXPECTED
            for _ in range(20_000):
                stranger.send(Message(lab.NAME, lab.ROOT, lab.IFACE, "Echo", flags=flags, signature="s", body=["x"]))
            await client.call(lab.ROOT, lab.PEER, "Ping", timeout=5)
        assert caplog.text.count("sends too much at once: dropped some of it") == 1

    async def test_a_client_has_so_many_calls_in_service(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench, in_flight=3), lab.Raw(bus) as greedy, lab.client(bus) as other:
            calls = [greedy.send("Wait") for _ in range(5)]
            await refused(greedy, *calls[3:])
            assert await other.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            bench.release.set()
            await returned(greedy, 3)
            assert (await greedy.reply_to(greedy.send("Both"))).body == [1, "two"]

    async def test_calls_of_a_client_that_wait_for_a_place_count_too(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench, in_flight=3) as service,
            AsyncExitStack() as stack,
            lab.Raw(bus) as greedy,
        ):
            await crowd(bus, stack, OF_USER)
            await in_service(service, bench, OF_USER)
            calls = [greedy.send("Wait") for _ in range(5)]
            await refused(greedy, *calls[3:])
            bench.release.set()
            await returned(greedy, 3)


async def refused(client: lab.Raw, *calls: Message) -> None:
    """Get the next replies: they refuse these calls, in any order, because there are too many."""
    replies = [await client.next_reply() for _ in calls]
    assert {reply.reply_serial for reply in replies} == {call.serial for call in calls}
    assert {reply.error_name for reply in replies} == {errors.LimitsExceeded.dbus_name}


async def returned(client: lab.Raw, count: int) -> None:
    """Get the next replies: none is an error."""
    replies = [await client.next_reply() for _ in range(count)]
    assert {reply.message_type for reply in replies} == {MessageType.METHOD_RETURN}


async def crowd(bus: PrivateBus, stack: AsyncExitStack, count: int) -> list[tuple[lab.Raw, Message]]:
    """Connect so many clients, each with one call that waits."""
    clients = [await stack.enter_async_context(lab.Raw(bus)) for _ in range(count)]
    return [(client, client.send("Wait")) for client in clients]


async def in_service(service: Service, bench: lab.Bench, count: int) -> None:
    """Wait until so many calls have begun to wait."""
    while bench.waiting < count:
        await service.connection.call_bus("GetId")


async def all_places_are_free(bus: PrivateBus, service: Service, bench: lab.Bench) -> None:
    """Show that the user has all places: as many calls as there are places begin to wait."""
    bench.release.clear()
    before = bench.waiting
    async with AsyncExitStack() as stack:
        calls = await crowd(bus, stack, OF_USER)
        await in_service(service, bench, before + OF_USER)
        bench.release.set()
        for client, call in calls:
            await client.reply_to(call)


class TestPlacesOfOneUser:
    """Everybody here is one user, but where busctl runs as another."""

    async def test_a_user_has_so_many_calls_in_service_and_others_are_served(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack:
            calls = await crowd(bus, stack, OF_USER + 8)
            await in_service(service, bench, OF_USER)
            if os.geteuid() == 0 and shutil.which("busctl"):
                assert (await both_as_nobody(bus)).split() == [b"us", b"1", b'"two"']
            assert bench.waiting == OF_USER
            bench.release.set()
            for client, call in calls:
                assert (await client.reply_to(call)).message_type is MessageType.METHOD_RETURN
            assert bench.waiting == OF_USER + 8
            await all_places_are_free(bus, service, bench)

    @pytest.mark.parametrize("how", ["aside", "authorised"])
    async def test_a_call_that_waits_for_others_or_is_authorised_takes_no_place(
        self, bus: PrivateBus, how: str
    ) -> None:
        class Polite(lab.Bench):
            async def wait(self, caller: Caller) -> None:
                assert self.service
                if how == "authorised":
                    self.service.connection.authorised()
                    await super().wait(caller)
                else:
                    with self.service.connection.aside():
                        await super().wait(caller)

        bench = Polite()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack, lab.client(bus) as client:
            calls = await crowd(bus, stack, OF_USER + 8)
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            await in_service(service, bench, OF_USER + 8)
            bench.release.set()
            for each, call in calls:
                assert (await each.reply_to(call)).message_type is MessageType.METHOD_RETURN
            await all_places_are_free(bus, service, bench)

    async def test_a_call_that_has_waited_for_others_takes_its_place_again(self, bus: PrivateBus) -> None:
        class AsideFirst(lab.Bench):
            async def wait(self, caller: Caller) -> None:
                assert self.service
                with self.service.connection.aside():
                    await asyncio.sleep(0)
                await super().wait(caller)

        bench = AsideFirst()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack:
            await crowd(bus, stack, OF_USER)
            await in_service(service, bench, OF_USER)
            await crowd(bus, stack, 1)
            for _ in range(5):
                await service.connection.call_bus("GetId")
            assert bench.waiting == OF_USER

    async def test_a_long_call_takes_several_places(self, bus: PrivateBus) -> None:
        class Slow(lab.Bench):
            async def echo(self, caller: Caller, text: str) -> str:
                await self.wait(caller)
                return text

        bench = Slow()
        long = "x" * (OF_A_PLACE * OF_USER // 4 - 512)  # with its header a quarter of the places
        async with lab.serving(bus, bench) as service, lab.Raw(bus) as client:
            await long_calls_take_turns(service, bench, client, long, at_once=4)
            await all_places_are_free(bus, service, bench)

    async def test_a_long_call_keeps_its_places(self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """It keeps them while it waits for another program, and, if it is not root's, once it is authorised."""

        class Long(lab.Bench):
            async def echo(self, caller: Caller, text: str) -> str:
                assert self.service
                self.service.connection.authorised()
                with self.service.connection.aside():
                    await self.wait(caller)
                return text

        monkeypatch.setattr("kerntune.dbus.intake.is_root", lambda _: False)
        bench, long = Long(), "x" * (32 << 10)
        async with lab.serving(bus, bench) as service, lab.Raw(bus) as client:
            await long_calls_take_turns(service, bench, client, long, at_once=OF_USER // OF_A_CALL)
            await all_places_are_free(bus, service, bench)

    async def test_calls_of_a_client_that_has_left_are_not_begun(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kerntune.dbus.intake.STALE", 0.0)
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack, lab.client(bus) as client:
            await crowd(bus, stack, OF_USER)
            await in_service(service, bench, OF_USER)
            async with lab.Raw(bus) as gone:
                for _ in range(5):
                    gone.send("Wait")
                await gone.link.call_bus("GetId")
            bench.release.set()
            for _ in range(10):  # between two of these the other client would have its turn
                assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            assert bench.waiting == OF_USER

    async def test_calls_that_wait_when_the_bus_is_lost_are_not_begun(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack, lab.client(bus) as client:
            await crowd(bus, stack, OF_USER + 4)
            await in_service(service, bench, OF_USER)
            await lab.settle(client, service)
            service.connection.disconnect("a test")
            await service.connection.closed()
            bench.release.set()
            await lab.answered(service)
            assert bench.waiting == OF_USER

    async def test_a_call_that_ends_while_the_service_closes_is_answered(self, bus: PrivateBus) -> None:
        class Slow(lab.Bench):
            async def wait(self, caller: Caller) -> None:
                await super().wait(caller)
                for _ in range(20):
                    await asyncio.sleep(0)

        bench = Slow()
        async with lab.client(bus) as client:
            async with lab.serving(bus, bench):
                call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
                await bench.started.wait()
                bench.release.set()
            assert await call == []


async def long_calls_take_turns(
    service: Service, bench: lab.Bench, client: lab.Raw, long: str, *, at_once: int
) -> None:
    """Send two long calls more than are served at once, and see them wait and then be served."""
    calls = [client.send("Echo", "s", long) for _ in range(at_once + 2)]
    await in_service(service, bench, at_once)
    for _ in range(3):
        await service.connection.call_bus("GetId")
    assert bench.waiting == at_once
    bench.release.set()
    assert [(await client.reply_to(call)).body for call in calls] == [[long]] * (at_once + 2)


async def both_as_nobody(bus: PrivateBus) -> bytes:
    """Call Both as another user, and return what busctl prints."""
    busctl = await asyncio.create_subprocess_exec(
        *("busctl", f"--address={bus.address}", "call", lab.NAME, lab.ROOT, lab.IFACE, "Both"),
        user=65534,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await busctl.communicate()
    return output


# Unread replies


BIG = 256 << 10


def ask_for_big(hoarder: raw.Raw, count: int, size: int = BIG) -> None:
    """Call Big so often, and read no reply."""
    for _ in range(count):
        hoarder.send(hoarder.make(lab.NAME, lab.ROOT, lab.IFACE, "Big", signature="u", args=[size]))


class TestUnreadOnABus:
    async def test_a_client_that_reads_nothing_gets_no_more(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            with raw.Raw(bus.address) as hoarder:
                for _ in range(16):
                    await asyncio.to_thread(ask_for_big, hoarder, 8)
                    await lab.settle(client, service)
                    await lab.answered(service)
                assert CLIENT < (await lab.stats(service))["IncomingBytes"] < CLIENT + 10 * BIG
                assert await client.call(lab.ROOT, lab.IFACE, "Big", "u", 100) == [bytes(100)]
            await lab.settle(client, service)
            assert (await lab.stats(service))["IncomingBytes"] < BIG

    async def test_signals_to_one_client_count_and_its_next_call_is_not_carried_out(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backpressure, "SILENCE", 4 * CLIENT)  # so that a refusal is still sent
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, lab.client(bus) as client:
            with raw.Raw(bus.address) as hoarder:
                details = {"data": Variant("s", "x" * BIG)}
                for _ in range(2 * CLIENT // BIG):
                    service.emit(lab.ROOT, lab.IFACE, "Tick", 1, details, to=hoarder.name)
                await lab.settle(client, service)
                call = hoarder.send(hoarder.make(lab.NAME, lab.ROOT, lab.IFACE, "Wait"))
                await lab.settle(client, service)
                await lab.answered(service)
                reply = await asyncio.to_thread(hoarder.reply, call)
                assert (reply.error, bench.waiting) == (errors.LimitsExceeded.dbus_name, 0)

    async def test_a_client_that_reads_no_errors_gets_no_more_of_them(self, bus: PrivateBus) -> None:
        class Wordy(lab.Bench):
            async def refuse(self, caller: Caller) -> None:
                raise errors.OverLimit("x" * 4000)

        async with lab.serving(bus, Wordy()) as service, lab.client(bus) as client:
            with raw.Raw(bus.address) as hoarder:
                for _ in range(60):
                    for _ in range(30):
                        hoarder.send(hoarder.make(lab.NAME, lab.ROOT, lab.IFACE, "Refuse"))
                    await lab.settle(client, service)
                    await lab.answered(service)
                # All of them would be 7 MiB.
                assert SILENCE - BIG < (await lab.stats(service))["IncomingBytes"] < SILENCE + BIG

    async def test_a_client_that_reads_late_is_served_again(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backpressure, "CLIENT", 8 * BIG)
        async with lab.serving(bus), lab.client(bus) as client:
            for _ in range(6):
                # At no moment more than the limit, and far more in all.
                calls = [client.call(lab.ROOT, lab.IFACE, "Big", "u", BIG) for _ in range(7)]
                assert await asyncio.gather(*calls) == [[bytes(BIG)]] * 7

    async def test_a_client_that_hoards_replies_harms_nobody(self, bus: PrivateBus) -> None:
        async with lab.serving(bus, in_flight=100), lab.client(bus) as client:
            with raw.Raw(bus.address) as hoarder:
                await asyncio.to_thread(ask_for_big, hoarder, 40, 1 << 20)
                for _ in range(20):
                    assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "fine") == ["fine"]

    async def test_the_service_leaves_the_bus_before_that_stops_reading(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(backpressure, "OURSELVES", 4 * BIG)
        monkeypatch.setattr(backpressure, "ALL", 8 * BIG)
        async with lab.serving(bus) as service:
            with raw.Raw(bus.address) as hoarder, caplog.at_level(logging.ERROR):
                await asyncio.to_thread(ask_for_big, hoarder, 16)
                await service.connection.closed()
        assert "of ours that clients do not read; leaving the bus" in caplog.text

    async def test_a_long_reply_for_which_there_is_no_room_any_more_is_not_sent(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The calls were carried out, so no error can be sent instead."""
        monkeypatch.setattr(backpressure, "INTERVAL", 0)

        class Late(lab.Bench):
            async def big(self, caller: Caller, size: int) -> bytes:
                await self.wait(caller)
                return bytes(size)

        bench, size = Late(), CLIENT * 3 // 4
        async with lab.serving(bus, bench) as service, lab.client(bus) as client:
            with raw.Raw(bus.address) as hoarder:
                await asyncio.to_thread(ask_for_big, hoarder, 3, size)
                await in_service(service, bench, 3)
                bench.release.set()
                await lab.settle(client, service)
                await lab.answered(service)
                replies = [await asyncio.to_thread(hoarder.next_reply) for _ in range(2)]
                assert [len(reply.body[0]) for reply in replies] == [size] * 2
                hoarder.send(hoarder.make(lab.NAME, lab.ROOT, lab.PEER, "Ping"))
                assert (await asyncio.to_thread(hoarder.next_reply)).body == []
        assert "did not send a reply to :1." in caplog.text
