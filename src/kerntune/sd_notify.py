"""One message to the service manager (sd_notify(3)), as a datagram: without libsystemd, and without a loop."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

MAX_STATUS: Final = 512  # characters
# The socket is full, or the system has no room for another socket at this moment.
PASSING: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def address_of(name: str) -> str:
    """Return the address in NOTIFY_SOCKET, where @ stands for the zero byte of an abstract name; "" for any other."""
    return f"\0{name[1:]}" if name[:1] == "@" else name if name[:1] == "/" else ""


def sent(text: str, *, wait: float = 0.0) -> bool:
    """Send KEY=VALUE lines; while the socket is full, wait so many seconds.

    Return True if they have gone out or never will, False where the socket is still full.
    """
    if not (address := address_of(os.environ.get("NOTIFY_SOCKET", ""))):  # no service manager listens
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(wait)
            sender.sendto(text.encode(errors="replace"), address)
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno not in PASSING  # with any other error the socket is gone, and nobody listens
    return True


def is_service() -> bool:
    """Return True if a service manager waits for messages of this process itself.

    A command that a service's script runs inherits NOTIFY_SOCKET, and must not speak for the service. The manager
    names the process that it has started in SYSTEMD_EXEC_PID (systemd.exec(5), from systemd 248 on).
    """
    here = str(os.getpid())
    return "NOTIFY_SOCKET" in os.environ and os.environ.get("SYSTEMD_EXEC_PID", here) == here


def status(text: str) -> str:
    """Return the line that has systemctl status show a text, in which control characters become blanks."""
    return f"STATUS={' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())[:MAX_STATUS]}"
