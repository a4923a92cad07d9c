"""The memory guard: a thread that watches memory while `always` is in force, and caps what the kernel promises.

The thread, its files and its room on disk are there before they are needed, so that capping waits for nothing: not for
a pass, not for the event loop, not for an allocation. What to do is decided in engine/guard.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kerntune.daemon.cap_file import CapFile, Unreadable, undo_cap
from kerntune.daemon.watch import Watch
from kerntune.engine.guard import GuardLimits, GuardState, GuardVerdict
from kerntune.engine.resolve import rank
from kerntune.kernel.files import Kernel
from kerntune.kernel.pressure import MemoryFiles, stay_able
from kerntune.model import Claim, ClaimId, Memory, Origin
from kerntune.tunables.overcommit import Overcommit, split

log = logging.getLogger(__name__)
HANGS: Final = 0.5  # seconds that a pass may still have the files for when the guard stops
DISABLED: Final = "disabled in the configuration ([guard] enabled)"

Tell = Callable[[GuardVerdict, Memory | None, GuardLimits | None], None]


class MemoryGuard:
    """A claim maker beside the passes of the memory lane; see engine/passes.py, Guard. Thread-safe."""

    tunable: Final = Overcommit.name

    def __init__(self, kernel: Kernel, runtime: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        """`tell` is called from the guard's thread or a pass's, each time a verdict is news."""
        self._kernel, self._runtime, self._tell, self._clock = kernel, runtime, tell, clock
        # Held while the files are written, by the guard or by a pass over the same tunable.
        self.lock = threading.Lock()
        self.settings = GuardLimits()
        self.verdict = GuardVerdict()
        self.times_capped = self.times_refused = 0
        # Before it begins to watch: whoever works while memory is short makes ready.
        self.preparations: list[Callable[[], None]] = []
        self._told = self.verdict.news
        self._watch: Watch | None = None
        self._asked: ClaimId | None = None  # the claim of `always` that it watches for
        self._stopped = False

    @property
    def limits(self) -> GuardLimits | None:
        """The limits in force, None while it does not watch."""
        return self._watch.limits if self._watch else None

    @property
    def alive(self) -> bool:
        """Whether it looks as often as it should; also while there is nothing to look at."""
        watch = self._watch
        return watch is None or watch.alive

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the guard itself claims now."""
        verdict = self.verdict
        if not verdict.caps:
            return ()
        value = f"never:{verdict.kbytes}k"
        return (Claim(Origin.GUARD, self.tunable, "", value, who="the memory guard", why="memory is short"),)

    def remark(self, value: str, memory: Memory) -> str:
        """What the guard does about a value of overcommit."""
        if split(value)[0] != "always":
            return ""
        if not self.settings.enabled:
            return f"the memory guard, which would cap what is promised, is {DISABLED}"
        if self.verdict.state is GuardState.OBSERVING:
            return f"the memory guard only watches: {self.verdict.reason}"
        limits = self._limits_for(value)
        at, percent = limits.above(memory, limits.cap) >> 20, 100 - limits.ratio + limits.cap
        return f"the memory guard caps what is promised when less than {at} MiB ({percent} % of RAM) are left"

    def _limits_for(self, value: str) -> GuardLimits:
        return replace(self.settings, ratio=split(value)[1] or self.settings.ratio)

    def configure(self, settings: GuardLimits) -> None:
        """Other settings; they are in force from the next pass over overcommit on."""
        self.settings = settings

    def follow(self, claims: Sequence[Claim], released: Collection[ClaimId], *, dry: bool) -> tuple[Claim, ...]:
        """The claims of a pass that begins, with the guard's own; begins and ends to watch.

        Call it with the lock held, unless `dry`, which changes nothing. A value that is set while the guard caps waits
        until it has let go; who withdraws the `always` that it watches for ends it at once.
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

    def _is_withdrawn(self, asking: Sequence[Claim], released: Collection[ClaimId]) -> bool:
        return self._asked in released and all(claim.id != self._asked for claim in asking)

    def count_refusals(self, times: int) -> None:
        """So often the kernel has refused memory during a cap that has ended."""
        self.times_refused += times

    def stop(self) -> None:
        """End for good, and put back what was capped; a pass may still run, and one that hangs is not waited for."""
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

    def _begin(self, limits: GuardLimits, asked: ClaimId) -> None:
        self._asked = asked
        if self._stopped or not limits.enabled:
            self._end(GuardVerdict(reason=DISABLED))
        elif self._watch:
            self._watch.limits = limits
        else:
            self._start(limits)

    def _start(self, limits: GuardLimits) -> None:
        for prepare in self.preparations:
            prepare()
        stay_able()
        what = "what an earlier cap has left cannot be put back"
        try:
            # What could not be at the start of the daemon is tried again, for its file is wanted now.
            undo_cap(self._kernel, self._runtime)
            what = "the host's own values could not be saved before a cap"
            kept = CapFile(self._runtime)
        except (OSError, Unreadable) as error:
            why = error.strerror if isinstance(error, OSError) else f"{error} cannot be read"
            self.take(GuardVerdict(GuardState.OBSERVING, reason=f"{what}: {why}"), None)
            return
        self._watch = Watch(self, MemoryFiles(self._kernel), kept, limits, self._clock)
        self._watch.start()

    def _end(self, verdict: GuardVerdict) -> None:
        if self._watch:
            self._watch.end()
            self._watch = None
        self.take(verdict, None)

    def take(self, verdict: GuardVerdict, memory: Memory | None) -> None:
        """This is the verdict from now on; told when it is news, and again where telling has failed."""
        before = self.verdict
        self.verdict = verdict  # before anything that may fail
        self.times_capped += verdict.caps and not before.caps
        if verdict.news != self._told:
            self._tell(verdict, memory, self.limits)
            self._told = verdict.news
