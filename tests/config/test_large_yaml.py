"""A file that is no configuration is refused at once, however large it is."""

import time

import pytest

from evolve.config import load_yaml

LARGE = {
    "50 MB": lambda: "model: mlp\n" * 5_000_000,
    "200k keys": lambda: "\n".join(f"k{i}: {i}" for i in range(200_000)),
    "one long text": lambda: "a: '" + "x" * 1_000_000 + "'",
    "many small values": lambda: "a: [" + "1," * 60_000 + "]",
    "deep": lambda: "[" * 100_000,
    "two bytes a character": lambda: "a: " + "é" * 200_000,
}


@pytest.mark.parametrize("kind", LARGE)
def test_it_is_refused_at_once(tmp_path, kind):
    file = tmp_path / "large.yaml"
    file.write_text(LARGE[kind](), encoding="utf-8")
    started = time.process_time()
    values, _, faults = load_yaml(file)
    assert time.process_time() - started < 8
    assert values == {}
    assert len(faults) == 1
    assert any(words in faults[0].message for words in ("KiB", "keys and values", "deeper"))


def test_a_large_configuration_is_read(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text("sites:\n" + "".join(f"- layer{i}.conv\n" for i in range(2000)))
    values, _, faults = load_yaml(file)
    assert faults == []
    assert len(values["sites"]) == 2000
