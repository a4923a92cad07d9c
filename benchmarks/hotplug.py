"""A plugged NVMe drive's way to its scheduler, in a virtual machine: kerntuned, beside a udev rule and TuneD.

`python -m benchmarks.hotplug [--plugs N]` writes benchmarks/results/hotplug.json and docs/benchmarks.md. One after the
other has the same guest to itself; the time runs from the drive's folder in sysfs to the value, both seen by a look
every half millisecond inside the guest. Under emulation only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from tests.system.host import UNIT, Host
from tests.system.image.installed import installed
from tests.system.machine import Machine

from benchmarks import peers
from benchmarks.run import PLUGS as RESULTS
from benchmarks.run import RESULTS as LATEST
from benchmarks.run import TABLE, document

DEVICE, WANTED = "nvme0n1", "mq-deadline"
RULE: Final = "/etc/udev/rules.d/60-scheduler.rules"
RULE_TEXT: Final = (
    f'ACTION=="add|change", SUBSYSTEM=="block", ENV{{DEVTYPE}}=="disk", KERNEL=="nvme*", '
    f'ATTR{{queue/scheduler}}="{WANTED}"\n'
)
PROFILES: Final = ("/etc/tuned", "/etc/tuned/profiles")  # where TuneD 2.20 has them, and 2.25
MOST: Final = 1.2  # times the udev rule's median

# Prints milliseconds.
WATCH: Final = """\
import os, sys, time
folder, wished = sys.argv[1], sys.argv[2]
print("watching", flush=True)
while not os.path.exists(folder):
    time.sleep(0.0005)
came = time.perf_counter()
while True:
    try:
        with open(folder + "/queue/scheduler") as file:
            if wished in file.read():
                break
    except OSError:
        pass
    time.sleep(0.0005)
print((time.perf_counter() - came) * 1000)
"""


@contextmanager
def udev_rule(host: Host) -> Iterator[None]:
    host.vm.check(["systemctl", "stop", UNIT])
    host.vm.write(RULE, RULE_TEXT)
    host.vm.check("udevadm control --reload")
    yield
    host.vm.check(f"rm {RULE}; udevadm control --reload; systemctl start {UNIT}")


@contextmanager
def kerntuned(host: Host) -> Iterator[None]:
    host.set(("io-scheduler", "nvme*", WANTED))
    yield
    host.release()


@contextmanager
def tuned(host: Host) -> Iterator[None]:
    """Its disk plugin, with one profile that sets nothing else."""
    vm = host.vm
    vm.check(["systemctl", "stop", UNIT])
    if vm.run("dpkg-query -W tuned").status:
        peers.install(vm, "tuned")
        for folder in PROFILES:
            vm.write(f"{folder}/bench/tuned.conf", f"[disk]\ntype=disk\nelevator={WANTED}\n")
    vm.check("systemctl start tuned && tuned-adm profile bench && systemctl is-active --quiet tuned")
    yield
    vm.check(f"systemctl stop tuned; systemctl start {UNIT}")


Subject = Callable[[Host], AbstractContextManager[None]]
SUBJECTS: Final[Mapping[str, Subject]] = {"udev rule": udev_rule, "kerntuned": kerntuned, "TuneD": tuned}


def plug(vm: Machine) -> float:
    """Milliseconds from the drive to its scheduler."""
    watching = vm.spawn(["python3", "-c", WATCH, f"/sys/block/{DEVICE}", f"[{WANTED}]"])
    watching.wait_output("watching")
    vm.nvme_add("plugged")
    took = watching.wait(60)
    vm.check("udevadm settle")
    vm.nvme_del("plugged")
    vm.wait_for(f"[ ! -e /sys/block/{DEVICE} ]")
    return float(took.out.split()[1])


def measure(plugs: int) -> dict[str, list[float]]:
    """Milliseconds of each plug; the subjects take turns, ten plugs at a time."""
    times: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    with installed() as image, Machine(image) as vm:
        host = Host(vm)
        while len(times["kerntuned"]) < plugs:
            for name, running in SUBJECTS.items():
                with running(host):
                    plug(vm)  # the first finds nothing in the cache
                    times[name] += [plug(vm) for _ in range(10)]
    return times


def main() -> int:
    """The exit status: 0 when the target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugs", type=int, default=50, help="plugs of each (default: 50)")
    times = measure(parser.parse_args().plugs)
    floor = statistics.median(times["udev rule"])
    rows = {
        name: {"plugs": len(values), "median_ms": statistics.median(values), "worst_ms": max(values)}
        for name, values in times.items()
    }
    for name, row in rows.items():
        ratio = row["median_ms"] / floor
        sys.stdout.write(f"{name:10} {row['median_ms']:7.1f} ms, worst {row['worst_ms']:7.1f} ms, ratio {ratio:.2f}\n")
    RESULTS.write_text(json.dumps({"date": f"{datetime.date.today()}", "rows": rows, "times_ms": times}) + "\n")
    TABLE.write_text(document(json.loads(LATEST.read_text())))
    return int(rows["kerntuned"]["median_ms"] > MOST * floor)


if __name__ == "__main__":
    sys.exit(main())
