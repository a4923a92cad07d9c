"""The configuration files and the running daemon: at start, at Reload, at SIGHUP, and when a file is not in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from kerntune import errors
from kerntune.api.names import MANAGER
from kerntune.model import Claim, Origin
from tests.harness import host
from tests.harness.daemon import READY, Daemon
from tests.live.conftest import saved
from tests.live.users import PERSIST, RUNTIME, User

MakeDaemon = Callable[..., Daemon]
RELOAD: Final = (MANAGER, "Reload", "a{sv}")


def write(daemon: Daemon, text: str, name: str = "kerntune.toml") -> Path:
    path = daemon.config / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def scheduling(**devices: str) -> str:
    return "[io-scheduler]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in devices.items())


@pytest.fixture
def own(daemon_with: MakeDaemon, own_root: User) -> Iterator[Daemon]:
    """Give a daemon on the host, not started yet; afterwards it has no configuration and no claims."""
    daemon = daemon_with()
    yield daemon
    for path in (*daemon.config.glob("*.toml"), *daemon.config.glob("kerntune.d/*.toml")):
        path.unlink()
    own_root.release()
    own_root.call(*RELOAD, {})
    assert own_root.claims() == {}
    assert own_root.get(MANAGER, "Degraded") == []


def test_the_configuration_is_in_force_at_ready(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    main = write(own, f'[hugepages]\n"{host.pool()}" = 16\n' + scheduling(**{"loop[0-1]": "mq-deadline"}))
    extra = write(own, scheduling(loop0="none"), "kerntune.d/50-local.toml")
    own.started()
    assert host.pages() == 16
    assert [host.scheduler(name) for name in loops[:2]] == ["none", "mq-deadline"]
    claims = {claim["id"]: claim for claim in own_root.describe()["claims"]}
    assert {name: (claim["origin"], claim["who"], claim["why"]) for name, claim in claims.items()} == {
        f"config:hugepages@{host.pool()}": ("config", "config", f"{main}:2"),
        "config:io-scheduler@loop[0-1]": ("config", "config", f"{main}:4"),
        "config:io-scheduler@loop0": ("config", "config", f"{extra}:2"),
    }
    assert f"config, {main.name}:4" in own_root.kerntune("status").stdout


def test_a_reload_is_answered_when_the_values_are_in_force(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    own.started()
    before = host.pages(), host.scheduler("loop0")
    write(own, f'[hugepages]\n"{host.pool()}" = 16\n' + scheduling(loop0="mq-deadline"))
    assert (host.pages(), host.scheduler("loop0")) == before
    ear = own_root.listen()
    assert own_root.call(*RELOAD, {}) == []
    assert (host.pages(), host.scheduler("loop0")) == (16, "mq-deadline")
    changes = own_root.heard(ear, lambda so_far: sum(one.signal == "Changed" for one in so_far) >= 2)
    assert {one.args[1] for one in changes if one.signal == "Changed"} == {"reload"}
    # What is taken out has its own value again, and nothing is written for what stays.
    write(own, scheduling(loop0="mq-deadline"))
    own_root.call(*RELOAD, {})
    assert (host.pages(), host.scheduler("loop0")) == (before[0], "mq-deadline")


def test_sighup_does_the_same_and_systemd_is_told(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    own.started()
    write(own, scheduling(**{"loop[0-2]": "mq-deadline"}))
    os.kill(own.pid, signal.SIGHUP)
    own.wait_for("STATUS=3 targets managed")
    assert [host.scheduler(name) for name in loops[:3]] == ["mq-deadline"] * 3
    # Answered after it: so the reload has ended.
    own_root.call(*RELOAD, {})
    told = [line.partition("=")[0] for line in own.messages if line.startswith(("RELOADING", "MONOTONIC", "READY"))]
    assert told == ["READY", *["RELOADING", "MONOTONIC_USEC", "READY"] * 2]


def test_a_typo_takes_nothing_away(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    """Not on reload, and not on a restart in between; until the file is in order again."""
    good = f'[hugepages]\n"{host.pool()}" = 16\n'
    write(own, good)
    own.started()
    path = write(own, good + "[io-scheduler]\nloop* = none\n")
    with pytest.raises(errors.InvalidValue) as refusal:
        own_root.call(*RELOAD, {})
    assert f"{path}:4: this is not TOML" in str(refusal.value)
    assert "last good claims" in str(refusal.value)
    for _ in range(2):
        assert (host.pages(), own_root.get(MANAGER, "Degraded")) == (16, ["config-invalid"])
        assert list(own_root.claims()) == [f"config:hugepages@{host.pool()}"]
        own.restart()
        own.wait_for(READY)
    assert "STATUS=1 targets managed; config-invalid" in own.messages
    assert f"ERROR: {path}:4: " in own.journal()

    ear = own_root.listen()
    write(own, good + scheduling(loop0="mq-deadline"))
    own_root.call(*RELOAD, {})
    own_root.heard(ear, lambda so_far: any("Degraded" in str(one.args) for one in so_far))
    assert own_root.get(MANAGER, "Degraded") == []
    assert (host.pages(), host.scheduler("loop0")) == (16, "mq-deadline")


def test_callers_win_over_the_configuration_and_unset_gives_it_back(
    own: Daemon, own_root: User, loops: Sequence[str]
) -> None:
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    for options in (PERSIST, RUNTIME):
        own_root.set(("io-scheduler", "loop0", "none"), options=options)
        assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"))
    own_root.call(*RELOAD, {})
    assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"), options=PERSIST)
    assert host.scheduler("loop0") == "mq-deadline"
    assert own_root.claims() == {"config:io-scheduler@loop0": "mq-deadline"}


def test_nothing_of_the_configuration_is_saved_as_a_callers(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    saved(own, Claim(Origin.PERSISTENT, "io-scheduler", "loop1", "mq-deadline", seq=5))
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    own_root.set_scheduler("loop2", "mq-deadline", PERSIST)
    write(own, "")
    own.restart()
    own.wait_for(READY)
    assert list(own_root.claims()) == ["persistent:io-scheduler@loop1", "persistent:io-scheduler@loop2"]
    assert host.scheduler("loop0") == "none"


def test_what_would_endanger_the_host_is_not_done_at_boot(daemon_with: MakeDaemon, own_root: User) -> None:
    """On the simulated host: far too many pages, and a limit that would lock everybody out."""
    daemon = daemon_with("--demo")
    write(daemon, '[limits]\nhugepages-percent = 10\n[hugepages]\n"2M" = "9999G"\n[overcommit]\n"*" = "never:1"\n')
    daemon.started()
    rows = {row["tunable"]: row for row in own_root.describe()["targets"] if row["instance"] in ("2M", "")}
    assert (rows["hugepages"]["value"], rows["hugepages"]["reason"]) == (str((128 << 10) // 10 // 2), "over-limit")
    assert (rows["overcommit"]["state"], rows["overcommit"]["reason"]) == ("refused", "over-limit")
    assert own_root.get(MANAGER, "Degraded") == ["over-limit"]
    with pytest.raises(errors.OverLimit, match="10 % of RAM"):
        own_root.set_count(9999)
    write(daemon, "")
    own_root.call(*RELOAD, {})
    assert own_root.get(MANAGER, "Degraded") == []
    assert own_root.set_count(9999) == 9999


def test_only_administrators_reload(daemon: Daemon, member: User, other: User, root: User) -> None:
    """`daemon` is the shared one, where polkit decides."""
    before = daemon.messages
    for user in (member, other):
        with pytest.raises(errors.InteractiveAuthorizationRequired):
            user.call(*RELOAD, {})
        assert user.kerntune("reload").returncode == errors.Exit.NOT_AUTHORISED
    with pytest.raises(errors.InvalidArgs, match="no option"):
        root.call(*RELOAD, {"persist": ["b", True]})
    assert daemon.messages == before
    assert root.kerntune("reload").returncode == 0
    assert daemon.messages[-1] == READY


def test_the_command_line_says_what_is_wrong(own: Daemon, own_root: User) -> None:
    path = write(own, "[limits]\nclaims = 0\n")
    own.started()
    done = own_root.kerntune("reload")
    assert done.returncode == errors.Exit.USAGE
    assert f"{path}:2: claims is 0. Give a whole number from 1 to 100000" in " ".join(done.stderr.split())
    checked = own_root.kerntune("config", "check", str(own.config))
    assert (checked.returncode, checked.stdout.splitlines()[0]) == (
        1,
        f"{path}:2: claims is 0. Give a whole number from 1 to 100000; the default is 1000",
    )


def test_reloads_beside_calls_are_all_answered(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    calls = [
        own_root.send(*RELOAD, {}, client=number)
        if number % 2
        else own_root.send(
            MANAGER, "Set", "a(sss)a{sv}", [["io-scheduler", f"loop{number % 3}", "none"]], {}, client=number
        )
        for number in range(16)
    ]
    assert {reply.result(20).error for reply in calls} == {""}
    assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"))
    assert host.scheduler("loop0") == "mq-deadline"
