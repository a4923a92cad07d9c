"""Where profiles lie on disk, the shipped ones and the administrator's; opens none."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Final

CONFIG: Final = "/etc/kerntune"  # unless CONFIGURATION_DIRECTORY names another folder
FOLDER: Final = "profiles"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def files_in(folder: Path) -> list[Path]:
    """The profiles of one folder; none where it cannot be listed. A file whose name is none is passed over."""
    return [path for path in toml_in(folder) if NAME.fullmatch(path.stem)]


def misnamed_in(folder: Path) -> list[Path]:
    """Return the files that look like profiles and are passed over; a leading dot is an editor's mark."""
    return sorted(path for path in toml_in(folder) if not NAME.fullmatch(path.stem) and path.name[0] != ".")


def toml_in(folder: Path) -> list[Path]:
    """Return the TOML files of one folder; none where it cannot be listed."""
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".toml"]
    except OSError:
        return []
    return [path for path in found if may_be_read(path)]


def may_be_read(path: Path) -> bool:
    """Return whether it may be a file: no folder, pipe, socket or device but /dev/null, which masks a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # who reads it is told why
    return stat.S_ISREG(mode) or path.resolve() == Path(os.devnull)


def folders(config: Path) -> tuple[Path, Path]:
    """The shipped profiles (beside the sources in a checkout, else as installed), and the administrator's."""
    checkout = Path(__file__).parents[2] / "packaging" / FOLDER
    places = (checkout, Path(sys.prefix) / "lib/kerntune" / FOLDER, Path("/usr/lib/kerntune") / FOLDER)
    return next((place for place in places if place.is_dir()), places[-1]), config / FOLDER
