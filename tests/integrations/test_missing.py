"""Without its library, an integration says what to install."""

import importlib
import sys

import pytest

from evolve.errors import EvolveError


@pytest.mark.parametrize(
    ("integration", "library"),
    [
        ("lightning", "lightning"),
        ("huggingface", "transformers"),
        ("pretrained", "transformers"),
        ("accelerate", "accelerate"),
    ],
)
def test_a_missing_library_is_told(monkeypatch, integration, library):
    name = f"evolve.integrations.{integration}"
    for known in [known for known in sys.modules if known.startswith("evolve.integrations")]:
        monkeypatch.delitem(sys.modules, known)
    for known in [known for known in sys.modules if known.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, known, None)
    monkeypatch.setitem(sys.modules, library, None)
    told = rf"'evolve\.integrations\.\w+' needs the package {library}, .*Run: pip install {library}$"
    with pytest.raises(EvolveError, match=told):
        importlib.import_module(name)
