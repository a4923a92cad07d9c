"""The places for calls in service, by user. A user at the limit is held, and goes on when a place is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kerntune.dbus.users import is_root


class Places:
    """At most `most` places for each user. `hold` gets the uid when the last is taken, `go_on` when one is free."""

    def __init__(self, most: int, hold: Callable[[int], None], go_on: Callable[[int], None]) -> None:
        self._most, self._hold, self._go_on = most, hold, go_on
        self.taken: Counter[int] = Counter()

    def take(self, uid: int, places: int = 1) -> Place:
        """Take places for a call of this user, even above the limit: a call that waited aside comes back to them."""
        place = Place(self, uid, places)
        place.take()
        return place

    def change(self, uid: int, by: int) -> None:
        """Count places that were taken, or given back (negative)."""
        before = self.taken[uid]
        now = before + by
        if now:
            self.taken[uid] = now
        else:
            del self.taken[uid]
        if before < self._most <= now:
            self._hold(uid)
        elif now < self._most <= before:
            self._go_on(uid)


class Place:
    """The place of one call, or the places of a long one."""

    __slots__ = ("_count", "_places", "_uid", "taken")

    def __init__(self, places: Places, uid: int, count: int) -> None:
        self._places, self._uid, self._count, self.taken = places, uid, count, False

    @property
    def is_long(self) -> bool:
        """Return whether the call takes several places."""
        return self._count > 1

    @property
    def is_root(self) -> bool:
        """Return whether the call is root's."""
        return is_root(self._uid)

    def take(self) -> None:
        """Take the place, if the call does not have it."""
        if not self.taken:
            self.taken = True
            self._places.change(self._uid, self._count)

    def give_back(self) -> None:
        """Give the place back, if the call has it."""
        if self.taken:
            self.taken = False
            self._places.change(self._uid, -self._count)
