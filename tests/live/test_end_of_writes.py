"""A write that takes long, on the real kernel: a signal to its thread ends it, with what was had by then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from kerntune.engine.writer import SIGNAL, Halt, make_endable
from kerntune.kernel.files import HostKernel
from tests.harness import host

BOUND = 10.0  # seconds
PATH = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
PAGES = 448  # less than 1 GiB
ROUNDS = 20


@pytest.fixture
def endable() -> Iterator[None]:
    before = signal.getsignal(SIGNAL)
    make_endable()
    yield
    signal.signal(signal.Signals(SIGNAL), before)


def grown(halt: Halt, kernel: HostKernel) -> int:
    """The pages there are after a write that was interrupted from its first moment on; it raised nothing."""
    inside, errors = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with halt.writing(PATH):
                inside.set()
                kernel.write(PATH, str(PAGES))
        except BaseException as error:  # noqa: BLE001  # for the test's own thread to see
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(BOUND)
    while halt.interrupt():
        thread.join(0.0001)
    thread.join(BOUND)
    assert errors == []
    return host.pages()


def test_a_signal_ends_a_write_to_a_pool(endable: None) -> None:
    kernel = HostKernel()
    before = host.pages()
    found = []
    for _ in range(ROUNDS):
        found.append(grown(Halt(), kernel))
        kernel.write(PATH, str(before))
    # Now and then the kernel is done before the first signal.
    assert min(found) < PAGES, found
    assert host.pages() == before
