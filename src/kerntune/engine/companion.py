"""The companion of the passes, which claims and writes one tunable's value by itself: the memory guard, or none."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

from kerntune.model import Claim, ClaimId, Memory


class Companion:
    """A companion that does nothing; a subclass overrides what it does. Passes call it from their own threads."""

    tunable = ""  # whose value it claims

    def __init__(self) -> None:
        # Held while the files of that tunable are written, by the companion or by a pass.
        self.lock = threading.Lock()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Return what it claims now, and has written already."""
        return ()

    @property
    def may_use_threads(self) -> bool:
        """Return whether a pass may start threads: while memory is short there may be no room for one."""
        return True

    def sync_with_claims(
        self,
        claims: Sequence[Claim],
        released: Collection[ClaimId],  # noqa: ARG002
        *,
        dry: bool,  # noqa: ARG002
    ) -> tuple[Claim, ...]:
        """Return the claims of a pass that begins, with its own; begin or end its work as they ask for it.

        `released` are the claims that are withdrawn. Call it with the lock held, unless `dry`, which changes nothing.
        """
        return tuple(claims)

    def remark(self, value: str, memory: Memory) -> str:  # noqa: ARG002
        """Return a remark on a value of the tunable, "" for none."""
        return ""
