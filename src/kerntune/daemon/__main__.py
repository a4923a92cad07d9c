"""The entry point of kerntuned: the arguments, the logging, and the host that the daemon works on."""

from __future__ import annotations

import kerntune.daemon.slim_imports  # noqa: F401

# isort: split

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from kerntune import __version__, journal
from kerntune.daemon import hotplug
from kerntune.daemon.app import Status, run
from kerntune.daemon.directories import Directories, lock
from kerntune.guard.saved import undo_cap_alone
from kerntune.kernel.files import WRITABLE, HostKernel

log = logging.getLogger(__name__)
MOMENT: Final = 0.2  # seconds
SWITCH: Final = 0.0005  # seconds that one thread may hold the interpreter while others wait
HOST: Final = Path("/")
STACK = 1 << 20  # bytes per thread; in overcommit mode never the usual 8 MiB would count as committed


@dataclass(frozen=True, slots=True)
class Options:
    """The options that kerntuned was given; without arguments it serves the host."""

    root: Path = HOST
    demo: bool = False
    check: Path | None = None
    uncap: bool = False


def options_or_status(argv: Sequence[str], config: Path) -> Options | int:
    """Return the options, or the exit status where all that is asked for is a text, such as a report or the help.

    A disk that is full makes a failure of the status 0, and changes no other.
    """
    import io  # noqa: PLC0415  (as in parse_arguments)

    from kerntune import streams  # noqa: PLC0415
    from kerntune.config.check import check  # noqa: PLC0415  (the service never checks files)

    streams.prepare()
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            options = parse_arguments(argv, config)
            if not options.check:
                return options
            status = check(options.check, config)
        except SystemExit as end:
            status = int(end.code or 0)
    try:
        if answer := text.getvalue():  # a full disk takes not even an empty one
            with streams.written(sys.stdout):
                sys.stdout.write(answer)
    except streams.Unwritten as error:
        if error.reason:
            status = status or error.exit_code
            complaint.write(f"kerntuned: {error}\n")
    with contextlib.suppress(streams.Unwritten), streams.written(sys.stderr):
        sys.stderr.write(complaint.getvalue())
    return status


def parse_arguments(argv: Sequence[str], config: Path) -> Options:
    """Return the options; `config` is the directory to check if none is named. Exit with 2 for invalid arguments."""
    import argparse  # noqa: PLC0415  (nearly a MiB, which the service saves: it has no arguments)

    parser = argparse.ArgumentParser(prog="kerntuned", description="Kernel tuning for AI hosts as a system service")
    host = parser.add_mutually_exclusive_group()
    host.add_argument("--root", type=Path, default=HOST, metavar="DIR", help="use DIR/proc and DIR/sys")
    host.add_argument("--demo", action="store_true", help="simulate a host in memory; nothing real is changed")
    host.add_argument(
        "--check", nargs="?", type=Path, const=config, metavar="PATH", help="check the configuration files"
    )
    parser.add_argument("--uncap", action="store_true", help="undo a cap that a killed daemon has left, and end")
    parser.add_argument("--version", action="version", version=f"kerntuned {__version__}")
    return Options(**vars(parser.parse_args(argv)))


def unwritable(root: Path) -> Path | None:
    """Return a file of the tree that the daemon tunes and may not write, or None."""
    files = (path for pattern in WRITABLE for path in root.glob(pattern))
    return next((path for path in files if not os.access(path, os.W_OK)), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon, and return its exit status."""
    status: int = Status.FAILED
    try:
        status = start(argv)
    finally:
        leave(status)
    return status


def start(argv: Sequence[str] | None) -> int:
    """Carry out what the arguments say, and return the exit status."""
    # Several threads may compute at once: with the interpreter's own 5 ms the event loop would wait for each of them.
    sys.setswitchinterval(SWITCH)
    directories = Directories.from_environment()
    words = sys.argv[1:] if argv is None else argv
    options = options_or_status(words, directories.config) if words else Options()
    if isinstance(options, int):
        return options
    threading.stack_size(STACK)
    journal.set_up()
    if options.uncap:
        return uncap(HostKernel(options.root), directories.runtime)
    if options.root != HOST and not (options.root / "proc").is_dir():
        log.error("%s has no proc directory: --root takes a tree with proc and sys in it", options.root)
        return Status.USAGE
    # On the host itself a read-only file has an outcome of its own (a container). Without root nothing can be done.
    checked = options.root != HOST or os.geteuid() != 0
    if not options.demo and checked and (path := unwritable(options.root)):
        log.error("%s may not be written: run kerntuned as root, or try it with --demo", path)
        return Status.FAILED
    if options.demo:
        return simulate(directories)
    directories.make()
    events = hotplug.on_host if options.root == HOST else lambda *_given: contextlib.nullcontext()
    return live(run(HostKernel(options.root), str(options.root), directories, events))


def uncap(kernel: HostKernel, runtime: Path) -> int:
    """Undo the cap that a killed daemon has left. A running daemon looks after its cap itself."""
    with contextlib.ExitStack() as stack:
        if runtime.is_dir() and not lock(runtime, stack):
            log.error("a kerntuned runs with %s: `kerntune unset overcommit` or stopping it ends its cap", runtime)
            return Status.TAKEN
        return undo_cap_alone(kernel, runtime)


def simulate(directories: Directories) -> int:
    """Run on a simulated host in memory. Its files end with it, unless the environment names directories."""
    import tempfile  # noqa: PLC0415  (only the demonstration needs these)

    from kerntune.daemon import demo  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        if "RUNTIME_DIRECTORY" not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kerntune-demo-"))
            config = directories.config if "CONFIGURATION_DIRECTORY" in os.environ else Path(folder, "config")
            directories = Directories(Path(folder, "run"), Path(folder, "state"), config)
        directories.make()
        kernel = demo.demo_host()
        events = partial(demo.listening, kernel, directories.runtime)
        return live(run(kernel, "(simulated)", directories, events))


def live(daemon: Coroutine[Any, Any, Status]) -> Status:
    """Run the daemon as asyncio.run does, but do not wait for threads that hang."""
    runner = asyncio.Runner()
    try:
        return runner.run(daemon)
    finally:
        if not hanging():
            runner.close()


def hanging() -> list[str]:
    """Return the names of the threads that still run after a moment, and that the interpreter waits for at its end."""
    deadline = time.monotonic() + MOMENT
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in others:
        thread.join(max(0, deadline - time.monotonic()))
    return sorted(thread.name for thread in others if thread.is_alive())


def leave(status: int) -> None:
    """End the process at once if a thread hangs: only the kernel, or the program it waits for, can free the thread."""
    if threads := hanging():
        log.error("kerntuned ends without its threads %s, which hang", ", ".join(threads), exc_info=sys.exc_info()[1])
        logging.shutdown()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
