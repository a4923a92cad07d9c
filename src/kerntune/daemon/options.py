"""The arguments of kerntuned; kerntuned(8) documents them. Imports the parser only when there is something to parse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerntune import __version__

HOST = Path("/")


@dataclass(frozen=True, slots=True)
class Options:
    """What kerntuned was told; without arguments it serves the host."""

    root: Path = HOST
    demo: bool = False
    check: Path | None = None
    uncap: bool = False


def parse(argv: Sequence[str], config: Path) -> Options:
    """The options; `config` is the directory to check when none is named. Exits with 2 for what is no option."""
    if not argv:
        return Options()
    import argparse  # noqa: PLC0415  (nearly a MiB that the service, which has no arguments, does without)

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
