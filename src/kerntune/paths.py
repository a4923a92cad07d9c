"""The folders of the profiles on disk, the shipped ones and the administrator's; the module opens no file."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Final

CONFIG: Final = "/etc/kerntune"  # unless CONFIGURATION_DIRECTORY names another folder
CONFIG_FILE: Final = f"{CONFIG}/kerntune.toml"
FOLDER: Final = "profiles"
PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def setting(table: str, name: str) -> str:
    """Return, as prose, which setting an administrator may change, and in which file."""
    return f"{table}.{name} in {CONFIG_FILE}"


def files_in(folder: Path) -> list[Path]:
    """Return the profiles of one folder; none where it cannot be listed. Leave out files whose names are not valid."""
    return [path for path in toml_in(folder) if PROFILE_NAME.fullmatch(path.stem)]


def misnamed_in(folder: Path) -> list[Path]:
    """Return the files that look like profiles but have no valid name; a leading dot is an editor's mark."""
    return sorted(path for path in toml_in(folder) if not PROFILE_NAME.fullmatch(path.stem) and path.name[0] != ".")


def toml_in(folder: Path) -> list[Path]:
    """Return the TOML files of one folder; none where it cannot be listed."""
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".toml"]
    except OSError:
        return []
    return [path for path in found if may_be_read(path)]


def may_be_read(path: Path) -> bool:
    """Return True if it may be a file: no folder, pipe, socket or device but /dev/null, which masks a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # the reader of the file gets the reason
    return stat.S_ISREG(mode) or path.resolve() == Path(os.devnull)


def folders(config: Path) -> tuple[Path, Path]:
    """Return two folders: the shipped profiles (in a checkout, else as installed), and the administrator's."""
    checkout = Path(__file__).parents[2] / "packaging" / FOLDER
    places = (checkout, Path(sys.prefix) / "lib/kerntune" / FOLDER, Path("/usr/lib/kerntune") / FOLDER)
    return next((place for place in places if place.is_dir()), places[-1]), config / FOLDER
