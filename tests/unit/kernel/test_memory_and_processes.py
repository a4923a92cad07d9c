"""What a process is called, whatever it calls itself."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import IO

import psutil
import pytest

from kerntune.kernel import processes
from kerntune.kernel.processes import (
    LEAST,
    MAX_LINE,
    Consumers,
    describe,
    printable,
    swapped,
    unit_of,
    user_name,
)

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


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/ollama.service", "ollama.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/notebook.service", "notebook.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("0::/system.slice/ollama.service/inner", "ollama.service"),
        (f"0::/system.slice/docker-0123456789ab{'cd' * 26}.scope", "container 0123456789ab (docker)"),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-0123456789ab{'0f' * 26}.scope",
            "container 0123456789ab (cri-containerd)",
        ),
        (f"12:memory:/docker/0123456789ab{'cd' * 26}\n1:name=systemd:/docker/x", "container 0123456789ab"),
        (f"0::/{'a' * 100}.service", f"{'a' * 45}..."),
        ("0::/a\x1b[31m.service", "a?[31m.service"),
        (f"0::/{'a' * 100}-0123456789ab{'cd' * 26}.scope", f"container 0123456789ab ({'a' * 24})"),
        ("0::/", ""),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_the_unit_or_the_container_of_a_process(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups) == unit


def test_the_culprit_is_who_has_grown_most_with_all_that_tells_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", GROWING, "long" * 100]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        both = [psutil.Process(), psutil.Process(child.pid)]
        monkeypatch.setattr(psutil, "process_iter", lambda: iter(both))
        consumers = Consumers()
        consumers.look(100.0)
        child.stdin.write(b"200\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"grown\n"
        consumers.look(102.0)
        named = consumers.culprit()
        child.communicate(timeout=10)
    assert len(named) == MAX_LINE
    assert f"(pid {child.pid}, {pwd.getpwuid(os.getuid()).pw_name}), 2" in named
    assert "MiB of it in the last 2 s" in named
    assert f"{sys.executable} -c" in named
    assert "..." in named
    consumers.look(104.0)
    assert f"pid {child.pid}," not in consumers.culprit(), "it is gone"


def test_the_processes_of_a_unit_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "unit_of", lambda _text: "pool.service")
    with ExitStack() as stack:
        words = [sys.executable, "-c", GROWING]
        children = [
            stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(3)
        ]
        pool = [psutil.Process(child.pid) for child in children]
        monkeypatch.setattr(psutil, "process_iter", lambda: iter(pool))
        consumers = Consumers()
        consumers.look(100.0)
        for child, size in zip(children, (30, 31, 30), strict=True):
            child.stdin.write(b"%d\n" % size)  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            assert child.stdout.readline() == b"grown\n"  # type: ignore[union-attr]
        consumers.look(102.0)
        named = consumers.culprit()
        for child in children:
            child.communicate(timeout=10)
    assert named.startswith("pool.service: ")
    assert re.search(r" MiB, with 2 more of the unit 9\d MiB in the last 2 s$", named)
    assert len(named) <= MAX_LINE


class Twin(psutil.Process):  # type: ignore[misc]  # psutil has no types
    """This process, as another one."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@pytest.mark.parametrize("unit", ["", "container 0123456789ab (abcdefghijabcdefghijabcd)", "u" * 48])
@pytest.mark.parametrize("together", [1, 256])
def test_a_line_is_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch, unit: str, together: int) -> None:
    """With the longest names, and figures that no host has."""
    mib = 99_500_000
    every = [Twin() for _ in range(together)]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(every))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: SimpleNamespace(rss=mib << 20, shared=0))
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _self: ["w" * 5000])
    monkeypatch.setattr(processes, "unit_of", lambda _text: unit)
    monkeypatch.setattr(processes, "user_name", lambda _uid: "v" * processes.USER)
    consumers = Consumers()
    consumers.look(100.0)
    assert consumers.culprit().endswith(", 99500000 MiB")
    assert len(consumers.culprit()) <= MAX_LINE
    mib += 390_000
    consumers.look(160.0)
    grown = f"with {together - 1} more of the unit 99840000 MiB" if unit and together > 1 else "390000 MiB of it"
    assert consumers.culprit().endswith(f", 99890000 MiB, {grown} in the last 60 s")
    assert len(consumers.culprit()) <= MAX_LINE


def test_one_that_ends_before_the_line_is_made_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as child:
        gone = psutil.Process(child.pid)
        child.wait(timeout=10)
    mib = 1 << 40
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([gone]))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: SimpleNamespace(rss=mib << 20, shared=0))
    consumers = Consumers()
    consumers.look(100.0)
    mib *= 2
    consumers.look(101.0)
    assert consumers.culprit() == ""


def test_memory_that_is_shared_is_counted_once_and_is_nobodys() -> None:
    consumers = Consumers()
    with open("/dev/shm/kerntune-test", "wb") as file:
        os.unlink("/dev/shm/kerntune-test")
        consumers.look(100.0)
        file.write(bytes(80 << 20))
        file.flush()
        consumers.look(101.0)
        named = consumers.culprit()
    assert named.startswith("shared memory and /dev/shm, ")
    assert " MiB of it in the last 1 s" in named


def test_without_growth_the_largest_is_named() -> None:
    consumers = Consumers()
    consumers.look(100.0)
    consumers.look(101.0)
    (largest,) = consumers.largest(1)
    assert f"pid {largest.pid}," in consumers.culprit() or "shared memory" in consumers.culprit()
    assert consumers.culprit().startswith("nobody of late; the largest is ")
    assert "in the last" not in consumers.culprit()


def test_a_user_without_a_name_is_a_number() -> None:
    assert (user_name(0), user_name(4711)) == ("root", "uid 4711")
