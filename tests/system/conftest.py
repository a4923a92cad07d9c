"""The virtual machines of the system tests, and what has to be there before the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import SubprocessError
from typing import Final

import pytest

from tests.system.host import Host
from tests.system.image.installed import installed
from tests.system.machine import Image, Machine
from tests.system.qmp import MachineError

HERE: Final = Path(__file__).parent
LIMIT: Final = 120  # seconds for a test that does not say how long it may take
IMAGE: Final = pytest.StashKey[Image]()
OPEN: Final = pytest.StashKey[ExitStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Make the image before the first test: it takes minutes, and no test is to blame when it cannot be made."""
    wanted = any(item.path.is_relative_to(HERE) for item in session.items)
    if not wanted or session.config.option.collectonly or session.testsfailed:
        return
    stack = session.config.stash[OPEN] = ExitStack()
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            session.config.stash[IMAGE] = stack.enter_context(installed())
        except (MachineError, OSError, SubprocessError, ValueError) as error:
            pytest.exit(f"the system tests need a virtual machine, and there is none: {error}", returncode=1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if stack := config.stash.get(OPEN, None):
        stack.close()


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config) -> Image:
    return pytestconfig.stash[IMAGE]


@pytest.fixture(scope="module")
def vm(image: Image) -> Iterator[Machine]:
    """A machine for the tests of one file: resumed with kerntune installed and running, and nothing set yet."""
    with Machine(image) as machine:
        yield machine


@pytest.fixture
def fresh_vm(image: Image) -> Iterator[Machine]:
    """A machine for one test."""
    with Machine(image) as machine:
        yield machine


@pytest.fixture
def host(vm: Machine) -> Iterator[Host]:
    """The file's machine as an administrator sees it; afterwards every claim is withdrawn, and the daemon is well."""
    seen = Host(vm)
    yield seen
    seen.release()
    left = seen.describe()
    assert left["claims"] == []
    assert left["degraded"] == []
    assert "Traceback" not in seen.journal()
