"""`kerntune metrics` of the real daemon, judged by promtool and read by a real node_exporter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.cli.scripted import private_bus
from tests.harness import prometheus
from tests.harness.daemon import Daemon

LIMIT = 20.0  # seconds
SETTINGS = """\
[hugepages]
"2M" = 128
[io-scheduler]
"nvme*" = "none"
"by-id/ata-\\"quoted\\"" = "bfq"
[overcommit]
"*" = "always:95"
"""


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    if why := prometheus.missing():
        if os.environ.get("CI", "") not in ("", "0", "false"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """On a simulated host, with something of everything to tell."""
    with private_bus(tmp_path_factory.mktemp("bus")) as bus:
        daemon = Daemon(bus, "--demo", wait=False)
        (daemon.config / "kerntune.toml").write_text(SETTINGS)
        with daemon:
            daemon.wait_for("READY=1")
            yield daemon


def metrics(daemon: Daemon, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kerntune.cli", "metrics", *options],
        env=daemon.env, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_promtool_has_nothing_to_say(daemon: Daemon) -> None:
    text = metrics(daemon)
    assert 'kerntune_target_satisfied{tunable="io-scheduler",target="nvme0n1"} 1' in text
    assert prometheus.complaints(text) == ""


def test_promtool_would_see_a_mistake(daemon: Daemon) -> None:
    text = metrics(daemon)
    assert "no help text" in prometheus.complaints(re.sub(r"# HELP kerntune_claims .*\n", "", text))
    assert "parsing error" in prometheus.complaints(text.replace(" gauge\n", " stateset\n"))


def test_it_is_openmetrics_to_prometheus(daemon: Daemon, tmp_path: Path) -> None:
    text = metrics(daemon)
    assert prometheus.openmetrics_complaints(text, tmp_path) == ""
    assert "EOF" in prometheus.openmetrics_complaints(text.removesuffix("# EOF\n"), tmp_path)


def test_node_exporter_hands_it_on(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "kerntune.prom"
    assert metrics(daemon, "--output", str(file)) == ""
    with prometheus.node_exporter(tmp_path) as address:
        scraped = prometheus.scrape(address)
    assert "node_textfile_scrape_error 0" in scraped
    assert any(line.startswith(f'node_textfile_mtime_seconds{{file="{file}"}}') for line in scraped)
    ours = samples(file.read_text().splitlines())
    assert len(ours) > 60
    assert ours <= samples(scraped)
    assert "# TYPE kerntune_hotplug_events_total counter" in scraped
    assert "# TYPE kerntune_guard_state gauge" in scraped


def test_what_is_counted_is_told(daemon: Daemon) -> None:
    fifo = daemon.runtime / "demo"
    for number in (5, 6):
        fifo.write_text(f"add nvme{number}n1\n")
    text = metrics(daemon)
    assert "\nkerntune_hotplug_events_total 2\n" in text
    assert 'target="nvme6n1"} 1\n' in text


def samples(lines: Iterable[str]) -> set[tuple[str, frozenset[str], float]]:
    """Names, labels in no order (node_exporter sorts them) and values."""
    found = [re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line) for line in lines if not line.startswith("#")]
    label = re.compile(r'\w+="(?:\\.|[^"])*"')
    return {(each[1], frozenset(label.findall(each[2] or "")), float(each[3])) for each in found if each}
