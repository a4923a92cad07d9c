#!/usr/bin/python3
"""model-server FOLDER [WORD...]: stands in for a model server: it takes 32 MiB of memory, and waits for SIGTERM.

FOLDER/facts    what it was given, in JSON
FOLDER/signals  a line for each SIGTERM: the process that sent it
FOLDER/ask      a FIFO that takes words, as the command line does

ready           say READY=1
feed            say WATCHDOG=1
starve          have the watchdog bite in half a second, and say nothing more

With LISTEN_FDS it answers connections with LISTEN_PID and the number of its process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

MEMORY = 32 << 20
MESSAGES = {"ready": b"READY=1", "feed": b"WATCHDOG=1", "starve": b"WATCHDOG_USEC=500000"}
SHOWN = ("GLIBC_TUNABLES", "LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_PID")
LISTENER = 3  # the first descriptor of sd_listen_fds(3)
LINGER = 0.5  # seconds in which another SIGTERM would be counted


def say(word: str) -> None:
    """Tell the service manager (sd_notify(3)); @ stands for a zero byte."""
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(MESSAGES[word], f"\0{address[1:]}" if address[0] == "@" else address)


def obey(ask: int) -> None:
    with open(ask, encoding="ascii") as lines:
        for line in lines:
            say(line.strip())


def answer() -> None:
    listener = socket.socket(fileno=LISTENER)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(f"{os.environ['LISTEN_PID']} {os.getpid()}\n".encode())


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    folder, memory = Path(sys.argv[1]), b"\1" * MEMORY
    for name in ("ask", "signals"):
        (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / "ask")
    # Open for both: it has no end when a writer closes it.
    threading.Thread(target=obey, args=[os.open(folder / "ask", os.O_RDWR)], daemon=True).start()
    if "LISTEN_FDS" in os.environ:
        threading.Thread(target=answer, daemon=True).start()
    given = {name: os.environ[name] for name in SHOWN if name in os.environ}
    facts = {"pid": os.getpid(), "parent": os.getppid(), "bytes": len(memory), "environment": given}
    (folder / "facts.new").write_text(json.dumps(facts))
    (folder / "facts.new").rename(folder / "facts")
    for word in sys.argv[2:]:
        say(word)
    came: signal.struct_siginfo | None = signal.sigwaitinfo({signal.SIGTERM})
    with open(folder / "signals", "a", buffering=1) as signals:
        while came:
            signals.write(f"{came.si_pid}\n")
            came = signal.sigtimedwait({signal.SIGTERM}, LINGER)


main()
