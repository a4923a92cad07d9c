"""Imported first: hides what asyncio would import if it found it and we never use, TLS; a seventh of our memory.

It expects that it may be missing.
"""

from __future__ import annotations

import sys

# None makes an import fail (the import system's reference, "The module cache").
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # typeshed knows modules only
