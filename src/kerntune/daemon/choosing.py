"""What callers choose of the files as a whole: a profile, none, or to be back at the files or the host's own values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kerntune.daemon.config_files import Chosen
from kerntune.daemon.reloading import Reloading
from kerntune.engine.answers import Answer
from kerntune.engine.claims import Edit, FilesEdit, Selection
from kerntune.engine.progress import Progress
from kerntune.engine.reconciler import Reconciler
from kerntune.model import Setting

Run = Callable[[Callable[[str], Chosen], str], Awaitable[Chosen]]  # reads a profile in some thread


class Choosing:
    """The Files of the bus (bus/objects.py): each choice is one edit and one pass, in turn with the reloads."""

    def __init__(self, reloading: Reloading, engine: Reconciler) -> None:
        self._reloading, self._engine = reloading, engine

    @property
    def profile(self) -> str:
        """The profile in force, "" for none."""
        choice = self._engine.claims.choice
        return "" if choice.suspended else choice.profile or self._reloading.config.profile

    async def reload(self) -> None:
        """Read the files again, and return after the pass; InvalidValue when one is not in order."""
        await self._reloading.ask()

    async def listing(self) -> list[tuple[str, str]]:
        """Name and summary of each profile there is."""
        return await self._engine.threads.open(self._listing)

    async def settings_of(self, profile: str) -> Sequence[Setting]:
        """What a profile asks for. Raises NoSuchProfile, and InvalidValue for one that is not in order."""
        chosen = await self._engine.threads.open(self._checked, profile)
        return [Setting(claim.tunable, claim.instances, claim.value) for claim in chosen.claims]

    async def check(self, selection: Selection) -> None:
        """Raises NoSuchProfile, and InvalidValue for a profile that is not in order."""
        await self._chosen(selection, self._engine.threads.open)

    async def plan(self, selection: Selection) -> Answer:
        """What `choose` would do; nothing is changed."""
        edit, _ = await self._edit(selection, self._engine.threads.open)
        return await self._engine.foresee(edit)

    async def choose(
        self,
        selection: Selection,
        cause: str,
        progress: Progress | None = None,
        *,
        begins: Callable[[], Awaitable[None]] | None = None,
        endable: bool = False,
    ) -> Answer:
        """Make it so. Of a profile nothing is an error that this host lacks: its claims wait for a device.

        `begins` is awaited when the turn has come, and may raise. With `endable` a cancellation puts all back; once the
        choice is saved it is finished.
        """
        reloading = self._reloading
        async with reloading.turn:
            if begins:
                await begins()
            edit, chosen = await self._edit(selection, self._engine.threads.read)
            answer = await self._engine.carry_out(edit, cause, progress, endable=endable)
            if chosen is not reloading.chosen:
                reloading.note_profile(chosen)
                try:
                    await to_its_end(asyncio.to_thread(self._keep, self.profile, chosen))
                finally:
                    self._engine.announce(cause)
        return answer

    async def _edit(self, selection: Selection, run: Run) -> tuple[Edit, Chosen]:
        """The edit, and what the profile after it says."""
        chosen, before = await self._chosen(selection, run), self._engine.claims.choice
        after = selection.chosen(before)
        claims = () if after.suspended else (*self._reloading.config.claims, *chosen.claims)
        # To be told of what was in force all along is nothing to a reset.
        named = chosen.claims if selection.profile is not None else claims if before.suspended else ()
        told = () if after.suspended else named
        files = FilesEdit(claims, after, told)
        return self._engine.choosing(files, reset=selection.reset, holds=selection.holds), chosen

    async def _chosen(self, selection: Selection, run: Run) -> Chosen:
        """Return what the profile says that will be in force: as read last, unless `run` has to read another."""
        reloading = self._reloading
        if selection.profile is None:
            return reloading.chosen
        if selection.profile:
            return await run(self._checked, selection.profile)
        return await run(self._default, reloading.config.profile)

    # These block.

    def _listing(self) -> list[tuple[str, str]]:
        return self._reloading.profile.profiles.listing()

    def _checked(self, name: str) -> Chosen:
        return self._reloading.profile.checked(name)

    def _default(self, name: str) -> Chosen:
        return self._reloading.read_profile(name, keep=False)

    def _keep(self, name: str, chosen: Chosen) -> None:
        if name and not any(problem.is_error for problem in chosen.problems):
            self._reloading.profile.keep(name, chosen.claims)


async def to_its_end(work: Awaitable[None]) -> None:
    """Await what must not be left half done: who is cancelled meanwhile still waits for it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
