"""The guard's thread: it looks, does what the policy decides, and continues after any failure."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kerntune.guard.policy import LONGEST, MODE_NEVER, SHORTEST, GuardLimits, GuardVerdict, Sample, decide, interval
from kerntune.guard.saved import SavedOriginals
from kerntune.guard.sysctls import Sysctls, TakenByOthers
from kerntune.model import GuardState, Memory

log = logging.getLogger(__name__)
HANGS: Final = 30.0  # seconds without a look


class GuardThread:
    """The thread and its files, from the first claim of `always` to the end of the last one.

    `verdict` is the last one. The thread calls `publish` with each verdict and the memory from which it was made.
    """

    def __init__(
        self,
        sysctls: Sysctls,
        saved: SavedOriginals,
        limits: GuardLimits,
        *,
        lock: threading.Lock,
        publish: Callable[[GuardVerdict, Memory], None],
        clock: Callable[[], float],
    ) -> None:
        """Prepare the thread; it holds `lock` while it looks and writes."""
        self.limits = limits
        self.verdict = GuardVerdict()
        self._sysctls, self._saved, self._lock, self._publish, self._clock = sysctls, saved, lock, publish, clock
        self._hindrance = sysctls.unavailable_reason
        self._trouble = ""
        self._whole: Sample | None = None  # from the last whole look
        self._turned = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    @property
    def alive(self) -> bool:
        """True if the thread runs and has tried to look lately."""
        return self._thread.is_alive() and self._clock() - self._turned < HANGS

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Restore what is capped, and let the thread end; the caller holds the lock."""
        self._ended.set()
        try:
            self._release()
        except (OSError, MemoryError) as error:
            # The saved file stays: the next claim of `always` tries again, and so does every start.
            log.error("a cap cannot be undone, `kerntuned --uncap` tries again: %s", why(error))
        finally:
            self._sysctls.close()
            self._saved.close()

    def _run(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            with self._lock:
                if self._ended.is_set():
                    return
                self._turned = self._clock()
                wait = self._look_safely()

    def _look_safely(self) -> float:
        """Look, and return the seconds to the next look, which follows after any failure of this one."""
        try:
            wait = self.look()
            self._trouble = ""
        except MemoryError:  # the next look needs no more memory than this one
            return SHORTEST
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("the memory guard cannot look at memory, and goes on trying: %s", error)
            return LONGEST
        return wait

    def look(self) -> float:
        """Look once and do what the policy decides; return the seconds to the next look."""
        now = self._clock()
        return self._glance(now) or self._look(now)

    def _glance(self, now: float) -> float | None:
        """Return the seconds to the next look if one figure shows enough memory, None if a whole look is needed.

        A whole look follows each second at least. Just above the cap's threshold the thread looks often, and does
        nothing else.
        """
        last = self._whole
        if last is None or self.verdict.state is not GuardState.RELAXED or now - last.now >= LONGEST:
            return None
        available = self._sysctls.available()
        if available <= self.limits.caps_at(last.memory):
            return None
        # The swap and ARC of the last whole look may be gone.
        now_there = replace(last.memory, available=available, swap_free=0, arc=0)
        return interval(replace(last, memory=now_there), self.limits)

    def _look(self, now: float) -> float:
        before = self.verdict
        if not before.caps:
            self._release()  # restore what a cap that failed half way could not
        self._whole = sample = self._sysctls.sample(now, self._hindrance)
        after = decide(sample, self.limits, before)
        try:
            self._obey(before, after, sample.memory)
        except TakenByOthers:
            return SHORTEST
        except OSError as error:
            after = self._not_obeyed(before, after, error)
        self.verdict = after  # before anything that may fail
        self._publish(after, sample.memory)
        if before.state is after.state is GuardState.OBSERVING:
            return LONGEST  # the guard could do nothing in time
        return interval(sample, self.limits)

    def _not_obeyed(self, before: GuardVerdict, after: GuardVerdict, error: OSError) -> GuardVerdict:
        """Return the verdict after a write that failed: a failed cap is not tried again, all else is at each look."""
        if before.caps:
            return replace(before, reason=f"the cap cannot be changed: {why(error)}")
        self._hindrance = f"a cap failed: {why(error)}"
        return replace(after, state=GuardState.OBSERVING, cap=None, reason=self._hindrance)

    def _obey(self, before: GuardVerdict, after: GuardVerdict, memory: Memory) -> None:
        if after.cap and not before.cap:
            self._cap(after.cap.kbytes)
        elif after.cap and before.cap:
            # The limit comes last: if this fails, the settings in force are those of the verdict before.
            if after.cap.counted_at != before.cap.counted_at:
                self._sysctls.count_again()
            if after.cap.kbytes != before.cap.kbytes:
                self._sysctls.move_limit(after.cap.kbytes, before.cap.kbytes)
        elif before.cap:
            # Values that another program has written since belong to that program.
            self._release(
                mode=memory.overcommit_mode == MODE_NEVER, limit=memory.overcommit_kbytes == before.cap.kbytes
            )

    def _cap(self, kbytes: int) -> None:
        """Set the whole cap or nothing; the values to restore are saved before the first write."""
        self._saved.save(self._sysctls.originals())
        try:
            self._sysctls.cap(kbytes)
        except BaseException:
            self._release()
            raise

    def _release(self, *, mode: bool = True, limit: bool = True) -> None:
        if self._saved.originals:
            self._sysctls.restore(self._saved.originals, mode=mode, limit=limit)
            self._saved.clear()


def why(error: OSError | MemoryError) -> str:
    """Return what failed, as text for people."""
    if isinstance(error, MemoryError):
        return "no memory"
    return (
        f"/{error.filename.lstrip('/')}: {error.strerror}" if error.filename else f"the file for it: {error.strerror}"
    )
