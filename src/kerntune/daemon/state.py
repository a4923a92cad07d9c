"""Claims and baselines on disk, so that a crash at any moment loses nothing that was answered.

Two files. What ends with the boot is in the runtime directory, with the boot id: runtime claims, baselines, and whether
the files are suspended. What outlives it is in the state directory: persistent claims and the profile that was chosen.
A commit that changes the latter writes both into that file, so one atomic replace decides it; of the two records of
what ends with the boot, the one with the higher serial counts.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerntune.engine.claims import Choice, ClaimBook
from kerntune.errors import InvalidValue
from kerntune.model import Baseline, Claim, Origin, Target

log = logging.getLogger(__name__)
FORMAT = 1
STATE_SET_ASIDE = "state-set-aside"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Document = dict[str, Any]


class State:
    """A Ledger (engine/ledger.py) in two JSON files; `set_aside` names the files that could not be used."""

    def __init__(self, runtime: Path, persistent: Path, *, boot_id: str | None = None) -> None:
        self._runtime, self._persistent = runtime / "runtime.json", persistent / "claims.json"
        self._boot = boot_id if boot_id is not None else BOOT_ID.read_text().strip()
        self._lock = threading.Lock()
        self.set_aside: list[Path] = []
        run, lib = self._load(self._runtime), self._load(self._persistent)
        if run.get("boot") != self._boot:
            run = {}
        committed = lib.get("commit", {})
        if committed.get("boot") == self._boot and committed["serial"] > run.get("serial", 0):
            run = run | {key: committed[key] for key in ("serial", "runtime", "suspended") if key in committed}
        self._serial: int = run.get("serial", 0)
        claims = (
            *load_claims(lib.get("persistent", ()), Origin.PERSISTENT),
            *load_claims(run.get("runtime", ()), Origin.RUNTIME),
        )
        choice = Choice(lib.get("profile", ""), run.get("suspended", False))
        self._book = ClaimBook({claim.id: claim for claim in claims}, choice)
        self._baselines = {Target(t, i, k): value for t, i, k, value in run.get("baselines", ())}

    @property
    def book(self) -> ClaimBook:
        return self._book

    @property
    def baselines(self) -> Mapping[Target, str]:
        return self._baselines

    def keep(self, baselines: Sequence[Baseline]) -> None:
        with self._lock:
            added = {baseline.target: baseline.value for baseline in baselines}
            self._save_runtime(self._book, added | self._baselines)

    def forget(self, targets: Collection[Target]) -> None:
        with self._lock:
            self._save_runtime(self._book, {t: value for t, value in self._baselines.items() if t not in targets})

    def commit(self, book: ClaimBook) -> None:
        with self._lock:
            if outlasting(book) != outlasting(self._book):
                serial = self._serial + 1
                document = {
                    "format": FORMAT,
                    "persistent": dump_claims(book.by_origin(Origin.PERSISTENT)),
                    "profile": book.choice.profile,
                    "commit": {"boot": self._boot, "serial": serial} | passing(book),
                }
                replace_file(self._persistent, document, durable=True)
                self._serial, self._book = serial, book
            else:
                self._save_runtime(book, self._baselines)

    def _save_runtime(self, book: ClaimBook, baselines: dict[Target, str]) -> None:
        serial = self._serial + 1
        document = {
            "format": FORMAT,
            "boot": self._boot,
            "serial": serial,
            **passing(book),
            "baselines": [[t.tunable, t.instance, t.key, value] for t, value in baselines.items()],
        }
        replace_file(self._runtime, document, durable=False)
        self._serial, self._book, self._baselines = serial, book, baselines

    def _load(self, path: Path) -> Document:
        document, aside = load(path, checked)
        if aside:
            self.set_aside.append(aside)
        return document


def load(path: Path, check: Callable[[Any], Document]) -> tuple[Document, Path | None]:
    """The document, or an empty one; what cannot be used is set aside under another name, which is told too.

    `check` answers the document, or raises what json and wrong types raise.
    """
    aside = path.with_name(f"{path.name}.bad")
    try:
        return check(json.loads(path.read_bytes())), None
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidValue) as error:
        why = error
    try:
        path.replace(aside)
    except OSError as error:
        log.error("%s cannot be used (%s), nor set aside (%s)", path, why, error)
        return {}, path
    log.error("%s cannot be used (%s); it was set aside as %s", path, why, aside)
    return {}, aside


def outlasting(book: ClaimBook) -> tuple[Any, ...]:
    """What of a book is for the boots to come."""
    return book.by_origin(Origin.PERSISTENT), book.choice.profile


def passing(book: ClaimBook) -> Document:
    """What of a book ends with the boot."""
    return {"runtime": dump_claims(book.by_origin(Origin.RUNTIME)), "suspended": book.choice.suspended}


def checked(document: Any) -> Document:
    """The document when this version can read all of it; ValueError or TypeError otherwise."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("not a state file of this version")
    serials = [document.get("serial", 0)]
    flags = [document.get("suspended", False)]
    for name in ("persistent", "runtime"):
        load_claims(document.get(name, ()), Origin.RUNTIME)
    if "commit" in document:
        load_claims(document["commit"]["runtime"], Origin.RUNTIME)
        serials.append(document["commit"]["serial"])
        flags.append(document["commit"].get("suspended", False))
    if any(type(serial) is not int for serial in serials):
        raise ValueError("a serial is a whole number")
    if any(type(flag) is not bool for flag in flags) or not isinstance(document.get("profile", ""), str):
        raise ValueError("what was chosen is a name and a switch")
    for row in document.get("baselines", ()):
        if len(row) != 4 or not all(isinstance(field, str) for field in row):
            raise ValueError("a baseline is four strings")
    return document


def dump_claims(claims: Iterable[Claim]) -> list[Document]:
    """Claims of one origin as JSON objects."""
    return [
        {
            "tunable": claim.tunable,
            "instances": claim.instances,
            "value": claim.value,
            "who": claim.who,
            "why": claim.why,
            "seq": claim.seq,
            "partial": claim.partial,
        }
        for claim in claims
    ]


def load_claims(rows: Iterable[Document], origin: Origin) -> list[Claim]:
    """The claims again; ValueError for a field of the wrong type."""
    claims = [Claim(origin, **row) for row in rows]
    for claim in claims:
        texts = (claim.tunable, claim.instances, claim.value, claim.who, claim.why)
        kinds = type(claim.seq), type(claim.partial)
        if not all(isinstance(text, str) for text in texts) or kinds != (int, bool):
            raise ValueError("a claim has a field of the wrong type")
    return claims


def replace_file(path: Path, document: Document, *, durable: bool) -> None:
    """Write beside the file and rename over it; `durable` also waits for the disk."""
    beside = path.with_name(f".{path.name}.new")
    try:
        # What json reads, half a surrogate pair included, it has to be able to write.
        with beside.open("w", encoding="utf-8", errors="surrogatepass") as file:
            json.dump(document, file, ensure_ascii=False)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk it would be in the way
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
