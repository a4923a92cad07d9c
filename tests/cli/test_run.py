"""`run`: what it asks of kerntuned, what it refuses before anything is held, and what it says of a command."""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune import errors
from kerntune.cli.run import harmless
from kerntune.dbus import blocking
from kerntune.errors import KerntuneError
from kerntune.units import spell_cpus
from tests.cli.scripted import POOLS, Script, ScriptedManager, document, outcome, target
from tests.cli.scripted import run as run_here
from tests.conftest import needs_root
from tests.harness.command import COMMAND, LIMIT, NO_BUS, Shell, demo, on_terminal
from tests.harness.command import run as run_program

Captured = pytest.CaptureFixture[str]

ADDED: Final = outcome("hugepages@2M", requested="+32", actual="160")._replace(before="128")
SECRET: Final = "--api-key=hunter2"
LONGEST_SENTENCE: Final = 25  # words
ALLOWED: Final = spell_cpus(os.sched_getaffinity(0))


LOOKED: Final = "TEST_LOOKED"  # a variable with a file that comes when the holds have been looked at
RELEASED: Final = "TEST_RELEASED"  # and one that comes with the end of a hold


def until(variable: str) -> str:
    """Return a script that waits for the file that a variable names, and ends with 9."""
    return f'until test -e "${variable}"; do sleep 0.01; done; exit 9'


def come(variable: str) -> None:
    """Make the file that a variable names, if there is one."""
    if name := os.environ.get(variable):
        Path(name).touch()


class Serving(ScriptedManager):
    """A Manager whose holds last; nothing comes from its bus. Its holds are numbered from 3."""

    quiet: tuple[socket.socket, socket.socket]

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.quiet = socket.socketpair()
        self.made: list[int] = []

    def hold(self, *asked: Any) -> tuple[int, tuple[Any, ...]]:
        _, outcomes = super().hold(*asked)
        self.made.append(3 + len(self.made))
        return self.made[-1], outcomes

    def fileno(self) -> int:
        return self.quiet[0].fileno()

    def follow_holds(self, beside: Sequence[int] = ()) -> frozenset[int]:
        come(LOOKED)
        return frozenset(self.made)

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        super().release(number, timeout=timeout)
        come(RELEASED)

    def ended_holds(self) -> frozenset[int]:
        return frozenset()


@pytest.fixture(autouse=True)
def no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep services for power profiles of this host away: only what the script answers is there."""
    for name, text in NO_BUS.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("programs")) as running:
        yield running


def scripted(*outcomes: Any, manager: type[ScriptedManager] = Serving, **more: Any) -> Script:
    return Script(outcomes=outcomes or [ADDED], manager=manager, **more)


def run(script: Script, *words: str, addressed: Sequence[str] = ()) -> int:
    """Run the command in a process of its own, where the script answers; return the exit status.

    The variables `addressed` have the number of that process.
    `run` waits for signals to its process, and other threads of the tests would take them.
    """
    reader, writer = os.pipe()
    if not (child := os.fork()):
        code = 99
        try:
            os.close(reader)
            os.environ.update(dict.fromkeys(addressed, str(os.getpid())))
            code = run_here(script, *words)
            with open(writer, "wb") as pipe:
                pickle.dump(script.calls, pipe)
        except BaseException:  # noqa: BLE001  # this process must not go on as a second pytest
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        calls = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert calls, f"it ended with {code}"
    script.calls = pickle.loads(calls)
    return code


def holds(script: Script) -> list[tuple[Any, ...]]:
    return [call[1:] for call in script.calls if call[0] == "Hold"]


def summary(said: str) -> dict[str, Any]:
    """Return the JSON that is the last line."""
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def spelt(words: object) -> str | None:
    """Return the id of a test with these words."""
    return " ".join(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


# What is asked


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--hugepages", "64M"], [("hugepages", "", "64M")]),
        (["--hugepages", "64M", "--borrow"], [("hugepages-overcommit", "", "64M")]),
        (["--governor", "performance"], [("cpu-governor", "*", "performance")]),
        (
            ["--scheduler", "nvme*=none", "--scheduler", "sda=bfq"],
            [("io-scheduler", "nvme*", "none"), ("io-scheduler", "sda", "bfq")],
        ),
        (["--read-ahead", "sda=4M"], [("read-ahead", "sda", "4M")]),
        (["--read-ahead", "/dev/nvme*=4M"], [("read-ahead", "/dev/nvme*", "4M")]),
        (["--read-ahead", "/dev/null=4M"], [("read-ahead", "/dev/null", "4M")]),
        (["--read-ahead", "by-id/nvme-Fast_1=128"], [("read-ahead", "by-id/nvme-Fast_1", "128")]),
        (["--overcommit", "always"], [("overcommit", "*", "always")]),
        (["--set", "vm.swappiness=10"], [("sysctl", "vm.swappiness", "10")]),
        (
            ["--set", "thp@defrag=defer", "--hugepages", "1G"],
            [("hugepages", "", "1G"), ("thp", "defrag", "defer")],
        ),
    ],
    ids=spelt,
)
def test_what_an_option_asks(words: list[str], settings: list[tuple[str, ...]]) -> None:
    script = scripted()
    assert run(script, "run", *words, "--", "true") == 0
    assert holds(script) == [(settings, "true", "kerntune run", {})]
    assert script.calls[-1] == ("Release", 3)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--profile", "ai-inference"], {"profile": "ai-inference"}),
        (["--hugepages", "1G", "--allow-partial"], {"allow-partial": True}),
    ],
    ids=spelt,
)
def test_what_an_option_says_of_the_hold(words: list[str], options: dict[str, Any]) -> None:
    script = scripted()
    assert run(script, "run", *words, "--", "true") == 0
    assert holds(script)[0][3] == options


@pytest.mark.parametrize(
    ("now", "asked"), [("always", "always"), ("madvise", "madvise"), ("never", "madvise"), (None, "madvise")]
)
def test_thp_takes_nothing_from_others(now: str | None, asked: str, capfd: Captured) -> None:
    """A host in mode always stays in it."""
    script = scripted(outcome("thp@enabled", requested=asked, actual=asked))
    script.described = document([target("thp@enabled", now)])
    assert run(script, "run", "--thp", "--", "env") == 0
    assert holds(script)[0][0] == [("thp", "enabled", asked)]
    got = capfd.readouterr().out.splitlines()
    assert {"GLIBC_TUNABLES=glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE=1"} <= set(got)


def test_nothing_is_asked_where_nothing_is_held() -> None:
    """Then the command needs no daemon."""
    script = scripted()
    assert run(script, "run", "--memlock", "--nice", "19", "--", "true") == 0
    assert script.calls == []


def test_what_only_loading_needs_is_held_until_it_is_ready(
    tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RELEASED, str(tmp_path / "released"))
    script = scripted(outcome("read-ahead@sda", requested="4096", actual="4096"))
    words = ["--hugepages", "64M", "--read-ahead", "sda=4M", "--scheduler", "sda=none", "--wait-ready"]
    done = tmp_path / "done"
    command = f"touch {done}; {until(RELEASED)}"
    assert run(script, "run", *words, f"test -e {done}", "--", "sh", "-c", command) == 9
    assert [call[0] for call in holds(script)] == [
        [("hugepages", "", "64M")],
        [("io-scheduler", "sda", "none"), ("read-ahead", "sda", "4M")],
    ]
    assert script.calls[-2:] == [("Release", 4), ("Release", 3)]
    said = capfd.readouterr().err
    assert "held until it is ready: read-ahead@sda=4096 KiB" in said
    assert re.search(r"^kerntune: ready after [0-9.]+ s$", said, re.MULTILINE)


def test_without_readiness_all_is_held_to_the_end() -> None:
    script = scripted()
    assert run(script, "run", "--hugepages", "64M", "--read-ahead", "sda=4M", "--", "true") == 0
    assert [call[0] for call in holds(script)] == [[("hugepages", "", "64M"), ("read-ahead", "sda", "4M")]]


@pytest.mark.parametrize(
    ("name", "who"), [("serve", "serve"), ("s\N{LATIN SMALL LETTER E WITH ACUTE}r\nv", "s?r?v"), ("x" * 200, "x" * 64)]
)
def test_others_see_the_name_of_the_command_and_never_its_words(name: str, who: str, tmp_path: Path) -> None:
    shutil.copy("/usr/bin/true", tmp_path / name)
    script = scripted()
    assert run(script, "run", "--hugepages", "64M", "--", str(tmp_path / name), SECRET) == 0
    assert holds(script)[0][1:3] == (who, "kerntune run")
    assert SECRET not in str(script.calls)


# What is refused


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--hugepages", ""], "--hugepages is empty"),
        (["--profile="], "--profile is empty"),
        (["--wait-ready="], "--wait-ready is empty"),
        (["--output="], "--output is empty"),
        (["--hugepages"], "--hugepages takes a value: --hugepages SIZE"),
        (["--thp", "--hugepages", "1G"], "--thp and --hugepages tell malloc two things"),
        (["--scheduler", "none"], "--scheduler none is not NAME=VALUE"),
        (["--scheduler", "sda="], "--scheduler sda= is not NAME=VALUE"),
        (["--read-ahead", "4M"], "--read-ahead 4M is not NAME=VALUE"),
        (["--read-ahead", "/proc/0/model=4M"], "/proc/0/model cannot be looked at (No such file or directory)"),
        (["--read-ahead", "/proc/self=4M"], "/proc/self lies on no drive of this host (its file system is proc)"),
        (["--set", "vm.swappiness"], "vm.swappiness has no value"),
        (["--slice", "5"], "a slice of 5 us is out of range"),
        (["--slice", "soon"], "'soon' is no slice of time"),
        (["--cpus", "none"], "'none' is no list of CPUs"),
        (["--cpus", ""], "--cpus is empty"),
        (["--cpus", "9999"], f"CPU 9999 is none that it may run on\n  It may run on {ALLOWED}\n"),
        (["--numa", "somewhere"], "'somewhere' is no node"),
        (["--numa", "999"], "node 999 is not there"),
        (["--nice", "20"], "a nice value of 20 is out of range"),
        (["--nice", "-21"], "a nice value of -21 is out of range"),
        (["--nice", "low"], "'low' is no nice value"),
        (["--rt=some"], "--rt takes main, all, and not 'some'"),
        (["--rt", "--nice", "5"], "a real-time process goes by no slice and by no nice value"),
        (["--wait-ready", "0"], "0 is no port"),
        (["--wait-ready", "65536"], "65536 is no port"),
        (["--output", "/no/such/folder/x"], "/no/such/folder/x cannot be written"),
        (["--output", "/dev/null"], "/dev/null is not a plain file"),
        (["--color", "blue"], "--color takes always, auto, never"),
        (["--hugepges", "1G"], "Did you mean --hugepages?"),
        (["extra"], "run takes no argument 'extra'"),
    ],
    ids=spelt,
)
def test_wrong_words_hold_nothing_and_start_nothing(
    words: list[str], complaint: str, tmp_path: Path, capfd: Captured
) -> None:
    script = scripted()
    assert run(script, "run", "--hugepages=64M", *words, "--", "touch", str(tmp_path / "begun")) == 125
    assert script.calls == []
    said = capfd.readouterr()
    assert complaint in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("run sleep 5", "run -- sleep 5"),
        ("--json run --hugepages 1G sh -c 'echo $HOME; exit'", "--json run --hugepages 1G -- sh -c 'echo $HOME; exit'"),
        ("run --profile=x serve --port 80 --help", "run --profile=x -- serve --port 80 --help"),
    ],
)  # fmt: skip
def test_a_command_without_the_dashes_is_shown_as_a_line_that_works(line: str, meant: str, capfd: Captured) -> None:
    script = scripted()
    assert run(script, *shlex.split(line)) == 125
    assert f"  A command stands after --: kerntune {meant}\n" in capfd.readouterr().err
    assert script.calls == []


def test_a_port_that_is_open_already_holds_nothing(capfd: Captured) -> None:
    script = scripted()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run(script, "run", "--hugepages=64M", f"--wait-ready={port}", "--", "true") == 125
    assert f"port {port} takes connections before the command has started" in capfd.readouterr().err
    assert script.calls == []


def test_to_borrow_takes_a_size(capfd: Captured) -> None:
    script = scripted()
    assert run(script, "run", "--borrow", "--", "true") == 125
    assert "--borrow borrows nothing" in capfd.readouterr().err
    assert script.calls == []


@pytest.mark.parametrize("words", [[], ["--"], ["sleep"]], ids=["nothing", "end", "word"])
def test_a_command_is_needed(words: list[str], capfd: Captured) -> None:
    script = scripted()
    assert run(script, "run", *words) == 125
    said = capfd.readouterr().err
    assert re.search("command (?:stands )?after --", said)
    assert re.search("kerntune run -- (?:python3 serve.py|sleep)\n", said)
    assert script.calls == []


@pytest.mark.parametrize(
    "error",
    [
        errors.Unreachable("there is no kerntuned", "systemctl status kerntuned"),
        errors.NotAuthorized("you may not", "join the group"),
        errors.OverLimit("too many pages", "Ask for less"),
        errors.NoSuchProfile("there is no profile 'x'", "There are ai-inference"),
        errors.PartiallyAllocated("the kernel had fewer", "Ask for fewer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_starts_nothing(error: KerntuneError, tmp_path: Path, capfd: Captured) -> None:
    script = scripted(error=error)
    assert run(script, "run", "--hugepages", "64M", "--json", "--", "touch", str(tmp_path / "begun")) == 125
    said = capfd.readouterr().err
    assert said.startswith(f"kerntune: {error.what}\n  {error.hint}\n")
    assert summary(said) == {"error": {"name": error.dbus_name, "message": str(error)}}
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_real_time_is_refused_where_it_could_keep_a_cpu_for_ever(shell: Shell, tmp_path: Path) -> None:
    """A mount that nobody else sees stands for such a kernel."""
    (tmp_path / "runtime").write_text("-1\n")
    script = f"""
mount --bind {tmp_path}/runtime /proc/sys/kernel/sched_rt_runtime_us
kerntune run --rt --hugepages=64M -- touch {tmp_path}/begun"""
    done = run_program(["unshare", "--mount", "bash", "-c", script], env=shell.environment)
    assert done.returncode == 125
    assert "Set kernel.sched_rt_runtime_us, which is -1, to 950000" in done.stderr
    assert not (tmp_path / "begun").exists()


@pytest.mark.parametrize(
    ("name", "code"), [("no-such-program", 127), ("/no/such/program", 127), ("", 127), ("/", 126), ("/etc/passwd", 126)]
)
def test_a_command_that_cannot_be_run(name: str, code: int, capfd: Captured) -> None:
    """For one that is not there, no huge page is reserved."""
    script = scripted()
    assert run(script, "run", "--hugepages=64M", "--", name) == code
    assert [call[0] for call in script.calls if call[0] != "Describe"] == ([] if code == 127 else ["Hold", "Release"])
    assert capfd.readouterr().err.splitlines()[-2].startswith(f"kerntune: {name} cannot be ")


# How it ends


@pytest.mark.parametrize(
    ("script", "code", "how"),
    [
        ("exit 0", 0, "ended with status 0"),
        ("exit 7", 7, "ended with status 7"),
        ("exit 125", 125, "ended with status 125"),
        ("kill -TERM $$", 143, "was killed by SIGTERM"),
        ("kill -KILL $$", 137, "was killed by SIGKILL"),
    ],
)
def test_the_exit_status_is_the_command_s(script: str, code: int, how: str, capfd: Captured) -> None:
    assert run(scripted(), "run", "--", "sh", "-c", script) == code
    assert re.fullmatch(rf"kerntune: sh {how} after [0-9.]+ s\n", capfd.readouterr().err)


def test_the_summary_for_programs(tmp_path: Path, capfd: Captured) -> None:
    words = ["--hugepages", "64M", "--json", "--profile", "ai-inference", "--nice", "19"]
    assert run(scripted(), "run", *words, "--", "sh", "-c", "echo out; exit 3") == 3
    said = capfd.readouterr()
    assert said.out == "out\n"  # standard output is the command's alone
    found = summary(said.err)
    assert said.err.count("\n") == 1
    assert (found["format"], found["exit_code"], found["signal"], found["profile"]) == (1, 3, "", "ai-inference")
    assert found["command"] == ["sh", "-c", "echo out; exit 3"]
    assert found["environment"] == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}
    assert found["shield"]["nice"] == 19
    assert found["notes"] == ["it runs with nice value 19"]
    assert [(row["tunable"], row["requested"]) for row in found["outcomes"]] == [("hugepages", "+32")]


def test_the_summary_in_a_file_is_for_its_owner_alone(tmp_path: Path, capfd: Captured) -> None:
    """The words of a command may hold secrets. What it replaced is gone, and people are told as without it."""
    file = tmp_path / "summary"
    for number in range(2):
        assert run(scripted(), "run", "--output", str(file), "--", "sh", "-c", f"exit {number}") == number
        assert json.loads(file.read_text())["exit_code"] == number
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert "sh ended with status 1" in capfd.readouterr().err


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "model").write_text("weights")
    script = scripted()
    assert run(script, "run", "--hugepages=64M", "--output", str(tmp_path / "model"), "--", "true") == 125
    assert script.calls == []
    assert (tmp_path / "model").read_text() == "weights"


def test_a_summary_that_cannot_be_written_leaves_the_exit_status(tmp_path: Path, capfd: Captured) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    words = ["--hugepages=64M", "--output", str(folder / "summary")]
    script = scripted()
    assert run(script, "run", *words, "--", "sh", "-c", f"rmdir {folder}; exit 7") == 7
    assert "summary cannot be written" in capfd.readouterr().err
    assert script.calls[-1] == ("Release", 3)


@pytest.mark.parametrize("words", [["-q"], ["-q", "--json"]], ids=spelt)
def test_quiet_says_nothing(words: list[str], capfd: Captured) -> None:
    script = scripted(outcome("hugepages@2M", "partial", detail="there are fewer"))
    assert run(script, "run", *words, "--hugepages=64M", "--", "sh", "-c", "echo out; exit 3") == 3
    assert capfd.readouterr() == ("out\n", "")


def test_quiet_tells_errors(capfd: Captured) -> None:
    assert run(scripted(error=errors.OverLimit("too many", "")), "run", "-q", "--json", "--thp", "--", "true") == 125
    assert capfd.readouterr().err == "kerntune: too many\n"


def test_what_is_not_as_asked_is_a_warning(capfd: Captured) -> None:
    row = outcome("hugepages@2M", "partial", requested="+32", actual="140", detail="the kernel has no more")
    assert run(scripted(row), "run", "--json", "--allow-partial", "--hugepages=64M", "--", "true") == 0
    warned = [(row["what"], row["hint"]) for row in summary(capfd.readouterr().err)["warnings"]]
    assert warned == [("hugepages@2M is 140: partial", "the kernel has no more")]


def test_what_a_profile_asks_of_another_host_is_none(capfd: Captured) -> None:
    row = outcome("io-scheduler@nvme*", "unsupported", reason="no-such-target", actual="")
    assert run(scripted(row), "run", "--profile", "x", "--json", "--", "true") == 0
    assert summary(capfd.readouterr().err)["warnings"] == []


@pytest.mark.parametrize("more", [{"simulated": True}, {"root": "/srv/host"}])
def test_a_daemon_of_another_host_is_a_warning(more: dict[str, Any], capfd: Captured) -> None:
    described = document(POOLS)
    described["host"] |= more  # type: ignore[typeddict-item]  # one field of it
    assert run(scripted(described=described), "run", "--hugepages=64M", "--", "sh", "-c", "exit 5") == 5
    assert "kerntune: kerntuned tunes another host than this one\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prefault"], "--prefault touches nothing"),
        (["--prefault", "--hugepages=64M", "--borrow"], "--prefault touches nothing"),
        (["--wait-ready", "false"], "the command ended before it was ready"),
    ],
    ids=spelt,
)
def test_an_option_that_does_nothing_is_told(words: list[str], said: str, capfd: Captured) -> None:
    script = scripted(outcome("hugepages-overcommit@2M", requested="+32", actual="160")._replace(before="128"))
    assert run(script, "run", *words, "--", "true") == 0
    assert f"kerntune: {said}\n" in capfd.readouterr().err


# What the command gets


def test_it_gets_its_environment_and_what_is_said(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_PIDFDID", "123")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    before = dict(os.environ)
    assert (
        run(
            scripted(),
            "run",
            "--json",
            "--hugepages=64M",
            "--",
            "sh",
            "-c",
            "echo $$; exec env",
            addressed=["LISTEN_PID"],
        )
        == 0
    )
    said = capfd.readouterr()
    child, *lines = said.out.splitlines()
    got = dict(line.split("=", 1) for line in lines if "=" in line)
    different = {
        name: got.get(name) for name in {*got, *before} - {"_", "SHLVL", "PWD"} if got.get(name) != before.get(name)
    }
    assert different == summary(said.err)["environment"]
    assert different == {
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=2",
        "LISTEN_PID": child,
        "LISTEN_PIDFDID": None,
    }
    assert run(scripted(), "run", "--hugepages=64M", "--", "true", addressed=["LISTEN_PID"]) == 0
    assert (
        "it gets GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.hugetlb=2, LISTEN_PID with its own number, "
        "no LISTEN_PIDFDID\n"
    ) in capfd.readouterr().err
    assert dict(os.environ) == before


@pytest.mark.parametrize("said", ["0", "2"])
def test_memory_is_spoken_of_only_where_malloc_is_told_of_pages(
    said: str, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.hugetlb={said}")
    assert run(scripted(), "run", "--hugepages=64M", "--", "true") == 0
    assert ("memory of the command" in capfd.readouterr().err) == (said == "2")


def test_the_user_s_own_word_to_malloc_wins(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert run(scripted(), "run", "--hugepages=64M", "--json", "--", "env") == 0
    said = capfd.readouterr()
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=0" in said.out.splitlines()
    assert summary(said.err)["environment"] == {}


# What fails while the command runs


class Troubled(Serving):
    """Something goes wrong with the holds while the command runs."""

    followed: KerntuneError | frozenset[int] = frozenset()
    released: KerntuneError | None = None

    def follow_holds(self, beside: Sequence[int] = ()) -> frozenset[int]:
        come(LOOKED)
        if isinstance(self.followed, KerntuneError):
            raise self.followed
        return self.followed

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        super().release(number, timeout=timeout)
        if self.released:
            raise self.released


class Hung(Troubled):
    """A daemon that does not answer, and somebody who sends kerntune a signal then."""

    number = signal.SIGINT
    followed = frozenset({3, 4})

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        super().release(number, timeout=timeout)
        os.kill(os.getpid(), self.number)
        assert select.select(beside, (), (), LIMIT)[0], "the signal waits for the daemon"
        raise blocking.Interrupted("Release was interrupted")


class HungBeside(Hung):
    number = signal.SIGTERM


class Resized(Troubled):
    """A daemon that takes a while, and somebody who changes the size of the terminal meanwhile."""

    followed = frozenset({3})

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        super().release(number, timeout=timeout)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert not select.select(beside, (), (), 0)[0], "it ends the wait for the daemon"


class Lost(Serving):
    """A daemon that is asked again and again, and somebody who interrupts as soon as the command has ended."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.quiet[1].send(b"signals")

    def ended_holds(self) -> frozenset[int]:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            os.kill(os.getpid(), signal.SIGINT)
        return frozenset()


def test_an_interrupt_after_the_end_does_not_wait_for_the_daemon(capfd: Captured) -> None:
    script = scripted(manager=Hung)
    assert run(script, "run", "--hugepages=64M", "--", "sh", "-c", "exit 9") == 9
    assert script.calls[-1] == ("Release", 3)
    assert "not ended" not in capfd.readouterr().err


def test_a_terminal_that_is_resized_does_not_end_the_wait_for_the_daemon() -> None:
    script = scripted(manager=Resized)
    assert run(script, "run", "--hugepages=64M", "--", "sh", "-c", "exit 9") == 9
    assert script.calls[-1] == ("Release", 3)


def test_who_interrupts_what_follows_the_end_asks_the_daemon_for_nothing_more() -> None:
    script = scripted(manager=Lost)
    assert run(script, "run", "--hugepages=64M", "--", "sh", "-c", "exit 9") == 9
    assert ("Release", 3) not in script.calls


def test_a_signal_reaches_the_command_also_while_a_hold_of_loading_ends() -> None:
    """Its status is the signal's, which kerntune gets once for each of the two holds."""
    script = scripted(manager=HungBeside)
    words = ["--hugepages=64M", "--read-ahead=sda=4M", "--wait-ready=true"]
    assert run(script, "run", *words, "--", "sleep", "60") == 128 + signal.SIGTERM
    assert script.calls[-2:] == [("Release", 4), ("Release", 3)]


class Released(Troubled):
    followed = frozenset({99})


class Refusing(Troubled):
    followed = errors.UnknownObject("there is no such object")


class Long(Troubled):
    followed = errors.LimitsExceeded("the answer is too long")


class Gone(Troubled):
    followed = frozenset({3})
    released = errors.Unreachable("kerntuned cannot be reached", "Is kerntuned running?")


class Odd(Troubled):
    followed = frozenset({3})
    released = errors.NotOwner("hold 3 is not yours")


@pytest.mark.parametrize(
    ("manager", "warnings"),
    [
        (Serving, []),
        (Released, ["hold 3 was ended by somebody else"]),
        (Refusing, []),
        (Long, []),
        (Gone, ["hold 3 has not ended yet: kerntuned cannot be reached"]),
        (Odd, ["hold 3 has not ended yet: hold 3 is not yours"]),
    ],
)
def test_the_command_goes_on(
    manager: type[ScriptedManager],
    warnings: list[str],
    tmp_path: Path,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LOOKED, str(tmp_path / "looked"))
    script = scripted(manager=manager)
    assert run(script, "run", "--json", "--hugepages=64M", "--", "sh", "-c", until(LOOKED)) == 9
    assert [row["what"] for row in summary(capfd.readouterr().err)["warnings"]] == warnings


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("odd"), errors.Failed("odd")])
def test_work_beside_the_command_that_fails_is_told_and_ends(error: Exception) -> None:
    def fails(_now: float) -> float | None:
        raise error

    told: list[tuple[str, str]] = []
    assert harmless(fails, lambda *warning: told.append(warning))(0.0) is None
    assert told == [(f"kerntune watches the command less from now on: {error}", "The command goes on")]


class Interrupted(Serving):
    """The user interrupts a long reservation."""

    def hold(self, *asked: Any) -> tuple[int, tuple[Any, ...]]:
        raise KeyboardInterrupt


def test_an_interrupted_reservation_starts_nothing(tmp_path: Path, capfd: Captured) -> None:
    script = scripted(manager=Interrupted)
    assert run(script, "run", "--hugepages=64M", "--", "touch", str(tmp_path / "begun")) == 130
    said = capfd.readouterr().err
    assert said == "kerntune: interrupted\n  The command was not started, and what was held for it ends\n"
    assert list(tmp_path.iterdir()) == []


class Late(Serving):
    """Ctrl-C comes when all is held, before the command starts."""

    def hold(self, *asked: Any) -> tuple[int, tuple[Any, ...]]:
        granted = super().hold(*asked)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as inside of `attend`
        signal.raise_signal(signal.SIGINT)  # for this thread: another one of the tests would take it
        return granted


def test_a_signal_just_before_the_start_is_for_kerntune(tmp_path: Path, capfd: Captured) -> None:
    script = scripted(manager=Late)
    assert run(script, "run", "--hugepages=64M", "--", "touch", str(tmp_path / "begun")) == 130
    assert script.calls[-1] == ("Release", 3)
    assert list(tmp_path.iterdir()) == []


# Streams


STREAMS: Final = (">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full")


def pages(shell: Shell) -> str:
    return shell.check("kerntune get hugepages@2M")


@needs_root
@pytest.mark.parametrize("state", STREAMS)
def test_streams_that_take_nothing(shell: Shell, state: str) -> None:
    before = pages(shell)
    done = shell.run(f"kerntune run --hugepages@= -- true {state}")
    assert done.returncode == 125
    done = shell.run(f"kerntune run --hugepages=64M --json -- sh -c 'exit 7' {state}")
    assert (done.returncode, "Traceback" in done.stderr) == (7, False), done.stderr
    assert pages(shell) == before
    assert shell.check("kerntune holds") == "Nobody holds anything."


@needs_root
def test_the_command_has_the_streams_as_they_were(shell: Shell) -> None:
    """What kerntune cannot write is lost, but the command meets its own errors."""
    line = "kerntune run --hugepages=64M -- stat -L -c %N /dev/stderr 2>/dev/full"
    assert shell.check(line) == "'/dev/stderr'"
    line = "kerntune run --hugepages=64M -- readlink /proc/self/fd/2 2>/dev/full"
    assert shell.check(line) == "/dev/full"
    done = shell.run("kerntune run -- sh -c 'echo lost >/dev/full || exit 9'")
    assert done.returncode == 9
    line = "kerntune run --hugepages=64M -- sh -c 'while echo late >&2; do sleep 0.01; done' 2> >(exec <&-); echo $?"
    assert shell.check(line) == str(128 + signal.SIGPIPE)


@needs_root
@pytest.mark.parametrize("place", ["output", "stdout"])
def test_a_full_disk(shell: Shell, tmp_path: Path, place: str) -> None:
    before = pages(shell)
    words = f"--output {tmp_path}/summary" if place == "output" else ""
    fill = "head -c 64K /dev/zero"
    command, into = (
        (f"{fill} >{tmp_path}/filled; exit 7", "")
        if place == "output"
        else (f"{fill} || exit 7", f">{tmp_path}/filled")
    )
    script = f"""
mount -t tmpfs -o size=16k none {tmp_path}
kerntune run --hugepages=64M {words} -- sh -c '{command}' {into}
echo $?; ls {tmp_path}"""
    done = run_program(["unshare", "--mount", "bash", "-c", script], env=shell.environment)
    assert done.stdout.splitlines() == ["7", "filled"]
    if place == "output":
        assert "summary cannot be written: No space left on device\n  Make room there" in done.stderr
    assert "No space left on device" in done.stderr
    assert pages(shell) == before


@needs_root
def test_no_descriptor_of_ours_reaches_the_command(shell: Shell) -> None:
    line = "kerntune run --hugepages=64M --wait-ready notify --json -- sh -c 'ls /proc/self/fd'"
    assert shell.check(line).split() == ["0", "1", "2", "3"]  # 3 is that of ls itself


@needs_root
def test_others_see_no_words_of_the_command(shell: Shell) -> None:
    said = shell.check(
        f"kerntune run -q --hugepages=64M -- sh -c 'kerntune holds --json; kerntune status --json' {SECRET}"
    )
    assert '"who": "sh' in said
    assert '"why": "kerntune run"' in said
    assert SECRET not in said


@needs_root
def test_the_governor_on_a_host_that_has_one(shell: Shell) -> None:
    said = shell.check(
        "kerntune run -q --governor performance --overcommit always -- kerntune get cpu-governor overcommit"
    )
    assert set(re.findall(r"performance|powersave|schedutil|always|heuristic", said)) == {"performance", "always"}
    assert "performance" not in shell.check("kerntune get cpu-governor overcommit")


LINES: Final = (
    "--hugepages=64M --profile ai-inference --governor performance --scheduler nvme*=none --cpus 0 --nice 5",
    "--thp --prefault --wait-ready false --rt=all --memlock",
    "--borrow",
    "--numa auto --cpus auto",
)


@needs_root
@pytest.mark.parametrize("words", LINES)
def test_people_can_read_it(shell: Shell, words: str) -> None:
    """On a terminal of 80 columns no line is longer, no word is cut, and nothing is coloured."""
    argv = [*COMMAND, "run", *words.split(), "--", "true"]
    with on_terminal(*argv, address=shell.environment["DBUS_SYSTEM_BUS_ADDRESS"], COLUMNS="80") as terminal:
        _, said = terminal.end()
    said = re.sub(r"\r(?!\n)[^\n]*\x1b\[K", "", said).replace("\r", "")
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 80
    assert all(line.startswith(("kerntune: ", "  ")) for line in said.splitlines())
    for sentence in re.split(r"(?:[.:;] |\n(?=kerntune: )|\n  (?=[A-Z]))", said):
        if " " in sentence:
            assert len(sentence.split()) <= LONGEST_SENTENCE, sentence


def test_a_terminal_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    """The command ignores the hang-up, and so it goes on."""
    script = f"trap '' HUP; until test -e {tmp_path}/gone; do sleep 0.05; done; echo on >{tmp_path}/on"
    with on_terminal(*COMMAND, "run", "--nice", "5", "--", "sh", "-c", f"echo begun; {script}") as terminal:
        terminal.read_until("begun")
        terminal.hang_up()
        (tmp_path / "gone").touch()
        assert terminal.process.wait(LIMIT) == 0
    assert (tmp_path / "on").read_text() == "on\n"


def test_it_loads_little_before_the_command(tmp_path: Path) -> None:
    """The parent stays for weeks, and asyncio alone would be a third of it."""
    program = "import sys; from kerntune.cli.__main__ import main; main(['run', '--', 'true']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert {"asyncio", "argparse", "pyudev", "psutil"} & set(done.stdout.split()) == set()
