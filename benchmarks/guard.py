"""The memory guard beside earlyoom: how far past its threshold each acts, what becomes of the program, and its price.

`python -m benchmarks.guard [--rounds N]` writes benchmarks/results/guard.json and docs/benchmarks.md. Memory is taken
in a virtual machine, one after the other having the same guest to itself; the price of watching with room to spare is
that of this host, both at once. Both have their own defaults.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from tests.system import pressure
from tests.system.host import UNIT, Host
from tests.system.image.installed import installed
from tests.system.machine import Machine

from benchmarks.hotplug import PEERS, fetched
from benchmarks.lab import Lab
from benchmarks.process import cpu_seconds
from benchmarks.run import GUARD as RESULTS
from benchmarks.run import RESULTS as LATEST
from benchmarks.run import TABLE, document

OURS, EARLYOOM = "kerntuned", "earlyoom"
LEFT: Final = 1200 << 20  # bytes that are left to begin with: more than either acts at
CAP_POINTS, FLOOR_POINTS, TERM_PERCENT = 7, 5, 10  # of [guard] and always:95; of earlyoom -m
WATCHED: Final = 60.0  # seconds
LIMIT: Final = 20  # seconds
# Prints a line each time less is left than ever: bytes, and whether the mode was never already.
LOWS: Final = """\
import time
lowest = 1 << 60
print("watching", flush=True)
while True:
    with open("/proc/meminfo") as file:
        rows = dict(line.split()[:2] for line in file)
    with open("/proc/sys/vm/overcommit_memory") as file:
        capped = file.read().strip() == "2"
    left = int(rows["MemAvailable:"]) * 1024
    if left < lowest:
        lowest = left
        print(left, int(capped), flush=True)
    time.sleep(0.005)
"""


@contextmanager
def earlyoom(host: Host) -> Iterator[int]:
    """As Debian's package starts it; what it acts at."""
    (package,) = fetched(EARLYOOM)
    host.vm.write(f"/root/peer/{package.name}", package.read_bytes())
    host.vm.check(f"systemctl stop {UNIT}; dpkg --install /root/peer/{package.name}", limit=120)
    host.vm.check("systemctl restart earlyoom")
    yield host.meminfo()["MemTotal"] * TERM_PERCENT // 100
    host.vm.check(f"systemctl stop earlyoom; systemctl start {UNIT}")


@contextmanager
def guard(host: Host) -> Iterator[int]:
    """What it acts at."""
    host.set(("overcommit", "", "always:95"))
    info = host.meminfo()
    yield (info["MemTotal"] - info["Hugetlb"]) * (CAP_POINTS + FLOOR_POINTS) // 100
    host.release()


SUBJECTS: Final = {OURS: guard, EARLYOOM: earlyoom}


def taken(host: Host, threshold: int) -> dict[str, Any]:
    """One program that takes all it gets: percents of RAM past the threshold and left at least; how it ended."""
    total = host.meminfo()["MemTotal"]
    watching = host.vm.spawn(["python3", "-c", LOWS])
    watching.wait_output("watching")
    program = pressure.take(host.vm, "all", user="alice")
    while not program.ended and "lowest" not in program.out:
        time.sleep(0.2)
    watching.kill(9)
    watching.wait()
    lows = [line.split() for line in watching.out.splitlines()[1:]]
    acted = min((int(left) for left, capped in lows if capped == "0"), default=threshold)
    killed = program.ended
    program.kill(9)
    program.wait()
    return {
        "past": 100 * (threshold - acted) / total,
        "least": 100 * min(int(left) for left, _ in lows) / total,
        "ended": "killed" if killed else "refused, lives",
    }


def in_guest(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The rounds of each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SUBJECTS}
    with installed() as image, Machine(image) as vm:
        host = Host(vm)
        pressure.install(vm)
        ballast = pressure.take(vm, str((host.meminfo()["MemAvailable"] - LEFT) >> 20))
        ballast.wait_output("held")
        for _ in range(rounds):
            for name, running in SUBJECTS.items():
                with running(host) as threshold:
                    found[name].append(taken(host, threshold))
    return found


def watching() -> dict[str, float]:
    """Percent of a core of each, on this host with room to spare."""
    (package,) = fetched(EARLYOOM)
    subprocess.run(["dpkg-deb", "-x", package, PEERS / EARLYOOM], check=True, timeout=LIMIT)
    with ExitStack() as stack:
        lab = Lab(stack, None)
        daemon = stack.enter_context(lab.kerntuned())
        environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": lab.bus.address}
        ask = [sys.executable, "-m", "kerntune.cli"]
        subprocess.run([*ask, "set", "overcommit=always:95"], env=environment, check=True, timeout=LIMIT)
        # It kills nobody here.
        words = [str(PEERS / EARLYOOM / "usr/bin/earlyoom"), "--dryrun"]
        peer = stack.enter_context(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(peer.kill)
        time.sleep(2)
        pids = {OURS: daemon.pid, EARLYOOM: peer.pid}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(WATCHED)
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        subprocess.run([*ask, "unset", "overcommit"], env=environment, check=True, timeout=LIMIT)
    return {name: 100 * seconds / WATCHED for name, seconds in spent.items()}


def summary(rounds: Mapping[str, list[dict[str, Any]]], cores: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """A row of the table for each."""
    return {
        name: {
            "rounds": len(found),
            "past_median": statistics.median(row["past"] for row in found),
            "past_worst": max(row["past"] for row in found),
            "least": min(row["least"] for row in found),
            "ended": ", ".join(sorted({row["ended"] for row in found})),
            "core": cores[name],
        }
        for name, found in rounds.items()
    }


def main() -> int:
    """The exit status: 0 when the guard lets every program live, and costs less than 0.1 % of a core."""
    parser = argparse.ArgumentParser(prog="benchmarks.guard", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="programs for each (default: 5)")
    cores = watching()
    rows = summary(in_guest(parser.parse_args().rounds), cores)
    for name, row in rows.items():
        sys.stdout.write(
            f"{name:10} acts {row['past_median']:.2f} % of RAM past its threshold ({row['past_worst']:.2f} at worst), "
            f"leaves {row['least']:.1f} %, {row['ended']}; {row['core']:.3f} % of a core\n"
        )
    RESULTS.write_text(json.dumps({"date": f"{datetime.date.today()}", "rows": rows}) + "\n")
    TABLE.write_text(document(json.loads(LATEST.read_text())))
    return int(rows[OURS]["ended"] != "refused, lives" or rows[OURS]["core"] >= 0.1)


if __name__ == "__main__":
    sys.exit(main())
