"""The completion files for bash and zsh, made from the rows of the grammar; live values they ask `kerntune complete`.

`python -m kerntune.cli.shells` writes both into a checkout; a test tells when that is due.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kerntune.cli.complete import OPEN
from kerntune.cli.grammar import JSON, VERBS, Argument, Verb

BASH: Final = "packaging/completions/kerntune"
ZSH: Final = "packaging/completions/_kerntune"

ALWAYS: Final = ("--help", *JSON.names)
TOP: Final = (*ALWAYS, "--version")
WRITTEN: Final = "written by python -m kerntune.cli.shells; do not edit"

# The words of COMP_LINE are taken, for bash cuts those of COMP_WORDS at each @, = and : (what COMP_WORDBREAKS has); it
# replaces only the part after the last of them, and all of a word that begins with a quote.
BASH_FILE: Final = """\
# bash completion for kerntune(1): {written}

_kerntune()
{{
    local line=${{COMP_LINE:0:COMP_POINT}} breaks=${{COMP_WORDBREAKS//[!{open}]/}}
    local word="" verb="" last="" live="" choices="" options="" one="" next=0
    local -a words
    read -ra words <<<"$line"
    if [[ $line != *[[:blank:]] ]]; then
        word=${{words[-1]}}
        unset 'words[-1]'
    fi
    if [[ $word == [\\"\\']* ]]; then
        word=${{word:1}}
        breaks=""
    fi
    for one in "${{words[@]:1}}"; do
        if [[ $live ]]; then
            live=""
            continue
        fi
        case $one in
{taking}
            -*) ;;
            *) if [[ $verb ]]; then next=$((next + 1)) last=$one; else verb=$one; fi ;;
        esac
    done
    if [[ ! $live ]]; then
        case $verb in
{options}
        esac
        case "$verb $next" in
{arguments}
        esac
        if [[ $live == settings && " ${{words[*]}} " == *" --unset "* ]]; then
            live=targets
        fi
    fi
    COMPREPLY=()
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        return
    fi
    case $live in
        "") mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word") ;;
        files)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;
        *) mapfile -t COMPREPLY < <("${{1:-kerntune}}" complete "$live" "$word" 2>/dev/null </dev/null) ;;
    esac
    if [[ "${{COMPREPLY[*]}}" == *[{open}] || "${{COMPREPLY[*]}}" == *[{open}]" "* ]]; then
        compopt -o nospace 2>/dev/null
    fi
    if [[ $breaks && $word == *["$breaks"]* ]]; then
        one=${{word%"${{word##*["$breaks"]}}"}}
        COMPREPLY=("${{COMPREPLY[@]#"$one"}}")
    fi
}} &&
    complete -F _kerntune kerntune
"""

ZSH_FILE: Final = """\
#compdef kerntune
# zsh completion for kerntune(1): {written}

local word=${{${{(Q)words[CURRENT]}}#[\\"\\']}} verb="" last="" live="" choices="" options="" one
local -i next=0
local -a found
for one in "${{(@)words[2,CURRENT-1]}}"; do
    if [[ -n $live ]]; then
        live=""
        continue
    fi
    case $one in
{taking}
        -*) ;;
        *) if [[ -n $verb ]]; then next+=1; last=$one; else verb=$one; fi ;;
    esac
done
if [[ -z $live ]]; then
    case $verb in
{options}
    esac
    case "$verb $next" in
{arguments}
    esac
    if [[ $live == settings && " ${{words[*]}} " == *" --unset "* ]]; then
        live=targets
    fi
fi
if [[ $word == -* ]]; then
    compadd -- ${{=options}}
    return
fi
case $live in
    "") found=(${{=choices}}) ;;
    files)
        _files
        return
        ;;
    *) found=(${{(f)"$("${{words[1]:-kerntune}}" complete $live "$word" 2>/dev/null </dev/null)"}}) ;;
esac
compadd -S "" -- ${{(M)found:#*[{open}]}}
compadd -- ${{found:#*[{open}]}}
"""


def bash() -> str:
    """/usr/share/bash-completion/completions/kerntune."""
    return filled(BASH_FILE, 12)


def zsh() -> str:
    """/usr/share/zsh/vendor-completions/_kerntune."""
    return filled(ZSH_FILE, 8)


def filled(text: str, indent: int) -> str:
    """A file with its tables; `indent` is how far the branches of a `case` are indented."""

    def branches(lines: Iterator[str]) -> str:
        return "\n".join(f"{' ' * indent}{line}" for line in lines)

    return text.format(
        written=WRITTEN,
        open=OPEN,
        taking=branches(option_values()),
        options=branches(options()),
        arguments=branches(arguments()),
    )


def option_values() -> Iterator[str]:
    """What the word after an option is."""
    for argument in dict.fromkeys(
        (one.names, one.completes) for verb in VERBS for one in verb.arguments if valued(one)
    ):
        names, completes = argument
        yield f"{'|'.join(names)}) live={completes} ;;"


def valued(argument: Argument) -> bool:
    return argument.is_option and argument.takes_value


def options() -> Iterator[str]:
    """The options of each verb."""
    yield f'"") options="{" ".join(TOP)}" ;;'
    for verb in VERBS:
        names = [name for argument in verb.arguments if argument.is_option for name in argument.names]
        yield f'{verb.name}) options="{" ".join([*names, *ALWAYS])}" ;;'


def arguments() -> Iterator[str]:
    """What each argument of each verb is, by the number of those before it."""
    yield f'" 0") choices="{" ".join(verb.name for verb in VERBS)}" ;;'
    for verb in VERBS:
        yield from arguments_of(verb)


def arguments_of(verb: Verb) -> Iterator[str]:
    for number, argument in enumerate(one for one in verb.arguments if not one.is_option):
        place = f'"{verb.name} "*' if argument.how.get("nargs") in {"+", "*"} else f'"{verb.name} {number}"'
        if choices := argument.how.get("choices"):
            yield f'{place}) choices="{" ".join(choices)}" ;;'
        elif argument.after:
            tests = " || ".join(f"$last == {word}" for word in argument.after)
            yield f"{place}) if [[ {tests} ]]; then live={argument.completes}; fi ;;"
        elif argument.completes:
            yield f"{place}) live={argument.completes} ;;"


def main() -> int:
    """Write both into the checkout."""
    checkout = Path(__file__).parents[3]
    for file, text in ((BASH, bash()), (ZSH, zsh())):
        (checkout / file).parent.mkdir(exist_ok=True)
        (checkout / file).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
