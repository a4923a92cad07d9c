"""What all tests have: coroutines as tests, a private bus, and a daemon on a simulated host."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest

from tests.harness.daemon import Daemon
from tests.harness.polkitd import POLKIT_NAME
from tests.harness.privatebus import PrivateBus, package_bus

LONGEST: Final = 20.0  # seconds

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="without polkit root alone may change anything")

# A shell starts what runs in the background with these two ignored, and all that the tests start would ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# So does nohup(1).
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# What tests read is plain, also where CI systems want colours.
os.environ.pop("FORCE_COLOR", None)


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
def bus() -> Iterator[PrivateBus]:
    """Give a private bus on which everybody may play the service of tests/dbus/lab.py, or polkit."""
    with PrivateBus(open_to=["org.kerntune.Lab", POLKIT_NAME]) as running:
        yield running


@pytest.fixture
def demo() -> Iterator[Daemon]:
    """Give a daemon on the simulated host, on a bus with the package's policy; without polkit root alone may tune."""
    with package_bus() as running, Daemon(running, "--demo") as daemon:
        yield daemon
