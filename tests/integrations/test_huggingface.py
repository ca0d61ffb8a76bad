"""A tiny BERT that is mutated while the Trainer of transformers trains it, and saved for others."""

import copy
import json
import logging
import shutil

import pytest
import torch
from helpers.runs import digest
from helpers.tiny_bert import BATCH, MUTATIONS, batch, bert, evolution, held, sentences

import evolve
from evolve.errors import CheckpointError, EvolveError
from evolve.surgery.optimizer_names import optimizer_by_name

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from evolve.integrations.folder import read_records  # noqa: E402
from evolve.integrations.huggingface import (  # noqa: E402
    EvolveCallback,
    EvolvingTrainer,
    from_pretrained,
    save_pretrained,
)

TRAIN, VAL = sentences(32), sentences(8, seed=1)  # four batches an epoch


def trainer(folder, evolution, model=None, kind=EvolvingTrainer, evolve=None, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=0.01,
        lr_scheduler_type="cosine",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=5,
        **{"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 100, **options},
    )
    callback = EvolveCallback(evolution, **(evolve or {}))
    model = bert() if model is None else model
    made = kind(model, arguments, train_dataset=TRAIN, eval_dataset=VAL, data_collator=batch, callbacks=[callback])
    return made, callback


def end(made, callback):
    saved = optimizer_by_name(made.model, made.optimizer)
    return {
        "weights": digest(made.model.state_dict()),
        "optimizer": digest([saved["state"], *(sorted(group.items()) for group in saved["groups"])]),
        "made": [(r.operator, r.site, r.status, r.step) for r in callback.records],
        "schedule": made.lr_scheduler.state_dict()["last_epoch"],
        "records": callback.controller.lineage.digest(),
        "history": [(line["step"], line.get("val_loss")) for line in callback.controller.history],
    }


STEPS = [3, 8]  # the second is the end of an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that was not stopped, and how it ended."""
    folder = tmp_path_factory.mktemp("trainer")
    made, callback = trainer(folder, evolution(STEPS, care={"rewarm": {"steps": 3}}))
    made.train()
    return folder, made, callback, end(made, callback)


def test_mutations_in_a_trainer_of_transformers(whole):
    folder, made, callback, _ = whole
    assert [(r.operator, r.site, r.status, r.step) for r in callback.records] == [
        ("residual", MUTATIONS[0], "applied", 3),
        ("widen", MUTATIONS[1], "applied", 8),
    ]
    assert made.model.bert.encoder.layer[1].intermediate.dense.out_features == 36
    assert held(made.optimizer) == sorted(map(id, made.model.parameters()))
    losses = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    assert [(line["epoch"], line["step"]) for line in callback.controller.history] == [(1, 4), (2, 8), (3, 12)]
    assert [line["val_loss"] for line in callback.controller.history] == losses
    assert read_records(folder / "checkpoint-8") == callback.records[:1]
    assert not made.model._forward_pre_hooks


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_training_ends_as_one_that_was_not_stopped(whole, tmp_path, step):
    """Bit for bit, with shuffled batches and dropout, also where a mutation is due."""
    torch.manual_seed(77)
    made, callback = trainer(tmp_path, evolution(STEPS, care={"rewarm": {"steps": 3}}))
    made.train(resume_from_checkpoint=str(whole[0] / f"checkpoint-{step}"))
    assert end(made, callback) == whole[3]


def test_a_training_is_resumed_within_an_epoch(tmp_path):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 3}
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 4, **steps}
    made, callback = trainer(tmp_path / "whole", evolution([1, 5]), **options)
    made.train()
    whole = end(made, callback)
    assert [record[2:] for record in whole["made"]] == [("applied", 1), ("applied", 5)]
    made, callback = trainer(tmp_path / "resumed", evolution([1, 5]), **options)
    made.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert end(made, callback) == whole


def test_the_callback_alone_will_do_where_nothing_is_loaded(tmp_path):
    options = {"kind": transformers.Trainer, "num_train_epochs": 1, "eval_strategy": "no"}
    made, callback = trainer(tmp_path, evolution([2]), **options)
    made.train()
    assert [r.operator for r in callback.records] == ["residual"]
    assert [line["epoch"] for line in callback.controller.history] == [1]
    assert digest(from_pretrained(tmp_path / "checkpoint-4").state_dict()) == digest(made.model.state_dict())


@pytest.mark.parametrize("best", [4, 12])
def test_the_best_model_may_be_from_before_a_mutation(tmp_path, best):
    class Judged(EvolvingTrainer):
        def evaluate(self, *args, **kwargs):
            metrics = super().evaluate(*args, **kwargs)
            return {**metrics, "eval_worth": float(self.state.global_step == best)}

    made, callback = trainer(
        tmp_path,
        evolution([5, 9]),
        kind=Judged,
        load_best_model_at_end=True,
        metric_for_best_model="worth",
        greater_is_better=True,
    )
    model, embedding = made.model, made.model.bert.embeddings
    made.train()
    assert made.model is model
    assert model.bert.embeddings is embedding
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert [r.operator for r in callback.records] == ["residual", "widen"][: best // 4 - 1]
    loaded = from_pretrained(made.state.best_model_checkpoint)
    assert digest(loaded.state_dict()) == digest(model.state_dict())
    assert held(made.optimizer) == sorted(map(id, model.parameters()))
    made.save_model(tmp_path / "final")
    assert digest(from_pretrained(tmp_path / "final").state_dict()) == digest(model.state_dict())


def test_what_a_trainer_cannot_do_is_told(tmp_path):
    made, _ = trainer(tmp_path, evolution([4]), kind=transformers.Trainer, load_best_model_at_end=True)
    with pytest.raises(EvolveError, match="EvolvingTrainer"):
        made.train()
    made, _ = trainer(tmp_path, evolution([4]))
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(CheckpointError, match=r"has no evolve_records\.json"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_failing_step_and_probation(tmp_path, caplog):
    class Spoilt(EvolvingTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 2 else loss

    made, callback = trainer(tmp_path, evolution([2]), kind=Spoilt, num_train_epochs=1, max_grad_norm=0)
    made.train()
    assert [record.status for record in callback.records] == ["rolled_back"]
    assert all(bool(p.isfinite().all()) for p in made.model.parameters())
    assert held(made.optimizer) == sorted(map(id, made.model.parameters()))
    with caplog.at_level(logging.WARNING, "evolve"):
        probation = evolution([3], probation={"steps": 3})
        made, callback = trainer(
            tmp_path / "probation", probation, num_train_epochs=2, evolve={"evaluate": lambda model: 1.0}
        )
        made.train()
    assert callback.records[0].verdict.kept
    assert "on probation" in caplog.text
    worse = iter(range(1, 100))
    evolving = evolution([3], probation={"steps": 3})
    made, callback = trainer(
        tmp_path / "back", evolving, num_train_epochs=2, evolve={"evaluate": lambda model: float(next(worse))}
    )
    made.train()
    assert [(r.status, r.verdict.kept) for r in callback.records] == [("rolled_back", False)]
    assert held(made.optimizer) == sorted(map(id, made.model.parameters()))
    for step, gates in ((4, 1), (8, 0)):  # on probation, and after it
        loaded = from_pretrained(tmp_path / "back" / f"checkpoint-{step}")
        assert sum(p.numel() for p in loaded.parameters()) == callback.records[0].params_before + gates
    assert digest(loaded.state_dict()) == digest(made.model.state_dict())


@pytest.fixture(scope="module")
def mutated():
    """A model with other widths, a new block and tied tensors, its records, its base model's config, and inputs."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    inputs = {key: value for key, value in batch(VAL[:4]).items() if key != "labels"}
    base, records = copy.deepcopy(model.config), []
    for operator, site in (("widen", "transformer.h.0.mlp.c_fc"), ("deepen", "transformer.h.1")):
        records.append(evolve.mutate(model, operator, site=site, example_inputs=inputs, strict=True).record)
    return model.eval(), records, base, inputs


@pytest.fixture(scope="module")
def folder(mutated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "saved"
    save_pretrained(mutated[0], folder, mutated[1])
    return folder


def test_a_mutated_model_is_saved_and_loaded(mutated, folder, tmp_path):
    model, records, base, inputs = mutated
    loaded = from_pretrained(folder)
    assert type(loaded) is transformers.GPT2LMHeadModel
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.transformer.h[0].mlp.c_fc.weight.shape == (16, 128)
    with torch.no_grad():
        difference = (loaded(**inputs).logits - model(**inputs).logits).abs().max()
    assert difference <= 1e-6
    assert read_records(folder) == records
    half = copy.deepcopy(model).half()
    save_pretrained(half, tmp_path / "half", records, base_config=base)
    assert {p.dtype for p in from_pretrained(tmp_path / "half").parameters()} == {torch.float16}


def test_large_models_are_in_several_files(mutated, folder, tmp_path):
    model, _, _, _ = mutated
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copy(folder / "evolve_records.json", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert digest(from_pretrained(tmp_path).state_dict()) == digest(model.state_dict())


def test_records_that_do_not_lead_to_the_model_are_not_saved(mutated, tmp_path):
    model, records, base, _ = mutated
    with pytest.raises(EvolveError, match="do not lead to this GPT2LMHeadModel"):
        save_pretrained(model, tmp_path / "saved", records[:1])
    other = copy.deepcopy(base)
    other.n_embd = 32
    with pytest.raises(EvolveError, match="base_config"):
        save_pretrained(model, tmp_path / "saved", records, base_config=other)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("damage", ["json", "version", "class", "config", "weights", "records", "missing", "outside"])
def test_damaged_folders_are_told(folder, tmp_path, damage):
    folder = shutil.copytree(folder, tmp_path / "saved")
    file = folder / "evolve_records.json"
    content = json.loads(file.read_text())
    if damage == "json":
        file.write_text("{")
    elif damage == "missing":
        file.unlink()
    elif damage == "weights":
        (folder / "model.safetensors").write_bytes(b"no")
    elif damage == "outside":
        shutil.copy(folder / "model.safetensors", tmp_path)
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    else:
        changes = {
            "version": {"version": 9},
            "class": {"class": "os"},
            "config": {"base_config": {**content["base_config"], "n_layer": 1}},
            "records": {"records": content["records"][:1]},
        }
        file.write_text(json.dumps({**content, **changes[damage]}))
    with pytest.raises(EvolveError):
        from_pretrained(folder)


@pytest.mark.parametrize("declared", [{"n_embd": 2**16}, {"vocab_size": 2**40}, {"n_positions": 2**40}])
def test_a_base_config_of_another_size_is_refused_before_it_is_built(folder, tmp_path, declared):
    """It would take gigabytes at least."""
    folder = shutil.copytree(folder, tmp_path / "saved")
    file = folder / "evolve_records.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "base_config": {**content["base_config"], **declared}}))
    with pytest.raises(CheckpointError, match=r"base config declares a model of more than [\d,]+ elements"):
        from_pretrained(folder)
