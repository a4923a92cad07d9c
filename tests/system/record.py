"""Records what memory does in the guest while a program takes all it gets: `python -m tests.system.record FOLDER`.

The files are replayed by tests/unit/guard/test_recorded_traces.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from kerntune.kernel.memory import watermarks_of
from tests.system import pressure
from tests.system.image.installed import installed
from tests.system.machine import Machine

LEFT: Final = 900  # MiB beside the ballast
SWAP: Final = "/dev/vdb"
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


def record(vm: Machine, what: str, *, swap: bool, hog: bool) -> str:
    """The text of one trace: the figures that never change first, then a line for each look."""
    if swap:
        vm.check(f"mkswap -q {SWAP} && swapon {SWAP}")
    watermarks = watermarks_of(vm.read("/proc/zoneinfo"))
    # The agent feeds all of its input at once: it ends when the writer of this pipe does.
    vm.check("rm -f /run/enough; mkfifo /run/enough")
    recorder = vm.spawn(["sh", "-c", 'exec python3 -c "$0" <> /run/enough', RECORD])
    recorder.wait_output("recording")
    if hog:
        taking = pressure.take(vm, "all", user="alice")
        assert taking.wait(120).status == -9, "the OOM killer ends it"
    vm.check("sleep 3; echo > /run/enough")
    names, rows = json.loads(recorder.wait().out.partition("\n")[2])
    if swap:
        vm.check(f"swapoff {SWAP}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    fixed = {name: figures[0] for name, figures in columns.items() if name != "ms" and len(set(figures)) == 1}
    moving = [name for name in names if name not in fixed]
    fixed |= {"reserve": watermarks.reserve >> 10, "low": watermarks.low >> 10}
    lines = [f"# {what}; kB, stalled in us", *(f"{name} = {figure}" for name, figure in fixed.items())]
    table = zip(*(columns[name] for name in moving), strict=True)
    return "\n".join([*lines, " ".join(moving), *(" ".join(map(str, row)) for row in table), ""])


def main(folder: Path) -> None:
    with installed() as image, Machine(image) as vm:
        pressure.install(vm)
        vm.check(f"echo 1 > {pressure.MODE}")
        available = int(vm.check("awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo"))
        ballast = pressure.take(vm, str(available - LEFT))
        ballast.wait_output("held")
        guest = "in a guest of 6 GiB of which 900 MiB are left"
        traces = {
            "rest": record(vm, f"At rest {guest}", swap=False, hog=False),
            "hog": record(
                vm, f"A program takes all it gets {guest}, until the OOM killer strikes", swap=False, hog=True
            ),
            "hog-swap": record(
                vm, f"A program takes all it gets {guest}, with swap, until the OOM killer strikes", swap=True, hog=True
            ),
        }
    for name, text in traces.items():
        (folder / f"{name}.txt").write_text(text)
        sys.stdout.write(f"{name}: {text.count(chr(10))} lines\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
