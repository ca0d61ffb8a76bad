"""Small searches: a perceptron on made-up samples that grows and shrinks, a few steps a child."""

import json

from evolve.population.archive import Archive
from evolve.population.folder import ARCHIVE

CONFIG = {
    "model": {"name": "mlp", "options": {"in_features": 16, "num_classes": 3, "hidden": [8, 8]}},
    "data": {"name": "fake", "batch_size": 8, "options": {"samples": 32, "shape": [1, 4, 4], "num_classes": 3}},
    "optimizer": {"name": "SGD", "options": {"lr": 0.1}},
    "training": {"steps": 2, "device": "cpu", "monitor": {"metric": "val_accuracy"}},
    "search": {
        "operators": ["widen", {"name": "narrow", "options": {"factor": 0.75}}, "deepen"],
        "budget": {"evaluations": 8},
        "algorithm": {"name": "elitist", "options": {"population": 3}},
    },
}


def search_config(folder, **search):
    """Writes a configuration; keys of the section `search` may be changed."""
    config = {**CONFIG, "search": {**CONFIG["search"], **search}, "output": {"dir": str(folder / "search")}}
    file = folder / "search.yaml"
    file.write_text(json.dumps(config))
    return file


def history(folder):
    """What a search did, in the order of finish, without what clocks said."""
    with Archive.read(folder / ARCHIVE) as archive:
        return [
            (e.id, e.individual, e.kind, e.status, e.seed, dict(e.metrics), i.parents, i.edits, i.key, e.why)
            for e, i in archive.finished()
        ]
