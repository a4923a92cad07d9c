"""Some claims and baselines, and what of them the files in a folder hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerntune.model import Claim, Origin, Target
from kerntune.store import Store

SDA, POOL = Target("io-scheduler", "sda", key="7"), Target("hugepages", "2M/node0")
NOW = Claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", "alice (busctl)", "", 3)
GOOD = Claim(Origin.PERSISTENT, "hugepages", "2M/node0", "128", "böb", "for the model", 5, partial=True)
LATER = Claim(Origin.RUNTIME, "overcommit", "", "always:95", "carol", "", 7)


def opened(folder: Path, boot: str = "boot-1") -> Store:
    return Store(folder / "run", folder / "lib", boot_id=boot)


def runtime(folder: Path) -> Path:
    return folder / "run/runtime.json"


def persistent(folder: Path) -> Path:
    return folder / "lib/claims.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(folder: Path) -> tuple[dict[Any, Claim], dict[Target, str]]:
    """What another daemon would find, without the files being touched."""
    state = opened(folder)
    assert state.set_aside == []
    return dict(state.claims.by_id), dict(state.baselines)


def held(*claims: Claim) -> dict[Any, Claim]:
    return {claim.id: claim for claim in claims}
