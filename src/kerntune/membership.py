"""The advice to a caller who may not tune: the line that gives this very user the group.

An older polkit, such as Debian 12's 122, takes the groups of a caller from the user database (getgrouplist(3)); a newer
one, such as Debian 13's 126, from its connection to the bus, and so from the process. So what helps depends on where
the group is known already. The daemon asks no user database: its answer can be slow. Its refusals end in JOIN, and
clients put their own line there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kerntune.errors import KerntuneError, Unreachable

GROUP: Final = "kerntune"
JOIN: Final = (
    f"Members of the group {GROUP} may: sudo usermod -aG {GROUP} $USER, then log in again (id shows it); "
    "or run it with sudo"
)
UNIT: Final = f"{GROUP}-hold@PROFILE.service"
BESIDE: Final = f"have root hold a profile beside it, by Requires={UNIT} and After={UNIT} in its unit"
DYNAMIC: Final = range(61184, 65520)  # the users that systemd makes for DynamicUser= (systemd.exec(5))
PASSWD: Final = Path("/etc/passwd")
SECONDS: Final = 2.0  # for a user database on the network that does not answer


def for_this_user(error: KerntuneError) -> KerntuneError:
    """Return one of REFUSALS with what the user of this process can do, where it is about that user."""
    if isinstance(error, Unreachable):
        return Unreachable(error.what, hint) if (hint := stranger()) else error
    what = str(error).removesuffix(f". {JOIN}")
    return error if what == str(error) else type(error)(what, advice())


def advice(limit: float = SECONDS) -> str:
    """Return what the user of this process can do; what the daemon says where the user database takes too long."""
    return _within(limit, _looked_up, JOIN)


def stranger(limit: float = SECONDS) -> str:
    """Return why the bus may not let in the user of this process, "" for one that the user database has.

    dbus-daemon looks up the groups of each user, and ends the connection of one that it does not find.
    """
    uid = os.geteuid()
    if _within(limit, lambda: "" if uid in DYNAMIC and not _has_account(uid) else _name_of(uid), "?"):
        return ""
    return f"The bus may let in no user whom the user database lacks, as uid {uid} (libnss-systemd helps): {BESIDE}"


def for_user(name: str, *, in_process: bool, in_database: bool) -> str:
    """Return what a user with an account can do."""
    from shlex import quote  # noqa: PLC0415  # only a refusal needs it

    line = f"sudo usermod -aG {GROUP} {quote(name)}"
    if in_process and in_database:
        return f"The group {GROUP} has {name} already, so a rule of polkit says otherwise: see /etc/polkit-1/rules.d"
    if in_process:
        return f"This process has the group {GROUP}, but an older polkit reads the user database: {line}"
    if in_database:
        return (
            f"The group {GROUP} has {name}, but not in this process: log in again, or restart its service (id shows it)"
        )
    return (
        f"Members of the group {GROUP} may: {line}, then log in again, or restart its service (id shows it); "
        "or run it with sudo"
    )


def for_stranger(uid: int, *, in_process: bool) -> str:
    """Return what a user without an account can do, such as one of DynamicUser=."""
    who = f"A user of DynamicUser=, as uid {uid} is," if uid in DYNAMIC else f"A user without an account, as uid {uid},"
    lent = f"{who} has only the groups of its process, and an older polkit does not see them"
    return f"{lent}: {BESIDE}" if in_process else f"{lent}. Add SupplementaryGroups={GROUP} to its unit, or {BESIDE}"


def _within(limit: float, look: Callable[[], str], otherwise: str) -> str:
    """Return what a look-up finds, or `otherwise` where that takes too long."""
    # A look-up cannot be interrupted, and a thread can be left behind.
    from threading import Thread  # noqa: PLC0415  # only an error needs it

    found: list[str] = []
    thread = Thread(target=lambda: found.append(look()), daemon=True)
    thread.start()
    thread.join(limit)
    return found[0] if found else otherwise


def _looked_up() -> str:
    import grp  # noqa: PLC0415
    import pwd  # noqa: PLC0415

    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:  # the bus is another host's
        return JOIN
    uid = os.geteuid()
    in_process = group in {os.getegid(), *os.getgroups()}
    name = "" if uid in DYNAMIC and not _has_account(uid) else _name_of(uid)
    if not name:
        return for_stranger(uid, in_process=in_process)
    in_database = group in os.getgrouplist(name, pwd.getpwnam(name).pw_gid)
    return for_user(name, in_process=in_process, in_database=in_database)


def _name_of(uid: int) -> str:
    """Return the name of a user, "" for one that the user database does not have."""
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _has_account(uid: int) -> bool:
    """Return True if /etc/passwd has a user with this number: systemd gives its own users a name as well."""
    try:
        lines = PASSWD.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split(":")[2:3] == [str(uid)] for line in lines)
