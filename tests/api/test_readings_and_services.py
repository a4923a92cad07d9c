"""What the daemon tells of the host: properties, Describe and metrics. And what it notices of other services."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import pytest

from kerntune.api.calls import Calls
from kerntune.api.names import CPU_GOVERNOR, IO_SCHEDULER, MEMORY, ROOT
from kerntune.api.services import LOGIND, RIVALS, OtherServices
from kerntune.api.typed import Memory
from kerntune.dbus.client import Signal
from kerntune.dbus.messages import Message
from kerntune.dbus.standard import PROPERTIES
from tests.api.lab import BOUND, connected, not_started, private_bus, write_config
from tests.conftest import needs_root
from tests.dbus import lab
from tests.harness import prometheus, skip
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus
from tests.unit.lab import running, small_host

POLICY: Final = "sys/devices/system/cpu/cpufreq/policy0"


class Write(NamedTuple):
    """A write by another program, the property that shows it, and its new value."""

    path: str
    text: str
    interface: str
    name: str
    expected: Any


WRITES: Final = {
    "scheduler": Write(
        "sys/block/sda/queue/scheduler", "kyber", IO_SCHEDULER, "Devices", {"sda": ["kyber", ["kyber"]]}
    ),
    "overcommit": Write("proc/sys/vm/overcommit_memory", "1", MEMORY, "OvercommitMode", "always"),
    "ratio": Write("proc/sys/vm/overcommit_ratio", "70", MEMORY, "OvercommitRatio", 70),
    "governor": Write(
        f"{POLICY}/scaling_governor", "powersave", CPU_GOVERNOR, "Policies", {"policy0": ["powersave", "0"]}
    ),
}


@needs_root
class TestOtherPrograms:
    """Nothing is managed here, and another program writes the files."""

    @pytest.fixture
    def tree(self, tree: Path) -> Path:
        values = {"scaling_governor": "schedutil", "related_cpus": "0", "scaling_driver": "acpi-cpufreq"}
        for name, text in values.items():
            path = tree / POLICY / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tree

    @pytest.fixture
    def daemon(self, bus: PrivateBus, tree: Path) -> Iterator[Daemon]:
        with Daemon(bus, "--root", str(tree)) as running:
            yield running

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    async def test_a_property_has_the_new_value_and_announces_it(
        self, bus: PrivateBus, daemon: Daemon, tree: Path, write: Write
    ) -> None:
        path, text, interface, name, expected = write
        async with connected(bus) as client, client.client.listen(ROOT) as signals:
            before = await client.get(name, interface)
            assert part_of(before, expected) != expected
            (tree / path).write_text(f"{text}\n")
            async with asyncio.timeout(BOUND):
                # Readings of the last tenth of a second serve.
                while part_of(await client.get(name, interface), expected) != expected:
                    pass
                announced = await properties(signals, interface)
            assert part_of(announced[name], expected) == expected
            (values,) = await client.call("GetAll", "s", interface, interface=PROPERTIES)
            assert part_of(values[name], expected) == expected

    async def test_describe_has_the_new_value(self, bus: PrivateBus, daemon: Daemon, tree: Path) -> None:
        async with connected(bus) as client:
            assert (await client.target("io-scheduler", "sda"))["value"] == "bfq"
            (tree / "sys/block/sda/queue/scheduler").write_text("kyber\n")
            async with asyncio.timeout(BOUND):
                while (row := await client.target("io-scheduler", "sda"))["value"] != "kyber":
                    pass
            assert (row["state"], row["choices"]) == ("unmanaged", ["kyber"])


def part_of(value: Any, expected: Any) -> Any:
    """Return the value; of a table only the rows that are expected."""
    return {name: value.get(name) for name in expected} if isinstance(expected, dict) else value


async def properties(signals: AsyncIterator[Signal], interface: str) -> dict[str, Any]:
    """Return the values of the next PropertiesChanged of an interface."""
    async for signal in signals:
        if signal.member == "PropertiesChanged" and signal.args[0] == interface:
            return dict(signal.args[1])
    raise AssertionError("the bus is gone")


@pytest.mark.parametrize(("ratio", "kbytes"), [(-5, 0), (0, (1 << 64) - 1)])
async def test_a_limit_that_its_type_cannot_hold_is_cut_to_its_range(ratio: int, kbytes: int) -> None:
    kernel = small_host()
    kernel.overcommit |= {"ratio": ratio, "kbytes": kbytes}
    async with running(kernel) as lab:
        memory = Memory(cast(Calls, SimpleNamespace(engine=lab.engine)))
        assert memory.overcommit_ratio == 0
        assert 0 < memory.commit_limit < 1 << 64


# Metrics

SETTINGS = """\
[hugepages]
"2M" = 128
[io-scheduler]
"nvme*" = "none"
"by-id/ata-\\"quoted\\"" = "bfq"
[overcommit]
"*" = "always:95"
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Give a daemon that has something of everything to tell, where there are programs that read metrics."""
    if why := prometheus.missing():
        skip(why)
    with private_bus(tmp_path_factory.mktemp("bus")) as bus, not_started(Daemon(bus, "--demo")) as daemon:
        write_config(daemon, main=SETTINGS)
        daemon.start()
        yield daemon


class TestMetrics:
    """promtool and node_exporter read what `kerntune metrics` prints."""

    def test_promtool_finds_nothing_to_correct(self, counted: Daemon) -> None:
        text = metrics(counted)
        assert 'kerntune_target_satisfied{tunable="io-scheduler",target="nvme0n1"} 1' in text
        assert prometheus.complaints(text) == ""

    def test_promtool_would_find_a_mistake(self, counted: Daemon) -> None:
        text = metrics(counted)
        assert "no help text" in prometheus.complaints(re.sub(r"# HELP kerntune_claims .*\n", "", text))
        assert "parsing error" in prometheus.complaints(text.replace(" gauge\n", " stateset\n"))

    def test_prometheus_takes_it_for_openmetrics(self, counted: Daemon, tmp_path: Path) -> None:
        text = metrics(counted)
        assert prometheus.openmetrics_complaints(text, tmp_path) == ""
        assert "EOF" in prometheus.openmetrics_complaints(text.removesuffix("# EOF\n"), tmp_path)

    def test_node_exporter_hands_it_on(self, counted: Daemon, tmp_path: Path) -> None:
        file = tmp_path / "kerntune.prom"
        assert metrics(counted, "--output", str(file)) == ""
        with prometheus.node_exporter(tmp_path) as address:
            scraped = prometheus.scrape(address)
        assert "node_textfile_scrape_error 0" in scraped
        assert any(line.startswith(f'node_textfile_mtime_seconds{{file="{file}"}}') for line in scraped)
        ours = samples(file.read_text().splitlines())
        assert len(ours) > 60
        assert ours <= samples(scraped)
        assert "# TYPE kerntune_hotplug_events_total counter" in scraped
        assert "# TYPE kerntune_guard_state gauge" in scraped

    def test_drives_that_come_are_counted(self, counted: Daemon) -> None:
        for number in (5, 6):
            (counted.runtime / "demo").write_text(f"add nvme{number}n1\n")
        text = metrics(counted)
        assert "\nkerntune_hotplug_events_total 2\n" in text
        assert 'target="nvme6n1"} 1\n' in text


def metrics(daemon: Daemon, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kerntune.cli", "metrics", *options],
        env=daemon.env, capture_output=True, text=True, timeout=2 * BOUND, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def samples(lines: Iterable[str]) -> set[tuple[str, frozenset[str], float]]:
    """Return names, values, and labels in no order, because node_exporter sorts them."""
    found = [re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line) for line in lines if not line.startswith("#")]
    label = re.compile(r'\w+="(?:\\.|[^"])*"')
    return {(each[1], frozenset(label.findall(each[2] or "")), float(each[3])) for each in found if each}


# Other services: rivals are named while they run, and only logind may tell of a resume


class Watch:
    """The slugs of Degraded, and the causes of the passes that the watch has asked for."""

    def __init__(self) -> None:
        self.troubles: set[str] = {"config-invalid"}
        self.causes: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        return await asyncio.wait_for(self.causes.get(), BOUND)


@asynccontextmanager
async def watching(bus: PrivateBus) -> AsyncIterator[Watch]:
    async with lab.serving(bus) as service:
        watch = Watch()
        await OtherServices(service, watch.troubles, watch.causes.put_nowait).watch()
        yield watch


def prepare_for_sleep(starts: bool, to: str | None = None) -> Message:
    """Return the signal of logind: a sleep starts, or is over."""
    message = Message.new_signal("/org/freedesktop/login1", f"{LOGIND}.Manager", "PrepareForSleep", "b", [starts])
    message.destination = to  # type: ignore[assignment]  # dbus_next takes None for everybody
    return message


@pytest.mark.parametrize(("name", "slug"), RIVALS.items())
async def test_a_rival_is_named_while_it_runs(bus: PrivateBus, name: str, slug: str) -> None:
    async with watching(bus) as watch:
        async with lab.connected(bus) as rival:
            await rival.call_bus("RequestName", "su", name, 4)
            assert await watch.next() == "rival"
            assert watch.troubles == {"config-invalid", slug}
        assert await watch.next() == "rival"
        assert watch.troubles == {"config-invalid"}


async def test_a_rival_that_ran_before_is_named(bus: PrivateBus) -> None:
    async with lab.connected(bus) as rival:
        await rival.call_bus("RequestName", "su", "com.redhat.tuned", 4)
        async with watching(bus) as watch:
            assert watch.troubles == {"config-invalid", "rival-tuned"}


async def test_a_resume_asks_for_a_pass(bus: PrivateBus) -> None:
    async with watching(bus) as watch, lab.connected(bus) as logind:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        logind.send(prepare_for_sleep(True))
        logind.send(prepare_for_sleep(False))
        assert await watch.next() == "resume"
        assert watch.causes.empty()


async def test_signals_of_strangers_are_ignored(bus: PrivateBus) -> None:
    async with watching(bus) as watch, lab.connected(bus) as logind, lab.connected(bus) as stranger:
        await logind.call_bus("RequestName", "su", LOGIND, 4)
        stranger.send(prepare_for_sleep(False, lab.NAME))
        stranger.send(
            Message.new_signal("/", "org.freedesktop.DBus", "NameOwnerChanged", "sss", ["com.redhat.tuned", "", ":1.1"])
        )
        # Its own call is answered after its signals were looked at.
        assert await stranger.call(lab.NAME, lab.ROOT, lab.IFACE, "Echo", "s", "x", timeout=5) == ["x"]
        assert watch.causes.empty()
        assert watch.troubles == {"config-invalid"}
