"""Progress callbacks for slow writes: the pass samples the values, and this module filters by caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kerntune.engine.claims import Edit
from kerntune.model import Target
from kerntune.tunables.base import Tunable

# Called with a target, and how many there are now of how many wanted.
Progress = Callable[[Target, int, int], None]


def only_for(edit: Edit, tunables: Mapping[str, Tunable], progress: Progress) -> Progress:
    """Return a callback that hears only of the targets of the edit: a pass may serve other callers too."""
    named = [Target(claim.tunable, claim.instances) for claim in (*edit.named, *edit.released)]
    groups = {(target.tunable, tunables[target.tunable].group(target)) for target in named}

    def tell(target: Target, done: int, wanted: int) -> None:
        if (target.tunable, tunables[target.tunable].group(target)) in groups:
            progress(target, done, wanted)

    return tell
