"""Small models on a shared machine: one thread is quickest, and steadiest. The longest files begin first."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

# A file is run by one worker: a long one that begins last would end alone. In seconds they are from 150 to 10.
LONGEST = (
    "testing/test_contract.py",
    "integration/test_sequences.py",
    "integration/test_export.py",
    "integration/test_causality.py",
    "integration/test_resume.py",
    "distributed/test_ranks.py",
    "docs/test_notebook.py",
    "population/test_search.py",
    "population/test_executors.py",
    "evolver/test_evolver.py",
    "surgery/test_transaction.py",
    "test_architecture.py",
    "surgery/test_optimizers.py",
    "operators/test_operators.py",
    "docs/test_docs.py",
    "evolver/test_probation.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first, the others stay as they were found."""
    places = {config.rootpath / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
