"""Reloads, which bring the files and the profile to the engine: at start, on SIGHUP and on Reload, one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kerntune import journal
from kerntune.config.config_files import Chosen, Config, silent
from kerntune.config.parser import Kind, Problem
from kerntune.config.profiles import ProfileInForce, Profiles
from kerntune.config.sources import Configuration
from kerntune.daemon import notify
from kerntune.engine.claims import Choice, FilesEdit
from kerntune.engine.reconciler import Reconciler, stopping
from kerntune.errors import InvalidValue, KerntuneError
from kerntune.model import Claim
from kerntune.paths import folders
from kerntune.store import STATE_SET_ASIDE

log = logging.getLogger(__name__)
CONFIG_INVALID: Final = "config-invalid"
MAX_LISTED_ERRORS: Final = 3  # errors that a caller is told; the journal has all


class Reloading:
    """The owner of what was read last; each change of the part in force takes the lock `turn`.

    `troubles` are the daemon's, and have CONFIG_INVALID while a file has errors.
    """

    def __init__(self, folder: Path, runtime: Path, engine: Reconciler, troubles: set[str]) -> None:
        """Use the files in `folder`, and the copies of their last good content in `runtime`. This blocks.

        No module of kerntune is imported after this: an upgrade may be replacing the package by then.
        """
        self._folder, self._runtime, self._engine, self._troubles = folder, runtime, engine, troubles
        tunables = engine.tunables
        self._configuration, self._parsed = Configuration(folder, runtime, tunables.values()), False
        self.profile = ProfileInForce(Profiles(folders(folder), tunables.values()), runtime, tunables)
        if self._configuration.set_aside or self.profile.set_aside:
            troubles.add(STATE_SET_ASIDE)
        self.listeners: list[Callable[[Config], None]] = []
        self.config, self.chosen = Config(), Chosen()
        self.turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._booted = asyncio.Event()
        self._stopped = False

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of all files, as last read."""
        return *self.config.claims, *self.chosen.claims

    def start(self) -> None:
        """Read the files for the boot pass. This blocks, but nothing waits for the daemon yet."""
        config, choice = self.read(), self._engine.claims.choice
        self.note(config, self.read_profile(choice.profile or config.profile))
        self._engine.configure(() if choice.suspended else self.claims, config.limits)

    def read(self) -> Config:
        """Return what the configuration says now. This blocks."""
        if not self._parsed and silent(self._folder, self._runtime, self._configuration.tables):
            return Config()
        self._parsed = True
        return self._configuration.read()

    def read_profile(self, name: str, *, keep: bool = True) -> Chosen:
        """Return what a profile says now; "" is none. Without `keep` it does not come into force. This blocks."""
        return self.profile.read(name, keep=keep) if name else Chosen()

    def booted(self) -> None:
        """Let reloads begin: the daemon has said READY."""
        self._booted.set()

    def stop(self) -> None:
        """Let no reload begin any more, and the running one say nothing: the daemon has said STOPPING."""
        self._stopped = True

    def soon(self) -> asyncio.Task[None]:
        """Return the first reload that begins after now; all callers until then share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._reload(), name="reload")
            self._running.add(self._next)
            self._next.add_done_callback(self._ended)
        return self._next

    async def ask(self) -> None:
        """Reload, and return after the pass.

        Raise InvalidValue if a file has errors: the good part of the files is in force all the same.
        """
        await asyncio.shield(self.soon())

    async def _reload(self) -> None:
        await self._booted.wait()
        async with self.turn:
            self._next = None
            if self._stopped:
                raise stopping()
            notify.reloading()
            extending = asyncio.create_task(notify.extend(at_once=False))
            try:
                config = await asyncio.to_thread(self.read)
                choice = self._engine.claims.choice
                self.note(config, await asyncio.to_thread(self.read_profile, choice.profile or config.profile))
                await self._apply(choice)
            finally:
                extending.cancel()
                if not self._stopped:
                    notify.tell("READY=1")
        if self._stopped:
            raise stopping()  # the pass may have been stopped before it was complete
        if wrong := self.errors:
            raise not_in_order(wrong)

    async def _apply(self, choice: Choice) -> None:
        """Put in force what was read, also if the files were suspended."""
        limits = self.config.limits
        if not choice.suspended:
            await self._engine.reload(self.claims, limits)
            return
        self._engine.configure((), limits)
        files = FilesEdit(self.claims, replace(choice, suspended=False))
        await self._engine.carry_out(self._engine.choosing(files), "reload")

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The errors in the files that were read last."""
        return tuple(problem for problem in (*self.config.problems, *self.chosen.problems) if problem.is_error)

    def note(self, config: Config, chosen: Chosen) -> None:
        """Record what was read: log its problems, set or clear CONFIG_INVALID, and tell the listeners."""
        log_problems(config.problems)
        self.config = config
        self.note_profile(chosen)
        for listener in self.listeners:
            listener(config)

    def note_profile(self, chosen: Chosen) -> None:
        """Record the profile alone: log its problems, and set or clear CONFIG_INVALID."""
        log_problems(chosen.problems)
        self.chosen = chosen
        if self.errors:
            self._troubles.add(CONFIG_INVALID)
        else:
            self._troubles.discard(CONFIG_INVALID)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Log a failed reload: after SIGHUP no caller waits for it, and only the journal can tell."""
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, KerntuneError):
            log.error("a reload failed", exc_info=error)


def log_problems(problems: Sequence[Problem]) -> None:
    """Log the problems of the configuration, a line each."""
    for problem in problems:
        journal.log_problem(str(problem), is_error=problem.is_error)


def not_in_order(wrong: Sequence[Problem]) -> InvalidValue:
    """Return the error that answers a Reload which could not take everything."""
    named = "; ".join(map(str, wrong[:MAX_LISTED_ERRORS]))
    more = len(wrong) - MAX_LISTED_ERRORS
    kinds = {problem.kind for problem in wrong}
    stays = "The last good claims of these files stay in force" if kinds & {Kind.CLAIM, Kind.FILE} else ""
    falls = "Bad options have their defaults" if Kind.OPTION in kinds else ""
    return InvalidValue(
        f"the configuration was taken in part only: {named}" + (f"; and {more} more" if more > 0 else ""),
        ". ".join(filter(None, (stays, falls, "`kerntune config check` lists everything"))),
    )
