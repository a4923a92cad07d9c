"""Imported first: hides what libraries would import if they found it and we never use; a seventh of our memory.

asyncio imports ssl for TLS, dbus_next imports gi for GLib's main loop; both expect that they may be missing.
"""

from __future__ import annotations

import sys

for _name in ("ssl", "gi"):
    # None makes an import fail (the import system's reference, "The module cache").
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # typeshed knows modules only
