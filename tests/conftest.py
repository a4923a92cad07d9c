"""What all tests have: coroutines as tests, and a private bus."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.privatebus import PrivateBus

LONGEST: Final = 20.0  # seconds

POLICY: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <policy context="default">
    <allow own="org.kerntune.Lab"/>
    <allow send_destination="org.kerntune.Lab"/>
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
</busconfig>
"""

# A shell starts what runs in the background with SIGINT ignored, and all that the tests start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on an event loop of its own, for a bounded time."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), LONGEST))
    return True


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    """Give a private bus on which everybody may play the service of tests/dbus/lab.py, or polkit."""
    policy = tmp_path / "lab.conf"
    policy.write_text(POLICY)
    with PrivateBus(include=[policy]) as running:
        yield running
