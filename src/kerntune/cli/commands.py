"""The syntax of the command line: the verbs with their arguments and options, and what the words of a line say.

This module runs nothing, and imports nothing that a usual line can do without: a verb names the function that it runs,
and only a help text takes argparse. A new verb is a row in VERBS, and a function in a module of this package, which may
be a generator of answers as things happen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kerntune.errors import Usage

if TYPE_CHECKING:
    from argparse import ArgumentParser

MOST_DIGITS: Final = 18  # of a number that an option takes
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

    @property
    def may_lack_value(self) -> bool:
        """True for an option whose value stands only after a =, and may be left out."""
        return self.is_option and self.how.get("nargs") == "?"

    @property
    def key(self) -> str:
        """The name under which its value is found."""
        return self.names[-1].lstrip("-").replace("-", "_")

    @property
    def metavar(self) -> str:
        """The word for its value."""
        return self.how.get("metavar") or "|".join(self.how["choices"])


class Verb(NamedTuple):
    """A row of the parser, and the function that it runs: `module:function` in this package."""

    name: str
    summary: str
    run: str
    arguments: tuple[Argument, ...] = ()
    takes_command: bool = False  # one after --
    needs_command: bool = False

    @property
    def options(self) -> tuple[Argument, ...]:
        """The options it takes: its own, and those of every verb."""
        return (*(argument for argument in self.arguments if argument.is_option), *EVERYWHERE)


def number(text: str) -> int:
    """Return the number in a text of digits only. Raise Usage."""
    if not re.fullmatch("[0-9]+", text):
        raise Usage(f"{text!r} is no number", "Write digits only")
    if len(text) > MOST_DIGITS:
        raise Usage(f"{text:.40} is too large", f"The largest has {MOST_DIGITS} digits")
    return int(text)


def flag(name: str, about: str, short: str = "") -> Argument:
    """Return an option without a value; `short` is its name of one letter."""
    return Argument((short, name) if short else (name,), {"action": "store_true", "help": about})


def fields(example: str) -> Argument:
    """Return the row of --fields, with names that its verbs have."""
    about = f"only these fields ({example}), a line for each row, tabs between"
    return Argument(("--fields",), {"metavar": "NAMES", "help": about}, "texts")


SETTING: Final = {
    "metavar": "TUNABLE[@INSTANCES]=VALUE",
    "help": "for example hugepages=64G, io-scheduler@nvme*=none; kerntune list shows the instances and what they could "
    "be, kerntune explain TUNABLE its values",
}
SETTINGS: Final = Argument(("settings",), {"nargs": "+", **SETTING}, "settings")
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
REPAIR: Final = flag("--repair", "put right what is found; takes an administrator")
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
HUGEPAGES: Final = Argument(
    ("--hugepages",),
    {"metavar": "SIZE", "help": "add so much memory in huge pages, and have malloc take it: 64G"},
    "texts",
)
THP: Final = flag("--thp", "have malloc take transparent huge pages, which are not reserved")
BORROW: Final = flag(
    "--borrow", "reserve nothing: the kernel makes the pages of --hugepages when they are used, if it can"
)
GOVERNOR: Final = Argument(("--governor",), {"metavar": "NAME", "help": "cpu-governor: performance"}, "texts")
SCHEDULER: Final = Argument(
    ("--scheduler",),
    {"action": "append", "metavar": "DRIVE=NAME", "help": "io-scheduler: nvme*=none; may be repeated"},
    "texts",
)
READ_AHEAD: Final = Argument(
    ("--read-ahead",),
    {
        "action": "append",
        "metavar": "PATH=SIZE",
        "help": "read-ahead of the drives below a file or folder, or of a drive: /models=4M; may be repeated",
    },
    "files",
)
OVERCOMMIT: Final = Argument(("--overcommit",), {"metavar": "MODE", "help": "overcommit: always"}, "texts")
RUN_SETTING: Final = Argument(
    ("--set",),
    {"action": "append", "metavar": SETTING["metavar"], "help": "any other value; may be repeated"},
    "settings",
)
RUN_PROFILE: Final = Argument(("--profile",), {"metavar": "NAME", "help": "what a profile asks for"}, "profiles")
RUN_CPUS: Final = Argument(
    ("--cpus",), {"metavar": "LIST|auto", "help": "the CPUs it stays on: 2-3; auto: those that are free now"}, "texts"
)
NUMA: Final = Argument(
    ("--numa",),
    {
        "metavar": "NODE|auto|interleave",
        "help": "memory of this node first, and its CPUs; auto: the node with most free",
    },
    "texts",
)
NICE: Final = Argument(("--nice",), {"metavar": "N", "help": "-20, which gets most of a CPU, to 19"}, "texts")
RT: Final = Argument(
    ("--rt",),
    {
        "nargs": "?",
        "const": "main",
        "metavar": "all",
        "choices": ("main", "all"),
        "help": "real time (SCHED_FIFO) for its main thread; --rt=all: for all that it starts",
    },
)
MEMLOCK: Final = flag("--memlock", "let it lock as much memory as it may: the soft limit becomes the hard one")
PREFAULT: Final = flag("--prefault", "touch the huge pages before; so it is done where a first touch is slow")
READY: Final = Argument(
    ("--wait-ready",),
    {
        "metavar": "CMD|notify|PORT",
        "help": "say when it is ready (a command ends with 0, READY=1, a port), and end what only loading needs",
    },
    "texts",
)
OUTLIVE: Final = flag("--detach", "let the command live on when kerntune is killed")
RUN_OUTPUT: Final = Argument(("--output",), {"metavar": "FILE", "help": "write the summary there, in JSON"}, "files")
FIELDS: Final = fields("target,requested,condition")
HOLD_FIELDS: Final = fields("hold,who,why")
DRY_RUN: Final = flag("--dry-run", "show what it would do, and change nothing", "-n")
HELP_OPTION: Final = flag("--help", "show this help", "-h")
VERSION: Final = flag("--version", "show the version", "-V")
JSON: Final = flag("--json", "answer in JSON", "-j")
QUIET: Final = flag("--quiet", "print nothing but errors: the exit status says the rest", "-q")
COLOR: Final = Argument(
    ("--color",),
    {
        "choices": (ALWAYS, AUTO, NEVER),
        "default": AUTO,
        "help": "auto (the default): colours on a terminal; always: colours and layout of a terminal also elsewhere",
    },
    "texts",
)
EVERYWHERE: Final = (JSON, QUIET, COLOR, VERSION, HELP_OPTION)  # options of every verb

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
    Verb("set", "claim values", "verbs:set_", (SETTINGS, PERSIST, ALLOW_PARTIAL, DRY_RUN, FIELDS)),
    Verb("unset", "withdraw claims", "verbs:unset", (TARGETS, PERSISTENT, DRY_RUN, FIELDS)),
    Verb(
        "hold",
        "claim values for as long as this command runs; huge pages are added to what there is",
        "holds:hold",
        (HELD, HELD_PROFILE, WHO, WHY, TTL, PID, DETACH, ALLOW_PARTIAL),
    ),
    Verb(
        "run",
        "run a command with its huge pages, its governor and quiet CPUs; nothing is left afterwards",
        "run:run",
        (
            HUGEPAGES,
            THP,
            BORROW,
            GOVERNOR,
            SCHEDULER,
            READ_AHEAD,
            OVERCOMMIT,
            RUN_SETTING,
            RUN_PROFILE,
            ALLOW_PARTIAL,
            SLICE,
            RUN_CPUS,
            NUMA,
            NICE,
            RT,
            MEMLOCK,
            PREFAULT,
            READY,
            OUTLIVE,
            RUN_OUTPUT,
        ),
        takes_command=True,
        needs_command=True,
    ),
    Verb("holds", "who holds what", "holds:holds", (HOLD_FIELDS,)),
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
        "profile",
        "list profiles, put one in force, or show what it says",
        "verbs:profile",
        (ACTION, PROFILE_NAME, DRY_RUN),
    ),
    Verb(
        "reset",
        "withdraw everybody's claims: back to configuration and profile",
        "verbs:reset",
        (BASELINE, RESET_HOLDS, DRY_RUN),
    ),
    Verb("verify", "what is managed and not in the desired state", "verbs:verify", (SHOWN, REPAIR, FIELDS)),
    Verb("reload", "read the configuration files again", "verbs:reload", (DRY_RUN,)),
    Verb("config", "check the configuration files; needs no daemon", "check:config", (CHECK, PLACE)),
    Verb("doctor", "look at the host: what is missing, and what works against kerntune", "doctor:doctor", (TREE,)),
    Verb(
        "import",
        "show claims for what was set by hand in files; --apply makes them",
        "doctor:import_",
        (APPLY, ALLOW_PARTIAL, TREE),
    ),
    Verb("metrics", "print metrics for Prometheus", "metrics:metrics", (OUTPUT,)),
    Verb("monitor", "show the host and what changes as it happens, until q or Ctrl-C", "monitor:monitor", (EVENTS,)),
)


DEFAULT: Final = "status"
# Other words for a verb, for users who know them; no help text and no completion has them.
ALIASES: Final = {"plan": ("set", "--dry-run")}
HELP: Final = "help"  # in place of a verb, for users who do not know --help
END: Final = "--"  # of the options


class Namespace(SimpleNamespace):
    """The arguments and options of a verb, by name: also `verb`, `run`, and `command`, the words after --."""

    verb: str
    run: str
    command: list[str]


class Typed(NamedTuple):
    """An option as it was typed: its name, its value if it has one, and the word that it is from."""

    name: str
    value: str | None
    word: str


class Words(NamedTuple):
    """The words of a line, sorted: the verb ("" for none), the arguments, and the options wherever they stood.

    `command` is the words after -- of a verb that takes a command, None without the --. Where a verb needs the --, all
    from a first argument on are arguments.
    """

    verb: str
    arguments: tuple[str, ...]
    options: tuple[Typed, ...]
    command: tuple[str, ...] | None
    line: tuple[str, ...]

    def has(self, option: Argument) -> bool:
        """Return True if this option is among them."""
        return any(typed.name in option.names for typed in self.options)


def sort(line: Sequence[str]) -> Words:
    """Return the words of a line, sorted; parse() judges them. Short options may share a word: -jq."""
    options_with_values = (one for verb in VERBS for one in verb.options if one.takes_value and not one.may_lack_value)
    taking = {name for one in options_with_values for name in one.names}
    arguments: list[str] = []
    options: list[Typed] = []
    command = None
    left = list(reversed(line))
    while left:
        word = left.pop()
        if word == END:
            verb = verb_called(next(iter(arguments), ""))
            if verb and verb.takes_command:
                command = tuple(reversed(left))
            else:
                arguments += reversed(left)
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            # An option after one that takes a value means that its value was forgotten.
            follows = name in taking and not equals and left and not is_option(left[-1])
            options.append(Typed(name, value if equals else left.pop() if follows else None, word))
        elif is_option(word):
            options += (Typed(f"-{letter}", None, word) for letter in word[1:])
        else:
            arguments.append(word)
            if len(arguments) > 1 and (verb := verb_called(arguments[0])) and verb.needs_command:
                arguments += reversed(left)
                break
    if arguments[:1] == [HELP]:
        del arguments[0]
        options.append(Typed(HELP_OPTION.names[0], None, HELP))
    if (alias := ALIASES.get(next(iter(arguments), ""))) is not None:
        arguments[0], *more = alias
        options += (Typed(name, None, name) for name in more)
    return Words(next(iter(arguments), ""), tuple(arguments[1:]), tuple(options), command, tuple(line))


def is_option(word: str) -> bool:
    """Return True if a word is an option, or the end of them; a hyphen alone and a number below 0 are arguments."""
    return word.startswith("-") and word != "-" and not word[1:].isdecimal()


def verb_called(name: str) -> Verb | None:
    """Return the verb of that name, or None."""
    return next((verb for verb in VERBS if verb.name == name), None)


def parse(words: Words) -> Namespace:
    """Return the arguments and options of the verb. Raise Usage for words that the verb does not take."""
    verb = known_verb(words.verb or DEFAULT)
    found: dict[str, Any] = {"verb": verb.name, "run": verb.run, "command": list(words.command or ())}
    known = {name: option for option in verb.options for name in option.names}
    for option in verb.options:
        found[option.key] = option.how.get("default") if option.takes_value else False
    for typed in words.options:
        if (argument := known.get(typed.name)) is None:
            raise no_option(verb, typed)
        if typed.value is None and argument.may_lack_value:
            found[argument.key] = argument.how["const"]
            continue
        if argument.takes_value == (typed.value is None):
            name = argument.names[-1]
            how = f"a value: {name} {argument.metavar}" if argument.takes_value else f"no value: {name}"
            raise Usage(f"{name} takes {how}", see(verb))
        value = converted(verb, argument, typed.value) if typed.value is not None else True
        is_list = argument.how.get("action") == "append"
        found[argument.key] = [*(found[argument.key] or ()), value] if is_list else value
    left = list(words.arguments)
    for argument in (one for one in verb.arguments if not one.is_option):
        found[argument.key] = taken(verb, argument, left)
    if left:
        hint = command_hint(words) if verb.needs_command and END not in left else see(verb)
        raise Usage(f"{verb.name} takes no argument {left[0]!r}", hint)
    if not words.command and verb.needs_command:
        raise Usage(f"{verb.name} takes a command after --", f"For example kerntune {verb.name} -- python3 serve.py")
    if words.command == ():
        raise Usage("there is no command after --", "Write one, or leave out the --")
    return Namespace(**found)


def known_verb(name: str) -> Verb:
    """Return the verb of that name. Raise Usage, which names a similar one."""
    if verb := verb_called(name):
        return verb
    if "=" in name:
        raise Usage(f"{name} is no verb", f"To set it: kerntune set {name}")
    meant = did_you_mean(name, [verb.name for verb in VERBS])
    raise Usage(f"there is no verb {name!r}", f"{meant}kerntune --help shows those there are")


def taken(verb: Verb, argument: Argument, left: list[str]) -> Any:
    """Take what an argument takes from the words that are left. Raise Usage if it needs more."""
    count = argument.how.get("nargs")
    if not left and count in (None, "+"):
        least = "at least one " if count else ""
        raise Usage(f"{verb.name} takes {least}{argument.metavar}", see(verb))
    if count in ("*", "+"):
        values = [converted(verb, argument, word) for word in left]
        left.clear()
        return values
    return converted(verb, argument, left.pop(0)) if left else argument.how.get("default")


def converted(verb: Verb, argument: Argument, word: str) -> Any:
    """Return a value as its argument has it. Raise Usage for one that it does not take."""
    choices = argument.how.get("choices", ())
    if choices and word not in choices:
        name = argument.names[-1] if argument.is_option else verb.name
        raise Usage(f"{name} takes {', '.join(choices)}, and not {word!r}", f"{did_you_mean(word, choices)}{see(verb)}")
    return argument.how["type"](word) if "type" in argument.how else word


def no_option(verb: Verb, typed: Typed) -> Usage:
    """Return the error for an option that the verb does not have: the one that was meant, and those it has."""
    names = [name for option in verb.options for name in option.names if name.startswith("--")]
    others = [other.name for other in VERBS if any(typed.name in option.names for option in other.options)]
    if typed.name.startswith("--"):
        meant = "" if others else did_you_mean(typed.name, names)
    else:
        # -persist was read as seven short options.
        meant = did_you_mean(f"-{typed.word}", names) if len(typed.word) > len("-jqn") else ""
    suggestion = meant or (f"It belongs to {', '.join(others)}. " if others else "")
    has = ", ".join(
        " ".join((option.names[-1], *(f"({name})" for name in option.names[:-1]))) for option in verb.options
    )
    name = typed.word if meant and not typed.name.startswith("--") else typed.name
    return Usage(f"{verb.name} has no option {name}", f"{suggestion}It has {has}. {see(verb)}")


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """Return a question for the name that is most like a word, "" when none is."""
    from kerntune.suggest import closest  # noqa: PLC0415  # only an error needs it

    meant = closest(word, names)
    return f"Did you mean {meant}? " if meant else ""


def command_hint(words: Words) -> str:
    """Return the line in which the arguments of a verb that needs a command are its command."""
    from shlex import join  # noqa: PLC0415  # as above

    before = words.line[: -len(words.arguments)]
    return f"A command stands after --: {join(('kerntune', *before, END, *words.arguments))}"


def see(verb: Verb) -> str:
    """Return where the arguments of a verb are explained."""
    return f"See kerntune {verb.name} --help"


def help_of(name: str) -> str:
    """Return the help text of a verb, or of the whole command line for "". Raise Usage for an unknown verb."""
    top, rows = parsers()
    text = (rows[known_verb(name).name] if name else top).format_help()
    for option in (option for verb in VERBS for option in verb.options if option.may_lack_value):
        # argparse writes a value that may be left out as if it were a word of its own.
        text = text.replace(f"{option.names[-1]} [{option.metavar}]", f"{option.names[-1]}[={option.metavar}]")
    return text


def parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Return the parsers of argparse that write the help texts: of the command line, and of each verb."""
    from argparse import ArgumentParser  # noqa: PLC0415  # to import it takes longer than to read a line

    about = "Tune the kernel by way of kerntuned. Options may stand anywhere; -- ends them."
    top = ArgumentParser(prog="kerntune", description=about, epilog=EPILOG, add_help=False)
    rows = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    found: dict[str, ArgumentParser] = {}
    for verb in VERBS:
        about = f"{verb.summary[0].upper()}{verb.summary[1:]}."
        row = found[verb.name] = rows.add_parser(verb.name, help=verb.summary, description=about, add_help=False)
        for argument in (*verb.arguments, *EVERYWHERE):
            row.add_argument(*argument.names, **argument.how)
        if verb.takes_command:
            command = "-- CMD ..." if verb.needs_command else "[-- CMD ...]"
            row.usage = f"{row.format_usage().removeprefix('usage: ').rstrip()} {command}"
    for argument in EVERYWHERE:
        top.add_argument(*argument.names, **argument.how)
    return top, found
