"""Five hundred times some bytes of each state or configuration file are others: the daemon's loading goes on.

It says what it set aside, and keeps what the other files say; a file that was in order before keeps its claims.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from kerntune.config.active import CONFIG_INVALID, ActiveConfig
from kerntune.config.schema import Kind
from kerntune.daemon.app import restorable
from kerntune.daemon.demo import demo_host
from kerntune.engine.claims import Choice, Claims
from kerntune.engine.reconciler import Reconciler
from kerntune.guard.saved import CAP_FILE, SavedOriginals, Undone, undo_cap_alone
from kerntune.guard.sysctls import Originals
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Baseline, Claim, Origin, Target
from kerntune.store import STATE_SET_ASIDE, Store
from kerntune.tunables import REGISTRY
from tests.harness import often

TIMES: Final = often(500)
SEED: Final = 20261124
SDA: Final = Target("io-scheduler", "sda", key="3")

MAIN: Final = 'profile = "base"\n[limits]\nhugepages-percent = 50\n[io-scheduler]\n"nvme*" = "none"\n"sd*" = "bfq"\n'
MORE: Final = '[overcommit]\n"*" = "always:95"\n'
MINE: Final = 'summary = "mine"\ninclude = ["base"]\n[cpu-governor]\n"*" = { value = "performance", why = "fast" }\n'
BASE: Final = '[hugepages]\n"2M" = "128M"\n'
TEXTS: Final = {
    "etc/kerntune.toml": MAIN,
    "etc/kerntune.d/10-more.toml": MORE,
    "etc/profiles/mine.toml": MINE,
    "etc/profiles/base.toml": BASE,
}
STATE: Final = ("lib/claims.json", "run/runtime.json")
COPIES: Final = ("run/config.json", "run/profile.json")
SAVED: Final = (
    Claim(Origin.PERSISTENT, "hugepages", "2M/node0", "128", "alice (kerntune)", "for the model", 5, partial=True),
    Claim(Origin.PERSISTENT, "io-scheduler", "nvme0n1", "kyber", "bob", "", 6),
    Claim(Origin.RUNTIME, "overcommit", "", "heuristic", "carol (busctl)", "", 7),
)


@dataclass(slots=True)
class Loaded:
    """What a daemon has at the end of its loading."""

    claims: dict[Origin, set[tuple[str, str, str]]]
    choice: Choice
    baselines: dict[Target, str]
    troubles: set[str]
    wrong: list[str]
    kinds: set[Kind]

    @property
    def tables(self) -> set[tuple[Origin, str]]:
        return {(origin, tunable) for origin, claims in self.claims.items() for tunable, _, _ in claims}


def load(folder: Path) -> Loaded:
    """As kerntuned does it before it looks at the kernel (daemon/app.py)."""
    state = Store(folder / "run", folder / "lib", boot_id="boot")
    state.drop_baselines({target for target, value in state.baselines.items() if not restorable(target, value)})
    engine = Reconciler(demo_host(), REGISTRY, state)
    try:
        troubles = {STATE_SET_ASIDE} if state.set_aside or engine.edits.unsound else set()
        config = ActiveConfig(folder / "etc", folder / "run", engine, troubles)
        config.start()
        claims: dict[Origin, set[tuple[str, str, str]]] = {}
        for claim in engine.edits.claims.by_id.values():
            claims.setdefault(claim.origin, set()).add((claim.tunable, claim.instances, claim.value))
        wrong = [problem.file for problem in config.errors]
        kinds = {problem.kind for problem in config.errors}
        return Loaded(claims, state.claims.choice, dict(state.baselines), troubles, wrong, kinds)
    finally:
        engine.threads.close()


def hit(data: bytes, chance: random.Random) -> bytes:
    """A few bytes are others."""
    wounded = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        wounded[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(wounded)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def lost(data: bytes, chance: random.Random) -> bytes:
    """A stretch is missing."""
    begin = chance.randrange(len(data))
    return data[:begin] + data[begin + chance.randint(1, 40) :]


def stuffed(data: bytes, chance: random.Random) -> bytes:
    """Something else stands in between."""
    place = chance.randrange(len(data))
    return data[:place] + chance.randbytes(chance.randint(1, 40)) + data[place:]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    """As some file systems leave a file after a power cut."""
    begin = chance.randrange(len(data))
    return data[:begin] + bytes(len(data) - begin)


def of_a_later_version(data: bytes, chance: random.Random) -> bytes:
    return data.replace(b'"format": 1', b'"format": 2') if b'"format": 1' in data else hit(data, chance)


WOUNDS: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    hit, hit, hit, cut, lost, stuffed, zeroed, of_a_later_version,
)  # fmt: skip


def parses(path: str, data: bytes) -> bool:
    """Whether what is left can be read at all, by the reference of its language."""
    try:
        text = data.decode()
        if path.endswith(".json"):
            return bool(json.loads(text)["format"] == 1)
        tomllib.loads(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return True


@pytest.fixture
def whole(folder: Path) -> dict[str, bytes]:
    """Every file, as a daemon that was in use leaves them."""
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    state = Store(folder / "run", folder / "lib", boot_id="boot")
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.commit(replace(Claims.of(*SAVED), choice=Choice("mine")))
    assert load(folder).troubles == set()
    return {name: (folder / name).read_bytes() for name in (*TEXTS, *STATE, *COPIES)}


def put_back(folder: Path, whole: dict[str, bytes]) -> None:
    for path in folder.rglob("*.bad"):
        path.unlink()
    for name, data in whole.items():
        (folder / name).write_bytes(data)


def wounds(data: bytes) -> Iterator[bytes]:
    """What a file is instead, again and again."""
    chance = random.Random(SEED)
    for _ in range(TIMES):
        yield chance.choice(WOUNDS)(data, chance)


@pytest.mark.parametrize("name", [*TEXTS, *STATE, *COPIES])
def test_every_file_whatever_is_in_it(
    folder: Path, whole: dict[str, bytes], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = load(folder)
    assert good.claims.keys() == {Origin.CONFIG, Origin.PROFILE, Origin.PERSISTENT, Origin.RUNTIME}
    unreadable = 0
    for data in wounds(whole[name]):
        put_back(folder, whole)
        (folder / name).write_bytes(data)
        caplog.clear()
        found = load(folder)
        if not parses(name, data):
            unreadable += 1
            said_so(folder, name, data, found, caplog.text)
        kept_the_rest(name, found, good)
        # What was loaded is what the next start loads, and nothing is set aside twice.
        aside = {path.name: path.read_bytes() for path in folder.rglob("*.bad")}
        again = load(folder)
        assert {path.name: path.read_bytes() for path in folder.rglob("*.bad")} == aside
        assert again.claims == found.claims
    assert unreadable > TIMES / 2


def said_so(folder: Path, name: str, data: bytes, found: Loaded, log: str) -> None:
    path = folder / name
    assert str(path) in log
    if name.endswith(".json"):
        assert found.troubles == {STATE_SET_ASIDE}
        assert path.with_name(f"{path.name}.bad").read_bytes() == data
    else:
        assert CONFIG_INVALID in found.troubles
        assert str(path) in found.wrong


def kept_the_rest(name: str, found: Loaded, good: Loaded) -> None:
    if name.endswith(".toml"):
        # Last good claims stand in for a file that is not in order; one that is may say something else now.
        assert (found.choice, found.baselines) == (good.choice, good.baselines)
        assert {o: found.claims.get(o) for o in (Origin.PERSISTENT, Origin.RUNTIME)} == {
            o: good.claims[o] for o in (Origin.PERSISTENT, Origin.RUNTIME)
        }
        other = Origin.CONFIG if name.startswith("etc/profiles") else Origin.PROFILE
        assert found.claims.get(other) == good.claims[other]
        if found.kinds & {Kind.CLAIM, Kind.FILE}:
            assert found.claims == good.claims
        elif found.kinds:
            assert found.tables >= good.tables, "what is known was taken, and no table is lost by a typo"
        return
    assert found.claims[Origin.CONFIG] == good.claims[Origin.CONFIG]
    if name in COPIES:
        assert replace(found, troubles=set()) == good
    elif name == "run/runtime.json":
        assert found.claims[Origin.PERSISTENT] == good.claims[Origin.PERSISTENT]
        assert found.claims[Origin.PROFILE] == good.claims[Origin.PROFILE]
        assert found.choice.profile == good.choice.profile
    elif STATE_SET_ASIDE in found.troubles and Origin.PERSISTENT not in found.claims:
        assert (found.claims[Origin.RUNTIME], found.baselines) == (good.claims[Origin.RUNTIME], good.baselines)


def test_all_of_them_at_once(folder: Path, whole: dict[str, bytes]) -> None:
    chance = random.Random(SEED)
    for _ in range(50):
        put_back(folder, whole)
        for name, data in whole.items():
            (folder / name).write_bytes(chance.choice(WOUNDS)(data, chance))
        load(folder)
    for name in whole:
        (folder / name).write_bytes(b"")
    found = load(folder)
    assert found.claims == {}
    assert found.troubles == {STATE_SET_ASIDE}


ORIGINALS: Final = Originals(mode=1, ratio=50, kbytes=0)


@pytest.fixture
def cap_file(folder: Path) -> Path:
    """As a daemon leaves it that was killed while its guard capped."""
    file = SavedOriginals(folder / "run")
    file.save(ORIGINALS)
    file.close()
    return folder / "run" / CAP_FILE


def capped_host() -> SimulatedKernel:
    kernel = demo_host()
    kernel.overcommit = {"memory": 2, "ratio": 0, "kbytes": 4096}
    return kernel


def test_the_file_of_a_cap(cap_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, found = cap_file.read_bytes(), Counter[Undone]()
    for data in wounds(whole):
        cap_file.with_name(f"{CAP_FILE}.bad").unlink(missing_ok=True)
        cap_file.write_bytes(data)
        caplog.clear()
        kernel = capped_host()
        undone = undo_cap_alone(kernel, cap_file.parent)
        found[undone] += 1
        if undone is Undone.SET_ASIDE:
            assert cap_file.with_name(f"{CAP_FILE}.bad").read_bytes() == data
            assert str(cap_file) in caplog.text
            assert kernel.journal == []
        elif data.startswith(json.dumps(ORIGINALS).encode()) and not data.strip(b" []0123456789,"):
            assert kernel.overcommit == {"memory": 1, "ratio": 50, "kbytes": 0}
        # The next start has nothing to do with it.
        assert undo_cap_alone(kernel, cap_file.parent) is Undone.WELL
    assert found[Undone.SET_ASIDE] > TIMES / 4
    assert found[Undone.FAILED] == 0
