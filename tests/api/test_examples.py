"""Every example of the documentation is run: commands beside the simulated host's daemon, files through the checker.

What cannot be run here stands in NOT_HERE, with what does run it or why nothing does.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from kerntune.cli import commands
from kerntune.cli.commands import EVERYWHERE, VERBS
from kerntune.cli.run_plan import plan_of
from kerntune.cli.run_summary import Summary
from kerntune.cli.shield_options import nice_of, slice_of
from kerntune.run.memory_warnings import Expected, Heap
from kerntune.units import FACTORS
from tests.cli.scripted import outcome
from tests.harness import CHECKOUT
from tests.harness.command import LIMIT, Shell, demo
from tests.harness.documented import PAGES, TEXTS, Example, code, examples, table

README: Final = TEXTS[0]
RUN_PAGE: Final = CHECKOUT / "docs/run.md"
NOT_HERE: Final = {
    "make ": "runs these tests, or the daemon that they have already",
    "export DBUS_SYSTEM_BUS_ADDRESS=": "the address is what make run prints: tests/live/test_run.py",
    "alias kerntune=": "the environment that the tests have already",
    "sudo apt install ./build/deb/": "tests/system/image installs the package",
    "kerntune bench": "measures a real host: tests/live/test_bench.py",
    "kerntune run": "starts what is not here: tests/live/test_run_command.py",
    "systemctl ": "takes a systemd: tests/system/test_package.py, test_boot.py",
    "journalctl ": "takes a journal: tests/system/test_guard.py",
}
# How a line may end: meant to be refused, or about the machine below the tests, whose settings are not ours.
OTHERWISE: Final = {
    "kerntune set hugepages=99999999": {1},
    "kerntune set overcommit=never:1 --dry-run": {1},
    "kerntune doctor": {0, 1},
}
UNIT_FILE: Final = ("[Unit]", "Wants=kerntune.target", "After=kerntune.target")
# Figures, layers, formulas, and the signatures of the API; a drawing has a line of nothing but bars.
PROSE: Final = re.compile(r'^LEG  |^cli \| daemon |^CommitLimit = |^"\w+[( ]')
DRAWN: Final = re.compile(r"[ |]*\|[ |]*")
SHOWN: Final = [(page, block) for page in PAGES for block in examples(page)]
SHELL_PAGES: Final = sorted(
    {page for page, block in SHOWN if block.is_shell and not block.lines[0].startswith(tuple(NOT_HERE))}
)
SCRIPTS: Final = [block for _, block in SHOWN if block.is_script]
PYTHON_PAGES: Final = sorted({page for page, block in SHOWN if block.is_python})
WITHOUT_TORCH: Final = """\
import sys, types
served = []
sys.modules["torch"] = types.SimpleNamespace(load=lambda path: served.append(path))
serve = served.append
"""
SETTINGS: Final = [block for _, block in SHOWN if block.is_settings]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        yield running


def test_every_block_is_of_a_known_kind() -> None:
    for page, block in SHOWN:
        known = block.is_shell or block.is_script or block.is_python or block.is_settings or block.lines == UNIT_FILE
        known |= block.is_said or block.is_of_root
        drawn = any(DRAWN.fullmatch(line) for line in block.lines)
        assert known or drawn or PROSE.match(block.lines[0]), f"{page.name}: {block.lines}"
    lines = [line for _, block in SHOWN if block.is_shell for line in block.commands]
    for named in (*NOT_HERE, *OTHERWISE):
        assert any(line.startswith(named) for line in lines), f"{named!r} is not in the documentation any more"
    assert (CHECKOUT / "systemd/kerntune.target").exists()


@pytest.mark.parametrize("page", SHELL_PAGES, ids=lambda page: page.name)
def test_every_command_works(shell: Shell, page: Path) -> None:
    """The commands run in the order of the page, as a reader types them."""
    variables = ""
    with ExitStack() as stack:
        for line in (line for block in examples(page) if block.is_shell for line in block.commands):
            if line.startswith(tuple(NOT_HERE)):
                continue
            if re.match(r"\w+=", line):
                variables += f"{line}\n"
            elif re.search(r"\bmonitor\b", line):
                follow(shell, variables + line)
            elif re.search(r"\bkerntune hold\b", line) and "--detach" not in line:
                stack.enter_context(held(shell, line))
            else:
                run(shell, variables, line)
    assert "Traceback" not in shell.daemon.journal()


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_every_program_works(shell: Shell, page: Path) -> None:
    """The program runs as it stands on the page, with a torch that loads nothing."""
    for block in (block for block in examples(page) if block.is_python):
        text = "\n".join([WITHOUT_TORCH, *block.lines, "assert served"])
        done = subprocess.run(
            [sys.executable, "-c", text], env=shell.environment | {"PYTHONPATH": str(CHECKOUT / "src")},
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert shell.daemon.journal().count(": done") >= 1


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.page.name)
def test_every_script_works(shell: Shell, block: Example, tmp_path: Path) -> None:
    """The script has its pages while its server runs, and none after. Without its pages it starts no server."""
    server, script = tmp_path / "start-model-server", tmp_path / "script"
    server.write_text("#!/bin/sh\nkerntune holds --json\n")
    script.write_text("\n".join(block.lines) + "\n")
    script.chmod(0o755)
    before = shell.check("kerntune get hugepages@2M")
    assert '"hold": 1' in shell.check(str(script))
    assert shell.check("kerntune get hugepages@2M") == before
    assert shell.check("kerntune holds") == "Nobody holds anything."
    script.write_text(script.read_text().replace("64G", "64T"))
    refused = shell.run(str(script))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "kerntune: " in refused.stderr


@contextmanager
def held(shell: Shell, line: str) -> Iterator[None]:
    """Run a command that holds until it ends: by Ctrl-C, or by `kerntune release`."""
    words = line.partition(" #")[0].removesuffix("&")
    with subprocess.Popen(
        ["bash", "-c", f"exec {words}"], env=shell.environment | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            assert any(each.startswith("Hold ") for each in said), words
            yield
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 0


def run(shell: Shell, variables: str, line: str) -> None:
    words, _, comment = line.partition(" #")
    done = shell.run(variables + words)
    right = next((statuses for begin, statuses in OTHERWISE.items() if words.startswith(begin)), {0})
    assert done.returncode in right, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    if comment.strip().isdecimal():
        assert done.stdout.strip() == comment.strip()


def follow(shell: Shell, line: str) -> None:
    """Run an endless command, and make changes until it shows one."""
    words = line.partition(" #")[0].replace("| jq", "| jq --unbuffered")
    with subprocess.Popen(
        ["bash", "-c", f"exec timeout {LIMIT} bash -c '{quoted(words)}'"],
        env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            deadline = time.monotonic() + LIMIT
            shown = b""
            while b"bfq" not in shown:
                assert time.monotonic() < deadline, f"{words} shows nothing: {shown.decode()}"
                shell.check("kerntune set io-scheduler@sda=bfq")
                shell.check("kerntune unset io-scheduler@sda")
                # What came before it listened it never shows: then another change is made.
                if select.select([process.stdout], [], [], 0.5)[0]:
                    shown += os.read(process.stdout.fileno(), 65536)
        finally:
            process.terminate()


def quoted(words: str) -> str:
    return words.replace("'", "'\\''")


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: f"{block.page.name}: {block.lines[0]}")
def test_every_file_is_taken(shell: Shell, block: Example) -> None:
    """kerntuned takes the file as it stands on the page, without a remark."""
    text = "\n".join(block.lines) + "\n"
    if "include" in text:
        place = shell.daemon.config / "profiles/mine.toml"
        place.parent.mkdir()
    else:
        place = shell.daemon.config / "kerntune.toml"
        if block.section.startswith("["):
            text = f"{block.section}\n{text}"
        elif block.lines[0].startswith('"'):
            text = f"[io-scheduler]\n{text}"
    place.write_text(text)
    checked = shell.check(f"kerntune config check {shell.daemon.config}")
    assert "warning" not in checked.lower()
    shell.check("kerntune reload")
    if "include" in text:
        shell.check("kerntune profile set mine")
    claims = shell.check("kerntune --json status")
    assert "guard" in text or '"config' in claims or '"profile' in claims
    assert shell.daemon.journal().count("WARNING") == 0


def test_the_lines_of_the_table_set_what_they_say(shell: Shell) -> None:
    asked = [code(row[1]) for row in table(README)]
    for line in asked:
        shell.check(line)
    values = [shell.check(f"kerntune get {what}") for what in ("hugepages@2M", "io-scheduler@nvme1n1", "overcommit")]
    assert values == ["128", "none", "always:95"]
    assert set(shell.check("kerntune get cpu-governor").split()[1::2]) == {"performance"}
    shell.check("kerntune verify")


MENTIONS: Final = [
    (page.name, words)
    for page in PAGES
    for found in re.findall(r"`(kerntune [^`]+)`|^\.(?:Cm|Dl|B) (kerntune .+)$", page.read_text(), re.M)
    for words in found
    if words
]


@pytest.mark.parametrize(("page", "mentioned"), MENTIONS)
def test_a_command_in_the_text_can_be_typed(page: str, mentioned: str) -> None:
    """Its verb and its options are those of the command line."""
    _, *words = re.split(r"\s+(?:Ar\s+)?", re.split(r"&&|\||(?<= )--(?= )", mentioned)[0])
    verbs = {verb.name: verb for verb in VERBS}
    options = {*(name for option in EVERYWHERE for name in option.names), "--help", "--version"}
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    verb = next((word for word in words if word in verbs), None)
    assert verb or not [word for word in words if not word.startswith("-")], mentioned
    if verb:
        options |= {name for argument in verbs[verb].arguments for name in argument.names}
    assert set(given) <= options


RUN: Final = "kerntune run "
RUNS: Final = [
    line.partition(RUN)[2]
    for page, block in SHOWN
    for line in block.commands
    if f" {RUN}" in f" {line}".replace("/usr/bin/", " ")
]
RUN_OPTIONS: Final = [f"{words} -- true" for words in re.findall(r"^\| `(--[^`]+)`", RUN_PAGE.read_text(), re.M)]


@pytest.mark.parametrize("line", [*RUNS, *RUN_OPTIONS])
def test_a_run_of_the_text_can_be_typed(line: str) -> None:
    """Its options are taken with these values. The folder of the models is not here: a drive stands for it."""
    args = commands.parse(commands.sort(["run", *shlex.split(line.replace("/models=", "sda="))]))
    plan_of(args)
    slice_of(args.slice)
    nice_of(args.nice)


@pytest.mark.parametrize("page", [README, RUN_PAGE], ids=lambda page: page.name)
def test_what_run_says_has_the_form_of_the_text(page: Path) -> None:
    """14 GiB of pages, of which the heap has 13 606 MiB."""
    size = FACTORS["M"]
    summary = Summary(
        ["python3", "serve.py"],
        outcomes=[outcome("hugepages@2M", requested="+7168", actual="7168")],
        environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"},
        seconds=41.3,
        expected=Expected(2, 2 * size, 7168),
        memory=Heap(private_hugetlb=13_606 * size, anonymous=352 * size, processes=1),
    )
    (said,) = (block.lines for block in examples(page) if block.is_said)
    assert said == tuple(f"kerntune: {line}" for line in (*summary.beginning(), *summary.end()))
