"""What a process is called, whatever it calls itself."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import psutil
import pytest

from kerntune.kernel.processes import LEAST, Consumers, describe, printable, swapped

# Takes a name of bytes (PR_SET_NAME) and says when it has it; ends with its standard input.
NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"a\\xff\\nb\\x1b[31m", 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def odd_process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"named\n"
        yield child.pid
        child.communicate(timeout=10)


def test_the_user_and_the_program() -> None:
    described = describe(os.getpid(), os.getuid())
    assert described.startswith(f"{pwd.getpwuid(os.getuid()).pw_name} (")


def test_a_name_cannot_break_a_log_line_or_a_file(odd_process: int) -> None:
    described = describe(odd_process, os.getuid())
    assert described.endswith(" (a??b?[31m)")
    described.encode()


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait(timeout=10)
    assert describe(child.pid, 4711) == "uid 4711"


@pytest.mark.parametrize(("name", "shown"), [("busctl", "busctl"), ("a b", "a b"), ("\udcff", "?"), ("ü", "ü")])
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown


# Takes so many MiB more for each line it reads, and says when it has them.
GROWING = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * (int(line) << 20))
    print("grown", flush=True)
"""


def test_who_has_grown_is_told_though_looks_follow_each_other_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def grow(stdin: IO[bytes] = child.stdin, stdout: IO[bytes] = child.stdout) -> None:
            stdin.write(b"40\n")
            stdin.flush()
            assert stdout.readline() == b"grown\n"

        grow()
        consumers = Consumers()
        consumers.look(100.0)
        assert consumers.growing(5) == []
        grow()
        for later in (LEAST, LEAST + 0.01):
            consumers.look(100.0 + later)
            grown = {consumer.pid: consumer.size for consumer in consumers.growing(5)}
            assert grown[child.pid] >= 40 << 20
            assert grown[child.pid] < 60 << 20
        child.communicate(timeout=10)
    assert swapped(child.pid) == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), OSError(errno.EMFILE, "Too many")])
def test_what_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    consumers = Consumers()
    consumers.look(0.0)
    consumers.look(LEAST)

    def fail(_process: psutil.Process) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(psutil.Process, "name", fail)
        assert (consumers.largest(5), consumers.growing(5)) == ([], [])
        assert describe(os.getpid(), 4711) == "uid 4711"
        broken.setattr(psutil.Process, "memory_info", fail)
        consumers.look(2 * LEAST)
    assert consumers.largest(5) == []


def test_while_psutil_is_being_replaced_there_is_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert describe(os.getpid(), 4711) == "uid 4711"
    with pytest.raises(ImportError):
        Consumers()
