"""`evolve explain`: what a run recorded of a mutation, and nothing that it did not."""

import json

import pytest
from helpers.cli_runs import invoke, succeeds, write_config

from evolve.lineage import Lineage, Reasons, Record, Verdict, Weighed
from evolve.report.explain import explain

LINE = {"epoch": 1, "step": 4, "val_loss": 0.5, "params": 100}


def record(index, **changes):
    fields = {"operator": "widen", "site": "0", "status": "applied", "message": "Widened.", "preserves": "exact"}
    sizes = {"params_before": 10, "params_after": 20, "success": changes.get("status", "applied") == "applied"}
    return Record(**{**fields, **sizes, "index": index, "epoch": 1, "step": 4, **changes})


def folder(tmp_path, records, lines=(LINE, {**LINE, "epoch": 2, "step": 8, "val_loss": 0.25})):
    (tmp_path / "lineage.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that weighs candidates by a score, and puts what it does on probation."""
    path = tmp_path_factory.mktemp("run")
    evolution = {
        "schedule": {"name": "every", "options": {"epochs": 1}},
        "policy": {"name": "gradient"},
        "operators": [{"name": "widen"}, {"name": "deepen"}],
        "probation": {"steps": 2},
    }
    succeeds("run", write_config(path, evolution=evolution, training={"epochs": 4, "device": "cpu"}))
    return path / "run"


def test_every_mutation_of_a_run_is_explained_by_what_it_recorded(run):
    records = Lineage.read(run / "lineage.jsonl")
    assert len(records) >= 3
    for one in records:
        found = json.loads(succeeds("explain", run, one.index, "--json"))
        assert Record.model_validate(found["record"]) == one
        text = " ".join(succeeds("explain", run, one.index).split())
        assert f"trigger every 1 epochs, after epoch {one.epoch}, step {one.step}" in text
        assert f"chosen by gradient, by senn: {one.choice.chosen.value:.4g}" in text
        assert f"of {one.choice.candidates} candidates" in text
        for other in one.choice.others:
            assert f"{other.value:.4g} {other.operator} at '{other.site}'" in text
        assert f"val_loss {one.verdict.before:.4g} → {one.verdict.found:.4g} in 2 steps on probation" in text
        assert f"parameters {one.params_before:,} → {one.params_after:,}" in text or not one.success


def test_the_metric_before_and_after(tmp_path):
    found = explain(folder(tmp_path, [record(0)]), 0)
    assert vars(found.before) == {"epoch": 1, "step": 4, "value": 0.5}
    assert vars(found.after) == {"epoch": 2, "step": 8, "value": 0.25}
    assert found.between == []


def test_other_mutations_before_the_next_epoch_are_named(tmp_path):
    found = explain(folder(tmp_path, [record(0), record(1, step=6), record(2, step=8, epoch=2)]), 0)
    assert found.between == [1]


def test_what_was_refused_first_and_what_was_tried_next(tmp_path):
    refused = {"status": "rejected", "message": "No."}
    records = [record(0), record(1, step=8, **refused), record(2, step=8, **refused), record(3, step=8)]
    path = folder(tmp_path, records)
    assert [one.index for one in explain(path, 3).refused_before] == [1, 2]
    assert [one.index for one in explain(path, 1).tried_next] == [2, 3]
    assert explain(path, 3).tried_next == explain(path, 0).refused_before == []
    assert explain(path, 2).after is None


def test_a_mutation_that_was_taken_back_changed_nothing_later(tmp_path):
    verdict = Verdict(kept=False, steps=3, metric="val_loss", before=0.5, promised=0.4, bound=0.45, found=0.9, points=3)
    found = explain(folder(tmp_path, [record(0, status="rolled_back", verdict=verdict)]), 0)
    assert found.after is None
    text = " ".join(succeeds("explain", tmp_path, 0).split())
    assert "val_loss 0.5 → 0.9 in 3 steps on probation: taken back" in text
    assert "without the mutation val_loss 0.4 by the trend of 3 evaluations, to stay 0.45" in text


def test_what_was_not_recorded_is_told_as_such(tmp_path):
    text = " ".join(succeeds("explain", folder(tmp_path, [record(0)], []), 0).split())
    assert "trigger not recorded" in text
    assert "chosen by not recorded considered not recorded expected nothing was recorded" in text
    assert "realised not recorded: no epoch has ended since" in text
    assert "max|Δ| not recorded" in text


def test_only_the_first_of_many_are_shown_and_json_has_all(tmp_path):
    others = [Weighed(operator="deepen", site=str(i), value=i / 8) for i in range(20)]
    choice = Reasons(policy="gradient", by="senn", chosen=Weighed(operator="widen", site="0", value=3.0), others=others)
    path = folder(tmp_path, [record(0, choice=choice)])
    assert "and 8 more; --json has them all" in succeeds("explain", path, 0)
    found = json.loads(succeeds("explain", path, 0, "--json"))
    assert len(found["record"]["choice"]["others"]) == 20


def test_numbers_count_from_the_end_and_have_an_end(tmp_path):
    path = folder(tmp_path, [record(0), record(1)])
    assert explain(path, -1).record.index == 1
    assert succeeds("explain", path, -1).startswith("1: ")
    assert json.loads(succeeds("explain", path, "-2", "--json"))["record"]["index"] == 0
    result = invoke("explain", path, 2)
    assert result.exit_code != 0
    assert "numbered 0 to 1" in " ".join(result.output.split())


def test_nothing_of_a_folder_steers_the_terminal(tmp_path):
    text = "a\x1b[2Jb"
    note = Weighed(operator=text, site=text, value=1.0, note=text, region=text)
    choice = Reasons(policy=text, by=text, chosen=note, others=[note])
    fields = dict.fromkeys(("operator", "site", "message", "reason"), text)
    path = folder(tmp_path, [record(0, status="failed"), record(1, choice=choice, options={text: text}, **fields)])
    assert "\x1b" not in succeeds("explain", path, 1)
