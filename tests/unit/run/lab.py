"""`python3 -m tests.unit.run.lab JSON CMD...`: be the parent of CMD, as `kerntune run` is, and end with its status.

JSON: `shield` (as Shield.from_json reads it), `outlives`, `ready` (what to wait for; it prints <ready>), and `tell` (a
descriptor that gets the number of the command).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, Final

from kerntune.errors import KerntuneError
from kerntune.run import parent, ready
from kerntune.run.shield import Shield
from kerntune.run.signals import held_back
from tests.harness.workers import LIMIT

# It counts: for each signal that comes it prints <NAME>, and it ends at a line of standard input or its end.
COUNTER: Final = """\
import os, signal, sys
def say(number, _): os.write(1, b"<%s>" % signal.Signals(number).name.encode() if number < 34 else b"<RT%d>" % number)
for number in sys.argv[1].split(","):
    signal.signal(int(number), say)
os.write(1, b"<go>")
sys.exit(7 if os.read(0, 1) else 0)
"""


def counter(*numbers: int) -> list[str]:
    """Return the words of a command that counts signals."""
    return [sys.executable, "-c", COUNTER, ",".join(str(int(number)) for number in numbers)]


def words(*command: str, **asked: Any) -> list[str]:
    """Return the words of a parent."""
    return [sys.executable, "-m", "tests.unit.run.lab", json.dumps(asked), *command]


@contextmanager
def attended(*command: str, **asked: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a parent with pipes; give it, and the number of its command. Both are killed at the end."""
    reader, writer = os.pipe()
    options = {name: asked.pop(name) for name in ("env", "preexec_fn", "stdin", "stderr", "pass_fds") if name in asked}
    options["pass_fds"] = (*options.get("pass_fds", ()), writer)
    argv = words(*command, tell=writer, **asked)
    with (
        open(reader, "rb") as told,
        subprocess.Popen(argv, **{"stdin": subprocess.PIPE, **options}, stdout=subprocess.PIPE) as process,
    ):
        os.close(writer)
        child = 0
        try:
            child = int(told.readline() or b"0")
            yield process, child
        finally:
            process.kill()
            if child:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def seen(stream: IO[bytes] | None, text: str) -> str:
    """Read up to a text, for a bounded time, and return all that was read."""
    assert stream is not None
    read, deadline = b"", time.monotonic() + LIMIT
    while not read.endswith(text.encode()):
        assert select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0], f"no {text} in {read!r}"
        piece = os.read(stream.fileno(), 1)
        assert piece, f"no {text} in {read!r}"
        read += piece
    return read.decode()


def until(come: Callable[[], bool]) -> None:
    """Look until it has come, for a bounded time."""
    deadline = time.monotonic() + LIMIT
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def say_ready() -> None:
    os.write(1, b"<ready>")


def main(text: str, *command: str) -> int:
    """Be the parent."""
    asked = json.loads(text)
    if tell := asked.get("tell"):
        os.set_inheritable(tell, False)
    try:
        with held_back(parent.HELD_BACK) as signals, ExitStack() as stack:
            environ, beside = dict(os.environ), []
            if asked.get("ready"):
                waiting = stack.enter_context(ready.awaited(asked["ready"], signals, say_ready))
                environ |= waiting.environment()
                beside.append(parent.Beside(waiting.look, 0.0, waiting.descriptor))
            shield = Shield.from_json(asked.get("shield", {}))
            child = parent.start(command, environ, shield, signals, outlives=bool(asked.get("outlives")))
            if tell:
                os.write(tell, b"%d\n" % child)
                os.close(tell)
            status = parent.attend(child, signals, beside)
            for _ in signals.take():
                pass
    except KerntuneError as error:
        sys.stderr.write(f"{type(error).__name__} {getattr(error, 'status', '')}: {error}\n")
        return 125
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
