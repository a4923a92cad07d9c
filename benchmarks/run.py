"""The benchmark: measures everything in one run, writes benchmarks/results/latest.json and docs/benchmarks.md.

`python -m benchmarks.run [--quick]`, as root: polkitd, the accounts and the real drives need it. TuneD is fetched from
the host's Debian mirror and unpacked below build/; where that fails the run goes on without it and says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, phases, process, tuned
from benchmarks.figures import KERNTUNE, TUNED, Book
from benchmarks.lab import Lab
from benchmarks.load import CHECKOUT
from benchmarks.table import render

RESULTS: Final = CHECKOUT / "benchmarks/results/latest.json"
PLUGS: Final = CHECKOUT / "benchmarks/results/hotplug.json"
COMMANDS: Final = CHECKOUT / "benchmarks/results/commands.json"
GUARD: Final = CHECKOUT / "benchmarks/results/guard.json"
GAINS: Final = CHECKOUT / "benchmarks/results/gains.json"
TABLE: Final = CHECKOUT / "docs/benchmarks.md"
PEERS: Final = CHECKOUT / "build/peers"
QUIET_LOAD: Final = 0.5  # load average before the run
QUIET_IDLE: Final = 0.9  # share of time in which the CPUs have nothing to do before each round
LOOK: Final = 1.0  # seconds to look at that


def main() -> int:
    """The exit status: 0 when all was measured, whatever the figures are."""
    options = parse()
    if os.geteuid():
        sys.stderr.write("the benchmark starts polkitd and sets real drives: run it as root (sudo make bench)\n")
        return 1
    # Told to stop, it cleans up as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scale = phases.QUICK if options.quick else phases.FULL
    began, load = time.monotonic(), os.getloadavg()
    book, idle = Book(), list[float]()
    peer = fetch_peer()
    with ExitStack() as stack:
        lab = Lab(stack, peer)
        measure(lab, book, scale, idle)
    phases.many_policies(book, scale)
    run = {
        "date": datetime.date.today().isoformat(),
        "quick": options.quick,
        "rounds": scale.rounds,
        "seconds": time.monotonic() - began,
        "load": load,
        "idle_before_rounds": idle,
        "quiet": load[0] <= QUIET_LOAD and min(idle) >= QUIET_IDLE,
    }
    write({"machine": machine.describe(peer.version if peer else ""), "run": run, "rows": book.summary()}, options)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, for trying it out")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the figures go")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="where the table goes")
    return parser.parse_args()


def fetch_peer() -> tuned.Package | None:
    """TuneD, or None after saying why not."""
    try:
        return tuned.unpack(PEERS)
    except tuned.NoPeer as error:
        sys.stderr.write(f"measuring without TuneD: {error}\n")
        return None


def measure(lab: Lab, book: Book, scale: phases.Scale, idle: list[float]) -> None:
    """All that needs a bus, the subjects in turn within each round."""
    say("start")
    idle.append(idle_share())
    phases.starts(lab, book, scale)
    with lab.kerntuned() as ours, lab.running_tuned() as theirs:
        pids = {KERNTUNE: ours.pid} | ({TUNED: theirs.pid} if theirs else {})
        say("idle")
        phases.idle(pids, book, scale)
        for number in range(scale.rounds):
            say(f"reads and sets, round {number + 1} of {scale.rounds}")
            idle.append(idle_share())
            phases.reads(lab, book, scale, peer=theirs is not None)
            phases.sets(lab, book, scale, peer=theirs is not None)
        say("memory over many calls")
        phases.flat(lab, book, scale, pids)
    with lab.kerntuned("--demo"):
        for number in range(scale.rounds):
            say(f"simulated host, round {number + 1} of {scale.rounds}")
            phases.demo(lab, book, scale)
    say("passes over 512 policies")


def idle_share() -> float:
    """How idle the machine is while we do nothing."""
    before = process.cpu_times()
    time.sleep(LOOK)
    return process.idle_share(before, process.cpu_times())


def write(results: dict[str, Any], options: argparse.Namespace) -> None:
    """The figures and the table, and the table on standard output too."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    options.table.write_text(document(results))
    print(document(results))


def document(results: Mapping[str, Any]) -> str:
    """The whole of docs/benchmarks.md, with what the other benchmarks have left."""
    others = (json.loads(file.read_text()) if file.exists() else None for file in (PLUGS, COMMANDS, GUARD, GAINS))
    return render(results, *others)


def say(what: str) -> None:
    sys.stderr.write(f"benchmark: {what}\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
