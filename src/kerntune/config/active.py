"""The configuration in force: what was read of the files and the profile, and what callers selected of it.

A reload reads the files again, at start, on SIGHUP and on Reload. A selection is a profile, none, or a return to the
files or to the host's own values. Each is one edit and one pass, and one waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from kerntune import journal, notify
from kerntune.config.content import Content, Problem, listed
from kerntune.config.profiles import Profiles
from kerntune.config.schema import Kind
from kerntune.config.sources import ActiveProfile, ConfigFiles
from kerntune.engine.claims import Choice, Edit, FilesEdit, Selection
from kerntune.engine.reconciler import Reconciler, stopping
from kerntune.engine.results import Answer
from kerntune.engine.writer import Progress
from kerntune.errors import InvalidValue, KerntuneError
from kerntune.model import Claim, Setting
from kerntune.paths import folders
from kerntune.store import STATE_SET_ASIDE

log = logging.getLogger(__name__)
CONFIG_INVALID: Final = "config-invalid"

Run = Callable[[Callable[[str], Content], str], Awaitable[Content]]  # reads a profile in some thread


class ActiveConfig:
    """The owner of what is in force of the files.

    `troubles` are the daemon's, and have CONFIG_INVALID while a file has errors. `listeners` are called with the
    configuration after each reload.
    """

    def __init__(self, folder: Path, runtime: Path, engine: Reconciler, troubles: set[str]) -> None:
        """Use the files in `folder`, and the copies of their last good content in `runtime`. This blocks.

        No module of kerntune is imported after this: an upgrade may be replacing the package by then.
        """
        self._engine, self._troubles = engine, troubles
        tunables = engine.tunables
        self._config_files = ConfigFiles(folder, runtime, tunables.values())
        self._profiles = Profiles(folders(folder), tunables.values())
        self._active_profile = ActiveProfile(self._profiles, runtime, tunables)
        if self._config_files.set_aside or self._active_profile.set_aside:
            troubles.add(STATE_SET_ASIDE)
        self.listeners: list[Callable[[Content], None]] = []
        self.files, self._profile = Content(), Content()  # what was read last
        self._default = ""  # the profile that is in force if no caller has selected one
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._booted = asyncio.Event()
        self._stopped = False

    @property
    def profile(self) -> str:
        """The name of the profile in force, "" for none."""
        choice = self._engine.edits.claims.choice
        return "" if choice.suspended else choice.profile or self._default

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of all files, as last read."""
        return *self.files.claims, *self._profile.claims

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The errors in the files that were read last."""
        return *self.files.errors, *self._profile.errors

    # Reloads

    def start(self) -> None:
        """Read the files for the boot pass. This blocks, but nothing waits for the daemon yet."""
        choice = self._engine.edits.claims.choice
        self._publish(*self.read(choice), choice)
        self._engine.configure(() if choice.suspended else self.claims, self.files.limits)

    def read(self, choice: Choice) -> tuple[Content, Content]:
        """Return what the configuration and the profile in force say now, and save their good content. This blocks."""
        config = self._config_files.read()
        name = choice.profile or config.profile
        return config, self._active_profile.load(name, is_selected=bool(choice.profile))

    def look(self, choice: Choice) -> tuple[Content, Content]:
        """Return what `read` would, and save nothing. This blocks."""
        config = self._config_files.look()
        return config, self._active_profile.read(choice.profile or config.profile)

    def booted(self) -> None:
        """Let reloads begin: the daemon has said READY."""
        self._booted.set()

    def stop(self) -> None:
        """Let no reload begin any more, and the running one say nothing: the daemon has said STOPPING."""
        self._stopped = True

    def request_reload(self) -> asyncio.Task[None]:
        """Return the first reload that begins after now; all callers until then share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._reload(), name="reload")
            self._running.add(self._next)
            self._next.add_done_callback(self._ended)
        return self._next

    async def reload(self) -> None:
        """Read the files again, and return after the pass.

        Raise InvalidValue if a file has errors: the good part of the files is in force all the same.
        """
        await asyncio.shield(self.request_reload())

    async def _reload(self) -> None:
        await self._booted.wait()
        async with self._lock:
            self._next = None
            if self._stopped:
                raise stopping()
            notify.reloading()
            extending = asyncio.create_task(notify.extend(at_once=False))
            try:
                # A selection whose caller has left may still be on its way back.
                choice = self._engine.edits.committed.choice
                self._publish(*await asyncio.to_thread(self.read, choice), choice)
                await self._apply(choice)
            finally:
                extending.cancel()
                if not self._stopped:
                    notify.send("READY=1")
        if self._stopped:
            raise stopping()  # the pass may have been stopped before it was complete
        if self.errors:
            raise in_part_only(self.errors)

    async def _apply(self, choice: Choice) -> None:
        """Put in force what was read, also if the files were suspended."""
        limits = self.files.limits
        if not choice.suspended:
            await self._engine.reload(self.claims, limits)
            return
        self._engine.configure((), limits)
        files = FilesEdit(self.claims, replace(choice, suspended=False))
        await self._engine.carry_out(self._engine.files_edit(files), "reload")

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Log a failed reload: after SIGHUP no caller waits for it, and only the journal can tell."""
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, KerntuneError):
            log.error("a reload failed", exc_info=error)

    def _publish(self, config: Content, profile: Content, choice: Choice) -> None:
        """Put what was read in place of what was read before, and tell the listeners."""
        log_problems(config.problems)
        self.files = config
        self._publish_profile(profile, choice)
        for listener in self.listeners:
            listener(config)

    def _publish_profile(self, profile: Content, choice: Choice) -> None:
        """Log the problems of the profile in force, and set or clear CONFIG_INVALID."""
        log_problems(profile.problems)
        self._profile = profile
        self._default = self.files.profile if choice.profile else profile.name
        if self.errors:
            self._troubles.add(CONFIG_INVALID)
        else:
            self._troubles.discard(CONFIG_INVALID)

    # Selections

    async def listing(self) -> list[tuple[str, str]]:
        """Return the name and summary of each profile."""
        return await self._engine.threads.open(self._profiles.listing)

    async def settings_of(self, profile: str) -> Sequence[Setting]:
        """Return the settings that a profile asks for. Raise NoSuchProfile, or InvalidValue if it has errors."""
        content = await self._engine.threads.open(self._profiles.read_sound, profile)
        return [Setting(claim.tunable, claim.instances, claim.value) for claim in content.claims]

    async def check(self, selection: Selection) -> None:
        """Raise NoSuchProfile, or InvalidValue for a profile with errors."""
        await self._profile_after(selection, self._engine.threads.open)

    async def plan(self, selection: Selection) -> Answer:
        """Return what `choose` would do; change nothing."""
        edit, _ = await self._edit(selection, self._engine.threads.open)
        return await self._engine.foresee(edit)

    async def plan_reload(self) -> Answer:
        """Return what `reload` would do; change nothing, and keep nothing of what is read.

        Raise InvalidValue if a file has errors, as the reload would.
        """
        await self._booted.wait()
        choice = self._engine.edits.committed.choice
        config, profile = await self._engine.threads.read(self.look, choice)
        if errors := (*config.errors, *profile.errors):
            raise in_part_only(errors, taken="would be taken")
        claims = (*config.claims, *profile.claims)
        files = FilesEdit(claims, replace(choice, suspended=False), claims)
        return await self._engine.foresee(self._engine.files_edit(files), limits=config.limits)

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

        `begins` is awaited when no other change is under way any more, and may raise. With `endable` a cancellation
        puts everything back; once the selection is saved, it is finished.
        """
        async with self._lock:
            if begins:
                await begins()
            edit, profile = await self._edit(selection, self._engine.threads.read)
            answer = await self._engine.carry_out(edit, cause, progress, endable=endable)
            if profile is not self._profile:
                self._publish_profile(profile, self._engine.edits.claims.choice)
                try:
                    save = partial(self._active_profile.save, profile, is_selected=bool(selection.profile))
                    await finish(asyncio.to_thread(save))
                finally:
                    self._engine.observed.notify(cause)
        return answer

    async def _edit(self, selection: Selection, run: Run) -> tuple[Edit, Content]:
        """Return the edit, and the content of the profile after it."""
        profile, before = await self._profile_after(selection, run), self._engine.edits.committed.choice
        after = selection.chosen(before)
        claims = () if after.suspended else (*self.files.claims, *profile.claims)
        # A reset does not answer with the outcomes of claims that were in force all along.
        answered = profile.claims if selection.profile is not None else claims if before.suspended else ()
        files = FilesEdit(claims, after, () if after.suspended else answered)
        return self._engine.files_edit(files, reset=selection.reset, holds=selection.holds), profile

    async def _profile_after(self, selection: Selection, run: Run) -> Content:
        """Return the content of the profile that will be in force, as last read; `run` reads it if it is another."""
        if selection.profile is None:
            return self._profile
        if selection.profile:
            return await run(self._profiles.read_sound, selection.profile)
        return await run(self._active_profile.read, self.files.profile)


async def finish(work: Awaitable[None]) -> None:
    """Await work that must not be left half done: a caller that is cancelled still waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def log_problems(problems: Sequence[Problem]) -> None:
    """Log the problems of the configuration, a line each."""
    for problem in problems:
        journal.log_problem(str(problem), is_error=problem.is_error)


def in_part_only(errors: Sequence[Problem], *, taken: str = "was taken") -> InvalidValue:
    """Return the error that answers a Reload which could not take everything, or a plan of one."""
    kinds = {problem.kind for problem in errors}
    stays = "The last good claims of these files stay in force" if kinds & {Kind.CLAIM, Kind.FILE} else ""
    falls = "Bad options have their defaults" if Kind.OPTION in kinds else ""
    return InvalidValue(
        f"the configuration {taken} in part only: {listed(errors)}",
        ". ".join(filter(None, (stays, falls, "`kerntune config check` lists everything"))),
    )
