"""A daemon's inner parts, from the files to the kernel: what tests of the configuration in force are told with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kerntune import notify
from kerntune.config.active import ActiveConfig
from kerntune.config.content import Content
from kerntune.engine.claims import Choice, Selection
from kerntune.engine.reconciler import Reconciler
from kerntune.model import State
from tests.unit.lab import BOUND, Lab, large_host, running


class Slow(ActiveConfig):
    """Counts its readings, and takes its time when it is told to."""

    def __init__(self, folder: Path, engine: Reconciler, troubles: set[str]) -> None:
        super().__init__(folder, folder / "run", engine, troubles)
        self.readings = 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def read(self, choice: Choice) -> tuple[Content, Content]:
        self.readings += 1
        self.begun.set()
        assert self.go_on.wait(BOUND)
        return super().read(choice)


@dataclass
class Bench:
    """The files in `folder`, what they lead to, and what systemd hears of it."""

    lab: Lab
    folder: Path
    config: Slow
    troubles: set[str]
    told: list[str]

    @property
    def file(self) -> Path:
        return self.folder / "kerntune.toml"

    @property
    def drive(self) -> str:
        """The scheduler of an NVMe drive."""
        return self.lab.kernel.disks["nvme0n1"].scheduler

    @property
    def disk(self) -> str:
        """The scheduler of the disk."""
        return self.lab.kernel.disks["sda"].scheduler

    @property
    def degraded(self) -> set[str]:
        return self.troubles | self.lab.engine.edits.claims.choice.troubles

    def profile(self, name: str, text: str) -> None:
        """Write a profile of the administrator."""
        (self.folder / "profiles").mkdir(exist_ok=True)
        (self.folder / f"profiles/{name}.toml").write_text(text)

    async def choose(self, selection: Selection) -> tuple[bool, dict[str, tuple[str, str, State]]]:
        """Return whether it changed anything, and requested, actual and state by target."""
        answer = await self.config.choose(selection, "test")
        return answer.changed, {str(o.target): (o.requested, o.actual, o.state) for o in answer.outcomes}

    def writes(self) -> list[str]:
        """Return the files that were written since this was asked last."""
        return [path for path, _ in self.lab.writes()]


@contextlib.asynccontextmanager
async def booted(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str = "",
    *,
    lab: Lab | None = None,
    profiles: Mapping[str, str] | None = None,
) -> AsyncIterator[Bench]:
    """Give a daemon after its boot pass, with `text` as the configuration.

    With a `lab` of before it is one after a restart on the same host.
    """
    told: list[str] = []
    monkeypatch.setattr(notify, "send", told.append)
    async with running(lab.kernel if lab else large_host()) as now:
        if lab:
            now.store.claims, now.store.baselines = lab.store.claims, lab.store.baselines
            now.engine.edits.committed = lab.store.claims
        troubles: set[str] = set()
        bench = Bench(now, folder, Slow(folder, now.engine, troubles), troubles, told)
        bench.file.write_text(text)
        for name, claims in (profiles or {}).items():
            bench.profile(name, claims)
        bench.config.start()
        await now.engine.reconcile("boot", enforce=True)
        bench.config.booted()
        bench.config.readings = 0
        bench.config.begun.clear()
        bench.writes()
        yield bench
