"""Selections of callers for all files together: a profile, none, or a return to the files or the host's own values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kerntune.config.config_files import Chosen
from kerntune.daemon.active_config import Reloading
from kerntune.engine.answers import Answer
from kerntune.engine.claims import Edit, FilesEdit, Selection
from kerntune.engine.progress import Progress
from kerntune.engine.reconciler import Reconciler
from kerntune.model import Setting

Run = Callable[[Callable[[str], Chosen], str], Awaitable[Chosen]]  # reads a profile in some thread


class Choosing:
    """The Files of the bus (bus/objects.py): each selection is one edit and one pass, and takes turns with reloads."""

    def __init__(self, reloading: Reloading, engine: Reconciler) -> None:
        self._reloading, self._engine = reloading, engine

    @property
    def profile(self) -> str:
        """The profile in force, "" for none."""
        choice = self._engine.claims.choice
        return "" if choice.suspended else choice.profile or self._reloading.config.profile

    async def reload(self) -> None:
        """Read the files again, and return after the pass. Raise InvalidValue if a file has errors."""
        await self._reloading.ask()

    async def listing(self) -> list[tuple[str, str]]:
        """Return the name and summary of each profile."""
        return await self._engine.threads.open(self._listing)

    async def settings_of(self, profile: str) -> Sequence[Setting]:
        """Return the settings that a profile asks for. Raise NoSuchProfile, or InvalidValue if it has errors."""
        chosen = await self._engine.threads.open(self._checked, profile)
        return [Setting(claim.tunable, claim.instances, claim.value) for claim in chosen.claims]

    async def check(self, selection: Selection) -> None:
        """Raise NoSuchProfile, or InvalidValue for a profile with errors."""
        await self._chosen(selection, self._engine.threads.open)

    async def plan(self, selection: Selection) -> Answer:
        """Return what `choose` would do; change nothing."""
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
        """Put a selection in force. Claims of a profile for what this host lacks wait for a device, and are no error.

        `begins` is awaited when the turn has come, and may raise. With `endable` a cancellation puts everything back;
        once the selection is saved, it is finished.
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
        """Return the edit, and the content of the profile after it."""
        chosen, before = await self._chosen(selection, run), self._engine.claims.choice
        after = selection.chosen(before)
        claims = () if after.suspended else (*self._reloading.config.claims, *chosen.claims)
        # A reset does not answer with the outcomes of claims that were in force all along.
        named = chosen.claims if selection.profile is not None else claims if before.suspended else ()
        told = () if after.suspended else named
        files = FilesEdit(claims, after, told)
        return self._engine.choosing(files, reset=selection.reset, holds=selection.holds), chosen

    async def _chosen(self, selection: Selection, run: Run) -> Chosen:
        """Return the content of the profile that will be in force, as last read; `run` reads it if it is another."""
        reloading = self._reloading
        if selection.profile is None:
            return reloading.chosen
        if selection.profile:
            return await run(self._checked, selection.profile)
        return await run(self._default, reloading.config.profile)

    # The following methods block.

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
    """Await work that must not be left half done: a caller that is cancelled still waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
