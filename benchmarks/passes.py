"""A pass over many simulated CPU policies, beside as many bare writes through the same kernel in the same process."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kerntune.engine.claims import PassInput
from kerntune.engine.hung import Crew
from kerntune.engine.passes import PassRunner
from kerntune.kernel.files import HostKernel, Kernel
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Baseline, Claim, Limits, Origin, State
from kerntune.tunables.knobs import CPU_GOVERNOR
from kerntune.tunables.scopes import POLICIES

COUNT: Final = 512
GOVERNORS: Final = ("performance", "powersave")
READ: Final = ("related_cpus", "scaling_governor", "scaling_governor")
TMPFS: Final = Path("/dev/shm")
# Seconds that a policy which leaves schedutil waits in its write for an RCU grace period (sugov_stop in
# kernel/sched/cpufreq_schedutil.c); in the virtual machine of the tests it was 18 to 23 ms.
GRACE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds for all policies: a pass that changes them, one that finds them satisfied, the bare system calls.

    `reads` are those of one pass: the CPUs of each policy, its governor and what it offers, the last two again after
    the write.
    """

    changing: float
    satisfied: float
    writes: float
    reads: float


def in_memory(grace: float = 0.0) -> SimulatedKernel:
    """A host with so many policies, each CPU its own; each write waits so many seconds."""
    kernel = SimulatedKernel([Node(8 << 30)])
    if grace:
        kernel.before_write = lambda _path, _text: time.sleep(grace)
    kernel.policies = {f"policy{cpu}": Policy((cpu,), offered=GOVERNORS) for cpu in range(COUNT)}
    return kernel


@contextmanager
def on_tmpfs() -> Iterator[Kernel]:
    """The same as files, read and written with system calls."""
    folder = Path(tempfile.mkdtemp(prefix="kerntune-bench-", dir=TMPFS if TMPFS.is_dir() else None))
    try:
        for cpu in range(COUNT):
            policy = folder / POLICIES / f"policy{cpu}"
            policy.mkdir(parents=True)
            (policy / "scaling_governor").write_text("powersave\n")
            (policy / "scaling_available_governors").write_text(" ".join(GOVERNORS))
            (policy / "related_cpus").write_text(str(cpu))
        (folder / "proc").mkdir()
        (folder / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 8388608 kB\n")
        yield HostKernel(folder)
    finally:
        shutil.rmtree(folder)


def measure(kernel: Kernel) -> Times:
    """One round."""
    runner = worker_on(kernel)
    with closing(runner.threads):
        # The threads exist and the files are cached before anything is timed.
        run(runner, GOVERNORS[0])
        changing = timed(lambda: run(runner, GOVERNORS[1]))
        satisfied = timed(lambda: run(runner, GOVERNORS[1]))
    return Times(changing, satisfied, timed(lambda: write_all(kernel, GOVERNORS[0])), timed(lambda: read_all(kernel)))


def worker_on(kernel: Kernel) -> PassRunner:
    """The cpu lane without a daemon around it; baselines are kept nowhere."""

    def keep(_baselines: Sequence[Baseline]) -> None:
        """No crash to prepare for."""

    return PassRunner(kernel, (CPU_GOVERNOR,), Limits(), Crew(32, "bench"), keep)


def run(runner: PassRunner, governor: str) -> None:
    """A pass for one claim on every policy; AssertionError when it did not reach them all."""
    claim = Claim(Origin.RUNTIME, CPU_GOVERNOR.name, "*", governor, seq=1)
    result = runner.run(PassInput((claim,), {}, named=frozenset({claim.id})))
    reached = [outcome for outcome in result.outcomes.values() if outcome.state is State.SATISFIED]
    assert len(reached) == COUNT, f"{len(reached)} of {COUNT} policies are {governor}"


def write_all(kernel: Kernel, governor: str) -> None:
    """What the pass has to do at the least."""
    for cpu in range(COUNT):
        kernel.write(f"{POLICIES}/policy{cpu}/scaling_governor", governor)


def read_all(kernel: Kernel) -> None:
    """What it has to look at, to know the targets before and after."""
    for cpu in range(COUNT):
        for name in READ:
            kernel.read(f"{POLICIES}/policy{cpu}/{name}")


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
