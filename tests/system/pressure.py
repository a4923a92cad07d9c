"""Has programs that take memory until somebody stops them; they run in the guest with its own Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tests.system.machine import Machine
from tests.system.qmp import MachineError
from tests.system.shell import Job

PLACE: Final = "/usr/local/bin/take"
STANDS_BY: Final = "/usr/local/bin/stand-by"
MODE: Final = "/proc/sys/vm/overcommit_memory"
GATE: Final = "/run/bystander"
ROOM: Final = 5.0  # seconds until there is room again, under emulation
PAUSE: Final = 0.25  # seconds between two tries
# take MIB: so much at once and held. take all [MIB]: it reserves addresses as CUDA does, and takes memory in steps
# until the kernel refuses; then it tells and holds. take large [SECONDS]: the same, and it goes on asking for so long
# then, 10 s. take again [SECONDS]: that too, as the small program that it is. take late MIB: mapped at once, and used
# step by step when a line is read, until no more MiB are left than that says; where there is none, to its end. No page
# is all zeros: of large pages the kernel takes such back when memory is short (Linux 6.12, shrink_underused in
# Documentation/admin-guide/mm/transhuge.rst).
# The OOM killer spares what the agent starts, as it spares the agent; of these it spares only what is just held, which
# is in huge pages where that can be: they are there four times as fast.
PROGRAM: Final = """#!/usr/bin/python3
import ctypes, mmap, sys, time
STEP = int(sys.argv[2]) if sys.argv[1:2] == ["all"] and sys.argv[2:] else 8
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
POPULATE = 0x8000
MADV_POPULATE_WRITE = 23
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

def fill(memory):
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 1, len(memory))

if not sys.argv[1].isdigit():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
if sys.argv[1] == "late":
    size = int(sys.argv[2]) << 20
    memory = mmap.mmap(-1, size, flags=FLAGS)
    say("mapped")
    until = int(sys.stdin.readline() or -1)
    for start in range(0, size, 4096):
        memory[start] = 1
        if start % (STEP << 20) == 0 and left() <= until:
            break
    say("used", start >> 20)
    time.sleep(600)
if sys.argv[1].isdigit():
    held.append(mmap.mmap(-1, int(sys.argv[1]) << 20, flags=FLAGS))
    held[0].madvise(mmap.MADV_HUGEPAGE)
    held[0].madvise(MADV_POPULATE_WRITE)
    fill(held[0])
    say("held")
    time.sleep(3600)
if sys.argv[1] in ("all", "large"):
    reserved = mmap.mmap(-1, 64 << 30, flags=FLAGS, prot=0)
refused = 0
deadline = time.monotonic() + 55
while time.monotonic() < deadline:
    try:
        held.append(mmap.mmap(-1, STEP << 20, flags=FLAGS | POPULATE))
        fill(held[-1])
    except OSError as error:
        refused += 1
        if refused == 1:
            say("refused", error.errno)
            deadline = time.monotonic() + (int(sys.argv[2]) if sys.argv[2:] else 10)
        if sys.argv[1] == "all":
            break
        time.sleep(0.02)
    left()
say("lowest", lowest)
time.sleep(3600)
"""
# A program from before the cap. When GATE is written to it asks for one thing until it gets it, and tells how many
# seconds that took. cuda: 64 MiB, after it has reserved addresses as CUDA does. fork: it has 48 MiB. shm: 32 MiB.
BYSTANDER: Final = """#!/usr/bin/python3
import mmap, os, sys, time
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
reserved = mmap.mmap(-1, 64 << 30, flags=FLAGS, prot=0) if sys.argv[1] == "cuda" else None
own = os.urandom(4096) * (48 << 8) if sys.argv[1] == "fork" else b""
SHM = "/dev/shm/bystander"

def cuda():
    return mmap.mmap(-1, 64 << 20, flags=FLAGS)

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

def shm():
    with open(SHM, "wb", buffering=0) as file:
        while file.tell() < 32 << 20:
            file.write(bytes(1 << 20))

print("there", flush=True)
open(sys.argv[2]).read()
begin = time.monotonic()
while time.monotonic() < begin + 20:
    try:
        globals()[sys.argv[1]]()
        break
    except OSError:
        time.sleep(0.05)
print("took", round(time.monotonic() - begin, 2), flush=True)
if os.path.exists(SHM):
    os.unlink(SHM)
"""
# A program of 300 MiB, which forks when GATE is written to.
PARENT: Final = f"""
import os
own = os.urandom(4096) * (300 << 8)
print("there", flush=True)
open("{GATE}-parent").read()
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
print("forked", flush=True)
"""
# Says when the mode of overcommit changes, and for how long it was the one before; ahead of all others, for memory is
# short meanwhile.
WATCH: Final = f"""
import ctypes, os, sys, time
ctypes.CDLL(None).mlockall(3)
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
file = os.open("{MODE}", os.O_RDONLY)
mode, since = os.pread(file, 8, 0), time.monotonic()
print("watching", flush=True)
while True:
    time.sleep(0.01)
    seen, now = os.pread(file, 8, 0), time.monotonic()
    if seen != mode:
        print(mode.decode().strip(), round(now - since, 3), flush=True)
        mode, since = seen, now
"""


def install(vm: Machine) -> None:
    vm.write(PLACE, PROGRAM, mode="755")
    vm.write(STANDS_BY, BYSTANDER, mode="755")


def soon(work: Callable[[], object], limit: float = ROOM) -> None:
    """Repeat some work until the kernel lets it succeed."""
    deadline = time.monotonic() + limit
    while True:
        try:
            work()
        except MachineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return


def take(vm: Machine, *words: str, user: str = "root", data: str = "") -> Job:
    """Start the program `take`."""
    return vm.spawn([PLACE, *words], user=user, data=data)


def bystander(vm: Machine, want: str) -> Job:
    """Start a program that asks for memory when `go` says so."""
    return _standing_by(vm, [STANDS_BY, want, gate(want)], want)


def parent(vm: Machine) -> Job:
    """Start a program that forks when `go` says so."""
    return _standing_by(vm, ["python3", "-c", PARENT], "parent")


def gate(who: str) -> str:
    """Return the path of the FIFO at which a program waits."""
    return f"{GATE}-{who}"


def _standing_by(vm: Machine, argv: list[str], who: str) -> Job:
    vm.check(f"rm -f {gate(who)} && mkfifo {gate(who)}")
    job = vm.spawn(argv)
    job.wait_output("there")
    return job


def go(vm: Machine, who: str) -> None:
    """Let a program that stands by begin."""
    vm.check(f"echo > {gate(who)}")


def took(job: Job) -> float:
    """Return the seconds until a bystander had what it wanted."""
    job.wait_output("took ")
    return float(job.out.partition("took ")[2].split()[0])


def lowest(job: Job) -> int:
    """Return the least headroom that the program saw, in bytes."""
    job.wait_output("lowest ")
    return int(job.out.rpartition("lowest ")[2].split()[0]) << 20


def watch_mode(vm: Machine) -> Job:
    """Start a job that prints each mode that ends, and the seconds for which it was in force."""
    job = vm.spawn(["python3", "-c", WATCH])
    job.wait_output("watching")
    return job


def modes(job: Job) -> list[tuple[int, float]]:
    """Return the modes that have ended so far, and the seconds for which each was in force."""
    rows = (line.split() for line in job.out.splitlines()[1:])
    return [(int(mode), float(seconds)) for mode, seconds in rows]
