"""YAML without its traps, sections that are strict, settings that win over the file, and a round trip."""

import json

import pytest
from pydantic import Field, ValidationError

from evolve.build import RunConfig, load_config
from evolve.config import (
    ConfigError,
    Named,
    Section,
    apply_overrides,
    dump_yaml,
    parse_yaml,
    signature_faults,
    validate,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'010'", "010"),
        ("null", None),
        ("~", None),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_scalars(text, value):
    raw, _, faults = parse_yaml(f"key: {text}", "f")
    assert not faults
    assert raw == {"key": value}
    assert type(raw["key"]) is type(value)


def test_anchors_and_merges():
    raw, places, faults = parse_yaml("base: &b {lr: 1, m: 2}\nother:\n  <<: *b\n  lr: 3\n", "f")
    assert not faults
    assert raw["other"] == {"lr": 3, "m": 2}
    assert places["other", "lr"].line == 4


def test_an_alias_to_itself_is_a_fault():
    _, _, faults = parse_yaml("a: &x\n  b: *x\n", "f")
    assert "refers to what it lies in" in faults[0].message


class Inner(Section):
    rate: float = 0.1
    names: list[str] = Field(default_factory=list)


class Outer(Section):
    inner: Inner = Inner()
    thing: Named | None = None
    count: int = 1


def test_sections_are_frozen_and_strict():
    with pytest.raises(ValidationError, match="frozen"):
        Outer().count = 2
    raw, places, _ = parse_yaml("inner: {rate: 1}\nthing: digits\ncount: 3\n", "f")
    outer = validate(Outer, raw, places, "f")
    assert (outer.inner.rate, outer.thing.name, outer.count) == (1.0, "digits", 3)
    for text in ("count: '3'", "count: 3.0", "count: true", "inner: {rate: '1'}", "inner: {names: a}"):
        raw, places, _ = parse_yaml(text, "f")
        with pytest.raises(ConfigError) as caught:
            validate(Outer, raw, places, "f")
        assert len(caught.value.faults) == 1
        assert caught.value.faults[0].place.line == 1


def test_all_faults_in_the_order_of_the_file():
    raw, places, faults = parse_yaml("count: 010\ninner:\n  rat: 2\n  names: [1]\nthing: {nam: x}\n", "f")
    with pytest.raises(ConfigError) as caught:
        validate(Outer, raw, places, "f", faults)
    found = [(fault.place.line, fault.path) for fault in caught.value.faults]
    assert found == [
        (1, ("count",)),
        (3, ("inner", "rat")),
        (4, ("inner", "names", 0)),
        (5, ("thing", "name")),
        (5, ("thing", "nam")),
    ]


def test_overrides_win_and_leave_the_file_values_alone():
    raw, places, _ = parse_yaml("inner: {rate: 1}\nthing: digits\n", "f")
    new, _, faults = apply_overrides(raw, places, ["inner.rate=1e-4", "thing.options.root=a=b", "inner.names=[x, y]"])
    assert not faults
    assert new == {
        "inner": {"rate": 1e-4, "names": ["x", "y"]},
        "thing": {"name": "digits", "options": {"root": "a=b"}},
    }
    assert raw == {"inner": {"rate": 1}, "thing": "digits"}


def test_signature_faults():
    def function(needed, *, lr=1, skipped=2):
        return needed, lr, skipped

    faults = signature_faults(function, {"lrr": 1, "skipped": 3}, skip={"skipped"})
    assert [path for path, _ in faults] == [("lrr",), ("skipped",), ()]
    assert "Did you mean 'lr'?" in faults[0][1]
    assert "'needed' is missing" in faults[2][1]
    assert signature_faults(lambda **anything: anything, {"x": 1}) == []


@pytest.mark.parametrize("name", ["quickstart", "cifar10_residual", "image_folder", "own_model"])
def test_shipped_configs_survive_a_round_trip(name, tmp_path):
    config = load_config(f"configs/{name}.yaml")
    text = dump_yaml(config)
    copy = tmp_path / "config.yaml"
    copy.write_text(text)
    assert load_config(copy) == config


def test_round_trip_keeps_what_looks_like_something_else(tmp_path):
    class Options(Section):
        values: dict[str, object]

    values = {
        "a": "on",
        "b": "1e-3",
        "c": 1e-5,
        "d": "010",
        "e": "null",
        "f": "true",
        "g": "é",
        "h": ["1:30", "", "12"],
    }
    raw, _, faults = parse_yaml(dump_yaml(Options(values=values)), "f")
    assert not faults
    assert raw == {"values": values}


def test_schema_names_every_section():
    schema = RunConfig.model_json_schema()
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    assert json.loads(json.dumps(schema)) == schema
