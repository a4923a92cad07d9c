"""`kerntune run --governor` beside power-profiles-daemon: Debian's two versions hold their profile, or say why not."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from kerntune.cli import power_profiles
from kerntune.cli.power_profiles import Held, NotHeld, held
from tests.conftest import needs_root
from tests.harness import power_profiles as harness
from tests.harness import skip
from tests.harness.polkitd import OTHER, Polkitd, accounts
from tests.harness.power_profiles import EPP, HOT, NAMES, PowerProfiles, bus_and_actions
from tests.harness.privatebus import PrivateBus
from tests.live.users import User, public_copy

# Only root may be the daemon, run polkitd and make the user that is refused.
pytestmark = needs_root

SOON: Final = 10.0  # seconds; the daemon itself would wait 25 s for polkit
RIVAL: Final = "Another program's hold on power-saver goes first"
PROGRAM: Final = """
import sys
from kerntune.cli.power_profiles import held
with held("performance", "a model server") as found:
    print(repr(found) if found is None else f"{getattr(found, 'what', found)}|{getattr(found, 'hint', '')}", flush=True)
    sys.stdin.read()
"""
# Owns the name under the name of another program, and answers nothing.
SILENT: Final = """#!{python}
import sys
from kerntune.dbus.blocking import connect
with connect("{name}") as client:
    client._bus("RequestName", "su", "{name}", 4)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", params=NAMES)
def suite(request: pytest.FixtureRequest) -> str:
    """Return the Debian whose daemon is tried."""
    if why := harness.missing():
        skip(why)
    return str(request.param)


@pytest.fixture(scope="module")
def bus(suite: str) -> Iterator[PrivateBus]:
    with bus_and_actions(suite) as running:
        yield running


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    with public_copy() as folder:
        yield folder


@pytest.fixture(scope="module")
def polkitd(bus: PrivateBus) -> Iterator[Polkitd]:
    with accounts(), Polkitd(bus) as running:
        yield running


@pytest.fixture(autouse=True)
def system_bus(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process take the test's bus for the system bus."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)


@pytest.fixture
def profiles(bus: PrivateBus, polkitd: Polkitd, suite: str) -> Iterator[PowerProfiles]:
    """Give the daemon with its fake driver."""
    with PowerProfiles(bus, suite) as running:
        yield running


@contextmanager
def taken(governor: str = "performance") -> Iterator[Held]:
    """Give a hold that is granted."""
    with held(governor, "a model server") as found:
        assert isinstance(found, Held), found
        yield found


def refused(governor: str = "performance") -> NotHeld:
    """Return why a hold is not granted."""
    with held(governor, "a model server") as found:
        assert isinstance(found, NotHeld), found
        return found


def news_of(hold: Held) -> NotHeld:
    """Return why a hold is not in force any more, by way of a loop that polls its descriptor."""
    waiting, limit = select.poll(), time.monotonic() + SOON
    waiting.register(hold, select.POLLIN)
    while time.monotonic() < limit:
        assert waiting.poll(SOON * 1000), "the hold has no news"
        if news := hold.take():
            return news
    pytest.fail("the hold is in force")


class TestGranted:
    @pytest.mark.parametrize(("governor", "profile"), power_profiles.PROFILES.items())
    def test_the_profile_is_held_and_in_force_until_the_end(
        self, profiles: PowerProfiles, governor: str, profile: str
    ) -> None:
        with taken(governor) as hold:
            assert profiles.holds == [{"ApplicationId": "kerntune", "Profile": profile, "Reason": "a model server"}]
            assert profiles.get("ActiveProfile") == profile
            assert str(hold) == f"power-profiles-daemon holds the profile {profile}"
            assert (hold.degraded, hold.take()) == ("", None)
        assert (profiles.holds, profiles.get("ActiveProfile")) == ([], "balanced")

    def test_a_reason_that_is_no_utf_8_is_one_all_the_same(self, profiles: PowerProfiles) -> None:
        with held("performance", "serve \udcff") as found:
            assert isinstance(found, Held)
            assert profiles.holds[0]["Reason"] == "serve ?"

    def test_it_is_released_when_the_block_fails(self, profiles: PowerProfiles) -> None:
        with pytest.raises(ZeroDivisionError), taken():
            raise ZeroDivisionError
        assert profiles.holds == []

    def test_it_ends_with_a_client_that_is_killed(self, profiles: PowerProfiles, public: Path) -> None:
        with User("root", profiles.bus, public) as root, running(root) as (process, said):
            assert said.startswith("power-profiles-daemon holds the profile performance|")
            assert profiles.get("ActiveProfile") == "performance"
            process.send_signal(signal.SIGKILL)
            profiles.wait_for("ActiveProfileHolds", [])
            profiles.wait_for("ActiveProfile", "balanced")

    def test_a_degraded_profile_is_held_and_said_to_be(self, bus: PrivateBus, polkitd: Polkitd, suite: str) -> None:
        """The daemon's driver writes to a tree of files in place of /sys, before the hold is told to be granted."""
        with PowerProfiles(bus, suite, fake=False, files=HOT) as profiles:
            with taken() as hold:
                assert hold.degraded == "high-operating-temperature"
                assert (profiles.root / EPP).read_text() == "performance"
            assert (profiles.root / EPP).read_text() == "balance_performance"
            with taken("powersave") as saving:
                assert (saving.degraded, (profiles.root / EPP).read_text()) == ("", "power")


@contextmanager
def running(user: User) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program that asks for a hold, and give its first line."""
    argv = user.argv(str(Path(sys.executable).resolve()), "-c", PROGRAM)
    with subprocess.Popen(
        argv, env=user.environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


class TestRefused:
    def test_a_user_without_an_active_session_is(self, profiles: PowerProfiles, public: Path) -> None:
        with User(OTHER, profiles.bus, public) as user, running(user) as (_, said):
            what, _, hint = said.partition("|")
            assert what.startswith("power-profiles-daemon does not hold the profile performance: Not Authorized")
            assert hint.startswith("Its policy lets root and the active local session hold a profile")
            assert f"{profiles.name}.hold-profile" in hint
            assert profiles.holds == []

    def test_everybody_is_without_polkit(self, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with bus_and_actions(suite) as bus, PowerProfiles(bus, suite):
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
            found = refused()
        assert found.what.endswith("does not hold the profile performance: it cannot ask polkit")
        assert found.hint == "Does polkit run? systemctl status polkit"

    def test_polkit_that_does_not_answer_costs_two_seconds(self, profiles: PowerProfiles, polkitd: Polkitd) -> None:
        polkitd.stop()
        try:
            began = time.monotonic()
            found = refused()
            took = time.monotonic() - began
        finally:
            polkitd.cont()
        assert found.what == (
            "power-profiles-daemon does not hold the profile performance: it has not answered within 2 s"
        )
        assert "polkit" in found.hint
        assert power_profiles.LIMIT_SECONDS * 0.9 < took < SOON
        # What polkit allows now is for a client that has left.
        profiles.wait_for("ActiveProfileHolds", [])

    def test_a_daemon_that_hangs_costs_two_seconds_at_the_end_too(
        self, profiles: PowerProfiles, polkitd: Polkitd
    ) -> None:
        with taken():
            profiles.suspend()
            began = time.monotonic()
        try:
            assert time.monotonic() - began < SOON
        finally:
            profiles.resume()
        profiles.wait_for("ActiveProfileHolds", [])

    def test_a_profile_that_this_host_does_not_have(self, bus: PrivateBus, polkitd: Polkitd, suite: str) -> None:
        with PowerProfiles(bus, suite, fake=False) as profiles:
            found = refused()
            assert "does not offer this profile on this host, only power-saver, balanced" in found.what
            assert "It has no driver for this hardware" in found.hint
            assert "the profile changes nothing on this host" in refused("powersave").what
            assert profiles.holds == []

    def test_another_hold_goes_first(self, profiles: PowerProfiles) -> None:
        profiles.hold("power-saver")
        found = refused()
        assert found.what.endswith("it took the hold, but its profile is power-saver")
        assert found.hint.startswith(RIVAL)
        assert [row["ApplicationId"] for row in profiles.holds] == ["org.example.game"]


@pytest.fixture
def next_daemon(bus: PrivateBus) -> Iterator[ExitStack]:
    """Give what ends a second daemon with the test."""
    with ExitStack() as stack:
        yield stack


class TestMeanwhile:
    def test_the_user_chooses_another_profile(self, profiles: PowerProfiles) -> None:
        with taken() as hold:
            profiles.choose("balanced")
            found = news_of(hold)
            assert found.what.startswith("power-profiles-daemon has released the hold on the profile performance")
            assert found.hint.startswith("Somebody chose another profile or ended the hold")
        assert profiles.get("ActiveProfile") == "balanced"

    def test_another_hold_goes_first(self, profiles: PowerProfiles) -> None:
        with taken() as hold:
            profiles.hold("power-saver")
            found = news_of(hold)
            assert found.what.endswith("in vain; its profile is now power-saver")
            assert found.hint.startswith(RIVAL)

    def test_hold_of_another_that_changes_nothing_is_no_news(self, profiles: PowerProfiles) -> None:
        with taken() as hold:
            profiles.hold("performance")
            assert hold.take() is None

    def test_the_daemon_ends_and_the_next_one_keeps_its_own_holds(
        self, profiles: PowerProfiles, bus: PrivateBus, suite: str, next_daemon: ExitStack
    ) -> None:
        """The numbers of the next daemon begin anew: ours must not end the hold of another program there."""
        with taken() as hold:
            profiles.stop()
            # 0.30 releases all holds before it goes.
            news = ("holds the profile performance no longer: it has left the bus", "has released the hold")
            found = news_of(hold)
            assert any(text in found.what for text in news), found
            next_one = next_daemon.enter_context(PowerProfiles(bus, suite))
            next_one.hold("performance")
        assert [row["ApplicationId"] for row in next_one.holds] == ["org.example.game"]

    def test_the_bus_is_lost(self, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with bus_and_actions(suite) as bus, Polkitd(bus), PowerProfiles(bus, suite):
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
            with taken() as hold:
                bus.stop()
                assert " holds the profile performance no longer: " in news_of(hold).what


class TestNobody:
    @pytest.mark.parametrize("governor", ["schedutil", "ondemand", ""])
    def test_a_governor_without_a_profile_asks_nobody(self, profiles: PowerProfiles, governor: str) -> None:
        with held(governor, "") as found:
            assert found is None
            assert profiles.holds == []

    def test_without_a_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        with held("performance", "") as found:
            assert found is None

    def test_a_daemon_that_does_not_run_is_not_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        marker, services = tmp_path / "started", tmp_path / "services"
        services.mkdir()
        for name in NAMES.values():
            text = f"[D-BUS Service]\nName={name}\nExec=/bin/sh -c 'touch {marker}; exit 1'\n"
            (services / f"{name}.service").write_text(text)
        include = tmp_path / "activation.conf"
        allowed = "".join(f'<allow send_destination="{name}"/>' for name in NAMES.values())
        policy = f'<policy context="default">{allowed}</policy>'
        include.write_text(f"<busconfig><servicedir>{services}</servicedir>{policy}</busconfig>\n")
        with PrivateBus(include=[include]) as bus:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
            with held("performance", "") as found:
                assert found is None
        assert not marker.exists()


@pytest.mark.parametrize("program", ["tuned-ppd", "elsewise"])
def test_the_service_is_named_by_its_program(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    script = tmp_path / program
    script.write_text(SILENT.format(python=sys.executable, name=NAMES[suite]))
    script.chmod(0o755)
    with PrivateBus(open_to=NAMES.values()) as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert refused().what == (
                f"{program} does not hold the profile performance: it has not answered within 2 s"
            )
            process.kill()
