"""Makes the virtual machines of the system tests, and their image before the first test."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
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
# The longest first: otherwise one of two workers still runs a long file when the other has nothing left.
FIRST: Final = ("test_boot", "test_guard", "test_host_changes", "test_package", "test_knobs")
OPEN: Final = pytest.StashKey[ExitStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Make the image before the first test: it takes minutes, and no test is to blame when it cannot be made.

    Where workers run the tests (pytest-xdist) they have collected them meanwhile, and wait.
    """
    config = session.config
    worker, has_workers = hasattr(config, "workerinput"), bool(config.getoption("numprocesses", None))
    wanted = has_workers or any(item.path.is_relative_to(HERE) for item in session.items)
    if worker or not wanted or config.option.collectonly or session.testsfailed:
        return
    stack = config.stash[OPEN] = ExitStack()
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            stack.enter_context(installed())
        except (MachineError, OSError, SubprocessError, ValueError) as error:
            pytest.exit(f"the system tests need a virtual machine, and there is none: {error}", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last lines of the guest's journal to the report of a failure."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("vm")
    if report.failed and isinstance(machine, Machine):
        with suppress(MachineError, OSError):
            said = machine.check("journalctl --output=short-monotonic --no-pager --lines=40", limit=10)
            report.sections.append(("the guest's journal", said))
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    if stack := config.stash.get(OPEN, None):
        stack.close()


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Give the image, which `pytest_runtestloop` has made."""
    with installed() as found:
        yield found


class Shared:
    """Keeps one machine for the files that leave it as they found it; after a failure the next file gets a new one."""

    def __init__(self, session: pytest.Session, image: Image) -> None:
        self._session, self._image = session, image
        self._machine: Machine | None = None
        self._failed = 0

    def get(self) -> Machine:
        """Return the machine, started where there is none or a test has failed since."""
        if self._machine is None or self._failed != self._session.testsfailed:
            self.stop()
            self._failed = self._session.testsfailed
            self._machine = Machine(self._image).__enter__()
        return self._machine

    def stop(self) -> None:
        if self._machine is not None:
            self._machine.stop()
            self._machine = None


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, image: Image) -> Iterator[Shared]:
    machine = Shared(request.session, image)
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def vm(request: pytest.FixtureRequest, shared: Shared, image: Image) -> Iterator[Machine]:
    """Give a machine on which kerntune runs and nothing is set; a file with the mark `own_machine` gets its own."""
    if request.node.get_closest_marker("own_machine") is None:
        machine = shared.get()
        before = Host(machine).snapshot()
        yield machine
        assert "Traceback" not in Host(machine).journal()
        assert Host(machine).snapshot() == before, "the file leaves other values behind"
        return
    shared.stop()  # its memory is wanted
    with Machine(image) as machine:
        yield machine
        assert "Traceback" not in Host(machine).journal()


@pytest.fixture(scope="module")
def as_found(vm: Machine) -> dict[str, str]:
    """Return what each file that kerntuned may write held before the first test of a file that uses this."""
    return Host(vm).snapshot()


@pytest.fixture
def fresh_vm(image: Image, shared: Shared) -> Iterator[Machine]:
    """Give a machine to one test; the shared one stops, so no test that uses `vm` may come before it in the file."""
    shared.stop()
    with Machine(image) as machine:
        yield machine


@pytest.fixture
def host(vm: Machine) -> Iterator[Host]:
    """Give the file's machine as an administrator sees it; afterwards withdraw every claim and see that all is well."""
    seen = Host(vm)
    yield seen
    left = seen.release()
    assert left["claims"] == []
    assert left["degraded"] == []
