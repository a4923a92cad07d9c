"""The contract: the files dbus/interfaces/*.xml, and the annotation of kerntune's own in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from kerntune.api.names import BUS_NAME

# The annotation of a method: the polkit action that its callers need (api/authorization.py). Without it root alone may.
ACTION: Final = "org.kerntune.Action"


def interface_files() -> list[Path]:
    """Return the XML files of the contract: from the checkout if there is one, else from where the package has them."""
    checkout = Path(__file__).parents[3] / "dbus" / "interfaces"
    installed = (Path(sys.prefix) / "share/dbus-1/interfaces", Path("/usr/share/dbus-1/interfaces"))
    for folder in (checkout, *installed):
        if found := sorted(folder.glob(f"{BUS_NAME}.*.xml")):
            return found
    raise FileNotFoundError(f"no {BUS_NAME}.*.xml in {checkout}, {installed[0]} or {installed[1]}: reinstall kerntune")
