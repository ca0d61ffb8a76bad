"""Examples of searching run: a space of one's own, and Optuna and Ray Tune, which are told of what is trained."""

import importlib.util

import pytest
from helpers.cli_runs import succeeds
from helpers.pages import ROOT


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_optuna(monkeypatch):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module = example("optuna_search")
    study = module.main(trials=2, epochs=1)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert all(trial.intermediate_values == {1: trial.value} for trial in study.trials)
    assert study.best_value > 0.5
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: True)
    pruned = module.main(trials=1, epochs=2).trials[0]
    assert (pruned.state.name, list(pruned.intermediate_values)) == ("PRUNED", [1])


def test_ray_tune(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.tune", exc_type=ImportError)  # which has needs of its own
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        results = example("ray_tune_search").main(trials=2, epochs=1, folder=str(tmp_path))
    finally:
        ray.shutdown()
    assert results.num_errors == 0
    assert all(result.metrics["training_iteration"] == 1 for result in results)
    assert results.get_best_result().metrics["val_accuracy"] > 0.5
    assert {result.metrics["params"] for result in results} - {0}


def test_a_space_of_ones_own(tmp_path):
    printed = succeeds("search", ROOT / "examples" / "table_space.yaml", f"output.dir={tmp_path / 'run'}")
    assert "Front of" in printed
    assert "'depth': 1, 'width': 8, 'kernel': 3" in printed  # the smallest of the table
