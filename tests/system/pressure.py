"""Programs that take memory in the guest until somebody stops them; they run there with the guest's own Python."""

from __future__ import annotations

from typing import Final

from tests.system.machine import Machine
from tests.system.shell import Job

PLACE: Final = "/usr/local/bin/take"
# take MIB: so much at once and held. take all [MIB]: in steps, until the kernel refuses; then it tells and holds.
# take again: the same, and it goes on asking. take late MIB: mapped at once, used step by step when a line is read.
# The OOM killer spares what the agent starts, as it spares the agent; of these it spares only what is just held.
PROGRAM: Final = """#!/usr/bin/python3
import mmap, sys, time
STEP = int(sys.argv[2]) if sys.argv[1:2] == ["all"] and sys.argv[2:] else 8
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
POPULATE = 0x8000
held, lowest = [], 1 << 40

def left():
    global lowest
    with open("/proc/meminfo") as file:
        rows = dict(line.split()[:2] for line in file)
    now = sum(int(rows[name]) for name in ("MemAvailable:", "SwapFree:", "SwapCached:")) // 1024
    lowest = min(lowest, now)
    return now

def say(*words):
    print(*words, flush=True)

if not sys.argv[1].isdigit():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
if sys.argv[1] == "late":
    size = int(sys.argv[2]) << 20
    memory = mmap.mmap(-1, size, flags=FLAGS)
    say("mapped")
    until = int(sys.stdin.readline())
    for start in range(0, size, 4096):
        memory[start] = 1
        if start % (STEP << 20) == 0 and left() <= until:
            break
    say("used", start >> 20)
    time.sleep(600)
if sys.argv[1].isdigit():
    held.append(mmap.mmap(-1, int(sys.argv[1]) << 20, flags=FLAGS | POPULATE))
    say("held")
    time.sleep(3600)
refused = 0
deadline = time.monotonic() + (20 if sys.argv[1] == "again" else 55)
while time.monotonic() < deadline:
    try:
        held.append(mmap.mmap(-1, STEP << 20, flags=FLAGS | POPULATE))
    except OSError as error:
        refused += 1
        if refused == 1:
            say("refused", error.errno)
        if sys.argv[1] == "all":
            break
        time.sleep(0.02)
    left()
say("lowest", lowest)
time.sleep(3600)
"""


def install(vm: Machine) -> None:
    vm.write(PLACE, PROGRAM, mode="755")


def take(vm: Machine, *words: str, user: str = "root", data: str = "") -> Job:
    """Start one of them."""
    return vm.spawn([PLACE, *words], user=user, data=data)


def lowest(job: Job) -> int:
    """The least headroom that the program saw, in bytes."""
    job.wait_output("lowest ")
    return int(job.out.rpartition("lowest ")[2].split()[0]) << 20
