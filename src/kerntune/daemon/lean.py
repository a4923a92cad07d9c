"""Imported first: hides what asyncio and pathlib would import and we never use, such as TLS: a fifth of our memory.

Before all else it has SIGHUP ignored, which would end a start: a handler takes it as soon as there is one.

Nothing of it is hidden from whoever imports it later. Until the daemon is ready garbage is collected often: classes are
made in several goes, and what is left of the first would keep its place in memory for good.
"""

from __future__ import annotations

import gc
import signal
import sys
from types import ModuleType
from typing import Final

signal.signal(signal.SIGHUP, signal.SIG_IGN)
gc.set_threshold(200, 3, 3)

# asyncio expects that it may be missing. None makes an import fail (the import system's reference, "The module cache").
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # typeshed knows modules only

# Used in functions only: for TLS, for the text of subprocesses, for URLs with a host in brackets.
UNUSED: Final = ("asyncio.sslproto", "locale", "ipaddress")
_hidden: Final = [name for name in UNUSED if name not in sys.modules]
for _name in _hidden:
    sys.modules[_name] = ModuleType(_name)

import asyncio  # noqa: E402, F401
import pathlib  # noqa: E402, F401

for _name in _hidden:
    del sys.modules[_name]
