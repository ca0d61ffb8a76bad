"""The names that users may rely on, each in one list: a name that goes, or comes, is a decision."""

import inspect
import re
from pathlib import Path

import pytest

import evolve
import evolve.testing

NAMES = [
    "Analysis",
    "Context",
    "EvolutionConfig",
    "Evolver",
    "Limits",
    "Lineage",
    "Loop",
    "LrScheduleConfig",
    "Monitor",
    "MutationController",
    "MutationOperator",
    "MutationResult",
    "OptimizerConfig",
    "OutputConfig",
    "Record",
    "RunResult",
    "SearchResult",
    "Task",
    "TaskConfig",
    "TrainingConfig",
    "analyse",
    "build_model",
    "export_model",
    "load",
    "load_config",
    "mutate",
    "operator",
    "replay",
    "restore",
    "save",
    "search",
    "sites",
    "transaction",
]


def test_the_public_names():
    assert sorted(evolve.__all__) == sorted(NAMES)
    assert dir(evolve) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_documented(name):
    assert (inspect.getdoc(getattr(evolve, name)) or "").strip()


@pytest.mark.parametrize("module", [evolve, evolve.testing], ids=lambda module: module.__name__)
def test_each_is_in_the_reference(module):
    pages = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
    reference = "".join(page.read_text(encoding="utf-8") for page in pages)
    documented = re.findall(rf"^\.\. [\w:]+:: {module.__name__}\.(\w+)$", reference, flags=re.MULTILINE)
    assert sorted(name for name in documented if name in module.__all__) == sorted(module.__all__)


def test_no_module_bears_the_name_of_a_public_function():
    assert not {name for name in NAMES if inspect.ismodule(getattr(evolve, name))}


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="Public names"):
        evolve.mutat  # noqa: B018
