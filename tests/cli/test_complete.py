"""Completion: what the shells ask, and what bash and zsh make of it; nobody else is asked, and it is quick."""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kerntune.cli import complete
from kerntune.cli.commands import VERBS
from kerntune.tunables import REGISTRY
from tests import hosts
from tests.cli.scripted import Captured
from tests.harness import CHECKOUT
from tests.harness.command import LIMIT, run
from tests.hosts import lay_out, plant

QUICK = 0.2  # seconds
FILES = CHECKOUT / "packaging/completions"
SAMSUNG = "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123"
NEEDS_ZSH = pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here (make setup installs it)")
SHELLS = ["bash", pytest.param("zsh", marks=NEEDS_ZSH)]

GOVERNORS = """\
sys/devices/system/cpu/cpufreq/policy0/scaling_governor\tpowersave
sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors\tperformance powersave
sys/devices/system/cpu/cpufreq/policy0/related_cpus\t0 1
sys/block/odd;name/queue/scheduler\t[none]
sys/block/loop0/queue/scheduler\t[none]
sys/block/zram0/queue/scheduler\tnone
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a server with drives, pools on two nodes and a frequency policy."""
    folder = tmp_path_factory.mktemp("host")
    lay_out("two-sockets", folder)
    plant(folder, GOVERNORS)
    return folder


@pytest.fixture(scope="module")
def path(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a PATH on which `kerntune` looks at that host."""
    folder = tmp_path_factory.mktemp("bin")
    program = f"import sys, pathlib; from kerntune.cli import complete; assert sys.argv[1] == 'complete'; \
complete.main(sys.argv[2:], root=pathlib.Path({str(root)!r}))"
    (folder / "program.py").write_text(program)
    (folder / "kerntune").write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/program.py "$@"\n')
    (folder / "kerntune").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


# What the shells ask


def test_a_word_that_takes_a_value_completes_it() -> None:
    for verb in VERBS:
        for argument in verb.arguments:
            if not argument.is_option or argument.takes_value:
                assert argument.completes in {*complete.KINDS, "files"} or argument.how["choices"], argument.names


def asked(root: Path, capsys: Captured, kind: str, word: str) -> list[str]:
    assert complete.main([kind, word], root=root) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


@pytest.mark.parametrize(
    ("kind", "word", "found"),
    [
        ("tunables", "io", ["io-scheduler"]),
        ("targets", "hugepages@2M/", ["hugepages@2M/node0", "hugepages@2M/node1"]),
        ("targets", "overcommit", ["overcommit"]),
        ("targets", "io-s", ["io-scheduler", "io-scheduler@"]),
        ("settings", "overc", ["overcommit="]),
        ("settings", "hugepages@1G", ["hugepages@1G=", "hugepages@1G/node0=", "hugepages@1G/node1="]),
        ("settings", "io-scheduler@lo", ["io-scheduler@loop0="]),
        ("targets", "io-scheduler@zram", ["io-scheduler@zram0"]),
        ("settings", "hugepages=", []),
        ("settings", "io-scheduler@nvme1n", ["io-scheduler@nvme1n1="]),
        ("settings", "io-scheduler@by-id/nvme-SAM", [f"io-scheduler@{SAMSUNG}=", f"io-scheduler@{SAMSUNG[:-1]}4="]),
        ("settings", f"io-scheduler@{SAMSUNG}=n", [f"io-scheduler@{SAMSUNG}=none"]),
        ("settings", "io-scheduler@nvme*=m", ["io-scheduler@nvme*=mq-deadline"]),
        ("settings", "overcommit=", [f"overcommit={word}" for word in ("heuristic", "always", "always:", "never:")]),
        ("settings", "overcommit=always:", []),
        ("settings", "cpu-governor@", ["cpu-governor@policy0=", "cpu-governor@cpu0=", "cpu-governor@cpu1="]),
        ("settings", "cpu-governor=", ["cpu-governor=performance", "cpu-governor=powersave"]),
        ("settings", "cpu-governor@3-0=", []),
        ("settings", "hugepages@nonsense=", []),
        ("settings", "nonsense@x=", []),
        ("settings", "=", []),
        ("profiles", "ai", ["ai-inference", "ai-training"]),
        ("nonsense", "", []),
    ],
)  # fmt: skip
def test_what_is_asked(kind: str, word: str, found: list[str], root: Path, capsys: Captured) -> None:
    assert asked(root, capsys, kind, word) == found


def test_what_a_star_leaves_out_is_offered_when_it_is_begun(root: Path, capsys: Captured) -> None:
    offered = asked(root, capsys, "settings", "io-scheduler@")
    assert "io-scheduler@sda=" in offered
    assert not any("loop" in text or "zram" in text for text in offered)


def test_no_name_gets_shell_syntax_onto_a_command_line(root: Path, capsys: Captured) -> None:
    assert (root / "sys/block/odd;name").exists()
    assert not [text for text in asked(root, capsys, "settings", "io-scheduler@") if "odd" in text]
    for name in ("mine$(reboot)", "mine `x`", "mine;x", "mine\n"):
        assert not complete.is_next(name, "mi")


@pytest.mark.parametrize("name", hosts.NAMES)
def test_what_is_offered_is_a_setting(name: str, tmp_path: Path, capsys: Captured) -> None:
    """Every way to the end, on every captured host."""
    lay_out(name, tmp_path)
    found = asked(tmp_path, capsys, "settings", "")
    assert {text.rstrip("@=") for text in found} == {tunable.name for tunable in REGISTRY}
    for start in found:
        if start.endswith("@"):
            for target in asked(tmp_path, capsys, "settings", start):
                assert target.endswith("=")
                assert all(value.startswith(target) for value in asked(tmp_path, capsys, "settings", target))


def test_the_administrators_profiles(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.toml").touch()
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    assert asked(root, capsys, "profiles", "m") == ["mine", "model-download"]


def test_it_asks_no_daemon_and_is_quick() -> None:
    program = """
import sys
from kerntune.cli.__main__ import main
main(["complete", "settings", "io-scheduler@"])
print(sorted({"asyncio", "dbus_next", "argparse"} & sys.modules.keys()), file=sys.stderr)
"""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run([sys.executable, "-c", program])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor: how long it takes depends on who else is at work here.
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.stderr == "[]\n"
    assert min(seconds) < QUICK


# What the shells make of it

BASH = """\
source {file}
COMP_LINE=$1 COMP_POINT=${{#1}}
read -ra COMP_WORDS <<<"$1"
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_kerntune kerntune
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# What zsh would show is printed; its own functions are there on a terminal only.
ZSH = """\
compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; (( $# )) && print -rl -- "$@" }}
_files() {{ print -r -- FILES }}
words=(${{(z)1}})
[[ $1 == *" " ]] && words+=("")
CURRENT=${{#words}}
complete() {{ source {file} }}
complete
"""


def completed(shell: str, line: str, path: str) -> list[str]:
    """Return what may stand in place of the end of a line."""
    start, text = (
        (["bash", "--norc", "-c"], BASH.format(file=FILES / "kerntune"))
        if shell == "bash"
        else (["zsh", "-f", "-c"], ZSH.format(file=FILES / "_kerntune"))
    )
    done = run([*start, text, shell, line], env={"PATH": path})
    assert done.stderr == ""
    return sorted(word for word in done.stdout.splitlines() if word)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kerntune ver", ["verify"]),
        ("kerntune --json ver", ["verify"]),
        ("kerntune profile ", ["clear", "list", "set", "show"]),
        ("kerntune profile set ai", ["ai-inference", "ai-training"]),
        ("kerntune profile --json show ba", ["balanced"]),
        ("kerntune profile clear ", []),
        ("kerntune profile list ", []),
        ("kerntune pl", []),
        ("kerntune profile --dry-run set ba", ["balanced"]),
        ("kerntune unset --dry-run overc", ["overcommit"]),
        ("kerntune reload --dr", ["--dry-run"]),
        ("kerntune verify --rep", ["--repair"]),
        ("kerntune list io", ["io-scheduler", "io-scheduler@"]),
        ("kerntune help ver", ["verify"]),
        ("kerntune config ", ["check"]),
        ("kerntune reload ", []),
        ("kerntune status io-", ["io-scheduler", "io-scheduler@"]),
        ("kerntune nonsense ", []),
        ("kerntune set hugepages=64 overc", ["overcommit="]),
        ("kerntune set --persist overc", ["overcommit="]),
        ("kerntune set --color=never overc", ["overcommit="]),
        ("kerntune --color never ver", ["verify"]),
        ("kerntune --color a", ["always", "auto"]),
        ("kerntune bench --leg m", ["memory", "mmap"]),
        ("kerntune bench --leg copy --leg ", ["copy", "cpu", "io", "memory", "mmap", "torch"]),
        ("kerntune run --rt --profile ba", ["balanced"]),
    ],
)
def test_verbs_options_and_live_values(shell: str, line: str, found: list[str], path: str) -> None:
    word = line.rpartition(" ")[2]
    assert [text for text in completed(shell, line, path) if text.startswith(word)] == found


@pytest.mark.parametrize("shell", SHELLS)
def test_options_are_those_of_the_verb(shell: str, path: str) -> None:
    colors = ["--color=always", "--color=auto", "--color=never"]
    short = ["-V", "-h", "-j", "-q"]
    every = [*colors, "--help", "--json", "--quiet", "--version", *short]
    own = ["--allow-partial", "--dry-run", "--fields", "--persist", "-n"]
    assert completed(shell, "kerntune set -", path) == sorted([*own, *every])
    assert completed(shell, "kerntune -", path) == every


@pytest.mark.parametrize("shell", SHELLS)
def test_files(shell: str, path: str) -> None:
    assert completed(shell, "kerntune config check pyproj", path) == ["pyproject.toml" if shell == "bash" else "FILES"]
    after_leg = completed(shell, "kerntune bench --leg copy pyproj", path)
    assert after_leg == ["pyproject.toml" if shell == "bash" else "FILES"]
    assert completed(shell, "kerntune doctor --root pyproj", path) == ["pyproject.toml" if shell == "bash" else "FILES"]


@NEEDS_ZSH
def test_zsh_says_what_verbs_and_options_are_for(path: str) -> None:
    start = f"fpath=({FILES} $fpath); autoload -U compinit; compinit -u -D; print rea''dy\n"
    with terminal("zsh", path) as screen:
        os.write(screen, start.encode())
        assert seen(screen, "ready\r\n")
        os.write(screen, b"kerntune re\t")
        assert seen(screen, "withdraw everybody's claims")
        os.write(screen, b"\x15kerntune set --\t")
        assert seen(screen, "also after a reboot")


def test_bash_is_given_what_follows_its_last_break(path: str) -> None:
    assert completed("bash", "kerntune set hugepages@2M/", path) == ["2M/node0=", "2M/node1="]
    assert completed("bash", "kerntune set io-scheduler@sda=", path) == ["mq-deadline", "none"]
    assert completed("bash", "kerntune set 'io-scheduler@sda=n", path) == ["io-scheduler@sda=none"]
    assert completed("bash", "kerntune set --color=a", path) == ["always", "auto"]


@contextmanager
def terminal(shell: str, path: str) -> Iterator[int]:
    """Run an interactive shell that completes kerntune, and give the terminal to type at."""
    pid, screen = pty.fork()
    if pid == 0:
        environment = {**os.environ, "PATH": path, "TERM": "dumb", "PS1": "> ", "HISTFILE": "/dev/null"}
        options = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
        os.execvpe(shell, [shell, *options], environment)
    try:
        yield screen
    finally:
        os.close(screen)
        os.waitpid(pid, 0)


def seen(screen: int, text: str) -> bool:
    """Return True if a text comes in time."""
    shown = ""
    while text not in shown:
        if not select.select([screen], [], [], LIMIT)[0]:
            return False
        shown += os.read(screen, 65536).decode().replace("\a", "")
    return True


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("kerntune set io-scheduler@sda=mq", "-deadline "),
        ("kerntune set 'io-scheduler@sda=mq", "-deadline' "),
        ("kerntune profile set bal", "anced "),
    ],
)
def test_at_a_terminal(shell: str, typed: str, shown: str, path: str) -> None:
    start = (
        f"source {FILES}/kerntune; echo rea''dy\n"
        if shell == "bash"
        else f"fpath=({FILES} $fpath); autoload -U compinit; compinit -u -D; print rea''dy\n"
    )
    with terminal(shell, path) as screen:
        os.write(screen, start.encode())
        assert seen(screen, "ready\r\n")
        os.write(screen, f"{typed}\t".encode())
        assert seen(screen, f"{typed}{shown}")
