"""The standard streams: they are open, take every character, and a write that fails is reported once."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Final, TextIO

from kerntune.errors import Failed

STDIN: Final = 0  # descriptor
STANDARD: Final = (STDIN, 1, 2)


class Unwritten(Exception):
    """Standard output did not take a text. `reason` is empty when its reader has gone (`| head`), which is no error.

    Its text says what happened.
    """

    exit_code: Final = Failed.exit_code

    def __init__(self, error: OSError) -> None:
        self.reason = "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
        super().__init__(f"the answer could not be written: {self.reason}")


def prepare() -> None:
    """Open the streams that the caller has closed (`>&-`), which is no error; let all of them take every character."""
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            # This takes the lowest free descriptor, so that no file or socket of ours becomes a standard stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003  # the parameter has no name
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # A locale that cannot write a mark shows another character in its place.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


class Discarded(io.TextIOBase):
    """A stream that throws away what is written to it; its descriptor is that of the stream whose place it takes."""

    def __init__(self, stream: TextIO) -> None:
        self.fileno = stream.fileno  # type: ignore[method-assign]  # so that it also raises where there is none

    def write(self, text: str, /) -> int:
        return len(text)


@contextmanager
def quiet() -> Iterator[None]:
    """Throw away what is written to standard output inside."""
    with redirect_stdout(Discarded(sys.stdout)):
        yield


@contextmanager
def own_stderr() -> Iterator[None]:
    """Write what goes to standard error to a descriptor of our own inside.

    Where a write fails, `drop` replaces the descriptor. A command that was started with ours keeps what it was given.
    """
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):  # no file: a test reads it
        yield
        return
    own = open(descriptor, "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)  # noqa: SIM115  # see below
    try:
        with redirect_stderr(own):
            yield
    finally:
        with suppress(OSError):  # the terminal has gone
            own.close()


def is_quiet() -> bool:
    """Return True if only errors are to be written."""
    return isinstance(sys.stdout, Discarded)


@contextmanager
def written(stream: TextIO) -> Iterator[None]:
    """Flush what is written inside. Raise Unwritten if the stream does not take it."""
    try:
        yield
        stream.flush()
    except OSError as error:
        drop(stream)
        raise Unwritten(error) from error


def drop(stream: TextIO) -> None:
    """Throw away what a stream still holds, and all that follows: the interpreter would flush it, and fail, at exit."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def reader_gone(stream: TextIO) -> Iterator[list[int]]:
    """Give a descriptor that is readable when nobody reads the stream any more; none where the kernel does not tell."""
    with select.epoll() as watch:
        try:
            watch.register(stream.fileno(), 0)  # the ends of pipes and terminals are told without being asked for
            told = [watch.fileno()]
        except OSError:  # such as a file, which has no reader
            told = []
        yield told
