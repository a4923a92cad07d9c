"""Records what memory does in the guest: `python -m tests.system.record FOLDER [NAME...]`, all traces without a name.

The files are replayed by tests/unit/guard/test_recorded_traces.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kerntune.kernel.memory import Watermarks, watermarks_of
from tests.system import pressure
from tests.system.image.installed import installed
from tests.system.machine import Machine
from tests.system.shell import Job

SWAP: Final = "/dev/vdb"
PATIENCE: Final = 120.0  # seconds that a program may take to begin, or to end
# The figures every 25 ms until a line is read, ahead of all others, for memory is short meanwhile.
RECORD: Final = """
import ctypes, json, os, select, sys, time
ctypes.CDLL(None).mlockall(3)
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
KEPT = ("MemTotal", "MemFree", "MemAvailable", "SwapCached", "Active(file)", "Inactive(file)", "SwapTotal", "SwapFree",
        "KReclaimable", "CommitLimit", "Committed_AS", "Hugetlb")
VM = "/proc/sys/vm/overcommit_"
files = [os.open(path, os.O_RDONLY) for path in
         ("/proc/meminfo", "/proc/pressure/memory", VM + "memory", VM + "ratio", VM + "kbytes")]
rows, began, due = [], time.monotonic(), time.monotonic()
print("recording", flush=True)
while len(rows) < 1200 and not select.select([0], [], [], max(0, due - time.monotonic()))[0]:
    due = max(due + 0.025, time.monotonic())
    now = time.monotonic() - began
    meminfo, stalled, *vm = (os.pread(file, 8192, 0).decode() for file in files)
    info = dict(line.split()[:2] for line in meminfo.splitlines())
    rows.append([round(now * 1000), *(int(info[name + ":"]) for name in KEPT), *map(int, vm),
                 int(stalled.split("total=")[1].split()[0])])
print(json.dumps([["ms", *KEPT, "mode", "ratio", "kbytes", "stalled"], rows]))
"""
# Reads a file that is larger than what the page cache can hold, part after part, and one that is mapped as models are;
# most of each part is dropped again. All of both is a hole: the pages are cached as others are, and come from no disk.
READS: Final = """
import mmap, os

def hole(mib):
    file = os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE)
    os.truncate(file, mib << 20)
    return file

def read(begin, mib):
    for number in range(begin, begin + mib):
        os.preadv(large, [buffer], number << 20)

large, model, buffer = hole(3000), mmap.mmap(hole(400), 0, prot=mmap.PROT_READ), bytearray(1 << 20)
read(0, 3000)
print("begun", flush=True)
while True:
    for begin in range(0, 3000, 600):
        sum(model[::4096])
        read(begin, 600)
        os.posix_fadvise(large, begin << 20, 400 << 20, os.POSIX_FADV_DONTNEED)
"""
# Forks one worker and two in turn; each writes to 4 MiB of what it has from its parent, and ends. What it took to begin
# is free again some seconds later.
FORKS: Final = """
import itertools, os, time
own = bytearray(os.urandom(4096) * (200 << 8))
for round in itertools.count():
    if round == 15:
        print("begun", flush=True)
    for workers in (1, 2):
        for number in range(workers):
            if not os.fork():
                own[number << 22 : number + 1 << 22 : 4096] = bytes(1024)
                time.sleep(0.1)
                os._exit(0)
            time.sleep(0.05)
        for _ in range(workers):
            os.wait()
        time.sleep(0.1)
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """What goes on in a guest of which something else leaves so many MiB.

    A program of Python that is there all the while and says when it has begun, one that takes all it gets until the OOM
    killer strikes, and some seconds more.
    """

    what: str
    left: int = 900
    program: str = ""
    hog: bool = False
    swap: bool = False
    seconds: int = 3


SCENES: Final = {
    "rest": Scene("At rest"),
    "hog": Scene("A program takes all it gets, until the OOM killer strikes", hog=True),
    "hog-swap": Scene("A program takes all it gets, with swap, until the OOM killer strikes", hog=True, swap=True),
    "fork-storm": Scene("A program of 200 MiB forks again and again", 950, FORKS, seconds=10),
    "page-cache": Scene("Files larger than the page cache are read again and again", 2600, READS, seconds=20),
}


def record(vm: Machine, scene: Scene) -> str:
    """Return the text of one trace: the figures that never change, then a line for each look."""
    with ExitStack() as last:
        if scene.swap:
            vm.check(f"mkswap -q {SWAP} && swapon {SWAP}")
            last.callback(vm.check, f"swapoff {SWAP}")
        available = int(vm.check("awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo"))
        begun(pressure.take(vm, str(available - scene.left)), "held", last)
        if scene.program:
            begun(vm.spawn(["python3", "-c", scene.program]), "begun", last)
        return trace(scene, watermarks_of(vm.read("/proc/zoneinfo")), *looks(vm, scene))


def begun(job: Job, word: str, last: ExitStack) -> None:
    """Wait until the program says that it has begun; kill it afterwards."""
    last.callback(job.wait)
    last.callback(job.kill, 9)
    job.wait_output(word, PATIENCE)


def looks(vm: Machine, scene: Scene) -> tuple[list[str], list[list[int]]]:
    """Return the names of the figures, and the figures of each look."""
    # The agent feeds all of its input at once: it ends when the writer of this pipe does.
    vm.check("rm -f /run/enough; mkfifo /run/enough")
    recorder = vm.spawn(["sh", "-c", 'exec python3 -c "$0" <> /run/enough', RECORD])
    recorder.wait_output("recording")
    if scene.hog:
        taking = pressure.take(vm, "all", user="alice")
        assert taking.wait(PATIENCE).status == -9, "the OOM killer ends it"
    # Opened to read too, it does not wait for a recorder that has ended by itself.
    vm.check(f"sleep {scene.seconds}; echo 1<> /run/enough")
    names, rows = json.loads(recorder.wait().out.partition("\n")[2])
    return names, rows


def trace(scene: Scene, watermarks: Watermarks, names: list[str], rows: list[list[int]]) -> str:
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    fixed = {name: figures[0] for name, figures in columns.items() if name != "ms" and len(set(figures)) == 1}
    moving = [name for name in names if name not in fixed]
    fixed |= {"reserve": watermarks.reserve >> 10, "low": watermarks.low >> 10}
    title = f"# {scene.what}, in a guest of 6 GiB of which {scene.left} MiB were left; kB, stalled in us"
    lines = [title, *(f"{name} = {figure}" for name, figure in fixed.items())]
    table = zip(*(columns[name] for name in moving), strict=True)
    return "\n".join([*lines, " ".join(moving), *(" ".join(map(str, row)) for row in table), ""])


def main(folder: Path, names: Sequence[str]) -> None:
    with installed() as image, Machine(image) as vm:
        pressure.install(vm)
        vm.check(f"echo 1 > {pressure.MODE}")
        for name in names:
            text = record(vm, SCENES[name])
            (folder / f"{name}.txt").write_text(text)
            sys.stdout.write(f"{name}: {text.count(chr(10))} lines\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENES))
