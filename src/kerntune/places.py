"""Where profiles lie on disk, the shipped ones and the administrator's; opens none."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

CONFIG: Final = "/etc/kerntune"  # unless CONFIGURATION_DIRECTORY names another folder
FOLDER: Final = "profiles"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def files_in(folder: Path) -> list[Path]:
    """The profiles of one folder; none where it cannot be listed. A file whose name is none is passed over."""
    try:
        return [path for path in folder.iterdir() if path.suffix == ".toml" and NAME.fullmatch(path.stem)]
    except OSError:
        return []


def folders(config: Path) -> tuple[Path, Path]:
    """The shipped profiles (beside the sources in a checkout, else as installed), and the administrator's."""
    checkout = Path(__file__).parents[2] / "packaging" / FOLDER
    places = (checkout, Path(sys.prefix) / "lib/kerntune" / FOLDER, Path("/usr/lib/kerntune") / FOLDER)
    return next((place for place in places if place.is_dir()), places[-1]), config / FOLDER
