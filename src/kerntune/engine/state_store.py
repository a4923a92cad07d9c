"""The interface of the crash-safe store, which kerntune/store.py implements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from kerntune.engine.claims import Claims
from kerntune.model import Baseline, Target


def why_not_saved(error: OSError) -> str:
    """Return the error in prose, with the file where it names one (a full disk does not)."""
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


class StateStore(Protocol):
    """Claims and baselines on disk. Every method returns after the data is safe, or raises OSError; thread-safe."""

    @property
    def claims(self) -> Claims:
        """The claims that were committed last."""

    @property
    def baselines(self) -> Mapping[Target, str]:
        """The host's own values of the targets we write."""

    @property
    def reserved(self) -> Collection[Target]:
        """Return those of them that may be claimed by somebody who is not known now: they are not put back."""

    def save_baselines(self, baselines: Sequence[Baseline]) -> None:
        """Save the host's own values, before the first write."""

    def drop_baselines(self, targets: Collection[Target]) -> None:
        """Drop baselines that were put back."""

    def commit(self, claims: Claims) -> None:
        """Save the claims, before the caller is answered."""
