"""From the configuration files to the engine: at start, on SIGHUP and on Reload, one reading after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kerntune.daemon import logs, notify
from kerntune.daemon.config_files import Config, silent
from kerntune.engine.reconciler import Reconciler
from kerntune.errors import InvalidValue, KerntuneError

if TYPE_CHECKING:
    from kerntune.daemon.config import Configuration

log = logging.getLogger(__name__)
CONFIG_INVALID: Final = "config-invalid"
NAMED: Final = 3  # errors that a caller is told; the journal has all


class Reloading:
    """Owns the readings; `troubles` are the daemon's, and hold CONFIG_INVALID while a file is not in order."""

    def __init__(self, folder: Path, runtime: Path, engine: Reconciler, troubles: set[str]) -> None:
        """`folder` has the files, `runtime` the copy of what they said when they were in order."""
        self._folder, self._runtime, self._engine, self._troubles = folder, runtime, engine, troubles
        self.listeners: list[Callable[[Config], None]] = []
        self._configuration: Configuration | None = None
        self._next: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._turn, self._booted = asyncio.Lock(), asyncio.Event()

    def start(self) -> None:
        """Read for the boot pass; blocks, and nothing waits for us yet."""
        config = self.read()
        self._note(config)
        self._engine.configure(config.claims, config.limits)

    def read(self) -> Config:
        """What the files say now; blocks."""
        if self._configuration is None:
            if silent(self._folder, self._runtime):
                return Config()
            # Half a MiB that a host without settings does not need.
            from kerntune.daemon.config import Configuration  # noqa: PLC0415

            self._configuration = Configuration(self._folder, self._runtime, self._engine.tunables.values())
        return self._configuration.read()

    def booted(self) -> None:
        """READY was said: from now on a reload may begin."""
        self._booted.set()

    def soon(self) -> asyncio.Task[None]:
        """The first reload that begins after now; all who ask until then share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._reload(), name="reload")
            self._running.add(self._next)
            self._next.add_done_callback(self._ended)
        return self._next

    async def ask(self) -> None:
        """Reload, and return after the pass.

        Raises InvalidValue when a file is not in order: what is good in the files is in force all the same.
        """
        await asyncio.shield(self.soon())

    async def _reload(self) -> None:
        await self._booted.wait()
        async with self._turn:
            self._next = None
            notify.reloading()
            try:
                config = await asyncio.to_thread(self.read)
                self._note(config)
                await self._engine.reload(config.claims, config.limits)
            finally:
                notify.tell("READY=1")
        if config.errors:
            raise not_in_order(config)

    def _note(self, config: Config) -> None:
        """Tell the journal and the listeners, and keep in mind whether all is well."""
        logs.problems(config.problems)
        if config.errors:
            self._troubles.add(CONFIG_INVALID)
        else:
            self._troubles.discard(CONFIG_INVALID)
        for listener in self.listeners:
            listener(config)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody may be waiting: after SIGHUP the journal is all there is."""
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, KerntuneError):
            log.error("a reload failed", exc_info=error)


def not_in_order(config: Config) -> InvalidValue:
    """The answer to a Reload that could not take everything."""
    named = "; ".join(map(str, config.errors[:NAMED]))
    more = len(config.errors) - NAMED
    return InvalidValue(
        f"the configuration was taken in part only: {named}" + (f"; and {more} more" if more > 0 else ""),
        "The last good claims of these files stay in force, bad options have their defaults; `kerntune config check` "
        "lists everything",
    )
