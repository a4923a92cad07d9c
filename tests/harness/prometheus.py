"""Debian's promtool and node_exporter, which `make test` fetches: they judge our metrics, and read them once."""

from __future__ import annotations

import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.harness import CHECKOUT

FOLDER: Final = CHECKOUT / "build/prometheus"
PROMTOOL, EXPORTER = FOLDER / "promtool", FOLDER / "prometheus-node-exporter"
LIMIT: Final = 20.0  # seconds


def missing() -> str:
    """Return what has to be done before they can be used, or ""."""
    return "" if PROMTOOL.exists() and EXPORTER.exists() else f"{FOLDER} is empty: `make test` fills it"


def complaints(text: str) -> str:
    """Return what `promtool check metrics` says of an exposition: parse errors and lint; "" when all is well."""
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit status {done.returncode}")


def openmetrics_complaints(text: str, folder: Path) -> str:
    """Return what Prometheus' parser of OpenMetrics says of it; `folder` is for what it makes of it.

    The tool that has that parser wants a time with each sample, so each gets one here.
    """
    samples = re.sub(r"^([^#\n].*)$", r"\1 1700000000", text, flags=re.MULTILINE)
    source = folder / "metrics.om"
    source.write_text(samples)
    done = subprocess.run(
        [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", "--quiet", source, folder / "blocks"],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


@contextmanager
def node_exporter(folder: Path) -> Iterator[str]:
    """Run it with nothing but the textfile collector, which reads `folder`; give the address to scrape."""
    process = subprocess.Popen(
        [
            EXPORTER,
            "--web.listen-address=127.0.0.1:0",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={folder}",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    deadline = threading.Timer(LIMIT, process.kill)
    deadline.start()
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r'msg="Listening on" address=(\S+)', line):
                break
        else:
            raise RuntimeError(f"node_exporter did not start: {''.join(said)}")
        yield f"http://{found[1]}/metrics"
    finally:
        deadline.cancel()
        process.kill()
        process.wait(LIMIT)
        process.stderr.close()


def scrape(address: str) -> list[str]:
    """Return the lines that Prometheus would get."""
    with urllib.request.urlopen(address, timeout=LIMIT) as answer:
        return answer.read().decode().splitlines()  # type: ignore[no-any-return]  # urlopen answers Any
