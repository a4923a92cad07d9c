"""One process of the load generator: clients with one call in flight each; prints what they saw as JSON.

`python -m benchmarks.generator` reads a plan (benchmarks/load.py) from the first line of its input, connects, prints
"ready", and starts at the next line. It becomes the user it plays after its imports, so that a checkout which that
user may not read can be measured too.
"""

from __future__ import annotations

import json
import os
import pwd
import selectors
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from benchmarks.wire import ERROR, NUMBER, SERIAL_AT, Connection, reply_serial, said


class Client:
    """Sends the calls in turn, the next one when the last one was answered."""

    def __init__(self, address: str, calls: Sequence[bytes], patience: float) -> None:
        self.connection = Connection(address, timeout=patience)
        self.refusals: list[str] = []
        self._calls = cycle([bytearray(call) for call in calls])
        self._serial = 1
        self._asked = 0

    def ask(self) -> None:
        self._serial += 1
        call = next(self._calls)
        NUMBER.pack_into(call, SERIAL_AT, self._serial)
        self._asked = time.perf_counter_ns()
        self.connection.send(call)

    def hear(self) -> int:
        """Nanoseconds that the reply took, 0 when what has come is not it; TimeoutError when nothing comes."""
        for message in self.connection.receive():
            if reply_serial(message) == self._serial:
                took = time.perf_counter_ns() - self._asked
                if message[1] == ERROR:
                    self.refusals.append(said(message))
                return took
        return 0


def alone(client: Client, seconds: float, most: int) -> tuple[list[int], int]:
    """The times of one client's calls, and how many it gave up waiting for (the first one ends it)."""
    times: list[int] = []
    end = time.perf_counter() + seconds
    while len(times) < most and time.perf_counter() < end:
        client.ask()
        took = 0
        try:
            while not took:
                took = client.hear()
        except TimeoutError:
            return times, 1
        times.append(took)
    return times, 0


def together(clients: Sequence[Client], seconds: float, most: int) -> tuple[list[int], int]:
    """The times of all calls answered before the end, and 0: nobody waits for what is still in flight."""
    times: list[int] = []
    end = time.perf_counter() + seconds
    with selectors.EpollSelector() as selector:
        for client in clients:
            selector.register(client.connection, selectors.EVENT_READ, client)
            client.ask()
        while len(times) < most and (left := end - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                if took := key.data.hear():
                    times.append(took)
                    key.data.ask()
    return times, 0


def become(user: str) -> None:
    """Drop root for that user and the user's groups."""
    found = pwd.getpwnam(user)
    if found.pw_uid != os.geteuid():
        os.initgroups(user, found.pw_gid)
        os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
        os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out the plan; what load.Sample is made of."""
    become(plan["user"])
    calls = [bytes.fromhex(call) for call in plan["calls"]]
    clients = [Client(plan["address"], calls, plan["patience"]) for _ in range(plan["clients"])]
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    if len(clients) == 1:
        times, unanswered = alone(clients[0], plan["seconds"], plan["most"])
    else:
        times, unanswered = together(clients, plan["seconds"], plan["most"])
    return {
        "times": times,
        "unanswered": unanswered,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "refusals": [refusal for client in clients for refusal in client.refusals],
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.stdin.readline()))), flush=True)
