"""The holds of a command while it runs: it makes them, notices when somebody else ends one, and releases them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kerntune.api.document import Outcome
from kerntune.cli.remote import Manager
from kerntune.dbus.blocking import Interrupted
from kerntune.errors import KerntuneError, NoSuchHold, Unreachable
from kerntune.model import Setting

RELEASE_SECONDS: Final = 5.0  # to wait for the end of a hold; it ends with the connection at the latest
LATER: Final = "ends it as soon as it can, and when it is started again"
AWAY_SECONDS: Final = 10.0  # between two looks for the next daemon; the bus tells of it too


def release(manager: Manager, number: int, beside: Sequence[int]) -> KerntuneError | None:
    """End a hold. Return None when the kernel has the values without it, else why it ends later, on its own.

    A signal (`beside`) ends the wait, and not the release.
    """
    try:
        manager.release(number, timeout=RELEASE_SECONDS, beside=beside)
    except NoSuchHold:
        return None
    except KerntuneError as error:
        return error
    return None


class Held:
    """The holds of a command, over one connection, with which they end at the latest."""

    def __init__(self, manager: Manager, who: str, warn: Callable[[str, str], None]) -> None:
        """Take the daemon, the name under which others see the holds, and a function for warnings."""
        self._manager, self._who, self._warn = manager, who, warn
        self._numbers: set[int] = set()
        self._is_away = True  # nothing is known of the daemon yet

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._manager.fileno()

    def hold(
        self, settings: Sequence[Setting], why: str, options: Mapping[str, bool | str]
    ) -> tuple[int, tuple[Outcome, ...]]:
        """Make a hold; return its number and the outcomes of its settings."""
        number, outcomes = self._manager.hold(settings, self._who, why, options)
        self._numbers.add(number)
        return number, outcomes

    def release(self, number: int, beside: Sequence[int]) -> None:
        """End one of the holds, if it has not ended; warn where kerntuned cannot end it now."""
        if number in self._numbers:
            self._numbers.discard(number)
            error = release(self._manager, number, beside)
            if error and not isinstance(error, Interrupted):
                self._warn(f"hold {number} has not ended yet: {error.what}", f"kerntuned {LATER}. {error.hint}".strip())

    def release_all(self, beside: Sequence[int] = ()) -> None:
        """End those that have not ended."""
        for number in sorted(self._numbers):
            self.release(number, beside)

    def leave(self) -> None:
        """Leave those that have not ended to the end of the connection."""
        self._numbers.clear()

    def look(self, now: float, beside: Sequence[int]) -> float | None:
        """Warn of holds that somebody else has ended; return the moment of the next look, None when none is left.

        The holds survive a restart of the daemon, but not the loss of the bus. A signal (`beside`) goes first.
        """
        try:
            there = self._manager.follow_holds(beside) if self._is_away else self._numbers - self._manager.ended_holds()
            self._is_away = False
        except Interrupted:
            return now
        except Unreachable:
            self._is_away = True
            return self._wait_for_the_next(now)
        except KerntuneError:  # the next daemon may not be there as a whole
            self._is_away = True
            return now + AWAY_SECONDS
        for number in self._numbers - there:
            self._warn(f"hold {number} was ended by somebody else", "The command goes on without its values")
        self._numbers &= there
        return math.inf if self._numbers else None

    def _wait_for_the_next(self, now: float) -> float | None:
        try:
            is_there = self._manager.running()
        except Unreachable as error:
            self._numbers.clear()
            self._warn(f"the holds have ended: {error.what}", "The command goes on without their values")
            return None
        return now if is_there else now + AWAY_SECONDS
