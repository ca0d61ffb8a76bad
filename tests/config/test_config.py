"""YAML without its traps, sections that are strict, settings that win over the file, and a round trip."""

import enum
import json
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from evolve.config import (
    ConfigError,
    Named,
    Place,
    Section,
    apply_overrides,
    dump_yaml,
    load_yaml,
    parse_yaml,
    signature_faults,
    validate,
)
from evolve.errors import did_you_mean
from evolve.evolver.run_config import RunConfig, load_config


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
    assert "refers to a value that contains it" in faults[0].message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: !!python/object:os.system {x: 1}", 2, "tag"),
        ("a: !other [1]", 1, "the tag !other is not allowed"),
        ("a: !!set {x}", 1, "tag"),
        ("!other {a: 1}", 1, "tag"),
        ("a: !!int abc", 1, "'abc' cannot be read as int"),
        ("a: !!bool maybe", 1, "'maybe' cannot be read as bool"),
        ("a: " + "9" * 5000, 1, "cannot be read as int"),
        ("a: 0_17", 1, "0_17 could mean 17 or an octal number"),
        ('a: "\\ud800"', 1, "half of a surrogate pair"),
        ("a: 1\n<<: 3", 2, "'<<' merges a mapping"),
        ("? [a, b]\n: 1", 1, "the key (a list or mapping) is not text"),
        ("a: 1\n---\nb: 2", 2, "a second document"),
        ("a: *gone", 1, "gone"),
        ("a: " + "[" * 100 + "]" * 100, None, "deeper than 50"),
        ("a: " + "[" * 3000 + "]" * 3000, None, "deeper than 50"),
        ("a: \0", 1, "not allowed in YAML"),
    ],
)
def test_broken_texts(text, line, words):
    _, _, faults = parse_yaml(text, "f")
    assert [fault.place for fault in faults] == [Place("f", line)]
    assert words in faults[0].message


def test_aliases_that_multiply_are_refused():
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    raw, _, faults = parse_yaml("\n".join(["a0: &a0 [x]", *rows]), "f")
    assert raw == {}
    assert "more than 100000 values" in faults[0].message


def test_a_merge_leaves_the_places_of_the_keys_that_win():
    raw, places, faults = parse_yaml(
        "b: &b {k: [1]}\nc: &c {k: [2]}\nd:\n  k: [3]\n  <<: *b\ne:\n  <<: [*c, *b]\n", "f"
    )
    assert not faults
    assert (raw["d"], raw["e"]) == ({"k": [3]}, {"k": [2]})
    assert (places["d", "k", 0].line, places["e", "k", 0].line) == (4, 2)


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("gone.yaml", None, None, "there is no such file"),
        (".", None, None, "is a folder"),
        ("nul\0.yaml", None, None, "cannot be a file name"),
        ("empty.yaml", b"# nothing\n", None, "is empty"),
        ("latin.yaml", b"a: 1\nb: caf\xe9\n", 2, "byte 11 (0xe9) is not UTF-8"),
    ],
)
def test_unreadable_files(name, content, line, words, tmp_path):
    path = f"{tmp_path}/{name}"
    if content is not None:
        Path(path).write_bytes(content)
    raw, places, faults = load_yaml(path)
    assert (raw, places) == ({}, {})
    assert [fault.place for fault in faults] == [Place(path, line)]
    assert words in faults[0].message


class Color(enum.Enum):
    red = "red"


class Kinds(Section):
    pair: tuple[int, int] = (0, 0)
    path: Path | None = None
    color: Color = Color.red
    by_key: dict[str, Named] = Field(default_factory=dict)


def test_tuples_paths_and_enums_come_from_yaml():
    raw, places, _ = parse_yaml("pair: [1, 2]\npath: a/b\ncolor: red\nby_key: {x: digits}", "f")
    kinds = validate(Kinds, raw, places, "f")
    assert kinds == Kinds(pair=(1, 2), path=Path("a/b"), color=Color.red, by_key={"x": Named(name="digits")})
    again, places, _ = parse_yaml(dump_yaml(kinds), "f")
    assert validate(Kinds, again, places, "f") == kinds


def test_their_faults_are_told_in_plain_words():
    raw, places, _ = parse_yaml("pair: 3\npath: 1\ncolor: rad\nby_key: {x: {nam: 1, name: y}}", "f")
    with pytest.raises(ConfigError) as caught:
        validate(Kinds, raw, places, "f")
    assert str(caught.value).splitlines() == [
        "4 faults in f:",
        "  f:1: pair: has to be a list; found the whole number 3.",
        "  f:2: path: has to be text; found the whole number 1.",
        "  f:3: color: has to be one of 'red'; found the text 'rad'. Did you mean 'red'?",
        "  f:4: by_key.x.nam: unknown key. Did you mean 'name'? Known here: name, options.",
    ]


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


def test_an_override_takes_the_short_form_in_a_list_and_forgets_old_lines():
    raw, places, _ = parse_yaml("things: [digits]\ninner: {rate: 1}\n", "f")
    new, places, faults = apply_overrides(raw, places, ["things.0.options.x=1", "inner={rate: a}"])
    assert not faults
    assert new["things"] == [{"name": "digits", "options": {"x": 1}}]
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"inner": new["inner"]}, places, "f")
    assert [str(fault.place) for fault in caught.value.faults] == ["command line"]


def test_an_override_lies_beside_a_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: small_resnet}\ndata: {name: digits}\nevolution: auto\n")
    config = load_config(file, ("evolution.limits.params=1000", "evolution.policy.options.look=0.2"))
    assert config.evolution.limits.params == 1000
    assert (config.evolution.policy.name, config.evolution.policy.options) == ("forecast", {"look": 0.2})
    assert config.evolution.schedule == load_config(file).evolution.schedule


@pytest.mark.parametrize(
    "setting", ["inner.rate", "=3", "a..b=1", "things.7.name=x", "things.x=1", "count.x=1", "a=[1"]
)
def test_bad_overrides_are_faults_of_the_command_line(setting):
    raw, places, _ = parse_yaml("things: [digits]\ncount: 1\n", "f")
    new, _, faults = apply_overrides(raw, places, [setting])
    assert new == raw
    assert [str(fault.place) for fault in faults] == ["command line"]


def test_an_odd_digit_in_an_override_is_a_name():
    new, _, faults = apply_overrides({}, {}, ["²=1", f"{'9' * 5000}=2"])
    assert not faults
    assert new == {"²": 1, "9" * 5000: 2}


def test_what_evolve_gives_is_refused_where_anything_goes():
    def function(model, **more):
        return model, more

    faults = signature_faults(function, {"model": 1, "seed": 2, "else": 3}, skip={"model", "seed"})
    assert [path for path, _ in faults] == [("model",), ("seed",)]


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
        "i": float("inf"),
        "j": "\x85 \u2028",
    }
    raw, _, faults = parse_yaml(dump_yaml(Options(values=values)), "f")
    assert not faults
    assert raw == {"values": values}


def test_schema_names_every_section():
    schema = RunConfig.model_json_schema()
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(("typed", "meant"), [("adamw", "AdamW"), ("sgd", "SGD"), ("Adma", "Adam"), ("zebra", None)])
def test_the_name_in_other_letters_is_suggested_first(typed, meant):
    known = ["Adam", "AdamW", "SGD"]
    assert did_you_mean(typed, known) == (f" Did you mean '{meant}'?" if meant else "")
