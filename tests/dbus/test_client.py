"""The client: which error a caller sees for what went wrong, plain values, and signals."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME
from kerntune.dbus.client import connect
from kerntune.dbus.messages import Message, Variant, unwrap
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus


def test_it_needs_nothing_of_the_daemon() -> None:
    check = "import sys, kerntune.dbus.client; print([m for m in sys.modules if m.startswith('kerntune.')])"
    loaded = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert "kerntune.dbus.connection" in loaded
    for module in ("dispatch", "tree", "polkit", "presence"):
        assert f"kerntune.bus.{module}'" not in loaded


def test_unwrap() -> None:
    nested = {"a": Variant("a{sv}", {"b": Variant("v", Variant("as", ["c"]))}), "d": [[Variant("u", 1)]]}
    assert unwrap(nested) == {"a": {"b": ["c"]}, "d": [[1]]}


class TestErrors:
    async def test_no_bus(self) -> None:
        with pytest.raises(errors.Unreachable, match="is dbus running"):
            async with connect(BUS_NAME, "unix:path=/nonexistent"):
                pass

    async def test_a_text_that_the_bus_cannot_carry(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            with pytest.raises(errors.Usage, match=r"'\\udcff' is no UTF-8"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "\udcff")

    async def test_no_daemon(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text")
            with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                await anext(client.listen(lab.ROOT, lab.IFACE))

    async def test_nobody_is_started_by_who_does_not_want_it(self, tmp_path: Path) -> None:
        marker, services = tmp_path / "started", tmp_path / "services"
        services.mkdir()
        program = f"/bin/sh -c 'touch {marker}; exit 1'"
        (services / "lab.service").write_text(f"[D-BUS Service]\nName={lab.NAME}\nExec={program}\n")
        include = tmp_path / "activation.conf"
        allowed = f'<policy context="default"><allow send_destination="{lab.NAME}"/></policy>'
        include.write_text(f"<busconfig><servicedir>{services}</servicedir>{allowed}</busconfig>\n")
        with PrivateBus(include=[include]) as bus:
            async with lab.client(bus) as client:
                with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text", start=False)
                assert not marker.exists()
                with pytest.raises(errors.KerntuneError):
                    await client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text")
                assert marker.exists()

    async def test_the_daemon_goes_during_the_call(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.client(bus) as client:
            async with lab.serving(bus, bench) as service:
                call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
                await bench.started.wait()
                service.connection.disconnect("as a crash would")
            with pytest.raises(errors.Unreachable, match="systemctl status lab"):
                await call

    async def test_the_daemon_is_told_to_stop_during_the_call(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with lab.client(bus) as client, lab.serving(bus, bench) as service:
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Wait"))
            await bench.started.wait()
            await service.connection.close()
            with pytest.raises(errors.Failed, match=r"has stopped before this was done\. Ask again"):
                await call

    async def test_no_answer_in_time(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client:
            with pytest.raises(
                errors.Unreachable, match=r"^org.kerntune.Lab did not answer Wait within 0.05 s.*still at work"
            ):
                await client.call(lab.ROOT, lab.IFACE, "Wait", timeout=0.05)

    @pytest.mark.parametrize(
        ("text", "shown"), [("so it is", r"com\.example\.Odd: so it is"), ("", r"com\.example\.Odd")]
    )
    async def test_a_name_that_is_not_ours(self, bus: PrivateBus, text: str, shown: str) -> None:
        async with lab.Raw(bus) as raw, lab.client(bus) as client:
            await raw.link.call_bus("RequestName", "su", lab.NAME, 4)
            call = asyncio.create_task(client.call(lab.ROOT, lab.IFACE, "Echo", "s", "text"))
            answer = Message.new_error(await raw.method_call(), "com.example.Odd", text)
            if not text:
                answer.signature, answer.body = "", []
            raw.link.send(answer)
            with pytest.raises(errors.Failed, match=f"^{shown}$"):
                await call


class TestSignals:
    async def test_only_what_is_asked_for(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            lab.client(bus) as client,
            client.listen(lab.ROOT, lab.IFACE, "Tick") as ticks,
            client.listen(lab.ROOT, lab.PROPERTIES) as changes,
        ):
            bench.count += 1
            service.publish_changes(lab.ROOT)
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {"kind": Variant("s", "x")})
            tick, change = await anext(ticks), await anext(changes)
            assert (tick.member, tick.args) == ("Tick", [1, {"kind": "x"}])
            assert change.member == "PropertiesChanged"

    async def test_iterating_is_enough(self, bus: PrivateBus) -> None:
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

    async def test_nobody_else_can_send_them(self, bus: PrivateBus) -> None:
        async with (
            lab.serving(bus) as service,
            lab.client(bus) as client,
            lab.Raw(bus) as liar,
            client.listen(lab.ROOT, lab.IFACE) as ticks,
        ):
            lie = Message.new_signal(lab.ROOT, lab.IFACE, "Tick", "ua{sv}", [666, {}])
            lie.destination = client.name
            liar.link.send(lie)
            await liar.link.call_bus("GetId")  # the bus takes messages in order: the lie has been delivered
            service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
            assert (await anext(ticks)).args[0] == 1

    async def test_they_go_on_after_a_restart_of_the_daemon(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            async with lab.serving(bus):
                ticks = client.listen(lab.ROOT, lab.IFACE)
                await ticks.__aenter__()
            async with lab.serving(bus) as again:
                again.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
                assert (await anext(ticks)).args[0] == 1

    async def test_they_may_end_with_the_daemon(self, bus: PrivateBus) -> None:
        async with lab.client(bus) as client:
            async with lab.serving(bus) as service:
                ticks = client.listen(lab.ROOT, restarts=False)
                await ticks.__aenter__()
                service.emit(lab.ROOT, lab.IFACE, "Tick", 1, {})
                await lab.settle(client, service)
            assert (await anext(ticks)).args[0] == 1, "what came before is heard first"
            with pytest.raises(errors.Unreachable, match=r"org\.kerntune\.Lab has left the bus.*systemctl status"):
                await anext(ticks)

    async def test_all_of_an_object_in_one_order(self, bus: PrivateBus) -> None:
        bench = lab.Bench()
        async with (
            lab.serving(bus, bench) as service,
            lab.client(bus) as client,
            client.listen(lab.ROOT) as signals,
        ):
            for number in range(3):
                bench.count += 1
                service.publish_changes(lab.ROOT)
                service.emit(lab.ROOT, lab.IFACE, "Tick", number, {})
            heard = [(await anext(signals)).member for _ in range(6)]
            assert heard == ["PropertiesChanged", "Tick"] * 3

    async def test_they_end_with_the_bus(self, bus: PrivateBus) -> None:
        async with lab.serving(bus), lab.client(bus) as client, client.listen(lab.ROOT, lab.IFACE) as ticks:
            waiting = asyncio.create_task(anext(ticks))
            await asyncio.to_thread(bus.stop)
            with pytest.raises(errors.Unreachable, match="was lost"):
                await waiting
