#!/usr/bin/python3
"""Block devices by the dozen, named like NVMe drives, as fast as the kernel makes them (null_blk by configfs).

nvme-storm add NUMBER     nvme100n1 and so on
nvme-storm del NUMBER
nvme-storm churn NUMBER SECONDS     adds and removes them all the time, and prints how many came
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("/sys/kernel/config/nullb")
FIRST = 100


def add(name: str) -> None:
    device = ROOT / name
    device.mkdir()
    for attribute, value in (("size", "16"), ("submit_queues", "1"), ("power", "1")):
        (device / attribute).write_text(value)


def churn(names: list[str], seconds: float) -> int:
    came = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in names:
            add(name)
        for name in names:
            (ROOT / name).rmdir()
        came += len(names)
    return came


def main() -> None:
    what, number, *rest = sys.argv[1:]
    names = [f"nvme{FIRST + count}n1" for count in range(int(number))]
    if not ROOT.is_dir():
        subprocess.run(["modprobe", "null_blk", "nr_devices=0"], check=True)
    if what == "churn":
        sys.stdout.write(f"{churn(names, float(rest[0]))}\n")
        return
    for name in names:
        if what == "add":
            add(name)
        else:
            (ROOT / name).rmdir()


main()
