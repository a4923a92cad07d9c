"""CPU lists: a governor is asked for by CPU, and the kernel has it by policy."""

from __future__ import annotations

import pytest

from kerntune.cli.__main__ import main
from tests.cli.scripted import Script, document, target, tunable

Captured = pytest.CaptureFixture[str]


def run(script: Script, *words: str) -> int:
    return main(words, connect=script.connect)


POLICIES = tuple(
    target(f"cpu-governor@policy{first}", "schedutil", aliases=[f"cpu{cpu}" for cpu in range(first, first + 4)])
    for first in range(0, 128, 4)
)
HOST = document(POLICIES, tunables=[tunable("cpu-governor")])


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("cpu-governor@2", "schedutil\n"),
        ("cpu-governor@0-3", "schedutil\n"),
        ("cpu-governor@policy4", "schedutil\n"),
        ("cpu-governor@cpu6", "schedutil\n"),
        (
            "cpu-governor@policy?",
            "cpu-governor@policy0 schedutil\ncpu-governor@policy4 schedutil\ncpu-governor@policy8 schedutil\n",
        ),
        ("cpu-governor@policy5-8", "schedutil\n"),
        ("cpu-governor@policy12[0-4]", "cpu-governor@policy120 schedutil\ncpu-governor@policy124 schedutil\n"),
        (
            "cpu-governor@3-4,9",
            "cpu-governor@policy0 schedutil\ncpu-governor@policy4 schedutil\ncpu-governor@policy8 schedutil\n",
        ),
    ],
)
def test_get(word: str, text: str, capsys: Captured) -> None:
    assert run(Script(HOST), "get", word) == 0
    assert capsys.readouterr().out == text


def test_set_and_unset_without_instances_mean_all() -> None:
    script = Script()
    run(script, "set", "cpu-governor=performance", "cpu-governor@0-3,8=powersave")
    run(script, "unset", "cpu-governor", "cpu-governor@0-3")
    assert [call[1] for call in script.calls] == [
        [("cpu-governor", "*", "performance"), ("cpu-governor", "0-3,8", "powersave")],
        [("cpu-governor", "*"), ("cpu-governor", "0-3")],
    ]


def test_a_cpu_that_is_not_there(capsys: Captured) -> None:
    assert run(Script(HOST), "get", "cpu-governor@500") == 3
    assert "policy56, policy60 and 16 more" in capsys.readouterr().err


def test_backwards(capsys: Captured) -> None:
    assert run(Script(HOST), "get", "cpu-governor@0,7-4") == 2
    assert "'7-4' runs backwards\n  Give the lower number first: 4-7" in capsys.readouterr().err
