"""The whole examination of one host: its findings, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from kerntune.doctor import conflicts, hardware, memory_limits, services
from kerntune.doctor.files import Files
from kerntune.doctor.import_plan import survey
from kerntune.doctor.types import Daemon, Finding, Severity, Survey
from kerntune.kernel.files import HostKernel

ORDER: Final = (Severity.PROBLEM, Severity.WARNING, Severity.NOTE, Severity.OK)


def look(root: Path) -> Survey:
    """Return what the files below a root set: the proposals, the lines left over, and what cannot be read."""
    files = Files(root)
    return replace(survey(files, HostKernel(root)), unreadable=tuple(files.unreadable))


def examine(root: Path, daemon: Daemon | None = None) -> list[Finding]:
    """Return all findings on the host below a root, the most important first.

    `daemon` is None if the doctor has no daemon to ask.
    """
    return sorted(findings(root, daemon), key=lambda finding: ORDER.index(finding.severity))


def findings(root: Path, daemon: Daemon | None) -> Iterator[Finding]:
    """Yield the same findings, by topic."""
    files, kernel = Files(root), HostKernel(root)
    claims, guard = (daemon.claims, daemon.guard) if daemon else ((), "")
    running = services.processes(kernel)
    yield from hardware.huge_pages(files, kernel)
    yield from hardware.cpu_frequency(files, kernel)
    yield from hardware.drives(kernel)
    yield from hardware.memory(kernel)
    yield from memory_limits.overcommit(kernel, services.guards(running), guard)
    yield from memory_limits.beside_always(kernel, guard)
    yield from memory_limits.session(kernel)
    yield from conflicts.rivals(services.rivals(files, running), claims)
    yield from conflicts.settings(survey(files, kernel), kernel, claims)
    for path, why in files.unreadable.items():
        what = f"{path} cannot be read, so what it sets is not known"
        yield Finding(Severity.NOTE, "settings", what, (why,), "run kerntune doctor as root")
