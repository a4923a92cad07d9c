"""Claims and baselines on disk: a crash at any moment loses nothing that was answered.

There are two files. The runtime file has the boot id and the data that end with the boot: runtime claims, holds,
baselines, and whether the files are suspended. The persistent file, in the state directory, has the data that outlive
the boot: persistent claims and the selected profile. A commit that changes these writes both kinds of data into the
persistent file, so that one atomic replace decides it. Both files then have the data that end with the boot; those
with the higher serial count.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kerntune.engine.claims import Choice, Claims
from kerntune.errors import InvalidValue
from kerntune.model import Baseline, Claim, Hold, Origin, Target
from kerntune.plain_files import NoPlainFile, patiently, put_aside, replace_file

log = logging.getLogger(__name__)
FORMAT = 1
STATE_SET_ASIDE = "state-set-aside"
STATE_UNREAD = "state-unread"
UNREAD = "unread"
BOOT_PARTS = ("runtime", "suspended", "holds", "hold_claims", "last_hold")  # parts of the claims that end with the boot
MAX_FILE_BYTES = 16 << 20  # bytes of a file
NOBODY, LARGEST = 2**32 - 1, 2**64 - 1  # the largest `u` and `t` of D-Bus
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Document = dict[str, Any]


class Store:
    """A StateStore (engine/claims.py) in two JSON files.

    `set_aside` names the files that could not be used, and `unread` those that could not be read, which may pass. An
    unread file is kept under another name, and the start that can read it takes up its content.
    """

    def __init__(self, runtime: Path, persistent: Path, *, boot_id: str | None = None) -> None:
        self._runtime, self._persistent = runtime / "runtime.json", persistent / "claims.json"
        self._boot = boot_id if boot_id is not None else BOOT_ID.read_text().strip()
        self._lock = threading.Lock()
        self.set_aside: list[Path] = []
        self.unread: list[Path] = []
        run, lib = self._load(self._runtime), self._load(self._persistent)
        old_run, old_lib = self._load_unread(self._runtime), self._load_unread(self._persistent)
        if run == {} and self._is_lost():
            run = None
        if run is not None and run.get("boot") != self._boot:
            run = {}
        committed = lib.get("commit", {}) if lib else {}
        if committed.get("boot") != self._boot:
            committed = {}
        newer = committed.get("serial", 0)
        self._serial: int = max(newer, run.get("serial", 0) if run else 0)
        # Without the runtime file nobody knows which claims were withdrawn since the copy was made.
        if run is not None and newer > run.get("serial", 0):
            run = run | {key: committed[key] for key in BOOT_PARTS if key in committed}
        runs = [*(old for old in old_run.values() if old.get("boot") == self._boot), run or {}]
        libs = [*old_lib.values(), lib or {}]
        claims = (
            *in_sequence(load_claims(each.get("persistent", ()), Origin.PERSISTENT) for each in libs),
            *in_sequence(load_claims(each.get("runtime", ()), Origin.RUNTIME) for each in runs),
        )
        holds, held = holds_in(runs)
        profile = next((each["profile"] for each in reversed(libs) if each.get("profile")), "")
        self._claims = Claims(
            {claim.id: claim for claim in (*claims, *held)},
            Choice(profile, (run or {}).get("suspended", False)),
            holds,
            max(each.get("last_hold", 0) for each in runs),
        )
        # Of two baselines the older one is the value that the host had by itself.
        rows = [row for each in reversed(runs) for row in each.get("baselines", ())]
        self._baselines = {Target(t, i, k): value for t, i, k, value in rows}
        # The claims in that file are not known. So no target may count as unclaimed, and be put back.
        claims_unread = any(path.parent == self._persistent.parent for path in self.unread)
        self._reserved = set(self._baselines) if claims_unread else set()
        if old_run or old_lib:
            self._write_anew(self._save_persistent, taken_up=[*old_run, *old_lib])
        elif newer and run is None:
            self._write_anew()

    @property
    def claims(self) -> Claims:
        return self._claims

    @property
    def baselines(self) -> Mapping[Target, str]:
        return self._baselines

    @property
    def reserved(self) -> Collection[Target]:
        return self._reserved

    def save_baselines(self, baselines: Sequence[Baseline]) -> None:
        with self._lock:
            added = {baseline.target: baseline.value for baseline in baselines}
            self._save_runtime(self._claims, added | self._baselines)
            self._reserved = self._reserved - added.keys()

    def drop_baselines(self, targets: Collection[Target]) -> None:
        with self._lock:
            self._save_runtime(self._claims, {t: value for t, value in self._baselines.items() if t not in targets})

    def commit(self, claims: Claims) -> None:
        with self._lock:
            if persistent_part(claims) != persistent_part(self._claims):
                self._save_persistent(claims)
            else:
                self._save_runtime(claims, self._baselines)

    def _save_persistent(self, claims: Claims) -> None:
        serial = self._serial + 1
        document = {
            "format": FORMAT,
            "persistent": dump_claims(claims.by_origin(Origin.PERSISTENT)),
            "profile": claims.choice.profile,
            "commit": {"boot": self._boot, "serial": serial} | boot_part(claims),
        }
        replace_file(self._persistent, document, durable=True)
        self._serial, self._claims = serial, claims

    def _save_runtime(self, claims: Claims, baselines: dict[Target, str]) -> None:
        serial = self._serial + 1
        document = {
            "format": FORMAT,
            "boot": self._boot,
            "serial": serial,
            **boot_part(claims),
            "baselines": [[t.tunable, t.instance, t.key, value] for t, value in baselines.items()],
        }
        replace_file(self._runtime, document, durable=False)
        self._serial, self._claims, self._baselines = serial, claims, baselines

    def _load(self, path: Path) -> Document | None:
        """Return the document of a file: an empty one if there is no file, None if the content cannot be known."""
        try:
            document, aside = load(path, checked)
        except OSError as error:
            self.unread.append(self._set_unread_aside(path, error))
            return None
        if aside:
            self.set_aside.append(aside)
            return None
        return document

    def _set_unread_aside(self, path: Path, why: OSError) -> Path:
        """Rename a file that cannot be read now, and return its new path."""
        if path.name.endswith(UNREAD):
            log.error("%s still cannot be read (%s)", path, why)
            return path
        try:
            aside = put_aside(path, UNREAD, keep_oldest=True)
        except OSError as error:
            log.error("%s cannot be read (%s), nor kept under another name (%s)", path, why, error)
            return path
        log.error("%s cannot be read (%s); it is kept as %s, and the next start tries again", path, why, aside)
        return aside

    def _load_unread(self, path: Path) -> dict[Path, Document]:
        """Return the documents that former starts could not read and this one can, the oldest first."""
        kept = [each for each in path.parent.glob(f"{path.name}*.{UNREAD}") if each not in self.unread]
        kept.sort(key=age)
        found = {each: self._load(each) for each in kept}
        return {each: document for each, document in found.items() if document is not None}

    def _write_anew(self, *saving: Callable[[Claims], None], taken_up: Iterable[Path] = ()) -> None:
        """Save the state again: without runtime.json the next start would use the copy in the other file."""
        try:
            for save in saving:
                save(self._claims)
            self._save_runtime(self._claims, self._baselines)
        except OSError as error:
            log.error("what is left of the saved state cannot be saved: %s", error)
            return
        for path in taken_up:
            try:
                path.unlink()
            except OSError as error:
                log.error("%s is taken up, and cannot be removed: %s", path, error)
            else:
                log.info("%s can be read again, and what it holds is taken up", path)

    def _is_lost(self) -> bool:
        """Return whether runtime.json was set aside in this boot, and could not be written again since."""
        return any(self._runtime.parent.glob(f"{self._runtime.name}*.bad"))


def in_sequence(lists: Iterable[Sequence[Claim]]) -> list[Claim]:
    """Return the claims of one origin from several lists, the oldest first: claims of a newer list are newer too."""
    found: list[Claim] = []
    for claims in lists:
        last = max((claim.seq for claim in found), default=0)
        found += [replace(claim, seq=claim.seq + last) for claim in claims]
    return found


def age(path: Path) -> float:
    """Return the time at which a file was written, or 0 if that cannot be known."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def load(path: Path, check: Callable[[Any], Document]) -> tuple[Document, Path | None]:
    """Return the document or an empty one, and the new name of a file that could not be used and was set aside.

    `check` returns the document, or raises what json and wrong types raise. Raise OSError if no read succeeds now.
    """
    why: Exception
    try:
        return check(json.loads(patiently(path, MAX_FILE_BYTES))), None
    except FileNotFoundError:
        return {}, None
    except (NoPlainFile, ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidValue) as error:
        why = error
    try:
        aside = put_aside(path, "bad")
    except OSError as error:
        log.error("%s cannot be used (%s), nor set aside (%s)", path, why, error)
        return {}, path
    log.error("%s cannot be used (%s); it was set aside as %s", path, why, aside)
    return {}, aside


def persistent_part(claims: Claims) -> tuple[Any, ...]:
    """Return the part of the claims that outlives the boot."""
    return claims.by_origin(Origin.PERSISTENT), claims.choice.profile


def boot_part(claims: Claims) -> Document:
    """Return the part of the claims that ends with the boot."""
    found = (
        dump_claims(claims.by_origin(Origin.RUNTIME)),
        claims.choice.suspended,
        [asdict(hold) for hold in claims.holds.values()],
        dump_claims(claims.by_origin(Origin.HOLD)),
        claims.last_hold,
    )
    return dict(zip(BOOT_PARTS, found, strict=True))


def holds_in(runs: Sequence[Document]) -> tuple[dict[int, Hold], list[Claim]]:
    """Return the holds of several documents, the oldest first, and their claims. Of one number the newest hold counts.

    A hold without claims has lost them, and claims of an unknown hold would have no end: both are left out.
    """
    holds: dict[int, Hold] = {}
    claims: list[Sequence[Claim]] = []
    for each in reversed(runs):
        new = {hold.number: hold for hold in load_holds(each.get("holds", ())) if hold.number not in holds}
        own = [claim for claim in load_claims(each.get("hold_claims", ()), Origin.HOLD) if claim.hold in new]
        holds |= {number: hold for number, hold in new.items() if any(claim.hold == number for claim in own)}
        claims.insert(0, own)
    return holds, in_sequence(claims)


def checked(document: Any) -> Document:
    """Return the document if this version can read all of it. Raise ValueError or TypeError otherwise."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("not a state file of this version")
    serials, last_holds = [document.get("serial", 0)], []
    flags = [document.get("suspended", False)]
    load_claims(document.get("persistent", ()), Origin.PERSISTENT)
    parts = [document]
    if "commit" in document:
        parts.append(document["commit"])
        serials.append(document["commit"]["serial"])
        flags.append(document["commit"].get("suspended", False))
    for part in parts:
        load_claims(part.get("runtime", ()), Origin.RUNTIME)
        load_claims(part.get("hold_claims", ()), Origin.HOLD)
        load_holds(part.get("holds", ()))
        last_holds.append(part.get("last_hold", 0))
    if any(type(number) is not int for number in (*serials, *last_holds)):
        raise ValueError("a serial is a whole number")
    if any(not 0 <= number < LARGEST for number in last_holds):
        raise ValueError("no hold could have the number after the last one")
    if any(type(flag) is not bool for flag in flags) or not isinstance(document.get("profile", ""), str):
        raise ValueError("what was chosen is a name and a switch")
    for row in document.get("baselines", ()):
        if len(row) != 4 or not all(isinstance(field, str) for field in row):
            raise ValueError("a baseline is four strings")
    return document


def dump_claims(claims: Iterable[Claim]) -> list[Document]:
    """Return claims of one origin as JSON objects."""
    return [
        {
            "tunable": claim.tunable,
            "instances": claim.instances,
            "value": claim.value,
            "who": claim.who,
            "why": claim.why,
            "seq": claim.seq,
            "partial": claim.partial,
            **({"hold": claim.hold} if claim.hold else {}),
            **({"place": claim.place} if claim.place else {}),
        }
        for claim in claims
    ]


def load_holds(rows: Iterable[Document]) -> list[Hold]:
    """Return the holds from JSON objects. Raise ValueError for a value that no hold has, or that D-Bus cannot carry."""
    holds = [Hold(**row) for row in rows]
    for hold in holds:
        texts = (hold.who, hold.why, hold.client, hold.bus)
        if not all(isinstance(text, str) for text in texts) or not fits_dbus(*texts):
            raise ValueError("a hold has a text that is none")
        numbers = (hold.number, hold.uid, hold.ttl, hold.since, hold.ends_boottime)
        if {type(each) for each in numbers} != {int}:
            raise ValueError("a hold has a number that is none")
        if hold.number < 1 or min(numbers) < 0 or hold.uid > NOBODY or max(*numbers, hold.expires) > LARGEST:
            raise ValueError("a hold has a number that is too small or too large")
    return holds


def load_claims(rows: Iterable[Document], origin: Origin) -> list[Claim]:
    """Return the claims from JSON objects. Raise ValueError for a field of the wrong type."""
    claims = [Claim(origin, **row) for row in rows]
    for claim in claims:
        texts = (claim.tunable, claim.instances, claim.value, claim.who, claim.why, claim.place)
        kinds = type(claim.seq), type(claim.partial), type(claim.hold)
        if not all(isinstance(text, str) for text in texts) or kinds != (int, bool, int) or claim.unit:
            raise ValueError("a claim has a field of the wrong type")
        if origin is Origin.HOLD and not fits_dbus(*texts):
            raise ValueError("a claim has a text that cannot be told on the bus")
    return claims


def fits_dbus(*texts: str) -> bool:
    """Return whether D-Bus can carry these strings: they have whole characters, and none of them is 0."""
    try:
        return b"\0" not in "".join(texts).encode()
    except UnicodeEncodeError:
        return False
