"""The syntax of the command line: the verbs, their arguments, and the parser made of them.

This module runs nothing, and imports nothing that a help text can do without: a verb names the function that it runs.
A new verb is a row in VERBS, and a function in a module of this package, which may be a generator of
answers as things happen.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import kerntune
from kerntune.cli import streams
from kerntune.errors import Usage

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

ALWAYS, AUTO, NEVER = "always", "auto", "never"  # values of --color
EPILOG: Final = """\
exit status: 0 as asked, 1 failed, 2 usage, 3 not found or not supported, 4 not authorised, 5 kerntuned not reachable, \
6 done in part. See kerntune(1)."""


class Argument(NamedTuple):
    """One call of argparse's add_argument; `completes` is a word of `kerntune complete`, where values are live.

    `after` lists the only words that it may follow, where not all choices of the argument before take one.
    """

    names: tuple[str, ...]
    how: dict[str, Any]
    completes: str = ""
    after: tuple[str, ...] = ()

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")

    @property
    def takes_value(self) -> bool:
        return self.how.get("action") != "store_true"


class Verb(NamedTuple):
    """A row of the parser, and the function that it runs: `module:function` in this package."""

    name: str
    summary: str
    run: str
    arguments: tuple[Argument, ...] = ()
    takes_command: bool = False  # one after --


def number(text: str) -> int:
    """Return the number in a text of digits only."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def flag(name: str, about: str) -> Argument:
    """Return an option without a value."""
    return Argument((name,), {"action": "store_true", "help": about})


SETTING: Final = {
    "metavar": "TUNABLE[@INSTANCES]=VALUE",
    "help": "for example hugepages=64G, io-scheduler@nvme*=none; kerntune list shows the instances and what they could "
    "be, kerntune explain TUNABLE its values",
}
SETTINGS: Final = Argument(("settings",), {"nargs": "+", **SETTING}, "settings")
PLANNED: Final = Argument(("settings",), {"nargs": "*", **SETTING}, "settings")
HELD: Final = Argument(("settings",), {"nargs": "*", **SETTING}, "settings")
TARGETS: Final = Argument(
    ("targets",),
    {"nargs": "+", "metavar": "TUNABLE[@INSTANCES]", "help": "without instances: all of the tunable's"},
    "targets",
)
SHOWN: Final = Argument(
    ("targets",),
    {"nargs": "*", "metavar": "TUNABLE[@INSTANCES]", "help": "only these; left out: all of them"},
    "targets",
)
EXPLAINED: Final = Argument(
    ("tunable",), {"nargs": "?", "metavar": "TUNABLE", "help": "all that is known of this one"}, "tunables"
)
ALLOW_PARTIAL: Final = flag("--allow-partial", "keep fewer huge pages than asked when there are no more")
PERSIST: Final = flag("--persist", "also after a reboot")
PERSISTENT: Final = flag("--persist", "the persistent claims, not the runtime ones")
UNSET: Final = flag("--unset", "what unset would do: TUNABLE[@INSTANCES] without values")
PLANNED_PROFILE: Final = Argument(
    ("--profile",), {"metavar": "NAME", "help": "what profile set NAME would do"}, "profiles"
)
PLANNED_RESET: Final = flag("--reset", "what reset would do")
PLANNED_HOLDS: Final = flag("--holds", "with --reset: with the end of all holds")
PLANNED_BASELINE: Final = flag("--baseline", "with --reset: to the host's own values")
ACTION: Final = Argument(
    ("action",),
    {
        "nargs": "?",
        "choices": ("list", "set", "clear", "show"),
        "default": "list",
        "help": "list (the default), set, clear, or show one's values",
    },
)
PROFILE_NAME: Final = Argument(
    ("name",), {"nargs": "?", "metavar": "NAME", "help": "of a profile"}, "profiles", ("set", "show")
)
RESET_HOLDS: Final = flag("--holds", "end all holds too")
BASELINE: Final = flag("--baseline", "back to the host's own values; files are suspended until reload")
CHECK: Final = Argument(("action",), {"choices": ("check",), "help": "what is wrong with them, line by line"})
PLACE: Final = Argument(
    ("path",), {"nargs": "?", "metavar": "PATH", "help": "another folder than /etc/kerntune, or one file"}, "files"
)
TREE: Final = Argument(
    ("--root",), {"metavar": "DIR", "default": "/", "help": "look at the tree of another host below DIR"}, "files"
)
APPLY: Final = flag("--apply", "make these claims, also after a reboot")
EVENTS: Final = flag("--events", "a line for each event, as where there is no terminal")
OUTPUT: Final = Argument(
    ("--output",), {"metavar": "FILE", "help": "write them there, for node_exporter's textfile collector"}, "files"
)
HELD_PROFILE: Final = Argument(
    ("--profile",), {"metavar": "NAME", "help": "also what this profile asks for"}, "profiles"
)
WHO: Final = Argument(
    ("--who",), {"metavar": "TEXT", "help": "whose it is; left out: your user and the program"}, "texts"
)
WHY: Final = Argument(("--why",), {"metavar": "TEXT", "help": "what it is for"}, "texts")
TTL: Final = Argument(("--ttl",), {"metavar": "TIME", "help": "end it after this time: 90s, 15m, 2h, 1d"}, "texts")
PID: Final = Argument(
    ("--pid",), {"type": number, "metavar": "PID", "help": "end it when this process ends; $$ is the shell's"}, "texts"
)
DETACH: Final = flag("--detach", "return at once, and hold for the time of --ttl; takes an administrator")
NUMBERS: Final = Argument(
    ("holds",),
    {"nargs": "+", "type": number, "metavar": "HOLD", "help": "its number, as kerntune holds shows it"},
    "texts",
)
MODEL: Final = Argument(
    ("file",), {"nargs": "?", "metavar": "FILE", "help": "the model's file; left out: one of random data"}, "files"
)
AFTER: Final = Argument(
    ("--set",),
    {"action": "append", "metavar": SETTING["metavar"], "help": "what is otherwise after; may be repeated"},
    "settings",
)
AFTER_PROFILE: Final = Argument(("--profile",), {"metavar": "NAME", "help": "what a profile asks for"}, "profiles")
SLICE: Final = Argument(
    ("--slice",), {"metavar": "TIME", "help": "the scheduler's slice: 100us (0.1 to 100 ms; Linux 6.12)"}, "texts"
)
CPUS: Final = Argument(("--cpus",), {"metavar": "LIST", "help": "the CPUs it stays on: 2-3"}, "texts")
LEG: Final = Argument(
    ("--leg",),
    {
        "action": "append",
        "choices": ("memory", "copy", "mmap", "torch", "io", "cpu"),
        "help": "what is measured; left out: what the change bears on; may be repeated",
    },
)
PAIRS: Final = Argument(
    ("--pairs",), {"type": number, "metavar": "N", "help": "so many, and one look; left out: 10, 20 or 30"}, "texts"
)
NO_CONTROL: Final = flag("--no-control", "do without the runs that compare before with itself")
FILE_SIZE: Final = Argument(("--size",), {"metavar": "SIZE", "help": "of the random data (1G)"}, "texts")
FOLDER: Final = Argument(("--dir",), {"metavar": "DIR", "help": "where the random data lie (/var/tmp)"}, "files")
UNTIL: Final = Argument(
    ("--until",), {"metavar": "TEXT", "help": "time the command until it prints this, then end it"}, "texts"
)
HTML: Final = Argument(("--html",), {"metavar": "FILE", "help": "write a page with all points"}, "files")
PNG: Final = Argument(("--png",), {"metavar": "FILE", "help": "write a picture; takes python3-matplotlib"}, "files")
NO_COMMAND: Final = flag("--no-command", "leave the command line out of JSON and page")
JSON: Final = flag("--json", "answer in JSON")
FIELDS: Final = Argument(
    ("--fields",),
    {"metavar": "NAMES", "help": "only these fields (target,actual,condition), a line for each row, tabs between"},
    "texts",
)
COLOR: Final = Argument(
    ("--color",),
    {
        "choices": (ALWAYS, AUTO, NEVER),
        "default": AUTO,
        "help": "auto (the default): colours on a terminal; always: colours and layout of a terminal also elsewhere",
    },
    "texts",
)
EVERYWHERE: Final = (JSON, COLOR)  # options of every verb, which may stand in front of it too

VERBS: Final = (
    Verb(
        "status",
        "what is managed, for whom, and what is not in the desired state (the default)",
        "verbs:status",
        (SHOWN, FIELDS),
    ),
    Verb("list", "every target with its value and its choices", "verbs:list_", (SHOWN, FIELDS)),
    Verb(
        "explain",
        "what a tunable does, when it helps and how that is known; needs no daemon",
        "explain:explain",
        (EXPLAINED,),
    ),
    Verb("get", "print values in force now", "verbs:get", (TARGETS, FIELDS)),
    Verb("set", "claim values", "verbs:set_", (SETTINGS, PERSIST, ALLOW_PARTIAL, FIELDS)),
    Verb("unset", "withdraw claims", "verbs:unset", (TARGETS, PERSISTENT, FIELDS)),
    Verb(
        "hold",
        "claim values for as long as this command runs; huge pages are added to what there is",
        "holds:hold",
        (HELD, HELD_PROFILE, WHO, WHY, TTL, PID, DETACH, ALLOW_PARTIAL),
    ),
    Verb("holds", "who holds what", "holds:holds", (FIELDS,)),
    Verb("release", "end holds", "holds:release", (NUMBERS,)),
    Verb(
        "bench",
        "time the loading of a model, or a command, before and after a change",
        "bench:bench",
        (
            MODEL,
            AFTER,
            AFTER_PROFILE,
            SLICE,
            CPUS,
            LEG,
            PAIRS,
            NO_CONTROL,
            FILE_SIZE,
            FOLDER,
            UNTIL,
            HTML,
            PNG,
            NO_COMMAND,
        ),
        takes_command=True,
    ),
    Verb(
        "plan",
        "what set would do; nothing is changed",
        "verbs:plan",
        (PLANNED, UNSET, PERSIST, ALLOW_PARTIAL, PLANNED_PROFILE, PLANNED_RESET, PLANNED_BASELINE, PLANNED_HOLDS),
    ),
    Verb("profile", "list profiles, put one in force, or show what it says", "verbs:profile", (ACTION, PROFILE_NAME)),
    Verb(
        "reset",
        "withdraw everybody's claims: back to configuration and profile",
        "verbs:reset",
        (BASELINE, RESET_HOLDS),
    ),
    Verb("verify", "what is managed and not in the desired state", "verbs:verify", (SHOWN, FIELDS)),
    Verb("reload", "read the configuration files again", "verbs:reload"),
    Verb("config", "check the configuration files; needs no daemon", "check:config", (CHECK, PLACE)),
    Verb("doctor", "look at the host: what is missing, and what works against kerntune", "doctor:doctor", (TREE,)),
    Verb(
        "import",
        "show claims for what was set by hand in files; --apply makes them",
        "doctor:import_",
        (APPLY, ALLOW_PARTIAL, TREE),
    ),
    Verb("metrics", "print metrics for Prometheus", "metrics:metrics", (OUTPUT,)),
    Verb("monitor", "show the host and what changes as it happens, until Ctrl-C", "monitor:monitor", (EVENTS,)),
)


HELP: Final = "help"  # in place of a verb, for users who do not know --help


class Parser(argparse.ArgumentParser):
    """The parser: it raises where argparse would exit, so that every error leaves in the same way."""

    def error(self, message: str) -> NoReturn:
        raise Usage(message, f"See {self.prog} --help")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:  # noqa: ARG002
        """Print a help text or the version, which end the command. Raise Unwritten."""
        with streams.written(sys.stdout):
            sys.stdout.write(message)


def parser() -> Parser:
    """Return the parser of the whole command line, made from the rows of VERBS."""
    about = "Tune the kernel by way of kerntuned."
    top = Parser(prog="kerntune", description=about, epilog=EPILOG, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"kerntune {kerntune.__version__}")
    for argument in EVERYWHERE:
        top.add_argument(*argument.names, **argument.how)
    rows = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for verb in VERBS:
        about = f"{verb.summary[0].upper()}{verb.summary[1:]}."
        row = rows.add_parser(verb.name, help=verb.summary, description=about, allow_abbrev=False)
        for argument in verb.arguments:
            row.add_argument(*argument.names, **argument.how)
        if verb.takes_command:
            row.usage = f"{row.format_usage().removeprefix('usage: ').rstrip()} [-- CMD ...]"
        # An absent option here must not undo one in front of the verb.
        for argument in EVERYWHERE:
            row.add_argument(*argument.names, **{**argument.how, "default": argparse.SUPPRESS})
        row.set_defaults(run=verb.run)
    return top


def without_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of kerntune, and those of a command after `--`, which kerntune does not read."""
    verb = next((word for word in words if not word.startswith("-")), None)
    takes_one = any(row.takes_command and row.name == verb for row in VERBS)
    place = list(words).index("--") if takes_one and "--" in words else len(words)
    return list(words[:place]), list(words[place + 1 :])


def options_first(verb: str, words: Iterable[str]) -> list[str]:
    """Return the words with the options before the arguments: argparse takes an option as the end of these."""
    arguments = next((row.arguments for row in VERBS if row.name == verb), ())
    taking = {name for argument in (*arguments, *EVERYWHERE) if argument.takes_value for name in argument.names}
    first: list[str] = []
    rest: list[str] = []
    words = iter(words)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in taking:
            value = next(words, None)
            # Without a value the option stays at the end, where argparse reports it as missing.
            first, rest = ([*first, word, value], rest) if value is not None else (first, [*rest, word])
        else:
            (first if word.startswith("--") else rest).append(word)
    return [*first, *rest]
