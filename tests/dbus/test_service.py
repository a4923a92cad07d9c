"""The dispatcher on a real bus: calls, errors, properties, introspection, signals, limits, who calls, who is there."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import xml.etree.ElementTree as ET
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import pytest

from kerntune import errors
from kerntune.api.contract import interface_files
from kerntune.api.names import BUS_NAME
from kerntune.dbus.client import connect
from kerntune.dbus.connection import Connection
from kerntune.dbus.introspection import Emits, load, parse, snake
from kerntune.dbus.messages import Message, MessageFlag, MessageType, Variant
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.server import OF_A_CALL, OF_A_PLACE, OF_USER
from kerntune.dbus.service import Caller, NameTaken, Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus

CHILD = f"{lab.ROOT}/child/1"
SAMPLE = "org.kerntune.Lab.Sample"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
MANAGER = "org.freedesktop.DBus.ObjectManager"
MACHINE_ID = Path("/etc/machine-id").read_text().strip()


class TestInterface:
    @pytest.mark.parametrize(
        ("member", "name"),
        [("SetCount", "set_count"), ("Ping", "ping"), ("SinceUSec", "since_usec"), ("Big64Bit", "big64_bit")],
    )
    def test_snake(self, member: str, name: str) -> None:
        assert snake(member) == name

    def test_the_contract_loads(self) -> None:
        found = load(interface_files())
        assert found[f"{BUS_NAME}.HugePages"].methods["SetCount"] == ("tta{sv}", "t")
        assert found[f"{BUS_NAME}.Manager"].properties["Version"].emits is Emits.CONST
        assert found[f"{BUS_NAME}.Manager"].signals["Changed"] == "tsa(ssssssss)"

    def test_an_annotation_of_the_interface_is_the_default_of_its_properties(self) -> None:
        (found,) = parse(
            '<node><interface name="a.b"><property name="A" type="s" access="read"/>'
            '<annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/></interface></node>'
        )
        assert found.properties["A"].emits is Emits.FALSE

    def test_each_interface_is_kept_as_its_file_has_it(self) -> None:
        inside = '<!-- größer: > --><method name="Do"><arg name="it" type="s"/><arg type="u" direction="out"/></method>'
        first, second = f'<interface name="a.b">{inside}</interface>', '<interface name="a.c"/>'
        one, two = parse(f'<?xml version="1.0" encoding="UTF-8"?>\n<node>{first}\n{second}<node name="x"/></node>')
        assert (one.name, one.xml, two.name, two.xml) == ("a.b", first, "a.c", second)
        assert (one.methods, one.takes) == ({"Do": ("s", "u")}, {"Do": ("it",)})

    def test_a_file_that_is_no_xml_is_refused(self) -> None:
        with pytest.raises(ExpatError, match="line 1"):
            parse('<node><interface name="a.b"></node>')

    def test_missing(self) -> None:
        class Half:
            version = count = 1

            async def echo(self, caller: Caller) -> str:
                return ""

            def refuse(self, caller: Caller) -> None:
                pass

            @property
            def sampled(self) -> int:
                raise AssertionError("is not run")

        bench = lab.interfaces()[lab.IFACE]
        lacking = bench.missing(Half())
        assert {"big_table", "async echo(caller, text)", "async refuse(caller)"} <= set(lacking)
        assert not {"version", "count", "sampled"} & set(lacking)
        assert bench.missing(lab.Bench()) == []

    async def test_publish_names_what_is_missing(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            with pytest.raises(TypeError, match="object lacks label to be "):
                service.publish(CHILD, {SAMPLE: object()})


class TestConnect:
    async def test_the_name_has_one_owner(self, bus: PrivateBus) -> None:
        async with lab.serving(bus):
            second = Service(lab.interfaces(), lab.ROOT, address=bus.address)
            with pytest.raises(NameTaken, match="running already"):
                await second.connect(lab.NAME)
            await second.connection.closed()

    async def test_the_bus_does_not_let_us_own_the_name(self, bus: PrivateBus) -> None:
        service = Service(lab.interfaces(), lab.ROOT, address=bus.address)
        with pytest.raises(errors.AccessDenied, match="bus policy"):
            await service.connect("org.kerntune.Other")
        await service.connection.closed()

    async def test_calls_before_open_wait(self, bus: PrivateBus) -> None:
        service = Service(lab.interfaces(), lab.ROOT, address=bus.address)
        await service.connect(lab.NAME)
        async with lab.client(bus) as client:
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Echo", "s", "early"))
            await lab.settle(client, service)
            service.publish(lab.ROOT, {lab.IFACE: lab.Bench()})
            assert not call.done()
            service.connection.open()
            assert await call == ["early"]
        await service.connection.close()


class TestCalls:
    async def test_results(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text") == ["text"]
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            options = {"persist": Variant("b", True), "node": Variant("u", 1)}
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", options) == [["persist:b", "node:u"]]

    async def test_who_calls(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            who = [client.name, os.geteuid(), os.getpid()]
            assert await client.call(lab.ROOT, lab.IFACE, "Who") == [*who, False]
            assert await client.call(lab.ROOT, lab.IFACE, "Who", interactive=True) == [*who, True]

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("busctl"), reason="needs root, and busctl")
    async def test_busctl_as_another_user(self, bus: PrivateBus) -> None:
        async with lab.serving(bus):
            busctl = await asyncio.create_subprocess_exec(
                *("busctl", f"--address={bus.address}", "call", lab.NAME, lab.ROOT, lab.IFACE, "Who"),
                user=65534,
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await busctl.communicate()
            assert output.split()[2:] == [b"65534", str(busctl.pid).encode(), b"true"]

    async def test_a_call_without_an_interface(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.Raw(bus) as raw:
            answers = [
                await raw.reply_to(raw.send("Echo", "s", "text", interface=None)),
                await raw.reply_to(raw.send("GetAll", "s", SAMPLE, interface=None)),
                await raw.reply_to(raw.send("Nothing", interface=None)),
            ]
            assert answers[0].body == ["text"]
            assert [answer.error_name.rsplit(".", 1)[-1] for answer in answers[1:]] == [
                "UnknownInterface",
                "UnknownMethod",
            ]

    async def test_no_reply_when_none_is_expected(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.Raw(bus) as raw:
            for member in ("Both", "Refuse", "Crash", "Nothing"):
                raw.send(member, flags=MessageFlag.NO_REPLY_EXPECTED)
            last = raw.send("Both")
            first = await raw.next_reply()
            assert first.reply_serial == last.serial


class TestErrors:
    @pytest.mark.parametrize(
        ("where", "member", "error", "text"),
        [
            (("/elsewhere", lab.IFACE), "Echo", errors.UnknownObject, "no object /elsewhere"),
            (("/org", lab.IFACE), "Echo", errors.UnknownObject, "no object /org"),
            (("/org", lab.PROPERTIES), "GetAll", errors.UnknownObject, "no object /org"),
            ((lab.ROOT, "a.b"), "Echo", errors.UnknownInterface, "no interface a.b"),
            ((lab.ROOT, lab.IFACE), "Nothing", errors.UnknownMethod, "no method .*Bench.Nothing"),
            ((lab.ROOT, lab.PEER), "Pong", errors.UnknownMethod, "no method .*Peer.Pong"),
            ((lab.ROOT, lab.IFACE), "Refuse", errors.OverLimit, "^too many pages. ask for fewer$"),
            ((lab.ROOT, lab.IFACE), "Crash", errors.Failed, "^internal error"),
            ((lab.ROOT, lab.IFACE), "Wrong", errors.Failed, "^internal error"),
            ((lab.ROOT, lab.IFACE), "Echo", errors.InvalidArgs, '^Echo takes "s", not ""$'),
        ],
    )
    async def test_names(
        self, bus: PrivateBus, where: tuple[str, str], member: str, error: type[errors.KerntuneError], text: str
    ) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(error, match=text) as caught:
                await client.call(*where, member)
            assert type(caught.value) is error
            assert "secret" not in str(caught.value)
            assert "Traceback" not in str(caught.value)

    async def test_a_crash_is_logged_once_a_place(self, bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with caplog.at_level(logging.ERROR):
                for member in ("Crash", "Crash", "Wrong", "Crash"):
                    with pytest.raises(errors.Failed):
                        await client.call(lab.ROOT, lab.IFACE, member)
        assert len(caplog.records) == 2
        assert caplog.text.count("RuntimeError: a secret") == 1

    async def test_an_error_text_that_no_message_may_carry(self, bus: PrivateBus) -> None:
        class Odd(lab.Bench):
            async def refuse(self, caller: Caller) -> None:
                raise errors.Failed("a NUL \0 and a surrogate \udc80")

        async with lab.serving(bus, Odd()), lab.client(bus) as client:
            with pytest.raises(errors.Failed, match=r"a NUL  and a surrogate \?"):
                await client.call(lab.ROOT, lab.IFACE, "Refuse")

    async def test_a_long_error_text_keeps_its_ends(self, bus: PrivateBus) -> None:
        class Wordy(lab.Bench):
            async def refuse(self, caller: Caller) -> None:
                raise errors.Failed(f"begins {'x' * 100_000}", "ends")

        async with lab.serving(bus, Wordy()), lab.client(bus) as client:
            with pytest.raises(errors.Failed, match=r"^begins x+ \.\.\. x+\. ends$") as caught:
                await client.call(lab.ROOT, lab.IFACE, "Refuse")
            assert len(str(caught.value)) < 5000

    async def test_in_flight(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench, in_flight=3), lab.Raw(bus) as greedy, lab.client(bus) as other:
            calls = [greedy.send("Wait") for _ in range(5)]
            refused = [await greedy.next_reply() for _ in range(2)]
            assert [message.reply_serial for message in refused] == [call.serial for call in calls[3:]]
            assert {message.error_name for message in refused} == {errors.LimitsExceeded.dbus_name}
            assert await other.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            bench.release.set()
            answered = [await greedy.next_reply() for _ in range(3)]
            assert {message.message_type for message in answered} == {MessageType.METHOD_RETURN}
            assert (await greedy.reply_to(greedy.send("Both"))).body == [1, "two"]


class TestOneUser:
    """Everybody here is of one user, but where busctl is run as another."""

    async def test_so_many_of_its_calls_are_in_service_and_others_wait(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack:
            calls = await crowd(bus, stack, OF_USER + 8)
            await in_service(bench, service)
            if os.geteuid() == 0 and shutil.which("busctl"):
                assert (await as_nobody(bus, lab.ROOT, lab.IFACE, "Both")).split() == [b"us", b"1", b'"two"']
            assert bench.waiting == OF_USER
            bench.release.set()
            answers = [await raw.reply_to(call) for raw, call in calls]
            assert {answer.message_type for answer in answers} == {MessageType.METHOD_RETURN}
            assert bench.waiting == OF_USER + 8
            assert not service.connection._places.taken

    async def test_what_is_done_when_it_ends_is_answered(self, bus: PrivateBus) -> None:
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

    async def test_a_long_call_keeps_its_places(self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """While it waits for somebody else, and others than root also once they are authorised."""

        class Long(lab.Bench):
            async def echo(self, caller: Caller, text: str) -> str:
                assert self.service
                self.service.connection.authorised()
                with self.service.connection.aside():
                    await self.wait(caller)
                return text

        monkeypatch.setattr("kerntune.dbus.intake.is_root", lambda _: False)
        bench, long = Long(), "x" * (32 << 10)
        async with lab.serving(bus, bench) as service, lab.Raw(bus) as raw:
            calls = [raw.send("Echo", "s", long) for _ in range(3)]
            while bench.waiting < 2:
                await service.connection.call_bus("GetId")
            assert service.connection._places.taken == {os.geteuid(): 2 * OF_A_CALL}
            bench.release.set()
            assert [(await raw.reply_to(call)).body for call in calls] == [[long]] * 3
            assert not service.connection._places.taken

    async def test_long_calls_take_several_places(self, bus: PrivateBus) -> None:
        class Slow(lab.Bench):
            async def echo(self, caller: Caller, text: str) -> str:
                await self.wait(caller)
                return text

        bench = Slow()
        long = "x" * (OF_A_PLACE * OF_USER // 4 - 512)  # with its header a quarter of the places
        async with lab.serving(bus, bench) as service, lab.Raw(bus) as raw:
            calls = [raw.send("Echo", "s", long) for _ in range(6)]
            while bench.waiting < 4:
                await service.connection.call_bus("GetId")
            for _ in range(3):
                await service.connection.call_bus("GetId")
            assert bench.waiting == 4
            bench.release.set()
            assert [(await raw.reply_to(call)).body for call in calls] == [[long]] * 6
            assert not service.connection._places.taken

    async def test_what_waits_counts_for_its_connection(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench, in_flight=3) as service,
            AsyncExitStack() as stack,
            lab.Raw(bus) as greedy,
        ):
            await crowd(bus, stack, OF_USER)
            await in_service(bench, service)
            calls = [greedy.send("Wait") for _ in range(5)]
            refused = [await greedy.next_reply() for _ in range(2)]
            assert {message.reply_serial for message in refused} == {call.serial for call in calls[3:]}
            assert {message.error_name for message in refused} == {errors.LimitsExceeded.dbus_name}
            bench.release.set()
            answered = [await greedy.next_reply() for _ in range(3)]
            assert {message.message_type for message in answered} == {MessageType.METHOD_RETURN}

    @pytest.mark.parametrize("how", ["aside", "authorised"])
    async def test_calls_that_keep_nobody_waiting(self, bus: PrivateBus, how: str) -> None:
        class Polite(lab.Bench):
            async def wait(self, caller: Caller) -> None:
                assert self.service
                if how == "authorised":
                    self.service.connection.authorised()
                    await super().wait(caller)
                    return
                with self.service.connection.aside():
                    await super().wait(caller)
                assert self.service.connection._places.taken

        bench = Polite()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack, lab.client(bus) as client:
            calls = await crowd(bus, stack, OF_USER + 8)
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            while bench.waiting < OF_USER + 8:
                await lab.settle(client, service)
            bench.release.set()
            for raw, call in calls:
                assert (await raw.reply_to(call)).message_type is MessageType.METHOD_RETURN
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            assert not service.connection._places.taken

    async def test_what_a_client_that_left_had_asked_for_is_not_begun(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kerntune.dbus.intake.STALE", 0.0)
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service, AsyncExitStack() as stack, lab.client(bus) as client:
            await crowd(bus, stack, OF_USER)
            await in_service(bench, service)
            async with lab.Raw(bus) as gone:
                for _ in range(5):
                    gone.send("Wait")
                await gone.link.call_bus("GetId")
            bench.release.set()
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            while len(service.connection._intake.queue):
                await lab.settle(client, service)
            assert bench.waiting == OF_USER

    async def test_a_client_that_is_known_costs_no_question(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        ask = Connection.call_bus

        async def counted(self: Connection, member: str, *args: Any, **how: Any) -> list[Any]:
            if self is service.connection:
                asked.append(member)
            return await ask(self, member, *args, **how)

        async with lab.serving(bus) as service, lab.client(bus) as client:
            monkeypatch.setattr(Connection, "call_bus", counted)
            for _ in range(5):
                assert await client.get(lab.ROOT, lab.IFACE, "Count") == 7
                assert (await client.call(lab.ROOT, lab.IFACE, "Who"))[1] == os.geteuid()
            assert asked == ["GetConnectionCredentials"]


async def crowd(bus: PrivateBus, stack: AsyncExitStack, count: int) -> list[tuple[lab.Raw, Message]]:
    """So many clients, each with one call that waits."""
    raws = [await stack.enter_async_context(lab.Raw(bus)) for _ in range(count)]
    return [(raw, raw.send("Wait")) for raw in raws]


async def in_service(bench: lab.Bench, service: Service) -> None:
    """Return when as many calls wait as one user may have in service."""
    while bench.waiting < OF_USER:
        await service.connection.call_bus("GetId")


async def as_nobody(bus: PrivateBus, *what: str) -> bytes:
    busctl = await asyncio.create_subprocess_exec(
        *("busctl", f"--address={bus.address}", "call", lab.NAME, *what), user=65534, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await busctl.communicate()
    return output


class TestProperties:
    async def test_get_and_get_all(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench), lab.client(bus) as client:
            assert await client.get(lab.ROOT, lab.IFACE, "Version") == "1"
            assert bench.sampled == 0, "what never changes is not read again"
            assert await client.get(lab.ROOT, lab.IFACE, "Count") == 7
            assert await client.get(lab.ROOT, "", "BigTable") == ["a", "b"]
            assert await client.get(lab.ROOT, lab.IFACE, "Sampled") == 3
            values = {"Version": "1", "Count": 7, "BigTable": ["a", "b"], "Sampled": 4}
            assert await client.call(lab.ROOT, lab.PROPERTIES, "GetAll", "s", lab.IFACE) == [values]
            assert await client.call(lab.ROOT, lab.PROPERTIES, "GetAll", "s", "") == [values | {"Sampled": 5}]
            assert await client.call(lab.ROOT, lab.PROPERTIES, "GetAll", "s", lab.PEER) == [{}]

    async def test_errors(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(errors.UnknownProperty):
                await client.get(lab.ROOT, lab.IFACE, "Nothing")
            with pytest.raises(errors.UnknownInterface):
                await client.get(lab.ROOT, "a.b", "Count")
            for name, error in (("Count", errors.PropertyReadOnly), ("Nothing", errors.UnknownProperty)):
                with pytest.raises(error):
                    await client.call(lab.ROOT, lab.PROPERTIES, "Set", "ssv", lab.IFACE, name, Variant("u", 1))

    async def test_changed_follows_the_annotations(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            lab.client(bus) as client,
            client.listen(lab.ROOT, lab.PROPERTIES) as signals,
        ):
            bench.version, bench.sampled = "2", 8  # their changes are never published
            service.publish_changes(lab.ROOT)
            service.publish_changes(CHILD)  # is not there
            bench.count, bench.big_table = 8, ["c"]
            service.publish_changes(lab.ROOT)
            assert (await anext(signals)).args == [lab.IFACE, {"Count": 8}, ["BigTable"]]
            service.publish_changes(lab.ROOT)
            bench.count = 9
            service.publish_changes(lab.ROOT)
            assert (await anext(signals)).args == [lab.IFACE, {"Count": 9}, []], "nothing is published twice"


class TestObjects:
    async def test_added_and_removed_are_told_from_the_root(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, client.listen(lab.ROOT, MANAGER) as signals:
            service.publish(CHILD, {SAMPLE: lab.Sample("one")})
            added = await anext(signals)
            assert (added.member, added.args) == ("InterfacesAdded", [CHILD, {SAMPLE: {"Label": "one"}}])
            managed = await client.call(lab.ROOT, MANAGER, "GetManagedObjects")
            assert managed == [{CHILD: {SAMPLE: {"Label": "one"}}}]
            with pytest.raises(errors.UnknownInterface):
                await client.call(CHILD, MANAGER, "GetManagedObjects")
            service.retract(CHILD)
            removed = await anext(signals)
            assert (removed.member, removed.args) == ("InterfacesRemoved", [CHILD, [SAMPLE]])
            with pytest.raises(errors.UnknownObject):
                await client.get(CHILD, SAMPLE, "Label")
            assert await client.call(lab.ROOT, MANAGER, "GetManagedObjects") == [{}]

    async def test_introspection(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            service.publish(CHILD, {SAMPLE: lab.Sample("one")})
            for path, children in (
                ("/", ["org"]),
                ("/org", ["kerntune"]),
                ("/org/kerntune", ["Lab"]),
                (lab.ROOT, ["child"]),
                (f"{lab.ROOT}/child", ["1"]),
                (CHILD, []),
            ):
                node = await introspect(client, path)
                assert [each.get("name") for each in node.findall("node")] == children, path
            root = await introspect(client, lab.ROOT)
            names = [each.get("name") for each in root.findall("interface")]
            assert names == [lab.IFACE, lab.PEER, INTROSPECTABLE, lab.PROPERTIES, MANAGER]
            assert MANAGER not in [each.get("name") for each in (await introspect(client, CHILD)).findall("interface")]
            assert root.find(".//property[@name='Version']/annotation") is not None
            with pytest.raises(errors.UnknownObject):
                await introspect(client, "/org/kerntune/La")

    async def test_peer(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            assert await client.call("/anywhere", lab.PEER, "Ping") == []
            assert await client.call(lab.ROOT, lab.PEER, "GetMachineId") == [MACHINE_ID]

    @pytest.mark.skipif(not shutil.which("busctl"), reason="needs busctl")
    async def test_busctl_finds_the_objects(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            service.publish(CHILD, {SAMPLE: lab.Sample("one")})
            tree = await asyncio.create_subprocess_exec(
                *("busctl", f"--address={bus.address}", "tree", "--list", lab.NAME), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await tree.communicate()
            assert {lab.ROOT, CHILD} <= set(output.decode().split())


async def introspect(client: Any, path: str) -> ET.Element:
    (text,) = await client.call(path, INTROSPECTABLE, "Introspect")
    return ET.fromstring(text)


class TestSignals:
    async def test_one_client_or_all(self, bus: PrivateBus) -> None:
        async with (
            lab.serving(bus) as service,
            lab.client(bus) as one,
            lab.client(bus) as two,
            one.listen(lab.ROOT, lab.IFACE, "Tick") as to_one,
            two.listen(lab.ROOT, lab.IFACE, "Tick") as to_two,
        ):
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {"what": Variant("s", "one")}, to=one.name)
            service.emit(lab.ROOT, lab.IFACE, "Tick", 2, {})
            assert [(await anext(to_one)).args, (await anext(to_one)).args] == [[1, {"what": "one"}], [2, {}]]
            assert (await anext(to_two)).args == [2, {}]

    async def test_one_that_is_too_long_is_not_sent(self, bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {"text": Variant("s", "x" * (5 << 20))})
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
        assert "did not send org.kerntune.Lab.Bench.Tick" in caplog.text


class TestOutgoing:
    async def test_errors(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            to = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
            with pytest.raises(errors.InvalidArgs):
                await service.connection.call(*to, "GetNameOwner", "u", 1, timeout=5)
            with pytest.raises(errors.Unreachable):
                await service.connection.call(*to, "GetNameOwner", "s", "org.kerntune.Nobody", timeout=5)
            with pytest.raises(errors.AccessDenied):
                await service.connection.call(*to, "RequestName", "su", "org.kerntune.Other", 0, timeout=5)

    async def test_credentials_are_asked_once_and_forgotten(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kerntune.dbus.users.REMEMBERED", 2)
        async with lab.serving(bus) as service:
            for _ in range(4):
                async with lab.client(bus) as client:
                    await client.call(lab.ROOT, lab.IFACE, "Who")
                    await client.call(lab.ROOT, lab.IFACE, "Who")
                    assert list(service.connection.users._known)[-1] == client.name
            assert len(service.connection.users._known) == 2


class TestWhilePresent:
    async def test_it_gives_the_result(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        bench.release.set()
        async with lab.serving(bus, bench) as service, lab.client(bus) as client:
            assert await client.call(lab.ROOT, lab.IFACE, "WaitWhilePresent") == []
            assert not service.clients._watches

    async def test_a_client_that_leaves_cancels_it(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service:
            async with lab.Raw(bus) as raw:
                raw.send("WaitWhilePresent")
                await bench.started.wait()
            await bench.cancelled.wait()
            await asyncio.gather(*service.connection._tasks)
            assert not service.clients._watches

    async def test_what_is_finished_all_the_same_is_answered(self, bus: PrivateBus) -> None:
        """It may be saved already when its client leaves."""
        begun = asyncio.Event()

        async def saves() -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "saved"
            return ""

        async with lab.serving(bus) as service:
            async with lab.Raw(bus) as raw:
                caller = Caller(raw.link.unique_name, 1000, 1, False)
                saving = asyncio.create_task(service.clients.while_present(caller.name, saves()))
                await begun.wait()
                await service.connection.call_bus("GetId")
            assert await saving == "saved"

    async def test_a_client_that_has_left_before(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            with pytest.raises(CallerGone):
                await service.clients.while_present(":1.99999", asyncio.Event().wait())

    async def test_one_match_serves_two_that_wait(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, connect(lab.NAME, bus.address, hint=lab.HINT) as client:
            caller = Caller(client.name, 1000, 1, False)
            first, second = asyncio.Event(), asyncio.Event()
            waiting = [
                asyncio.create_task(service.clients.while_present(caller.name, event.wait()))
                for event in (first, second)
            ]
            first.set()
            assert await waiting[0]
            assert service.clients._watches[client.name].users == 1
            await client._connection.close()
            with pytest.raises(CallerGone):
                await waiting[1]
            assert not service.clients._watches

    async def test_closing_cancels_it(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.Raw(bus) as raw, lab.serving(bus, bench) as service:
            raw.send("WaitWhilePresent")
            await bench.started.wait()
            await service.connection.close()
            assert bench.cancelled.is_set()
