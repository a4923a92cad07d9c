"""The service on a real bus: calls, errors, properties, introspection, signals, its callers, and when they leave."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import pytest

from kerntune import errors
from kerntune.api.contract import interface_files
from kerntune.api.names import BUS_NAME
from kerntune.dbus import standard
from kerntune.dbus.connection import Connection
from kerntune.dbus.introspection import Emits, load, parse, snake
from kerntune.dbus.messages import Message, MessageFlag, MessageType, Variant
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller, NameTaken, Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus

CHILD = f"{lab.ROOT}/child/1"
SAMPLE = "org.kerntune.Lab.Sample"
INTROSPECTABLE, MANAGER = standard.INTROSPECTABLE, standard.OBJECT_MANAGER
MACHINE_ID = Path("/etc/machine-id").read_text().strip()


class TestInterface:
    @pytest.mark.parametrize(
        ("member", "name"),
        [("SetCount", "set_count"), ("Ping", "ping"), ("SinceUSec", "since_usec"), ("Big64Bit", "big64_bit")],
    )
    def test_members_have_python_names(self, member: str, name: str) -> None:
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

    def test_what_an_object_lacks_of_an_interface_is_named(self) -> None:
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

    async def test_an_object_that_lacks_something_is_not_published(self, bus: PrivateBus) -> None:
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

    async def test_a_bus_that_does_not_let_us_own_the_name_is_named(self, bus: PrivateBus) -> None:
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
    async def test_a_call_returns_its_results(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            assert await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text") == ["text"]
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            options = {"persist": Variant("b", True), "node": Variant("u", 1)}
            assert await client.call(lab.ROOT, lab.IFACE, "Options", "a{sv}", options) == [["persist:b", "node:u"]]

    async def test_the_caller_is_known(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            who = [client.name, os.geteuid(), os.getpid()]
            assert await client.call(lab.ROOT, lab.IFACE, "Who") == [*who, False]
            assert await client.call(lab.ROOT, lab.IFACE, "Who", interactive=True) == [*who, True]

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("busctl"), reason="needs root, and busctl")
    async def test_a_caller_of_another_user_is_known(self, bus: PrivateBus) -> None:
        async with lab.serving(bus):
            busctl = await asyncio.create_subprocess_exec(
                *("busctl", f"--address={bus.address}", "call", lab.NAME, lab.ROOT, lab.IFACE, "Who"),
                user=65534,
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await busctl.communicate()
            assert output.split()[2:] == [b"65534", str(busctl.pid).encode(), b"true"]

    async def test_a_call_without_an_interface_finds_the_first_that_fits(self, bus: PrivateBus) -> None:
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

    async def test_a_call_that_expects_no_reply_gets_none(self, bus: PrivateBus) -> None:
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
    async def test_each_mistake_has_its_error(
        self, bus: PrivateBus, where: tuple[str, str], member: str, error: type[errors.KerntuneError], text: str
    ) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(error, match=text) as caught:
                await client.call(*where, member)
            assert type(caught.value) is error
            assert "secret" not in str(caught.value)
            assert "Traceback" not in str(caught.value)

    async def test_a_crash_is_logged_once_for_each_place_in_the_code(
        self, bus: PrivateBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with caplog.at_level(logging.ERROR):
                for member in ("Crash", "Crash", "Wrong", "Crash"):
                    with pytest.raises(errors.Failed):
                        await client.call(lab.ROOT, lab.IFACE, member)
        assert len(caplog.records) == 2
        assert caplog.text.count("RuntimeError: a secret") == 1

    async def test_an_error_text_is_made_fit_for_the_bus(self, bus: PrivateBus) -> None:
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


class TestProperties:
    async def test_they_are_read_one_by_one_and_together(self, bus: PrivateBus) -> None:
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

    async def test_their_changes_are_published_as_the_annotations_say(self, bus: PrivateBus) -> None:
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
    async def test_the_root_announces_objects_that_come_and_go(self, bus: PrivateBus) -> None:
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

    async def test_introspection_shows_objects_and_interfaces(self, bus: PrivateBus) -> None:
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

    async def test_every_path_is_a_peer(self, bus: PrivateBus) -> None:
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
    async def test_a_signal_goes_to_one_client_or_to_all(self, bus: PrivateBus) -> None:
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

    async def test_a_signal_that_is_too_long_is_not_sent(
        self, bus: PrivateBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client:
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {"text": Variant("s", "x" * (5 << 20))})
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
        assert "did not send org.kerntune.Lab.Bench.Tick" in caplog.text


class TestUsers:
    """The bus is asked once for the user of a client."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the list of the clients that the bus is asked about."""
        names: list[str] = []
        ask = Connection.call_bus

        async def counted(self: Connection, member: str, signature: str = "", *args: Any, **how: Any) -> list[Any]:
            if member == "GetConnectionCredentials":
                names.append(args[0])
            return await ask(self, member, signature, *args, **how)

        monkeypatch.setattr(Connection, "call_bus", counted)
        return names

    async def test_a_client_that_is_known_costs_no_question(self, bus: PrivateBus, asked: list[str]) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            for _ in range(5):
                assert await client.get(lab.ROOT, lab.IFACE, "Count") == 7
                assert (await client.call(lab.ROOT, lab.IFACE, "Who"))[1] == os.geteuid()
            assert asked == [client.name]

    async def test_the_clients_that_came_first_are_forgotten(
        self, bus: PrivateBus, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kerntune.dbus.users.REMEMBERED", 2)
        async with (
            lab.serving(bus),
            lab.client(bus) as first,
            lab.client(bus) as second,
            lab.client(bus) as third,
        ):
            for each in (first, second, first, second, third, second, first):
                await each.call(lab.ROOT, lab.IFACE, "Who")
            assert asked == [first.name, second.name, third.name, first.name]


class TestWhilePresent:
    """Work that ends when the client it is done for leaves the bus."""

    @pytest.fixture
    def rules(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Count the match rules that connections have with the bus, by the rule."""
        found: Counter[str] = Counter()
        ask, tell = Connection.call_bus, Connection.call_oneway

        async def asked(self: Connection, member: str, signature: str = "", *args: Any, **how: Any) -> list[Any]:
            if member == "AddMatch":
                found[args[0]] += 1
            return await ask(self, member, signature, *args, **how)

        def told(self: Connection, *what: Any) -> None:
            if "RemoveMatch" in what:
                found[what[-1]] -= 1
            tell(self, *what)

        monkeypatch.setattr(Connection, "call_bus", asked)
        monkeypatch.setattr(Connection, "call_oneway", told)
        return found

    async def test_it_gives_the_result(self, bus: PrivateBus, rules: Counter[str]) -> None:
        bench = lab.Bench()
        bench.release.set()
        async with lab.serving(bus, bench), lab.client(bus) as client:
            assert await client.call(lab.ROOT, lab.IFACE, "WaitWhilePresent") == []
        assert rules == {standard.owner_rule(client.name): 0}

    async def test_a_client_that_leaves_ends_the_work(self, bus: PrivateBus, rules: Counter[str]) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench) as service:
            async with lab.Raw(bus) as client:
                client.send("WaitWhilePresent")
                await bench.started.wait()
            await bench.cancelled.wait()
            await lab.answered(service)
        assert rules == {standard.owner_rule(client.link.unique_name): 0}

    async def test_work_that_is_finished_all_the_same_has_a_result(self, bus: PrivateBus) -> None:
        """The change may be saved already when its client leaves."""
        begun = asyncio.Event()

        async def save() -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "saved"
            return ""

        async with lab.serving(bus) as service:
            async with lab.Raw(bus) as client:
                saving = asyncio.create_task(service.clients.while_present(client.link.unique_name, save()))
                await begun.wait()
                await service.connection.call_bus("GetId")
            assert await saving == "saved"

    async def test_work_for_a_client_that_has_left_before_ends(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            with pytest.raises(CallerGone):
                await service.clients.while_present(":1.99999", asyncio.Event().wait())

    async def test_two_that_work_for_one_client_share_a_rule(self, bus: PrivateBus, rules: Counter[str]) -> None:
        async with lab.serving(bus) as service:
            async with lab.client(bus) as client:
                first, second = asyncio.Event(), asyncio.Event()
                working = [
                    asyncio.create_task(service.clients.while_present(client.name, event.wait()))
                    for event in (first, second)
                ]
                first.set()
                assert await working[0]
                assert rules == {standard.owner_rule(client.name): 1}
            with pytest.raises(CallerGone):
                await working[1]
            assert rules == {standard.owner_rule(client.name): 0}

    async def test_strangers_cannot_say_that_a_client_has_left(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.serving(bus, bench), lab.Raw(bus) as client, lab.Raw(bus) as stranger:
            call = client.send("WaitWhilePresent")
            await bench.started.wait()
            name = client.link.unique_name
            lie = Message.new_signal(standard.BUS_PATH, standard.BUS, "NameOwnerChanged", "sss", [name, name, ""])
            lie.destination = lab.NAME
            stranger.link.send(lie)
            await stranger.reply_to(stranger.send("Both"))  # its messages are looked at in their order
            bench.release.set()
            assert (await client.reply_to(call)).message_type is MessageType.METHOD_RETURN

    async def test_the_end_of_the_service_ends_the_work(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.Raw(bus) as client, lab.serving(bus, bench) as service:
            client.send("WaitWhilePresent")
            await bench.started.wait()
            await service.connection.close()
            assert bench.cancelled.is_set()
