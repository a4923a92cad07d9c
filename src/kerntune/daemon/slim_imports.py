"""The import of asyncio without TLS; the daemon imports this module before all others.

asyncio imports ssl where it exists, and OpenSSL with it, for connections that the daemon never makes. asyncio works
without ssl, as on a Python that was built without OpenSSL.

The module first ignores SIGHUP, which would end the daemon. A handler takes SIGHUP as soon as there is an event loop.
"""

from __future__ import annotations

import signal
import sys
from types import ModuleType
from typing import Final

signal.signal(signal.SIGHUP, signal.SIG_IGN)

# None makes an import fail (the import system's reference, "The module cache").
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # typeshed knows modules only

# Functions that we never call use these: for TLS, for the text of subprocesses, for URLs with a host in brackets.
# The modules are hidden only while asyncio and pathlib are imported.
UNUSED: Final = ("asyncio.sslproto", "locale", "ipaddress")
_hidden: Final = [name for name in UNUSED if name not in sys.modules]
for _name in _hidden:
    sys.modules[_name] = ModuleType(_name)

import asyncio  # noqa: E402, F401
import pathlib  # noqa: E402, F401

for _name in _hidden:
    del sys.modules[_name]
