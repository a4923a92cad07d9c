"""The memory guard's thread: it looks, does what engine/guard.py decides, and goes on whatever it meets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, Protocol

from kerntune.daemon.cap_file import CapFile
from kerntune.engine.guard import (
    LONGEST,
    SHORTEST,
    GuardLimits,
    GuardState,
    GuardVerdict,
    decide,
    interval,
    kept_from_one,
    reserve,
)
from kerntune.kernel.pressure import MemoryFiles
from kerntune.model import Memory

log = logging.getLogger(__name__)
STALLED: Final = 0.1  # of the time since the last look: so much waiting for memory is pressure
HANGS: Final = 30.0  # seconds without a look


class Owner(Protocol):
    """Whom the thread works for."""

    @property
    def verdict(self) -> GuardVerdict: ...

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    def take(self, verdict: GuardVerdict, memory: Memory | None) -> None: ...


class Watch:
    """The thread and what it needs, from the first claim of `always` to the last one's end."""

    def __init__(
        self, owner: Owner, files: MemoryFiles, kept: CapFile, limits: GuardLimits, clock: Callable[[], float]
    ) -> None:
        self.limits = limits
        self._owner, self._files, self._kept, self._clock = owner, files, kept, clock
        self._hindrance = files.hindrance
        self._trouble = ""
        self._stalled, self._looked = files.stalled(), clock()
        self._turned = self._looked
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has tried to look lately."""
        return self._thread.is_alive() and self._clock() - self._turned < HANGS

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Put back what is capped, and let the thread go; call it with the guard's lock held."""
        self._ended.set()
        try:
            if self._kept.originals:
                self._release()
        except OSError as error:
            # The file for it stays: whoever comes next tries again.
            log.error("a cap cannot be undone: %s: %s", error.filename, error.strerror)
        self._files.close()
        self._kept.close()

    def _run(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            with self._owner.lock:
                if self._ended.is_set():
                    return
                self._turned = self._clock()
                wait = self._look_safely()

    def _look_safely(self) -> float:
        """Whatever a look meets, another one follows; seconds until then."""
        try:
            wait = self.look()
            self._trouble = ""
        except MemoryError:  # the next look needs no more than this one
            return SHORTEST
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("the memory guard cannot look at memory, and goes on trying: %s", error)
            return LONGEST
        return wait

    def look(self) -> float:
        """Look once and do what that amounts to; seconds to the next look."""
        if not self._owner.verdict.caps:
            self._release()  # what a cap that failed half way could not
        memory, now, before = self._files.sample(), self._clock(), self._owner.verdict
        after = decide(memory, now, self.limits, before, self._hindrance)
        try:
            self._obey(before, after, memory)
        except OSError as error:
            after = self._not_obeyed(before, after, error)
        self._owner.take(after, memory)
        return interval(memory, self.limits, pressed=self._pressed(now) and after.level > 0)

    def _not_obeyed(self, before: GuardVerdict, after: GuardVerdict, error: OSError) -> GuardVerdict:
        """What could not be put back is tried again at each look; what could not be capped is not."""
        what = f"{error.filename or 'the file for it'}: {error.strerror}"
        if before.caps:
            return replace(before, reason=f"the cap cannot be changed: {what}")
        self._hindrance = f"a cap failed: {what}"
        return replace(after, state=GuardState.OBSERVING, kbytes=0, reason=self._hindrance)

    def _obey(self, before: GuardVerdict, after: GuardVerdict, memory: Memory) -> None:
        if after.caps and not before.caps:
            self._cap(after.kbytes, memory)
        elif after.caps and after.kbytes != before.kbytes:
            self._files.move(after.kbytes)
        elif before.caps and after.state is GuardState.OBSERVING and self._kept.originals:
            # The mode is somebody else's now, and perhaps the limit.
            self._files.give_back(self._kept.originals, limit=memory.overcommit_kbytes == before.kbytes)
            self._kept.clear()
        elif before.caps and not after.caps:
            self._release()

    def _cap(self, kbytes: int, memory: Memory) -> None:
        """All of it or nothing."""
        originals = self._files.originals()
        self._kept.keep(originals)
        user_reserve = max(originals.user_reserve, kept_from_one(memory) >> 10)
        try:
            self._files.cap(kbytes, reserve(memory) >> 10, user_reserve)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._kept.originals:
            self._files.restore(self._kept.originals)
            self._kept.clear()

    def _pressed(self, now: float) -> bool:
        """Whether programs waited for memory for much of the time since the last look."""
        stalled, seconds = self._files.stalled(), now - self._looked
        waited, self._stalled, self._looked = stalled - self._stalled, stalled, now
        return waited > STALLED * seconds * 1_000_000
