"""The memory guard as the engine's companion: it watches while `always` is in force, and claims the cap it sets.

The guard creates its thread, opens its files and reserves its disk space before it needs them. So a cap waits for
neither the event loop nor an allocation. It waits for a pass only while that pass works on overcommit itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kerntune.engine.claims import rank
from kerntune.engine.companion import Companion
from kerntune.guard.alerts import Alert
from kerntune.guard.policy import MIB, GuardLimits, GuardVerdict, expected_limit, inexpressible
from kerntune.guard.saved import SavedOriginals, Unreadable, undo_cap
from kerntune.guard.sysctls import Sysctls, prepare_for_low_memory
from kerntune.guard.thread import GuardThread
from kerntune.kernel.files import Kernel
from kerntune.kernel.memory import read_memory
from kerntune.model import Claim, ClaimId, GuardState, Memory, Origin
from kerntune.tunables.overcommit import Overcommit, least_left, split

log = logging.getLogger(__name__)
HANGS: Final = 0.5  # seconds to wait at the guard's stop for a pass that has the files
DISABLED: Final = "disabled in the configuration ([guard] enabled)"
CAPS: Final = "guard-capping"  # the slug in Degraded: memory is short, and programs get less than they ask for
OBSERVES: Final = "guard-observing"  # the slug in Degraded: `always` is in force, and nothing makes it safe

Tell = Callable[[GuardVerdict, Memory | None, GuardLimits | None], None]


class MemoryGuard(Companion):
    """The guard: it starts and ends its thread as claims on overcommit come and go. Thread-safe."""

    tunable = Overcommit.name

    def __init__(self, kernel: Kernel, runtime: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the arguments; the guard's thread or a pass's calls `tell` for each changed verdict."""
        super().__init__()
        self._kernel, self._runtime, self._tell, self._clock = kernel, runtime, tell, clock
        self.settings = GuardLimits()
        # The guard calls these before it starts to watch: other parts that work while memory is short prepare for that.
        self.preparations: list[Callable[[], None]] = []
        self.culprit = ""  # the process that has made memory short, in one line, from the last alert
        self._times_capped, self._was_capping = 0, False
        self._idle = GuardVerdict()  # the verdict while there is no thread
        self._told = self._idle.news
        self._thread: GuardThread | None = None
        self._asked: ClaimId | None = None  # the claim of `always` for which the guard watches
        self._stopped = False

    @property
    def verdict(self) -> GuardVerdict:
        """The last verdict."""
        thread = self._thread
        return thread.verdict if thread else self._idle

    @property
    def troubles(self) -> frozenset[str]:
        """The slugs of the guard in Degraded."""
        verdict = self.verdict
        if verdict.caps:
            return frozenset({CAPS})
        return frozenset({OBSERVES} if verdict.state is GuardState.OBSERVING else ())

    @property
    def limits(self) -> GuardLimits | None:
        """The limits in force, None while the guard does not watch."""
        thread = self._thread
        return thread.limits if thread else None

    @property
    def alive(self) -> bool:
        """True if the guard looks as often as it should, and also while it has nothing to watch."""
        thread = self._thread
        return thread is None or thread.alive

    @property
    def claims(self) -> tuple[Claim, ...]:
        verdict = self.verdict
        if not verdict.caps:
            return ()
        value = f"never:{verdict.kbytes}k"
        return (Claim(Origin.GUARD, self.tunable, "", value, who="the memory guard", why="memory is short"),)

    @property
    def may_use_threads(self) -> bool:
        return not self.verdict.caps

    @property
    def counters(self) -> Mapping[str, int]:
        """Return what it has counted since the daemon started."""
        return {"guard_caps": self._times_capped}

    def floor(self, memory: Memory | None) -> int:
        """Return the bytes that the guard keeps free; 0 while it does not watch."""
        limits = self.limits
        return limits.floor(memory) if limits and memory else 0

    def remark(self, value: str, memory: Memory) -> str:
        if split(value)[0] != "always":
            return ""
        if not self.settings.enabled:
            return f"the memory guard, which would cap commits (promises of memory), is {DISABLED}"
        if self.verdict.state is GuardState.OBSERVING:
            return f"the memory guard only watches: {self.verdict.reason}"
        limits = self._limits_for(value)
        at = limits.caps_at(memory)
        said = (
            f"the memory guard caps commits (promises of memory) when less than {at >> 20} MiB "
            f"({at / memory.base:.1%} of RAM) are left"
        )
        if memory.headroom <= at:
            said += ", as it is now"
        reason = inexpressible(memory, expected_limit(memory, limits))
        return f"{said}; as things are it could not: {reason}" if reason else said

    def note(self, alert: Alert) -> None:
        """Remember the process that an alert names."""
        self.culprit = alert.culprit

    def configure(self, settings: GuardLimits) -> None:
        """Store other settings; they are in force from the next pass over overcommit."""
        self.settings = settings

    def sync_with_claims(
        self, claims: Sequence[Claim], released: Collection[ClaimId], *, dry: bool
    ) -> tuple[Claim, ...]:
        """Return the claims with the guard's own, which lasts while it caps; start or end the watch.

        A value that is set while the guard caps waits until the cap has ended. To withdraw the `always` for which the
        guard watches ends the cap at once.
        """
        others = tuple(claim for claim in claims if claim.origin is not Origin.GUARD)
        asking = [claim for claim in others if claim.tunable == self.tunable]
        wanted = max(asking, key=rank, default=None)
        if wanted and split(wanted.value)[0] == "always":
            if not dry:
                self._begin(self._limits_for(wanted.value), wanted.id)
        elif wanted is None or not self.verdict.caps or self._is_withdrawn(asking, released):
            if dry:
                return others
            self._end(GuardVerdict())
        return (*others, *self.claims)

    def stop(self) -> None:
        """End for good, and restore what was capped; a pass may still run, and a pass that hangs is not waited for."""
        if not self.lock.acquire(timeout=HANGS):
            log.error("a pass hangs with the memory guard's files: `kerntuned --uncap` takes a cap back")
            return
        try:
            self._stopped = True
            if self.verdict.caps:
                log.info("the memory guard ends and takes its cap back")
            self._end(GuardVerdict())
        finally:
            self.lock.release()

    def _limits_for(self, value: str) -> GuardLimits:
        return replace(self.settings, ratio=split(value)[1] or self.settings.ratio)

    def _is_withdrawn(self, asking: Sequence[Claim], released: Collection[ClaimId]) -> bool:
        return self._asked in released and all(claim.id != self._asked for claim in asking)

    def _begin(self, limits: GuardLimits, asked: ClaimId) -> None:
        self._asked = asked
        if self._stopped or not limits.enabled:
            self._end(GuardVerdict(reason=DISABLED))
        elif reason := self._too_little_left(limits):
            if self._thread:
                self._thread.limits = replace(limits, ratio=self._thread.limits.ratio)
            else:
                self._end(GuardVerdict(GuardState.OBSERVING, reason=reason))
        elif self._thread:
            self._thread.limits = limits
        else:
            self._start(limits)

    def _too_little_left(self, limits: GuardLimits) -> str:
        """Return why a cap by another ratio would let nobody start anything.

        Return "" where it would not, or where that ratio is in force.
        """
        if self.limits and self.limits.ratio == limits.ratio:
            return ""
        memory = read_memory(self._kernel)
        if not memory.total or memory.headroom > least_left(memory, limits.ratio):
            return ""
        return (
            f"always:{limits.ratio} keeps {limits.floor(memory) // MIB} MiB free, and {memory.headroom // MIB} MiB are "
            "left: with a cap nobody could start anything"
        )

    def _start(self, limits: GuardLimits) -> None:
        for prepare in self.preparations:
            prepare()
        prepare_for_low_memory()
        what = "what an earlier cap has left cannot be put back"
        try:
            # The daemon may have failed to do this at its start, and the guard needs the file now.
            undo_cap(self._kernel, self._runtime)
            what = "the host's own values could not be saved before a cap"
            saved = SavedOriginals(self._runtime)
        except (OSError, Unreadable) as error:
            why = error.strerror if isinstance(error, OSError) else f"{error} cannot be read"
            self._end(GuardVerdict(GuardState.OBSERVING, reason=f"{what}: {why}"))
            return
        sysctls = Sysctls(self._kernel)
        self._thread = GuardThread(sysctls, saved, limits, lock=self.lock, publish=self._publish, clock=self._clock)
        self._thread.start()

    def _end(self, verdict: GuardVerdict) -> None:
        thread, self._idle, self._thread = self._thread, verdict, None
        if thread:
            thread.end()
        self._publish(verdict, None)

    def _publish(self, verdict: GuardVerdict, memory: Memory | None) -> None:
        """Count a cap, and report a verdict that differs from the last one reported; a failed report is repeated."""
        self._times_capped += verdict.caps and not self._was_capping
        self._was_capping = verdict.caps
        if verdict.news != self._told:
            self._tell(verdict, memory, self.limits)
            self._told = verdict.news
