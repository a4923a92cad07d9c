"""The entry of `kerntune`: it parses, runs one verb, prints its answer, and turns every error into an exit code.

Modules that help and completion can do without are imported where they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

import kerntune
from kerntune import streams
from kerntune.errors import Exit, KerntuneError

if TYPE_CHECKING:
    from kerntune.cli.commands import Namespace
    from kerntune.cli.output import Answer
    from kerntune.cli.remote import Connect

    # An exit code alone: the verb has written all that it says.
    Run = Callable[[Connect, Namespace], Answer | Generator[Answer, None, None] | int]

INTERRUPTED: Final = 130
COMPLETE: Final = "complete"  # the word that the shells send; it is no verb
HOLD: Final = "hold"
RUN: Final = "run"
# Of `run`, whose other exit codes are the command's: it was refused before the command started, as with env(1).
NOT_STARTED: Final = 125
EDITS: Final = frozenset({"set", "unset", "reset", "reload", "release"})  # verbs that always change something


def main(argv: Sequence[str] | None = None, *, connect: Connect | None = None) -> int:
    """Run the command line and return its exit code; `argv` is without the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    try:
        if words[:1] == [COMPLETE]:
            from kerntune.cli import complete  # noqa: PLC0415

            return complete.main(words[1:])
        return _run(words, connect)
    except KeyboardInterrupt as interrupt:
        what = "What was asked for may be done all the same: see kerntune status"
        _complain("interrupted", str(interrupt) or what)
        return INTERRUPTED
    except streams.Unwritten as error:  # of the texts that no verb writes, such as --help
        return _unwritten(error, Exit.OK)


def run_of(name: str) -> Run:
    """Return the function that a verb runs, by the name in its row."""
    from importlib import import_module  # noqa: PLC0415

    module, _, function = name.partition(":")
    return cast("Run", getattr(import_module(f"kerntune.cli.{module}"), function))


def _run(line: Sequence[str], connect: Connect | None) -> int:
    from kerntune.cli import commands  # noqa: PLC0415

    words = commands.sort(line)
    try:
        if words.has(commands.HELP_OPTION):
            return _write(commands.help_of(words.verb))
        if words.has(commands.VERSION):
            return _write(f"kerntune {kerntune.__version__}\n")
        args = commands.parse(words)
        if getattr(args, "fields", None) is not None:
            from kerntune.cli import output  # noqa: PLC0415

            output.known_fields(args.verb, args.fields)  # before anything is done
        from kerntune.cli import remote  # noqa: PLC0415

        with streams.quiet() if args.quiet else nullcontext():
            answer = run_of(args.run)(connect or remote.connect, args)
            if isinstance(answer, int):
                return answer
            return _follow(answer, args) if isinstance(answer, Generator) else _show(answer, args)
    except KerntuneError as error:
        as_json = words.has(commands.JSON) and not words.has(commands.QUIET)
        return _refuse(error, as_json=as_json) if words.verb == RUN else _fail(error, as_json=as_json)


def _write(text: str) -> int:
    """Write a text that no verb answers, such as a help text. Raise Unwritten."""
    with streams.written(sys.stdout):
        sys.stdout.write(text)
    return Exit.OK


def _show(answer: Answer, args: Namespace) -> int:
    """Print an answer, and return the exit code."""
    if not (streams.is_quiet() and answer.exit_code is Exit.OK):
        for advice in answer.advice:
            _complain(*advice)
    if getattr(args, "fields", None) is not None:
        from kerntune.cli import output  # noqa: PLC0415

        rows = output.fields(answer.data, args.verb, args.fields)
        answer = answer._replace(data=rows, page=output.field_lines(rows))
    try:
        _print(answer, args)
    except streams.Unwritten as error:
        return _unwritten(error, answer.exit_code, done=_changes_host(args))
    return answer.exit_code


def _follow(answers: Generator[Answer, None, None], args: Namespace) -> int:
    """Print answers as they come, one line of JSON each, until Ctrl-C, which is the usual end.

    The exit code is that of the first answer that has one.
    """
    from contextlib import closing  # noqa: PLC0415

    codes: list[int] = []
    try:
        # This closes the generator when nobody reads on, before the collector does: so the connection ends in order.
        with closing(answers):
            for answer in answers:
                codes.append(answer.exit_code)
                _print(answer, args, indent=None)
    except streams.Unwritten as error:
        detached = getattr(args, "detach", False)
        hint = "The hold has ended" if args.verb == HOLD and not detached else ""
        return _unwritten(error, next(filter(None, codes), Exit.OK), hint, done=detached)
    except KerntuneError as error:
        return _fail(error, as_json=args.json, indent=None)
    except KeyboardInterrupt:
        if not codes:
            raise
    return next(filter(None, codes), Exit.OK)


def _changes_host(args: Namespace) -> bool:
    """Return whether the command line asks for a change: `profile` and `import` do so in one form only."""
    if getattr(args, "dry_run", False):
        return False
    return (
        args.verb in EDITS
        or getattr(args, "action", "") in ("set", "clear")
        or getattr(args, "apply", False)
        or getattr(args, "repair", False)
    )


def _fail(error: KerntuneError, *, as_json: bool, indent: int | None = 2) -> int:
    from kerntune.cli import suggest  # noqa: PLC0415

    _complain(*suggest.parts(error))
    if as_json:
        try:
            _print_json(_error_data(error), indent)
        except streams.Unwritten as unwritten:
            return _unwritten(unwritten, error.exit_code)
    return error.exit_code


def _refuse(error: KerntuneError, *, as_json: bool) -> int:
    """Say why `run` has not started the command; return its exit code. All goes to standard error, JSON last."""
    from kerntune.cli import run  # noqa: PLC0415

    _fail(error, as_json=False)
    if as_json:
        run.write_json(_error_data(error))
    return getattr(error, "status", NOT_STARTED)


def _error_data(error: KerntuneError) -> dict[str, Any]:
    return {"error": {"name": error.dbus_name, "message": str(error)}}


def _unwritten(error: streams.Unwritten, code: int, hint: str = "", *, done: bool = False) -> int:
    """Say that an answer could not be written; return the exit code of the call, or the error's if it would be 0."""
    if not error.reason:
        return code
    _complain(f"done, but {error}" if done and code == Exit.OK else str(error), hint)
    return code or error.exit_code


def _complain(what: str, hint: str) -> None:
    from kerntune.cli import tables  # noqa: PLC0415

    tables.error(what, hint, sys.stderr)


def _print(answer: Answer, args: Namespace, *, indent: int | None = 2) -> None:
    """Print an answer and flush. Raise Unwritten."""
    if args.json:
        _print_json(answer.data, indent)
        return
    from kerntune.cli import tables  # noqa: PLC0415

    with streams.written(sys.stdout):
        tables.write(answer.page, sys.stdout, args.color)


def _print_json(data: Any, indent: int | None) -> None:
    """Print data and flush. Raise Unwritten."""
    import json  # noqa: PLC0415

    with streams.written(sys.stdout):
        print(json.dumps(data, indent=indent))


if __name__ == "__main__":
    sys.exit(main())
