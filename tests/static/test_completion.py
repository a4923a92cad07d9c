"""The completion files are those of the grammar, and their shells can read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tools import completions

from kerntune.cli import complete
from kerntune.cli.commands import VERBS

CHECKOUT = Path(__file__).parents[2]
STALE = "make generated brings it up to date"


def test_the_shipped_files_are_up_to_date() -> None:
    assert (CHECKOUT / completions.BASH).read_text() == completions.bash(), STALE
    assert (CHECKOUT / completions.ZSH).read_text() == completions.zsh(), STALE


def test_whatever_takes_a_value_completes_it() -> None:
    for verb in VERBS:
        for argument in verb.arguments:
            if not argument.is_option or argument.takes_value:
                assert argument.completes in {*complete.KINDS, "files"} or argument.how["choices"], argument.names


@pytest.mark.parametrize(
    "command",
    [["bash", "-n", completions.BASH], ["zsh", "-n", completions.ZSH], ["shellcheck", "-s", "bash", completions.BASH]],
)
def test_the_shells_can_read_them(command: list[str]) -> None:
    if command[0] == "shellcheck" and shutil.which("shellcheck") is None:
        return
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
