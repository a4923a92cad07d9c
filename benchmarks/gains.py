"""What `kerntune run` gains a command: the time of a load on huge pages, and wake-ups beside busy programs.

`python -m benchmarks.gains [--rounds N] [--python PROGRAM]`, as root, writes benchmarks/results/gains.json and
docs/benchmarks.md. kerntuned runs on a private bus and tunes this kernel. Each command is started by `kerntune run`,
with the options and without them, in an order that changes each round. Without them it runs twice: before beside
itself has to show no difference.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.harness import host
from tests.harness.daemon import Daemon
from tests.harness.privatebus import package_bus

from benchmarks import machine, table
from benchmarks.load import CHECKOUT
from benchmarks.run import GAINS as RESULTS
from benchmarks.run import RESULTS as LATEST
from benchmarks.run import TABLE, document, say
from kerntune.bench import statistics as intervals
from kerntune.bench.file import synthetic
from kerntune.bench.model import Estimate, Verdict
from kerntune.run import launch, scheduling
from kerntune.run.shield import Shield
from kerntune.units import parse_cpus

ON_DISK: Final = "/var/tmp"
MIB: Final = 1 << 20
SIZE: Final = 1 << 30  # bytes of the file
PAGES: Final = "--hugepages=1280M"
LEAST_HUGETLB: Final = 1000  # MiB
TOUCHED: Final = 1536 * MIB  # bytes: more than any run uses
HOGS: Final = 3
WAKES: Final = 400
SLICE: Final = "--slice=100us"
AUTO: Final = "--cpus=auto"
LIMIT: Final = 120.0  # seconds of one run
END: Final = 10.0  # seconds for it to end when it is told to
ROUNDS: Final = 20
THP: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BASE, AGAIN, PAGED, SLICED, FREE = "base", "again", "paged", "sliced", "free"
# It lives on until `kerntune run`, which wakes up to look at its memory, has done so a few times.
LOAD: Final = """\
import os, sys, time
{imports}
def looks():
    with open(f"/proc/{{os.getppid()}}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
began = time.perf_counter()
{load}
print(time.perf_counter() - began, flush=True)
enough = looks() + 5
while looks() < enough:
    time.sleep(0.01)
"""
COPY: Final = LOAD.format(imports="", load='data = open(sys.argv[1], "rb", buffering=0).read()')
TORCH: Final = LOAD.format(
    imports="import torch", load='data = torch.load(sys.argv[1], map_location="cpu", weights_only=True)'
)
SAVE: Final = """\
import sys, torch
parts, size = 32, int(sys.argv[2])
torch.save([torch.randint(0, 256, (size // parts,), dtype=torch.uint8) for _ in range(parts)], sys.argv[1])
"""
HAS_TORCH: Final = "import sys, torch; print(torch.__version__)"

# What one run has measured, by name.
Sample = Mapping[str, float]
Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the figure `name` of the runs `after` beside the runs `base`.

    `most` is the target of the ratio, and its interval has to be below 1; with `same` there has to be no difference.
    """

    title: str
    name: str
    after: str
    most: float | None = None
    same: bool = False

    def of(self, samples: Samples) -> dict[str, Any]:
        """Return the row as it is kept in JSON."""
        before, after = ([sample[self.name] for sample in samples[each]] for each in (BASE, self.after))
        found = intervals.estimate(list(zip(before, after, strict=True)), intervals.ALPHA)
        return {
            **asdict(self),
            "before": statistics.median(before),
            "now": statistics.median(after),
            "ratio": found.ratio,
            "low": found.low,
            "high": found.high,
            "met": self.met(found),
        }

    def met(self, found: Estimate) -> bool | None:
        """Return whether the target is reached, None without one."""
        if self.same:
            return intervals.verdict(found, None).verdict == Verdict.SAME
        return None if self.most is None else found.ratio <= self.most and found.high < 1


LOADING: Final = (
    Row(f"`{PAGES}`", "seconds", PAGED, most=0.5),
    Row("without it, beside itself", "seconds", AGAIN, same=True),
)
WAKING: Final = (
    Row(f"`{SLICE}`, mean", "mean", SLICED, most=0.7),
    Row(f"`{SLICE}`, p90", "p90", SLICED, most=0.7),
    Row(f"`{SLICE}`, p99", "p99", SLICED),
    Row(f"`{AUTO}`, mean", "mean", FREE, most=0.2),
    Row(f"`{AUTO}`, p90", "p90", FREE, most=0.2),
    Row(f"`{AUTO}`, p99", "p99", FREE),
    Row("without them, beside itself, mean", "mean", AGAIN, same=True),
    Row("without them, beside itself, p90", "p90", AGAIN, same=True),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended: what the command has printed, and the summary of `kerntune run`."""

    out: str
    summary: Mapping[str, Any]


class Bench:
    """Starts commands by `kerntune run`, on a bus with a daemon of its own."""

    def __init__(self, address: str, folder: Path) -> None:
        self._output = folder / "summary.json"
        self._environment = os.environ | {
            "DBUS_SYSTEM_BUS_ADDRESS": address,
            "PYTHONPATH": str(CHECKOUT / "src"),
        }

    def run(self, options: Sequence[str], command: Sequence[str]) -> Ended:
        """Run a command to its end. Raise RuntimeError if that fails."""
        ours = (sys.executable, "-P", "-m", "kerntune.cli", "run", f"--output={self._output}")
        out = self.call([*ours, *options, "--", *command])
        return Ended(out, json.loads(self._output.read_text()))

    def call(self, argv: Sequence[str]) -> str:
        """Return what a program prints, with the environment of a run. Raise RuntimeError if it fails."""
        with subprocess.Popen(
            argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            try:
                out, said = process.communicate(timeout=LIMIT)
            except BaseException:
                # Its hold ends with it, while the daemon is there to give the pages back.
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END)
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}: {said}")
        return out

    def touch(self) -> None:
        """Use memory for a moment: in a virtual machine the first use may take seconds."""
        self.call(worker("touch", bytes=TOUCHED))


def worker(leg: str, **asked: Any) -> list[str]:
    """Return the words that start a worker of `kerntune bench`."""
    return [sys.executable, "-P", "-m", "kerntune.bench.worker", leg, json.dumps(asked)]


def rounds_of(what: str, number: int, arms: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Return the samples of each arm: the n-th of all belong together."""
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    for count in range(number):
        say(f"{what}, round {count + 1} of {number}")
        for name in random.sample(list(arms), len(arms)):
            samples[name].append(arms[name]())
    return samples


def loads(bench: Bench, rounds: int, what: str, argv: Sequence[str]) -> dict[str, Any]:
    """Measure the time of a load with huge pages and without, and how much of it lay on them."""

    def load(*options: str) -> Sample:
        bench.touch()
        ended = bench.run(options, argv)
        return {"seconds": float(ended.out), "hugetlb": ended.summary["memory"]["private_hugetlb_bytes"] / MIB}

    for options in ((), (PAGES,)):  # not counted: the file and the programs come into memory
        load(*options)
    samples = rounds_of(what, rounds, {BASE: load, AGAIN: load, PAGED: lambda: load(PAGES)})
    least = min(sample["hugetlb"] for sample in samples[PAGED])
    return {
        "what": what,
        "rows": [row.of(samples) for row in LOADING],
        "hugetlb": {
            "without": max(sample["hugetlb"] for sample in samples[BASE]),
            "least": least,
            "target": LEAST_HUGETLB,
            "met": least >= LEAST_HUGETLB,
        },
        "samples": samples,
    }


def torch_loads(bench: Bench, rounds: int, python: str) -> Iterator[dict[str, Any]]:
    """Measure torch.load, where that Python has it."""
    with tempfile.TemporaryFile(dir=ON_DISK, prefix="kerntune-bench-") as file:
        path = of_descriptor(file.fileno())
        bench.call([python, "-c", SAVE, path, str(SIZE)])
        yield loads(bench, rounds, "torch.load of 1 GiB", [python, "-c", TORCH, path])


def wake_ups(bench: Bench, rounds: int) -> dict[str, Any]:
    """Measure how late a program wakes up that works a little, beside busy ones on the CPU where it is without help."""
    cpus = sorted(os.sched_getaffinity(0))
    here, pinned = frozenset(cpus[:1]), list[str]()
    waker = worker("cpu", wakes=WAKES)
    on_busy = ["taskset", "--cpu-list", str(cpus[0]), *waker]

    def wake(*options: str, argv: Sequence[str] = on_busy) -> Sample:
        ended = bench.run(options, argv)
        said = json.loads(ended.out)
        if options == (AUTO,):
            pinned.append(ended.summary["shield"]["cpus"])
        return {"mean": said["seconds"], **{f"p{rank}": said["figures"][f"p{rank}_seconds"] for rank in (50, 90, 99)}}

    arms: dict[str, Callable[[], Sample]] = {BASE: wake, AGAIN: wake}
    notes = []
    if scheduling.keeps_slices():
        arms[SLICED] = lambda: wake(SLICE)
    else:
        notes.append(f"`{SLICE}` is left out: this kernel keeps no slice of a process, which takes Linux 6.12.")
    if len(cpus) > 1:
        arms[FREE] = lambda: wake(AUTO, argv=waker)
    else:
        notes.append(f"`{AUTO}` is left out: there is one CPU.")
    with hogs(here):
        samples = rounds_of("wake-ups", rounds, arms)
    if FREE in arms:
        kept = sum(not here & parse_cpus(text) for text in pinned)
        rest = "" if kept == len(pinned) else "; where no CPU is free it pins nothing"
        notes.append(f"`{AUTO}` kept the program off the busy CPU in {kept} of {len(pinned)} runs{rest}.")
    return {
        "what": "wake-ups beside 3 busy loops",
        "rows": [row.of(samples) for row in WAKING if row.after in arms],
        "notes": notes,
        "samples": samples,
    }


@contextmanager
def hogs(cpus: frozenset[int]) -> Iterator[None]:
    """Keep a CPU busy.

    They stay in our session, as the programs beside them: in another one they may be of another group of the
    scheduler, where slices count among its members only (CONFIG_SCHED_AUTOGROUP).
    """
    with ExitStack() as stack:
        for _ in range(HOGS):
            argv = worker("hog", **launch.behind(Shield(cpus)))
            hog = stack.enter_context(
                subprocess.Popen(
                    argv, env=os.environ | {"PYTHONPATH": str(CHECKOUT / "src")}, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(hog.kill)
            assert hog.stdout is not None
            if not hog.stdout.readline():
                raise RuntimeError("a busy loop does not start")
        yield


def of_descriptor(fd: int) -> str:
    """Return a path by which other processes can open a file without a name."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def torch_of(bench: Bench, python: str) -> str:
    """Return the version of torch that a Python has, "" without."""
    if python == sys.executable and importlib.util.find_spec("torch") is None:
        return ""
    try:
        return bench.call([python, "-c", HAS_TORCH]).strip()
    except RuntimeError:
        return ""


def measure(rounds: int, python: str) -> dict[str, Any]:
    """Return all results."""
    with ExitStack() as stack:
        stack.callback(host.restore, host.snapshot())
        bus = stack.enter_context(package_bus())
        stack.enter_context(Daemon(bus))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kerntune-bench-")))
        bench = Bench(bus.address, folder)
        say("a file of 1 GiB")
        with synthetic(ON_DISK, SIZE) as file:
            argv = [python, "-c", COPY, of_descriptor(file.fd)]
            groups = [loads(bench, rounds, "a read of 1 GiB into memory", argv)]
        torch = torch_of(bench, python)
        if torch:
            groups += torch_loads(bench, rounds, python)
        groups.append(wake_ups(bench, rounds))
    return {"torch": torch, "groups": groups}


def main() -> int:
    """The exit status: 0 when every target is reached."""
    parser = argparse.ArgumentParser(prog="benchmarks.gains", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each (default: {ROUNDS})")
    parser.add_argument("--python", default=sys.executable, help="the Python of the loads, such as one with torch")
    options = parser.parse_args()
    if options.rounds < intervals.FEWEST:
        parser.error(f"fewer than {intervals.FEWEST} rounds prove nothing")
    if os.geteuid():
        sys.stderr.write("the benchmark reserves huge pages of this kernel: run it as root (sudo make bench-run)\n")
        return 1
    # Told to stop, it cleans up as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load = os.getloadavg()[0]
    found = measure(options.rounds, options.python)
    results = {
        "date": f"{datetime.date.today()}",
        "rounds": options.rounds,
        "load": load,
        "thp": THP.read_text().partition("[")[2].partition("]")[0] if THP.exists() else "none",
        "machine": {name: what for name, what in machine.describe("").items() if name != "versions"},
        **found,
    }
    RESULTS.write_text(json.dumps(results) + "\n")
    TABLE.write_text(document(json.loads(LATEST.read_text())))
    print(table.gained(results))
    verdicts = [row["met"] for group in found["groups"] for row in group["rows"]]
    verdicts += [group["hugetlb"]["met"] for group in found["groups"] if "hugetlb" in group]
    return int(False in verdicts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
