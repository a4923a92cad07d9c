"""The completion files for bash and zsh, made from the verbs in cli/commands.py.

`python -m tools.completions` writes both into the checkout, and `make generated` runs it. The shells ask `kerntune
complete` for live values. shtab is no substitute: in bash it reads COMP_WORDS, which is cut at each @, = and :.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from kerntune.cli.commands import EVERYWHERE, HELP, VERBS, Argument
from kerntune.cli.complete import OPEN

CHECKOUT: Final = Path(__file__).parents[1]
BASH: Final = "packaging/completions/kerntune"
ZSH: Final = "packaging/completions/_kerntune"

# The values of an option that every verb has are written with it: the shells then need not know where it stands.
ALWAYS: Final = (
    *(
        f"{name}={choice}" if choice else name
        for option in EVERYWHERE
        for name in option.names
        for choice in option.how.get("choices", ("",))
    ),
)
WRITTEN: Final = "written by python -m tools.completions; do not edit"

# Bash cuts the words of COMP_WORDS at each @, = and : (what COMP_WORDBREAKS has), so this reads COMP_LINE. What it
# offers takes the place of the part after the last of them, or of all of a word that begins with a quote.
BASH_FILE: Final = r"""
# bash completion for kerntune(1): @WRITTEN@

_kerntune()
{
    local line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//[!@OPEN@]/}
    local word="" verb="" last="" live="" choices="" options="" one="" next=0
    local -a words
    read -ra words <<<"$line"
    if [[ $line != *[[:blank:]] ]]; then
        word=${words[-1]}
        unset 'words[-1]'
    fi
    if [[ $word == [\"\']* ]]; then
        word=${word:1}
        breaks=""
    fi
    for one in "${words[@]:1}"; do
        if [[ $live ]]; then
            live="" choices=""
            continue
        fi
        case $one in
            @VALUES@
            -*) ;;
            *) if [[ $verb ]]; then next=$((next + 1)) last=$one; else verb=$one; fi ;;
        esac
    done
    if [[ ! $live ]]; then
        case $verb in
            @OPTIONS@
        esac
        case "$verb $next" in
            @ARGUMENTS@
        esac
    fi
    COMPREPLY=()
    if [[ $word == -* ]]; then
        choices=$options
        live=""
    fi
    case $live in
        "" | choices) mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word") ;;
        files)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;
        *) mapfile -t COMPREPLY < <("${1:-kerntune}" complete "$live" "$word" 2>/dev/null </dev/null) ;;
    esac
    if [[ "${COMPREPLY[*]}" == *[@OPEN@] || "${COMPREPLY[*]}" == *[@OPEN@]" "* ]]; then
        compopt -o nospace 2>/dev/null
    fi
    if [[ $breaks && $word == *["$breaks"]* ]]; then
        one=${word%"${word##*["$breaks"]}"}
        COMPREPLY=("${COMPREPLY[@]#"$one"}")
    fi
} &&
    complete -F _kerntune kerntune
""".lstrip()

ZSH_FILE: Final = r"""
#compdef kerntune
# zsh completion for kerntune(1): @WRITTEN@

local word=${${(Q)words[CURRENT]}#[\"\']} verb="" last="" live="" choices="" options="" one
local -i next=0
local -a found shown
local -A about
for one in "${(@)words[2,CURRENT-1]}"; do
    if [[ -n $live ]]; then
        live="" choices=""
        continue
    fi
    case $one in
        @VALUES@
        -*) ;;
        *) if [[ -n $verb ]]; then next+=1; last=$one; else verb=$one; fi ;;
    esac
done
if [[ -z $live ]]; then
    case $verb in
        @OPTIONS@
    esac
    case "$verb $next" in
        @ARGUMENTS@
    esac
fi
if [[ $word == -* ]]; then
    choices=$options live=""
fi
case $live in
    "" | choices)
        case $verb in
            @ABOUT@
        esac
        found=(${=choices})
        for one in $found; do
            one="${(r:16:)one} ${about[${one%%=*}]}"
            shown+=("${one[1,COLUMNS-1]}")
        done
        compadd -l -d shown -- $found
        return
        ;;
    files)
        _files
        return
        ;;
    *) found=(${(f)"$("${words[1]:-kerntune}" complete $live "$word" 2>/dev/null </dev/null)"}) ;;
esac
compadd -S "" -- ${(M)found:#*[@OPEN@]}
compadd -- ${found:#*[@OPEN@]}
""".lstrip()


def bash() -> str:
    """Return /usr/share/bash-completion/completions/kerntune."""
    return filled(BASH_FILE)


def zsh() -> str:
    """Return /usr/share/zsh/vendor-completions/_kerntune."""
    return filled(ZSH_FILE)


def filled(text: str) -> str:
    """Return a file with its tables, each indented as its mark is."""
    tables = {"VALUES": option_values(), "OPTIONS": options(), "ARGUMENTS": arguments(), "ABOUT": descriptions()}
    branches = {mark: "\n".join(lines) for mark, lines in tables.items()}
    text = re.sub(r"^( *)@([A-Z]+)@$", lambda mark: textwrap.indent(branches[mark[2]], mark[1]), text, flags=re.M)
    return text.replace("@WRITTEN@", WRITTEN).replace("@OPEN@", OPEN)


def option_values() -> Iterator[str]:
    """Yield what completes the word after each option that takes a value."""
    every = [*EVERYWHERE, *(argument for verb in VERBS for argument in verb.arguments if argument.is_option)]
    taking = [argument for argument in every if argument.takes_value]
    for names, completes in dict.fromkeys((argument.names, completed(argument)) for argument in taking):
        yield f"{'|'.join(names)}) {completes} ;;"


def completed(option: Argument) -> str:
    """Return what completes the word after an option; a value that may be left out is no word of its own."""
    choices = option.how.get("choices")
    if choices and "nargs" not in option.how:
        return f'live=choices choices="{" ".join(choices)}"'
    return f"live={option.completes}"


def options() -> Iterator[str]:
    """Yield the options of each verb."""
    yield f'"") options="{" ".join(ALWAYS)}" ;;'
    for verb in VERBS:
        names = [name for argument in verb.arguments if argument.is_option for name in argument.names]
        yield f'{verb.name}) options="{" ".join([*names, *ALWAYS])}" ;;'


def arguments() -> Iterator[str]:
    """Yield what completes each argument of each verb, by the number of arguments before it."""
    for before in ("", HELP):
        yield f'"{before} 0") choices="{" ".join(verb.name for verb in VERBS)}" ;;'
    for verb in VERBS:
        for number, argument in enumerate(one for one in verb.arguments if not one.is_option):
            place = f'"{verb.name} "*' if argument.how.get("nargs") in {"+", "*"} else f'"{verb.name} {number}"'
            if choices := argument.how.get("choices"):
                yield f'{place}) choices="{" ".join(choices)}" ;;'
            elif argument.after:
                tests = " || ".join(f"$last == {word}" for word in argument.after)
                yield f"{place}) if [[ {tests} ]]; then live={argument.completes}; fi ;;"
            elif argument.completes:
                yield f"{place}) live={argument.completes} ;;"


def descriptions() -> Iterator[str]:
    """Yield what is said of the verbs, and of the options of each verb."""
    verbs = {verb.name: verb.summary for verb in VERBS}
    yield described(f'""|{HELP}', verbs | about_options(EVERYWHERE))
    for verb in VERBS:
        yield described(verb.name, about_options(verb.options))


def about_options(options: Iterable[Argument]) -> dict[str, str]:
    """Return what is said of options, by each of their names."""
    return {name: option.how["help"] for option in options for name in option.names}


def described(verb: str, about: Mapping[str, str]) -> str:
    """Return a branch of zsh that fills the array `about`."""
    words = " ".join(f"{name} {shlex.quote(text)}" for name, text in about.items())
    return f"{verb}) about=({words}) ;;"


def main() -> None:
    """Write both files into the checkout."""
    (CHECKOUT / BASH).write_text(bash())
    (CHECKOUT / ZSH).write_text(zsh())


if __name__ == "__main__":
    main()
