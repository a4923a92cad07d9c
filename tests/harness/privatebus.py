"""A dbus-daemon of our own with the limits and the policies of a system bus; leaves nothing behind."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from kerntune.api.names import BUS_NAME
from tests.harness import CHECKOUT

START: Final = 10.0  # seconds
STOP: Final = 5.0  # seconds
POLICY: Final = CHECKOUT / "dbus/org.kerntune.Tuner1.conf"
SYSTEM_POLICIES: Final = Path("/usr/share/dbus-1/system.d")

# As dbus's own system.conf, so that what the tests find holds on a host: clients may not own names nor call anybody
# but the bus, until a policy says so.
CONFIG: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Peer"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"
      send_member="UpdateActivationEnvironment"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
{policies}
</busconfig>
"""


class PrivateBus:
    """`with PrivateBus(...) as bus:` runs a bus at `bus.address` that every user of the host may reach.

    `include` are policy files, `include_dirs` folders of them (such as SYSTEM_POLICIES). Every user may own and call
    the names in `open_to`; and one user, by name or number, may own the name in `owner`.
    """

    def __init__(
        self,
        *,
        include: Sequence[Path] = (),
        include_dirs: Sequence[Path] = (),
        open_to: Iterable[str] = (),
        owner: tuple[str | int, str] | None = None,
    ) -> None:
        self._policies = [f'<include ignore_missing="no">{escape(str(path))}</include>' for path in include]
        self._policies += [f"<includedir>{escape(str(path))}</includedir>" for path in include_dirs]
        anybody = "".join(f'<allow own="{name}"/><allow send_destination="{name}"/>' for name in open_to)
        self._policies.append(f'<policy context="default">{anybody}</policy>')
        if owner is not None:
            user, name = owner
            self._policies.append(f'<policy user="{user}"><allow own="{name}"/></policy>')
        self._folder: Path | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Where the bus has its socket and its log; others may put their own files there."""
        assert self._folder is not None, "the bus has not been started"
        return self._folder

    @property
    def address(self) -> str:
        return f"unix:path={self.folder / 'socket'}"

    @property
    def pid(self) -> int:
        assert self._daemon is not None, "the bus has not been started"
        return self._daemon.pid

    @property
    def environment(self) -> dict[str, str]:
        """For child processes that look for the system bus."""
        return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.address}

    def __enter__(self) -> PrivateBus:
        self._folder = Path(tempfile.mkdtemp(prefix="kerntune-bus-"))
        self._folder.chmod(0o755)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start the daemon, again after `stop` too; returns when it accepts connections."""
        config = self.folder / "bus.conf"
        config.write_text(CONFIG.format(socket=self.folder / "socket", policies="\n".join(self._policies)))
        ready, told = os.pipe()
        with open(ready, "rb") as address, (self.folder / "bus.log").open("ab") as log:
            arguments = [f"--config-file={config}", "--nofork", "--nosyslog", "--nopidfile", f"--print-address={told}"]
            try:
                self._daemon = subprocess.Popen(
                    ["dbus-daemon", *arguments],
                    stderr=log,
                    pass_fds=[told],
                    # Out of reach of the terminal's Ctrl-C: it has to outlive the daemon.
                    start_new_session=True,
                )
            finally:
                os.close(told)
            if not select.select([address], [], [], START)[0] or not address.readline():
                raise RuntimeError(f"dbus-daemon did not start: {(self.folder / 'bus.log').read_text()}")

    def stop(self) -> None:
        """End the daemon, as at a restart of the bus."""
        if self._daemon is None:
            return
        self._daemon.terminate()
        self._daemon.send_signal(signal.SIGCONT)
        try:
            self._daemon.wait(STOP)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait(STOP)
        self._daemon = None


def package_bus(*, owner: str | int | None = None) -> PrivateBus:
    """Return a bus, not started yet, with the package's policy and those of the host's other services.

    The policy has root alone own our name. With `owner` that user may too; without one it is whoever runs the tests.
    """
    user = os.geteuid() if owner is None else owner
    own = (user, BUS_NAME) if user else None
    return PrivateBus(include=[POLICY], include_dirs=[SYSTEM_POLICIES], owner=own)


def open_bus() -> PrivateBus:
    """Return a bus, not started yet, on which every user may be the daemon: for a scripted one, and without polkit."""
    return PrivateBus(open_to=[BUS_NAME])
