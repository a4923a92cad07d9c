"""The arguments of kerntuned, which kerntuned(8) documents. The module imports a parser only if there are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerntune import __version__

HOST = Path("/")


@dataclass(frozen=True, slots=True)
class Options:
    """The options that kerntuned was given; without arguments it serves the host."""

    root: Path = HOST
    demo: bool = False
    check: Path | None = None
    uncap: bool = False


def parse(argv: Sequence[str], config: Path) -> Options:
    """Return the options; `config` is the directory to check if none is named. Exit with 2 for invalid arguments."""
    if not argv:
        return Options()
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
