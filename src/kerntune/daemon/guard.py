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

from kerntune.daemon.cap_file import CapFile
from kerntune.engine.guard import SHORTEST, GuardLimits, GuardState, GuardVerdict, decide, interval, reserve
from kerntune.engine.resolve import rank
from kerntune.kernel.files import Kernel, KernelError
from kerntune.kernel.pressure import MemoryFiles, stay_able
from kerntune.model import Claim, ClaimId, Memory, Origin
from kerntune.tunables.overcommit import Overcommit, split

log = logging.getLogger(__name__)
STALLED: Final = 0.1  # of the time since the last look: so much waiting for memory is pressure
DISABLED: Final = "disabled in the configuration ([guard] enabled)"

Tell = Callable[[GuardVerdict, Memory | None, GuardLimits | None], None]


class MemoryGuard:
    """A claim maker beside the passes of the memory lane; see engine/passes.py, Guard. Thread-safe."""

    tunable: Final = Overcommit.name

    def __init__(self, kernel: Kernel, runtime: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        """`tell` is called from the guard's thread or a pass's, each time a verdict is news."""
        self._kernel, self._runtime, self._tell, self.clock = kernel, runtime, tell, clock
        # Held while the files are written, by the guard or by a pass over the same tunable.
        self.lock = threading.Lock()
        self.settings = GuardLimits()
        self.verdict = GuardVerdict()
        self.times_capped = self.times_refused = 0
        self._watch: Watch | None = None
        self._stopped = False

    @property
    def limits(self) -> GuardLimits | None:
        """The limits in force, None while it does not watch."""
        return self._watch.limits if self._watch else None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the guard itself claims now."""
        if not self.verdict.caps:
            return ()
        value = f"never:{self.verdict.kbytes}k"
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
        """The claims of a pass that begins, with the guard's own; begins and ends to watch. Call it with the lock held.

        A value that is set while the guard caps waits until it has let go; who withdraws `always` ends it at once.
        """
        others = tuple(claim for claim in claims if claim.origin is not Origin.GUARD)
        asking = [claim for claim in others if claim.tunable == self.tunable]
        wanted = max(asking, key=rank, default=None)
        if wanted and split(wanted.value)[0] == "always":
            if not dry:
                self._begin(self._limits_for(wanted.value))
        elif wanted is None or not self.verdict.caps or any(gone.tunable == self.tunable for gone in released):
            if dry:
                return others
            self._end(GuardVerdict())
        return (*others, *self.claims)

    def count_refusals(self, times: int) -> None:
        """So often the kernel has refused memory during a cap that has ended."""
        self.times_refused += times

    def stop(self) -> None:
        """End for good, and put back what was capped; a pass may still run."""
        with self.lock:
            self._stopped = True
            self._end(GuardVerdict())

    def _begin(self, limits: GuardLimits) -> None:
        if self._stopped or not limits.enabled:
            self._end(GuardVerdict(reason=DISABLED))
        elif self._watch:
            self._watch.limits = limits
        else:
            self._start(limits)

    def _start(self, limits: GuardLimits) -> None:
        try:
            kept = CapFile(self._runtime)
        except OSError as error:
            reason = f"the host's own values could not be saved before a cap: {error.strerror}"
            self.take(GuardVerdict(GuardState.OBSERVING, reason=reason), None)
            return
        stay_able()
        self._watch = Watch(self, MemoryFiles(self._kernel), kept, limits)
        self._watch.start()

    def _end(self, verdict: GuardVerdict) -> None:
        if self._watch:
            self._watch.end(capped=self.verdict.caps)
            self._watch = None
        self.take(verdict, None)

    def take(self, verdict: GuardVerdict, memory: Memory | None) -> None:
        """This is the verdict from now on."""
        news = verdict.news != self.verdict.news
        self.times_capped += verdict.caps and not self.verdict.caps
        self.verdict = verdict
        if news:
            self._tell(verdict, memory, self.limits)


class Watch:
    """The thread and what it needs, from the first claim of `always` to the last one's end."""

    def __init__(self, guard: MemoryGuard, files: MemoryFiles, kept: CapFile, limits: GuardLimits) -> None:
        self.limits = limits
        self._guard, self._files, self._kept = guard, files, kept
        self._hindrance = files.hindrance
        self._originals = files.originals()
        self._stalled, self._looked = files.stalled(), guard.clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, *, capped: bool) -> None:
        """Put back what is capped, and let the thread go; call it with the guard's lock held."""
        self._ended.set()
        if capped:
            self._release()
        self._files.close()
        self._kept.close()

    def _run(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            with self._guard.lock:
                if self._ended.is_set():
                    return
                try:
                    wait = self.look()
                except MemoryError:  # the next look needs no more than this one
                    wait = SHORTEST

    def look(self) -> float:
        """Look once and do what that amounts to; seconds to the next look."""
        memory, now, before = self._files.sample(), self._guard.clock(), self._guard.verdict
        after = decide(memory, now, self.limits, before, self._hindrance)
        try:
            self._obey(before, after, memory)
        except OSError as error:
            self._hindrance = f"a cap failed: {error.filename or 'the file for it'}: {error.strerror}"
            after = replace(after, state=GuardState.OBSERVING, kbytes=0, reason=self._hindrance)
        self._guard.take(after, memory)
        return interval(memory, self.limits, pressed=self._pressed(now) and after.level > 0)

    def _obey(self, before: GuardVerdict, after: GuardVerdict, memory: Memory) -> None:
        if after.caps and not before.caps:
            self._cap(after.kbytes, memory)
        elif after.caps and after.kbytes != before.kbytes:
            self._files.move(after.kbytes)
        elif before.caps and after.state is GuardState.OBSERVING:
            # The mode is somebody else's now, and perhaps the limit.
            self._files.give_back(self._originals, limit=memory.overcommit_kbytes == before.kbytes)
            self._kept.clear()
        elif before.caps and not after.caps:
            self._release()

    def _cap(self, kbytes: int, memory: Memory) -> None:
        """All of it or nothing."""
        self._originals = self._files.originals()
        self._kept.keep(self._originals)
        try:
            self._files.cap(kbytes, reserve(memory) >> 10)
        except KernelError:
            self._release()
            raise

    def _release(self) -> None:
        self._files.restore(self._originals)
        self._kept.clear()

    def _pressed(self, now: float) -> bool:
        """Whether programs waited for memory for much of the time since the last look."""
        stalled, seconds = self._files.stalled(), now - self._looked
        waited, self._stalled, self._looked = stalled - self._stalled, stalled, now
        return waited > STALLED * seconds * 1_000_000
