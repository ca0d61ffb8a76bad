"""A tiny BERT that is mutated while Lightning trains it."""

import logging
import warnings

import pytest
import torch
from helpers.runs import digest
from helpers.tiny_bert import BATCH, MUTATIONS, batch, bert, evolution, held, sentences

from evolve.errors import CheckpointError, EvolveError
from evolve.surgery.optimizer_names import optimizer_by_name

pytest.importorskip("transformers")
pl = pytest.importorskip("lightning.pytorch")

from evolve.integrations.lightning import EvolveCallback, load_checkpoint  # noqa: E402

TRAIN, VAL = sentences(32), sentences(8, seed=1)  # four batches an epoch


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = bert()

    def training_step(self, batch, index):
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self):
        named = dict(self.named_parameters())
        plain = [p for name, p in named.items() if "LayerNorm" in name or name.endswith("bias")]
        decayed = [p for p in named.values() if all(p is not other for other in plain)]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader(samples, shuffle=False):
    return torch.utils.data.DataLoader(samples, BATCH, collate_fn=batch, shuffle=shuffle)


class Resumable:
    """Batches in order, from where they were left."""

    def __init__(self, samples):
        self.samples, self.begin, self.given = samples, 0, 0

    def __len__(self):
        return len(self.samples) // BATCH

    def __iter__(self):
        begin, self.begin = self.begin, 0
        for index in range(begin, len(self)):
            self.given = (index + 1) % len(self)
            yield batch(self.samples[index * BATCH : (index + 1) * BATCH])

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.begin = state["given"]


def shuffled(samples):
    return loader(samples, shuffle=True)


def fit(folder, epochs, evolution, ckpt_path=None, loader_of=shuffled, extra=(), module=None, seed=5, **options):
    callback = EvolveCallback(evolution, **options.pop("evolve", {}))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, *extra],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )
    module = module or Classifier()
    torch.manual_seed(seed)
    trainer.fit(module, loader_of(TRAIN), loader(VAL), ckpt_path=ckpt_path)
    return trainer, module, callback


def end(trainer, module, callback):
    return {
        "weights": digest(module.state_dict()),
        "optimizer": moments(module, trainer.optimizers[0]),
        "made": [(r.operator, r.site, r.status, r.step) for r in callback.records],
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "records": callback.controller.lineage.digest(),
        "step": callback.controller.loop.step,
        "history": [line["val_loss"] for line in callback.controller.history],
    }


def moments(module, optimizer):
    saved = optimizer_by_name(module, optimizer)
    return digest([saved["state"], *(sorted(group.items()) for group in saved["groups"])])


def checkpoints(folder, **options):
    return pl.callbacks.ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{epoch}-{step}", **options)


STEPS = [3, 8]  # the second is the end of an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A fit that was not stopped, and how it ended."""
    folder = tmp_path_factory.mktemp("lightning")
    made = fit(folder, 3, evolution(STEPS, care={"rewarm": {"steps": 3}}), extra=[checkpoints(folder)])
    return folder, *made, end(*made)


def test_mutations_in_lightning(whole):
    _, trainer, module, callback, _ = whole
    assert [(r.operator, r.site, r.status, r.step) for r in callback.records] == [
        ("residual", MUTATIONS[0], "applied", 3),
        ("widen", MUTATIONS[1], "applied", 8),
    ]
    assert module.model.bert.encoder.layer[1].intermediate.dense.out_features == 36
    assert held(trainer.optimizers[0]) == sorted(map(id, module.parameters()))
    assert trainer.global_step == callback.controller.loop.step == 12
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 12
    assert [line["epoch"] for line in callback.controller.history] == [1, 2, 3]
    assert callback.controller.history[-1]["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert "on_load_checkpoint" not in vars(module)
    assert not module.model._forward_pre_hooks


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_fit_ends_as_one_that_was_not_stopped(whole, tmp_path, step):
    """Bit for bit, with shuffled batches and dropout, also where a mutation is due."""
    (saved,) = whole[0].glob(f"*-step={step}.ckpt")
    evolving = evolution(STEPS, care={"rewarm": {"steps": 3}})
    assert end(*fit(tmp_path, 3, evolving, ckpt_path=saved, seed=77)) == whole[4]


def test_a_fit_is_resumed_within_an_epoch(tmp_path):
    """Lightning asks that of loaders that say where they are."""
    options = {"loader_of": Resumable, "accumulate_grad_batches": 2}
    saving = checkpoints(tmp_path / "saved", every_n_train_steps=1)
    whole = end(*fit(tmp_path, 3, evolution([1, 4]), extra=[saving], **options))
    saved = sorted((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert len(saved) == 6
    for path in (saved[0], saved[4]):
        assert end(*fit(tmp_path, 3, evolution([1, 4]), ckpt_path=path, seed=77, **options)) == whole


def test_the_best_model_may_be_from_before_a_mutation(whole):
    folder, trainer, module, callback, _ = whole
    paths = {int(path.stem.rpartition("=")[2]): path for path in folder.glob("*.ckpt")}
    held_out = [line["val_loss"] for line in callback.controller.history]
    embeddings = module.model.bert.embeddings
    for step, made in ((4, 1), (12, 2), (8, 1)):  # back, on, and back again
        trainer.checkpoint_callback.best_model_path = str(paths[step])
        (metrics,) = trainer.validate(module, loader(VAL), ckpt_path="best", verbose=False)
        assert metrics["val_loss"] == pytest.approx(held_out[step // 4 - 1], abs=1e-6)
        assert [r.operator for r in callback.records] == ["residual", "widen"][:made]
        assert module.model.bert.embeddings is embeddings
        other = Classifier()
        assert load_checkpoint(paths[step], other) == callback.records
        assert digest(other.state_dict()) == digest(module.state_dict())


def test_checkpoints_of_weights_alone_hold_the_records(tmp_path):
    _, module, callback = fit(
        tmp_path, 1, evolution([1, 2]), extra=[checkpoints(tmp_path / "saved", save_weights_only=True)]
    )
    (path,) = (tmp_path / "saved").glob("*.ckpt")
    other = Classifier()
    assert load_checkpoint(path, other) == callback.records
    assert digest(other.state_dict()) == digest(module.state_dict())


def test_manual_optimization_with_two_optimizers(tmp_path):
    """Validated twice an epoch: what is measured within one is a line of the history that ends no epoch."""

    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = self.model(**batch).loss
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return loss

        def configure_optimizers(self):
            body, head = self.model.bert.parameters(), self.model.classifier.parameters()
            return torch.optim.AdamW(body, lr=0.01), torch.optim.SGD(head, lr=0.1, momentum=0.9)

    options = {"module": Manual(), "val_check_interval": 2}
    evolving = evolution([3, 6], care={"rewarm": {"steps": 3}})
    trainer, module, callback = fit(tmp_path, 2, evolving, extra=[checkpoints(tmp_path / "saved")], **options)
    assert [(r.operator, r.status, r.step) for r in callback.records] == [
        ("residual", "applied", 3),
        ("widen", "applied", 6),
    ]
    both = sorted(
        id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
    )
    assert both == sorted(map(id, module.parameters()))
    assert [(line["epoch"], line["step"]) for line in callback.controller.history] == [(0, 2), (1, 4), (1, 6), (2, 8)]
    (saved,) = (tmp_path / "saved").glob("*-step=8.ckpt")  # Lightning counts the steps of both
    _, resumed, again = fit(tmp_path, 2, evolving, ckpt_path=saved, seed=77, **{**options, "module": Manual()})
    assert digest(resumed.state_dict()) == digest(module.state_dict())
    assert again.controller.lineage.digest() == callback.controller.lineage.digest()


def test_what_is_wrong_is_told(tmp_path):
    with pytest.raises(EvolveError, match=r"part='net' is no submodule of Classifier\. Its children: 'model'"):
        fit(tmp_path, 1, evolution([2]), evolve={"part": "net"})

    with pytest.raises(EvolveError, match="takes one EvolveCallback"):
        fit(tmp_path, 1, evolution([2]), extra=[EvolveCallback(evolution([2]))])

    class Around(Classifier):
        def training_step(self, batch, index):
            hidden = self.model.bert(batch["input_ids"], batch["attention_mask"]).pooler_output
            return torch.nn.functional.cross_entropy(self.model.classifier(hidden), batch["labels"])

    with pytest.raises(EvolveError, match="do not call BertForSequenceClassification itself"):
        fit(tmp_path, 1, evolution([2]), module=(module := Around()))
    assert "on_save_checkpoint" not in vars(module)
    plain = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    plain.fit(Classifier(), loader(TRAIN))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="written without an EvolveCallback"):
        load_checkpoint(tmp_path / "plain.ckpt", Classifier())
    (tmp_path / "broken.ckpt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no checkpoint that can be read"):
        load_checkpoint(tmp_path / "broken.ckpt", Classifier())


def test_probation_and_failing_steps(tmp_path, caplog):
    """A mutation that is on probation when a checkpoint is written is kept in a run that is taken up from there."""
    probation = evolution([3], probation={"steps": 3})
    saving = checkpoints(tmp_path / "saved")
    evolve = {"evaluate": lambda model: 1.0}
    _, _, callback = fit(tmp_path, 2, probation, extra=[saving], evolve=evolve)
    assert callback.records[0].verdict.kept
    (path,) = (tmp_path / "saved").glob("*-step=4.ckpt")
    assert "on probation" in caplog.text
    _, module, callback = fit(tmp_path, 2, probation, ckpt_path=path, evolve=evolve)
    assert (callback.records[0].status, callback.records[0].verdict) == ("applied", None)
    assert sum(p.numel() for p in module.parameters()) == callback.records[0].params_after

    class Spoilt(Classifier):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * float("nan") if self.trainer.global_step == 2 else loss

    trainer, module, callback = fit(tmp_path, 1, evolution([2]), module=Spoilt())
    assert [record.status for record in callback.records] == ["rolled_back"]
    assert sum(p.numel() for p in module.parameters()) == callback.records[0].params_before
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert held(trainer.optimizers[0]) == sorted(map(id, module.parameters()))
