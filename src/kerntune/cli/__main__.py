"""The entry of `kerntune`: parses, runs one verb, prints its answer, and turns every error into an exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, NoReturn

import kerntune
from kerntune.cli import manager, show
from kerntune.cli.rows import Answer
from kerntune.cli.verbs import VERBS
from kerntune.errors import Exit, KerntuneError, Usage

INTERRUPTED: Final = 130

EPILOG: Final = """\
exit status: 0 as asked, 1 failed, 2 usage, 3 not found or not supported, 4 not authorised, 5 kerntuned not reachable, \
6 done in part. See kerntune(1)."""


class Parser(argparse.ArgumentParser):
    """Raises what argparse would exit with, so that every error leaves by the same door."""

    def error(self, message: str) -> NoReturn:
        raise Usage(message, f"See {self.prog} --help")


def parser() -> Parser:
    """The whole command line, made from the rows of VERBS."""
    json_flag: dict[str, Any] = {"action": "store_true", "help": "answer in JSON"}
    about = "Tune the kernel by way of kerntuned."
    top = Parser(prog="kerntune", description=about, epilog=EPILOG, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"kerntune {kerntune.__version__}")
    top.add_argument("--json", **json_flag)
    rows = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for verb in VERBS:
        about = f"{verb.summary[0].upper()}{verb.summary[1:]}."
        row = rows.add_parser(verb.name, help=verb.summary, description=about, allow_abbrev=False)
        for names, how in verb.arguments:
            row.add_argument(*names, **how)
        # Absent here must not undo a --json in front of the verb.
        row.add_argument("--json", default=argparse.SUPPRESS, **json_flag)
        row.set_defaults(run=verb.run)
    return top


def main(argv: Sequence[str] | None = None, *, connect: manager.Connect = manager.connect) -> int:
    """Run the command line and answer its exit code; `argv` is without the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A locale that cannot write a mark shows something else in its place.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _run(words, connect)
    except KerntuneError as error:
        return _fail(error, as_json="--json" in words)
    except KeyboardInterrupt:
        show.error("interrupted", "What was asked for may be done all the same: see kerntune status", sys.stderr)
        return INTERRUPTED


def _run(words: Sequence[str], connect: manager.Connect) -> int:
    if "--json" in words:
        # argparse would take an option between two arguments for the end of them.
        words = ["--json", *(word for word in words if word != "--json")]
    args = parser().parse_args(words)
    if args.verb is None:
        args = parser().parse_args([*words, "status"])
    import asyncio  # noqa: PLC0415  # help should not wait for it

    running = args.run(connect, args)
    if isinstance(running, AsyncGenerator):
        return _follow(running, as_json=args.json)
    answer: Answer = asyncio.run(running)
    for advice in answer.advice:
        _complain(*advice)
    _print(answer.data if args.json else answer.page, as_json=args.json)
    return answer.exit_code


def _follow(answers: AsyncGenerator[Answer, None], *, as_json: bool) -> int:
    """Print answers as they come, one line of JSON each, until Ctrl-C: that is how it is meant to end."""
    import asyncio  # noqa: PLC0415  # as above

    async def follow() -> None:
        # Closed here when nobody reads on, and not by the collector: the connection ends in order.
        async with aclosing(answers):
            async for answer in answers:
                if not _print(answer.data if as_json else answer.page, as_json=as_json, indent=None):
                    return

    try:
        asyncio.run(follow())
    except KerntuneError as error:
        return _fail(error, as_json=as_json, indent=None)
    except KeyboardInterrupt:
        pass
    return Exit.OK


def _fail(error: KerntuneError, *, as_json: bool, indent: int | None = 2) -> int:
    _complain(error.what, error.hint)
    if as_json:
        _print({"error": {"name": error.dbus_name, "message": str(error)}}, as_json=True, indent=indent)
    return error.exit_code


def _complain(what: str, hint: str) -> None:
    show.error(what, hint, sys.stderr, width=shutil.get_terminal_size().columns)


def _print(answer: Any, *, as_json: bool, indent: int | None = 2) -> bool:
    """The answer, on stdout, at once; False when its reader has seen enough (`| head`), which is no error."""
    try:
        if as_json:
            print(json.dumps(answer, indent=indent))
        else:
            show.write(answer, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
