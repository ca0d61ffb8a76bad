"""Families of transformers and timm become deeper as `benchmarks/stack.py` says, from 2 layers to 4."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("timm")

HERE = Path(__file__).parents[2] / "benchmarks"
FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "opt",
    "phi",
    "mixtral",
    "bert",
    "vit",
    "swin_hf",
    "t5",
    "bart",
    "vit_timm",
    "deit3_timm",
    "mixer_timm",
    "convnext_timm",
    "resnet_timm",
    "swin_timm",
]


@pytest.fixture(scope="module")
def benchmark():
    if not HERE.is_dir():
        pytest.skip("the benchmarks are not installed")
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("stack"), importlib.import_module("stack_models")
    finally:
        sys.path.remove(str(HERE))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_becomes_deeper(benchmark, family):
    stack, models = benchmark
    models.quiet()
    (subject,) = models.subjects(family)
    found = stack.check(subject, deepest=4, blocks=False)
    why = found.pop("why", "")
    assert {name for name, held in found.items() if held is not True} == set()
    assert ("exact" in found) == subject.exact
    assert bool(why) != subject.exact
