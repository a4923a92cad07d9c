"""How long the command line takes where it asks nobody: its help and a completion, beside `true` and `busctl`.

`python -m benchmarks.commands [--runs N]` writes benchmarks/results/commands.json and docs/benchmarks.md. It runs as
the package has it: Debian's Python, with byte code in place. The commands take turns in an order that changes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.load import CHECKOUT
from benchmarks.run import COMMANDS as RESULTS
from benchmarks.run import RESULTS as LATEST
from benchmarks.run import TABLE, document

PYTHON: Final = "/usr/bin/python3"
ENTRY: Final = "import sys\nfrom kerntune.cli.__main__ import main\nsys.exit(main())\n"  # as /usr/bin/kerntune
TRUE, BUSCTL = "true", "busctl --version"
WARM_UP: Final = 3  # runs that are not counted
LIMIT: Final = 20  # seconds


def subjects(entry: Path) -> dict[str, Sequence[str]]:
    """What is timed, by the name it has in the table."""
    ours = [PYTHON, str(entry)]
    return {
        TRUE: ["/bin/true"],
        BUSCTL: ["busctl", "--version"],
        "python3 -c pass": [PYTHON, "-c", "pass"],
        "kerntune --help": [*ours, "--help"],
        "kerntune set --help": [*ours, "set", "--help"],
        "a completion with live values": [*ours, "complete", "settings", "io-scheduler@"],
    }


def measure(commands: Mapping[str, Sequence[str]], runs: int, environment: Mapping[str, str]) -> dict[str, list[float]]:
    """Milliseconds of each run; the n-th of all belong together."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(WARM_UP + runs):
        for name in random.sample(list(commands), len(commands)):
            began = time.perf_counter()
            subprocess.run(commands[name], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=LIMIT)
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - began) * 1000)
    return times


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The median of each, and of its ratios to the two that it is compared with, run by run."""
    return {
        name: {
            "median_ms": statistics.median(values),
            **{
                f"to {peer}": statistics.median(ours / theirs for ours, theirs in zip(values, times[peer], strict=True))
                for peer in (TRUE, BUSCTL)
            },
        }
        for name, values in times.items()
    }


def main() -> int:
    """The exit status: 0 when all was measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.commands", description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="runs of each (default: 40)")
    runs = parser.parse_args().runs
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder, "kerntune")
        entry.write_text(ENTRY)
        times = measure(subjects(entry), runs, environment | {"PYTHONPATH": str(CHECKOUT / "src")})
    rows = summary(times)
    for name, row in rows.items():
        sys.stdout.write(f"{name:30} {row['median_ms']:6.1f} ms, {row[f'to {TRUE}']:5.1f} x true, ")
        sys.stdout.write(f"{row[f'to {BUSCTL}']:5.2f} x busctl\n")
    results: dict[str, Any] = {"date": f"{datetime.date.today()}", "runs": runs, "rows": rows, "times_ms": times}
    RESULTS.write_text(json.dumps(results) + "\n")
    TABLE.write_text(document(json.loads(LATEST.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
