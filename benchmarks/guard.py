"""The memory guard beside earlyoom, systemd-oomd and nobody: who acts when, what is left, who is harmed.

`python -m benchmarks.guard [--rounds N]` writes benchmarks/results/guard.json and docs/benchmarks.md. Memory is taken
in a virtual machine, without swap and with it; one after the other has the same guest to itself, with the defaults of
its package. What watching costs is in benchmarks.watching.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final

from tests.system import pressure
from tests.system.host import UNIT, Host
from tests.system.image.installed import installed
from tests.system.machine import Machine
from tests.system.shell import Job

from benchmarks import peers, watching
from benchmarks.run import GUARD as RESULTS
from benchmarks.run import RESULTS as LATEST
from benchmarks.run import TABLE, document
from kerntune.guard.policy import GuardLimits
from kerntune.model import NO_MEMORY

OURS, EARLYOOM, OOMD, NOBODY = "kerntuned", "earlyoom", "systemd-oomd", "nobody"
LEFT: Final = 1200 << 20  # bytes that are left to begin with: more than anybody acts at
AND_SWAP: Final = "10, and of swap 10"
AT_REST: Final = 14  # percent of RAM that are left on a host that is merely full
TERM_PERCENT: Final = 10  # of earlyoom -m
LIMIT: Final = 180.0  # seconds
SWAP, SWAP_KIB = "/dev/vdb", 384 << 10
WANTS: Final = ("cuda", "fork", "shm")
GAVE_UP: Final = 20.0  # seconds that a bystander goes on asking
REFUSED, KILLED, OOM_KILLED = "refused, lives", "killed", "killed by the OOM killer"
OOMD_UNITS: Final = f"{OOMD}.service {OOMD}.socket"
# All that takes memory is in this slice, and systemd-oomd is told to act there.
SLICE: Final = "ai.slice"
TO_OOMD: Final = "[Slice]\nManagedOOMMemoryPressure=kill\nManagedOOMSwap=kill\n"
SCOPE: Final = ("systemd-run", "--quiet", "--collect", "--scope", f"--slice={SLICE}", "--unit=hog", "--uid=alice")
# Takes memory in steps until the kernel refuses, after it has reserved addresses as CUDA does. It needs little else:
# where memory is short, a program waits for pages of its own. Of large pages that are all zeros the kernel takes some
# back then (Linux 6.12, shrink_underused in Documentation/admin-guide/mm/transhuge.rst).
PROGRAM: Final = """\
import ctypes, mmap, time
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
POPULATE = 0x8000
STEP = 8 << 20
reserved, held = mmap.mmap(-1, 64 << 30, flags=FLAGS, prot=0), []
try:
    while True:
        held.append(mmap.mmap(-1, STEP, flags=FLAGS | POPULATE))
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(held[-1])), 1, STEP)
except OSError as error:
    print("refused", error.errno, flush=True)
time.sleep(3600)
"""
# The OOM killer spares what the agent starts, and so does earlyoom; it is not to spare these. A neighbour in the same
# cgroup needs nothing.
MORTAL: Final = "echo 0 > /proc/self/oom_score_adj; "
HOG: Final = f'{MORTAL} sleep 3600 & exec python3 -c "$0"', PROGRAM
NEIGHBOUR: Final = "pgrep --exact --uid alice sleep"
BALLAST: Final = ("systemd-run", "--quiet", "--collect", "--pipe", "--unit=ballast", "--property=MemorySwapMax=0",
                  "--property=OOMScoreAdjust=-1000", pressure.PLACE)  # fmt: skip
# Prints a line each time less is left than ever: bytes, and whether the mode was never already. Also the longest time
# in which it did not come to look.
LOWS: Final = """\
import time
lowest, seen, pause = 1 << 60, time.monotonic(), 0
print("watching", flush=True)
while True:
    with open("/proc/meminfo") as file:
        rows = dict(line.split()[:2] for line in file)
    with open("/proc/sys/vm/overcommit_memory") as file:
        capped = file.read().strip() == "2"
    left = (int(rows["MemAvailable:"]) + int(rows["SwapFree:"])) * 1024
    now = time.monotonic()
    if left < lowest or now - seen > pause:
        lowest, pause = min(left, lowest), max(pause, now - seen)
        print(lowest, int(capped), pause, flush=True)
    seen = now
    time.sleep(0.005)
"""


@contextmanager
def kerntuned(host: Host) -> Iterator[int]:
    host.vm.check(f"systemctl start {UNIT}")
    host.set(("overcommit", "", "always:95"))
    info = host.meminfo()
    memory = replace(NO_MEMORY, total=info["MemTotal"], hugetlb=info["Hugetlb"])
    yield GuardLimits().caps_at(memory)
    host.release()
    host.vm.check(f"systemctl stop {UNIT}")


@contextmanager
def earlyoom(host: Host) -> Iterator[int | str]:
    with always(host, EARLYOOM):
        info = host.meminfo()
        yield AND_SWAP if info["SwapTotal"] else info["MemTotal"] * TERM_PERCENT // 100


@contextmanager
def systemd_oomd(host: Host) -> Iterator[str]:
    host.vm.check(f"systemctl unmask --quiet --runtime {OOMD_UNITS}")
    with always(host, OOMD):
        yield AND_SWAP if host.meminfo()["SwapTotal"] else "pressure"
    keep_out_oomd(host)


def keep_out_oomd(host: Host) -> None:
    """Have it stopped: the slice that it is to act on would start it (systemd.resource-control(5), dependencies)."""
    host.vm.check(f"systemctl stop '{OOMD}.*' && systemctl mask --quiet --runtime {OOMD_UNITS}")


@contextmanager
def nobody(host: Host) -> Iterator[str]:
    with always(host):
        yield "no page left"


@contextmanager
def always(host: Host, *services: str) -> Iterator[None]:
    """Mode always without kerntuned, and a service that watches."""
    host.vm.check(f"echo 1 > {pressure.MODE}")
    for service in services:
        host.vm.check(f"systemctl start {service}")
    yield
    for service in services:
        host.vm.check(f"systemctl stop '{service}.*'")
    host.vm.check(f"echo 0 > {pressure.MODE}")


# Each yields the bytes left at which it acts, or when else it does.
SUBJECTS: Final[Mapping[str, Callable[[Host], AbstractContextManager[int | str]]]] = {
    OURS: kerntuned,
    EARLYOOM: earlyoom,
    OOMD: systemd_oomd,
    NOBODY: nobody,
}


def taken(host: Host, threshold: int | str) -> dict[str, Any]:
    """Return what one program that takes all it gets has led to; sizes are percents of RAM, times seconds."""
    vm, total = host.vm, host.meminfo()["MemTotal"]
    beside = {want: bystander(vm, want) for want in WANTS}
    watch = vm.spawn(["python3", "-c", LOWS])
    watch.wait_output("watching")
    hog = vm.spawn([*SCOPE, "sh", "-c", *HOG])
    began = time.monotonic()
    while not hog.ended and "refused" not in hog.out and time.monotonic() < began + LIMIT:
        time.sleep(0.1)
    ended = how_it_ended(vm, hog)
    watch.kill(9)
    watch.wait()
    lines = [line.split() for line in watch.out.splitlines()[1:]]
    lows = [(int(left), capped == "1", float(pause)) for left, capped, pause in lines]
    least = min(left for left, _, _ in lows)
    row = {
        "threshold": threshold if isinstance(threshold, str) else 100 * threshold / total,
        "acted": 100 * min((left for left, capped, _ in lows if not capped), default=least) / total,
        "least": 100 * least / total,
        "pause": max(pause for _, _, pause in lows),
        "ended": ended,
        "neighbour": "lives" if vm.run(NEIGHBOUR).status == 0 else "killed",
        "bystanders": {want: took(vm, want, job) for want, job in beside.items()},
    }
    for job in (hog, *beside.values()):
        job.kill(9)
        job.wait()
    vm.check("systemctl stop hog.scope || :")
    return row


def bystander(vm: Machine, want: str) -> Job:
    """Start one of tests.system.pressure that the OOM killer may end."""
    gate = pressure.gate(want)
    vm.check(f"rm -f {gate} && mkfifo {gate}")
    job = vm.spawn(f"{MORTAL} exec {pressure.STANDS_BY} {want} {gate}")
    job.wait_output("there")
    return job


def took(vm: Machine, want: str, job: Job) -> float | None:
    """Return the seconds until a bystander had what it wanted; None when it was killed, or got nothing."""
    if not job.ended:
        pressure.go(vm, want)
        job.wait()
    seconds = float(job.out.partition("took ")[2] or GAVE_UP)
    return seconds if seconds < GAVE_UP else None


def how_it_ended(vm: Machine, hog: Job) -> str:
    if not hog.ended:
        return REFUSED if "refused 12" in hog.out else "goes on"
    grep = f"journalctl --sync && journalctl --dmesg --quiet --grep 'Out of memory: Killed process {hog.pid} '"
    return OOM_KILLED if vm.run(grep).status == 0 else KILLED


def in_guest(rounds: int) -> dict[str, Any]:
    """Return the rows of the tables without swap and with it, and what watching costs there."""
    with installed() as image, Machine(image) as vm:
        host = Host(vm)
        prepare(host)
        cores = watching.in_guest(host, OURS, EARLYOOM, OOMD)
        with ballast(host, host.meminfo()["MemTotal"] * AT_REST // 100):
            cores[watching.OFTEN] = watching.in_guest(host, OURS)[OURS]
        vm.check(f"systemctl stop {UNIT}")
        keep_out_oomd(host)
        with ballast(host, LEFT):
            dry = rounds_of(host, rounds)
            vm.check(f"mkswap -q {SWAP} {SWAP_KIB} && swapon {SWAP}")
            swapping = rounds_of(host, rounds)
        versions = vm.check(
            ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", EARLYOOM, OOMD]
        ).splitlines()
    return {"versions": versions, "rows": summary(dry), "with_swap": summary(swapping), "guest": cores}


def prepare(host: Host) -> None:
    """Install what is compared, none of it running; huge pages go."""
    vm = host.vm
    pressure.install(vm)
    vm.check("for each in /sys/kernel/mm/hugepages/*/nr_hugepages; do echo 0 > $each; done")
    peers.install(vm, EARLYOOM, OOMD)
    vm.check(f"systemctl stop '{EARLYOOM}.*' '{OOMD}.*'")
    vm.write(f"/etc/systemd/system/{SLICE}.d/oomd.conf", TO_OOMD)
    vm.check("systemctl daemon-reload")


@contextmanager
def ballast(host: Host, left: int) -> Iterator[None]:
    """Something that nobody may kill, and that does not go to swap, has all memory but so many bytes."""
    held = host.vm.spawn([*BALLAST, str((host.meminfo()["MemAvailable"] - left) >> 20)])
    held.wait_output("held")
    yield
    host.vm.check("systemctl stop ballast")
    held.wait()


def rounds_of(host: Host, rounds: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SUBJECTS}
    for number in range(rounds):
        for name, running in SUBJECTS.items():
            with running(host) as threshold:
                row = taken(host, threshold)
            found[name].append(row)
            sys.stderr.write(f"benchmark: round {number + 1}, {name}: {row}\n")
    return found


def summary(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return a row of the table for each."""
    return {
        name: {
            "rounds": len(found),
            "threshold": found[0]["threshold"],
            "acted_median": statistics.median(row["acted"] for row in found),
            "acted_worst": min(row["acted"] for row in found),
            "least": min(row["least"] for row in found),
            "pause": max(row["pause"] for row in found),
            "ended": counted([row["ended"] for row in found]),
            "neighbour": counted([row["neighbour"] for row in found]),
            "bystanders": {want: worst([row["bystanders"][want] for row in found]) for want in WANTS},
        }
        for name, found in rounds.items()
    }


def counted(words: Sequence[str]) -> str:
    """Return what was so in all rounds, or how often each was."""
    several = sorted(set(words), key=words.count, reverse=True)
    return several[0] if len(several) == 1 else ", ".join(f"{words.count(word)} x {word}" for word in several)


def worst(times: Sequence[float | None]) -> dict[str, float | int | None]:
    """Return the longest time, and in how many rounds there was none."""
    got = [time for time in times if time is not None]
    return {"worst": max(got, default=None), "nothing": len(times) - len(got)}


def main() -> int:
    """The exit status: 0 when the guard lets every program live, harms nobody, and costs what it may."""
    parser = argparse.ArgumentParser(prog="benchmarks.guard", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="programs for each (default: 5)")
    found = in_guest(parser.parse_args().rounds)
    prices = watching.rows(watching.on_host(EARLYOOM), found.pop("guest"))
    load = os.getloadavg()[2]  # of the last 15 minutes
    results = {"date": f"{datetime.date.today()}", "load": load, **found, "watching": prices}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(document(json.loads(LATEST.read_text())))
    ours = [found[scene][OURS] for scene in ("rows", "with_swap")]
    harms = any(
        row["ended"] != REFUSED or any(asked["nothing"] for asked in row["bystanders"].values()) for row in ours
    )
    return int(harms or not watching.is_cheap(prices))


if __name__ == "__main__":
    sys.exit(main())
