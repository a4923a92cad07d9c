"""Who is told how far the kernel has come with what takes time; the looking is the pass's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kerntune.engine.claims import Edit
from kerntune.model import Target
from kerntune.tunables.base import Tunable

# Called with a target, and how many there are now of how many wanted.
Progress = Callable[[Target, int, int], None]


def of_its_own(edit: Edit, tunables: Mapping[str, Tunable], progress: Progress) -> Progress:
    """The same for what the edit is about: a pass may be making what others asked for, too."""
    named = [Target(claim.tunable, claim.instances) for claim in (*edit.named, *edit.released)]
    groups = {(target.tunable, tunables[target.tunable].group(target)) for target in named}

    def tell(target: Target, done: int, wanted: int) -> None:
        if (target.tunable, tunables[target.tunable].group(target)) in groups:
            progress(target, done, wanted)

    return tell
