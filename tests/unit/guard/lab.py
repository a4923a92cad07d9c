"""A host that the guard's policy watches, with a kernel that obeys it: looks are late, and a write takes time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kerntune.guard.policy import GuardLimits, GuardVerdict, Sample, counting_error, decide, interval
from kerntune.kernel.memory import Watermarks, memory_of
from tests.harness.memory_host import ALWAYS, NEVER, MemoryHost

PAGE = 4096
LATE = 0.003  # seconds between the moment a look is due and what it finds
WRITES, SWITCHES = 0.0002, 0.019  # seconds that a write takes, and one of mode never
Act = Callable[[float], None]


def idle(_seconds: float) -> None:
    """Nobody does anything."""


@dataclass
class Guarded:
    """`act` is what programs do in so many seconds."""

    host: MemoryHost
    limits: GuardLimits = field(default_factory=GuardLimits)
    act: Act = idle
    now: float = 0.0
    looks: int = 0
    times_capped: int = 0
    verdict: GuardVerdict = field(default_factory=GuardVerdict)

    def sample(self) -> Sample:
        host, files = self.host, self.host.files()
        memory = memory_of(
            files["proc/meminfo"],
            files["proc/swaps"],
            mode=host.mode,
            ratio=host.ratio,
            kbytes=host.kbytes,
            watermarks=Watermarks(0, 0),
            arcstats=files.get("proc/spl/kstat/zfs/arcstats", ""),
            zram=[files[name] for name in files if name.endswith("mm_stat")],
        )
        reserves = (host.admin_reserve + host.user_reserve) << 10
        return Sample(memory, self.now, reserves, counting_error(host.total, host.cpus, PAGE), host.cpus)

    def look(self) -> GuardVerdict:
        """Look once, and do what that amounts to; programs go on meanwhile."""
        before, sample = self.verdict, self.sample()
        self.verdict = after = decide(sample, self.limits, before)
        self.looks += 1
        self._pass(WRITES)
        if after.caps and not before.caps:
            self.host.write("kbytes", after.kbytes)
        if after.cap and (not before.cap or after.cap.counted_at != before.cap.counted_at):
            self.times_capped += not before.caps
            self._pass(SWITCHES)
            self.host.write("memory", NEVER)
        if after.caps and after.kbytes != before.kbytes:
            self.host.write("kbytes", after.kbytes)
        elif before.caps and not after.caps and self.host.mode == NEVER:
            self.host.write("memory", ALWAYS)
            self.host.write("ratio", self.limits.ratio)
        return after

    def run(self, seconds: float, act: Act | None = None, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let so much time pass, or until something holds after a look."""
        self.act = act or idle
        end = self.now + seconds
        while self.now < end and not until():
            self.look()
            self._pass(min(interval(self.sample(), self.limits) + LATE, max(0.0, end - self.now)))
        self.act = idle

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.act(seconds)
