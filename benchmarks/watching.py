"""What it costs to watch memory at rest: percent of a core, on this host and in the guest.

On this host nothing is set and nobody is killed: kerntuned finds files of its own in place of the kernel's overcommit
settings, and earlyoom only says what it would do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.harness.daemon import Daemon
from tests.system.host import Host

from benchmarks import peers
from benchmarks.lab import INSTALLED, LIMIT, Lab
from benchmarks.process import cpu_seconds, wakeups
from kerntune.guard.policy import FASTEST, MIB, PER_CPU, SHORTEST
from kerntune.kernel.memory import parse_meminfo

SECONDS: Final = 60.0
TRIES: Final = 5
SETTLES: Final = 3.0  # seconds after a start
SETTLES_IN_GUEST: Final = 15.0  # emulated
OURS: Final = "kerntuned"
OFTEN: Final = "kerntuned, just above where it caps"
# Percent of a core: where it looks once a second, and where it looks as often as it ever does.
MOST_A_LOOK, MOST = 0.1, 0.5
VALUES: Final = {"memory": 1, "ratio": 95, "kbytes": 0}
# In a mount namespace of its own.
APART: Final = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
    'for file in "$0"/*; do mount --bind "$file" "/proc/sys/vm/${file##*/}"; done; exec "$@"',
)
# For the shell: nanoseconds that all threads of a service have run.
SPENT: Final = "cat /proc/$(systemctl show --value --property=MainPID {service})/task/*/schedstat"


class NotAtRest(RuntimeError):
    """The guard capped, so what was measured is not the price of watching."""


def on_host(peer: str) -> dict[str, tuple[float, float]]:
    """Return percent of a core and wake-ups a second of kerntuned and a peer at once, then of kerntuned as it looks as
    often as it ever does.
    """
    with ExitStack() as stack:
        lab = Lab(stack, None)
        words = [str(peers.unpacked(peer) / "usr/bin" / peer), "--dryrun"]
        other = stack.enter_context(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(other.kill)
        with guarded(lab, 95) as daemon:
            found = spent({OURS: daemon.pid, peer: other.pid})
        tries = 1
        while True:
            try:
                return found | {OFTEN: looking_often(lab)}
            except NotAtRest:
                if tries == TRIES:
                    raise
                tries += 1


def looking_often(lab: Lab) -> tuple[float, float]:
    """Return the price so little above the threshold that it looks at the shortest interval."""
    # Also when somebody takes or gives half of it.
    above = SHORTEST * min(FASTEST, PER_CPU * (os.cpu_count() or 1))
    info = parse_meminfo(Path("/proc/meminfo").read_text())
    total = info["MemTotal"]
    threshold = info["MemAvailable"] - int(above)
    ratio = 101 - threshold * 100 // total
    with guarded(lab, ratio, band=(threshold - total * (100 - ratio) // 100) // MIB) as daemon:
        return spent({OFTEN: daemon.pid})[OFTEN]


def in_guest(host: Host, *services: str) -> dict[str, float]:
    """Return percent of a core of the guest for each, all at once, kerntuned being the first."""
    vm = host.vm
    vm.check(f"systemctl start {' '.join(services)}")
    host.set(("overcommit", "", "always:95"))
    vm.wait_for(f"[ $SECONDS -ge {SETTLES_IN_GUEST:.0f} ]")
    before = {service: seconds_in(host, service) for service in services}
    vm.wait_for(f"[ $SECONDS -ge {SECONDS:.0f} ]", 2 * SECONDS)
    found = {service: 100 * (seconds_in(host, service) - before[service]) / SECONDS for service in services}
    host.release()
    for service in services[1:]:
        vm.check(f"systemctl stop '{service}.*'")
    return found


def rows(here: Mapping[str, tuple[float, float]], guest: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """Return a row of the table for each; None where it was not measured, or has no target."""
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys([OURS, OFTEN, *here, *guest]):
        core, looks = here.get(name, (None, None))
        found[name] = {
            "core": core,
            "looks": looks,
            "each": core / looks if core is not None and looks else None,
            "guest": guest.get(name),
            "most_each": MOST_A_LOOK if name == OURS else None,
            "most_core": MOST if name == OFTEN else None,
        }
    return found


def is_cheap(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it costs no more than it may."""
    return bool(found[OURS]["each"] <= MOST_A_LOOK and found[OFTEN]["core"] <= MOST)


@contextmanager
def guarded(lab: Lab, ratio: int, *, band: int = 0) -> Iterator[Daemon]:
    """kerntuned, watching under `always` with this ratio; NotAtRest when it did more than that."""
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kerntune-bench-")))
        for name, value in VALUES.items():
            (files / f"overcommit_{name}").write_text(f"{value}\n")
        daemon = Daemon(lab.bus, program=(*APART, str(files), *INSTALLED), env=lab.env, limit=LIMIT)
        (daemon.config / "kerntune.toml").write_text(f"[guard]\nband = {band}\n")
        stack.enter_context(daemon)
        asking("set", f"overcommit=always:{ratio}", bus=lab.bus.address)
        time.sleep(SETTLES)
        yield daemon
        mode = (files / "overcommit_memory").read_text().strip()
        if mode != "1":
            raise NotAtRest(f"something else took memory meanwhile: the guard has written mode {mode}")


def asking(*words: str, bus: str) -> None:
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus}
    subprocess.run([sys.executable, "-m", "kerntune.cli", *words], env=environment, check=True, timeout=LIMIT)


def spent(pids: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Return percent of a core and wake-ups a second of each, over the same time."""
    before = {name: (cpu_seconds(pid), wakeups(pid)) for name, pid in pids.items()}
    time.sleep(SECONDS)
    after = {name: (cpu_seconds(pid), wakeups(pid)) for name, pid in pids.items()}
    return {
        name: (100 * (after[name][0] - before[name][0]) / SECONDS, (after[name][1] - before[name][1]) / SECONDS)
        for name in pids
    }


def seconds_in(host: Host, service: str) -> float:
    return seconds(host.vm.check(SPENT.format(service=service)).splitlines())


def seconds(schedstat: Iterable[str]) -> float:
    return sum(int(line.split()[0]) for line in schedstat) / 1e9
