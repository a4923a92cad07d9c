"""The configuration: what is judged of its files, profiles and resets, layers that disagree, and damaged files."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.cli.__main__ import main
from kerntune.dbus.client import Signal, connect
from tests.api.lab import BOUND, connected, private_bus, variants, write_config
from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.command import Shell, demo
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus

SHIPPED: Final = (CHECKOUT / "packaging/kerntune.toml").read_text()
PROFILES: Final = sorted((CHECKOUT / "packaging/profiles").glob("*.toml"))
MAIN: Final = "kerntune.toml"
MORE: Final = "kerntune.d/10.toml"
MINE: Final = "profiles/mine.toml"
IN_FORCE: Final = {MAIN: 'profile = "mine"\n'}
Files = dict[str, str | bytes]

GOOD: Final[dict[str, Files]] = {
    "nothing": {},
    "an empty file": {MAIN: ""},
    "the shipped file": {MAIN: SHIPPED},
    "the shipped file without its marks": {MAIN: re.sub(r"^#(?=\S)", "", SHIPPED, flags=re.M)},
    **{f"profile {file.stem}": {MAIN: f'profile = "{file.stem}"\n'} for file in PROFILES},
    **{f"a copy of {file.stem}": {**IN_FORCE, MINE: file.read_text()} for file in PROFILES},
    "values with reasons": {MAIN: '[io-scheduler]\n"nvme*" = { value = "none", why = "its own queue" }\n'},
    "a drive that is not plugged": {MAIN: '[io-scheduler]\n"sdzz" = "none"\n'},
    "a governor that is not offered": {MAIN: '[cpu-governor]\n"*" = "interactive"\n'},
    "a preference that is not offered": {MAIN: '[cpu-epp]\n"*" = "fast"\n'},
    "a page size that is not here": {MAIN: '[hugepages]\n"4M" = 1\n'},
    "more pages than memory": {MAIN: '[hugepages]\n"2M" = "900000G"\n'},
    "the largest sysctls": {
        MAIN: '[sysctl]\n"vm.swappiness" = 200\n"vm.zone_reclaim_mode" = 7\n"kernel.numa_balancing" = 3\n'
    },
    "the words of defrag": {MAIN: '[thp]\ndefrag = "defer+madvise"\nenabled = "never"\n'},
    "the largest read-ahead": {MAIN: '[read-ahead]\n"*" = "64M"\n'},
    "the extremes of the guard": {MAIN: "[guard]\nenabled = false\nband = 16777216\ncalm = 0\n"},
    "limits that meet": {MAIN: "[limits]\nclaims = 20\nholds = 20\n", MORE: "[limits]\nholds-per-user = 20\n"},
    "a file that no profile is found in": {"profiles/bad name.toml": "[", MAIN: ""},
    "a file that an editor left": {"kerntune.d/.10.toml": "[", MAIN: ""},
}
BAD: Final[dict[str, Files]] = {
    "no TOML": {MAIN: "["},
    "no TOML beside": {MAIN: "", MORE: "[io-scheduler]\nnvme* = none\n"},
    "no UTF-8": {MAIN: b"# caf\xe9\n[limits]\n"},
    "a table twice": {MAIN: "[limits]\n[limits]\n"},
    "a misspelt profile": {MAIN: 'profil = "balanced"\n'},
    "a misspelt table": {MAIN: '[cpu_governor]\n"*" = "performance"\n'},
    "a misspelt empty table": {MAIN: "[hugepage]\n"},
    "a misspelt table beside": {MORE: "[hugepage]\n"},
    "a misspelt setting": {MAIN: "[guard]\ncalmm = 3\n"},
    "a setting of a former version": {MAIN: "[guard]\ncap = 30\n"},
    "a setting without its table": {MAIN: "claims = 5\n"},
    "an option out of range": {MAIN: "[limits]\nhugepages-percent = 96\n"},
    "an option of another type": {MAIN: "[guard]\nenabled = 1\n"},
    "a table that is none": {MAIN: "limits = 5\n"},
    "a tunable that is no table": {MAIN: "hugepages = 5\n"},
    "limits that contradict": {MAIN: "[limits]\nholds-per-user = 65\n"},
    "limits that contradict in two files": {MAIN: "[limits]\nholds = 50\n", MORE: "[limits]\nclaims = 49\n"},
    "a pattern that is none": {MAIN: '[io-scheduler]\n"../sda" = "none"\n'},
    "no sysctl of ours": {MAIN: '[sysctl]\n"vm.dirty_ratio" = 5\n'},
    "a page size that none has": {MAIN: '[hugepages]\n"3M" = 1\n'},
    "no whole number of pages": {MAIN: '[hugepages]\n"2M" = "3M"\n'},
    "swappiness out of range": {MAIN: '[sysctl]\n"vm.swappiness" = 201\n'},
    "zone_reclaim_mode out of range": {MAIN: '[sysctl]\n"vm.zone_reclaim_mode" = 8\n'},
    "numa_balancing out of range": {MAIN: '[sysctl]\n"kernel.numa_balancing" = 4\n'},
    "no word of enabled": {MAIN: '[thp]\nenabled = "sometimes"\n'},
    "a word of the other file": {MAIN: '[thp]\nenabled = "defer"\n'},
    "a ratio out of range": {MAIN: '[overcommit]\n"*" = "always:100"\n'},
    "a read-ahead out of range": {MAIN: '[read-ahead]\n"*" = 65537\n'},
    "CPUs backwards": {MAIN: '[cpu-governor]\n"3-0" = "performance"\n'},
    "a value that is none": {MAIN: '[io-scheduler]\n"*" = 1.5\n'},
    "no value": {MAIN: '[io-scheduler]\n"*" = { why = "x" }\n'},
    "a misspelt value": {MAIN: '[io-scheduler]\n"*" = { val = "none" }\n'},
    "a name with a dot": {MAIN: "[io-scheduler]\na.b = 'none'\n"},
    "a profile that is not there": {MAIN: 'profile = "nosuch"\n'},
    "a profile that is no name": {MAIN: "profile = 5\n"},
    "a profile that includes itself": {**IN_FORCE, MINE: 'include = ["mine"]\n'},
    "a profile that includes none": {**IN_FORCE, MINE: 'include = ["nosuch"]\n'},
    "a profile with a misspelt table": {**IN_FORCE, MINE: "[hugepage]\n"},
    "a profile with a table that only the configuration has": {**IN_FORCE, MINE: "[limits]\nclaims = 5\n"},
    "a profile with a misspelt include": {**IN_FORCE, MINE: 'includes = ["balanced"]\n'},
    "a profile with a value out of range": {**IN_FORCE, MINE: '[sysctl]\n"vm.swappiness" = 300\n'},
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Give a daemon for all cases."""
    with private_bus(tmp_path_factory.mktemp("bus")) as bus, Daemon(bus, "--demo") as daemon:
        yield daemon


@pytest.fixture
def etc(judge: Daemon) -> Iterator[Path]:
    """Give the folder that the daemon reads; it is emptied after each case."""
    yield judge.config
    for path in sorted(judge.config.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("files", "good"),
    [*((files, True) for files in GOOD.values()), *((files, False) for files in BAD.values())],
    ids=[*GOOD, *BAD],
)
async def test_config_check_judges_as_a_reload_does(
    judge: Daemon, etc: Path, files: Files, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (etc / name).parent.mkdir(exist_ok=True)
        (etc / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(etc))
    checked = await asyncio.to_thread(main, ["config", "check"])
    assert (checked, await takes_all(judge)) == (0 if good else 1, good)


async def takes_all(daemon: Daemon) -> bool:
    """Return whether a Reload takes all that the files say."""
    async with connect(BUS_NAME, daemon.env["DBUS_SYSTEM_BUS_ADDRESS"]) as client:
        try:
            await client.call(ROOT, MANAGER, "Reload", "a{sv}", {})
        except errors.InvalidValue:
            taken = False
        else:
            taken = True
        assert ("config-invalid" not in await client.get(ROOT, MANAGER, "Degraded")) is taken
        return taken


# Profiles, and resets

DISK: Final = 'summary = "{0}"\n[io-scheduler]\n"nvme*" = "{0}"\n'


@needs_root
class TestProfiles:
    @pytest.fixture
    def daemon(self, stopped: Daemon) -> Daemon:
        """Return a daemon with three profiles of its own, of which one includes itself."""
        write_config(
            stopped,
            main='[overcommit]\n"*" = "always:95"\n',
            fast=DISK.format("none"),
            fair=DISK.format("bfq"),
            bad='include = ["bad"]\n',
        )
        stopped.start()
        return stopped

    async def test_a_profile_is_in_force_from_its_choice_to_its_end(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            found = dict((await root.call("ListProfiles"))[0])
            assert (found["fast"], found["fair"]) == ("none", "bfq")
            assert "profiles include each other: bad -> bad" in found["bad"]
            assert {"ai-inference", "ai-training", "balanced", "model-download"} <= found.keys()
            assert await root.get("ActiveProfile") == ""
            plan = await root.plan(profile="fair")
            assert (plan.changed, plan.states) == (True, {"nvme0n1": "planned none", "nvme1n1": "planned none"})
            change = await root.set_profile("fair")
            assert (change.changed, change.states) == (True, {"nvme0n1": "satisfied bfq", "nvme1n1": "satisfied bfq"})
            assert not (await root.set_profile("fair")).changed
            assert await root.get("ActiveProfile") == "fair"
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        async with connected(bus) as root:
            assert await root.get("ActiveProfile") == "fair"
            changed, _ = await root.call("ClearProfile", "a{sv}", {})
            assert changed
            assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("", [])

    async def test_what_cannot_be_meant_is_refused(self, bus: PrivateBus, daemon: Daemon) -> None:
        async with connected(bus) as root:
            for name, error in (("gone", errors.NoSuchProfile), ("bad", errors.InvalidValue), ("", errors.InvalidArgs)):
                with pytest.raises(error):
                    await root.set_profile(name)
            with pytest.raises(errors.InvalidArgs, match="no option 'persist'"):
                await root.set_profile("fair", persist=True)
            mixed: list[dict[str, Any]] = [
                {"baseline": True},
                {"holds": True},
                {"reset": True, "profile": "fair"},
                {"reset": True, "unset": True},
            ]
            for options in mixed:
                with pytest.raises(errors.InvalidArgs):
                    await root.plan(**options)
            drive = [["io-scheduler", "nvme0n1", "none"]]
            with pytest.raises(errors.InvalidArgs, match="takes no settings"):
                await root.call("Plan", "a(sss)a{sv}", drive, variants({"profile": "fair"}))

    async def test_a_reset_goes_back_to_the_files_or_to_the_values_of_the_host(
        self, bus: PrivateBus, daemon: Daemon
    ) -> None:
        async with connected(bus) as root:
            await root.set_profile("fair")
            await root.set(["io-scheduler", "nvme0n1", "kyber"], persist=True)
            await root.set(["overcommit", "", "heuristic"])
            plan = await root.plan(reset=True)
            assert (plan.changed, plan.states) == (
                True,
                {"nvme0n1": "planned kyber", "overcommit": "planned heuristic"},
            )
            done = await root.reset()
            assert (done.changed, done.states) == (
                True,
                {"nvme0n1": "satisfied bfq", "overcommit": "satisfied always:95"},
            )
            plan = await root.plan(reset=True, baseline=True)
            assert set(plan.states.values()) == {"planned bfq", "planned always:95"}
            done = await root.reset(baseline=True)
            assert done.changed
            assert {state.partition(" ")[0] for state in done.states.values()} == {"unmanaged"}
            assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("", ["config-suspended"])
        await asyncio.to_thread(daemon.restart)
        assert "STATUS=0 of 0 targets in the desired state; degraded: config-suspended" in daemon.messages
        async with connected(bus) as root:
            await root.reload()
            assert (await root.get("ActiveProfile"), await root.get("Degraded")) == ("fair", [])

    async def test_everybody_hears_of_a_profile_and_of_a_reset(self, bus: PrivateBus, daemon: Daemon) -> None:
        profiles: list[str] = []
        degraded: list[list[str]] = []
        causes = set()
        async with connected(bus) as listener, listener.client.listen(ROOT) as signals, connected(bus) as root:
            await root.set_profile("fair")
            await root.reset(baseline=True)
            async with asyncio.timeout(BOUND):
                async for signal in signals:
                    causes |= {signal.args[1]} if signal.member == "Changed" else set()
                    changes = manager_changes(signal)
                    profiles += [changes["ActiveProfile"]] if "ActiveProfile" in changes else []
                    degraded += [changes["Degraded"]] if "Degraded" in changes else []
                    if degraded and len(profiles) == 2:
                        break
        assert profiles == ["fair", ""]
        assert degraded == [["config-suspended"]]
        assert causes >= {"SetProfile"}


def manager_changes(signal: Signal) -> dict[str, Any]:
    """Return the properties of the manager that a signal announces."""
    found: dict[str, Any] = signal.args[1] if signal.member == "PropertiesChanged" and signal.args[0] == MANAGER else {}
    return found


# Layers that disagree

DRIVE: Final = "io-scheduler@nvme0n1"
# From the strongest to the weakest, each with its value, and the command that withdraws it.
LAYERS: Final = (
    ("runtime", "bfq", f"kerntune unset {DRIVE}"),
    ("persistent", "kyber", f"kerntune unset {DRIVE} --persist"),
    ("config", "none", "sed -i /nvme/d $CONFIGURATION_DIRECTORY/kerntune.toml && kerntune reload"),
    ("profile", "mq-deadline", ""),
)
STATE_FILES: Final = (
    "config/kerntune.toml", "config/kerntune.d/10-more.toml", "config/profiles/mine.toml",
    "state/claims.json", "runtime/runtime.json", "runtime/config.json", "runtime/profile.json", "runtime/cap.json",
)  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Give a shell beside a daemon with four layers, each with another value for one drive."""
    with demo(tmp_path) as running:
        config = running.daemon.config
        write_config(
            running.daemon,
            main='[io-scheduler]\n"nvme*" = { value = "none", why = "a database" }\n',
            mine='[io-scheduler]\n"nvme*" = { value = "mq-deadline", why = "for models" }\n',
        )
        (config / "kerntune.d").mkdir()
        (config / "kerntune.d/10-more.toml").write_text('[cpu-governor]\n"*" = "performance"\n')
        running.check("kerntune reload")
        # What the configuration overrides is no failure; the line that wins is named.
        for asked in ("kerntune profile set mine --dry-run", "kerntune profile set mine"):
            assert f"{config}/kerntune.toml:2) wins" in running.check(asked)
        running.check(f"kerntune set {DRIVE}=kyber --persist")
        # With the memory guard, which has a file too.
        running.check(f"kerntune set {DRIVE}=bfq overcommit=always:95")
        yield running


class TestLayers:
    def test_status_says_which_layer_wins_over_which_and_why(self, shell: Shell) -> None:
        for place, (layer, value, withdraw) in enumerate(LAYERS):
            (line,) = (line for line in shell.check(f"kerntune status {DRIVE}").splitlines() if DRIVE in line)
            words = line.split()
            assert words[:4] == [DRIVE, value, value, "satisfied"]
            assert words[4].rstrip(",") == layer
            overridden = [(name, other) for name, other, _ in LAYERS[place + 1 :]]
            for name, other in overridden:
                assert f"{other} of {name}" in line
            if overridden:
                *most, last = [name for name, _ in overridden]
                others = f"{', '.join(most)} and {last}" if most else last
                assert f"({layer} wins over {others})" in line
                shell.check(withdraw)
            if layer == "config":
                assert " config, kerntune.toml:2 config: a database overrides " in " ".join(words)

    def test_a_file_that_wins_over_a_profile_is_no_error_on_the_bus(self, shell: Shell) -> None:
        shell.check(f"kerntune unset {DRIVE} && kerntune unset {DRIVE} --persist")
        call = "busctl --json=short call org.kerntune.Tuner1 /org/kerntune/Tuner1 org.kerntune.Tuner1.Manager"
        for asked in ("Plan 'a(sss)a{sv}' 0 1 profile s mine", "SetProfile 'sa{sv}' mine 0"):
            changed, outcomes = json.loads(shell.check(f"{call} {asked}"))["data"]
            (drive,) = (row for row in outcomes if row[1] == "nvme0n1")
            assert (changed, drive[2:7]) == (False, ["mq-deadline", "none", "none", "overridden", "config-wins"])
            assert f"none ({shell.daemon.config}/kerntune.toml:2) wins" in drive[7]

    def test_the_exit_status_tells_when_a_caller_wins_over_a_profile(self, shell: Shell) -> None:
        """A caller wins for one of the two drives, which is a failure; the file wins for the other, which is none."""
        for asked in ("kerntune profile set mine --dry-run", "kerntune profile set mine"):
            done = shell.run(asked)
            assert (done.returncode, done.stderr) == (1, ""), done.stdout
            one, other = sorted(line for line in done.stdout.splitlines() if line.startswith("io-scheduler@"))
            assert " overridden: runtime:io-scheduler@nvme0n1 = bfq, by root (python) wins; " in one
            assert " config-wins: config:io-scheduler@nvme* = none (" in other

    @pytest.mark.parametrize("name", STATE_FILES)
    def test_a_damaged_file_stops_no_start(self, shell: Shell, name: str) -> None:
        daemon = shell.daemon
        before = json.loads(shell.run("kerntune --json status").stdout)
        daemon.kill()
        path = daemon.folder / name
        chance = random.Random(name)
        data = b"[" + chance.randbytes(40) + path.read_bytes()[: chance.randrange(20)]
        path.write_bytes(data)
        daemon.start()
        assert str(path) in daemon.journal()
        found = json.loads(shell.run("kerntune --json status").stdout)
        if name.startswith("config/"):
            assert found["degraded"] == ["config-invalid"]
            assert claims_in(found) == claims_in(before)
        else:
            assert found["degraded"] == ["state-set-aside"]
            assert path.with_name(f"{path.name}.bad").read_bytes() == data
            lost = {"state/claims.json": {"persistent", "profile"}, "runtime/runtime.json": {"runtime"}}.get(
                name, set()
            )
            assert {claim["origin"] for claim in found["claims"]} == {layer for layer, _, _ in LAYERS} - lost
        assert found["profile"] == ("" if name == "state/claims.json" else "mine")
        verified = json.loads(shell.run("kerntune verify --json").stdout)
        assert verified["managed"] == verified["satisfied"]
        assert verified["troubles"] == found["degraded"]
        assert "Traceback" not in daemon.journal()


def claims_in(status: dict[str, Any]) -> list[tuple[object, object]]:
    """Return the claims without their places: a damaged file's claims are those that it had when it was last good."""
    return [(claim["id"], claim["value"]) for claim in status["claims"]]
