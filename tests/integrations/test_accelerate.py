"""A tiny BERT that is mutated in a loop under Accelerate."""

import logging

import pytest
import torch
from helpers.runs import digest
from helpers.tiny_bert import BATCH, MUTATIONS, batch, bert, evolution, held, sentences

import evolve
from evolve.errors import CheckpointError, EvolveError
from evolve.surgery.optimizer_names import optimizer_by_name

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from evolve.integrations.accelerate import prepared_loop, register, unwrapped  # noqa: E402

TRAIN, VAL = sentences(), batch(sentences(8, seed=1))
STEPS = 16  # where gradients are not accumulated


class Training:
    def __init__(self, evolution, accumulate=1, **options):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = bert()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        example = batch(TRAIN[:4])
        loop = prepared_loop(
            self.accelerator, self.model, self.optimizer, example_inputs=example, also=[self.schedule], **options
        )
        self.controller = evolve.MutationController(evolution, loop)
        register(self.accelerator, self.controller)
        self.batches = 0

    def run(self, batches, save=None, folder=None):
        if self.batches == 0:
            torch.manual_seed(1)
        for number in range(self.batches, batches):
            begin = number % 8 * BATCH
            inputs = batch(TRAIN[begin : begin + BATCH])
            with self.accelerator.accumulate(self.model):
                loss = self.model(**inputs).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.controller.before_step()
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            self.batches += 1
            if self.accelerator.sync_gradients:
                self.controller.after_step(loss)
                if self.controller.due:
                    self.controller.mutate()
            if self.batches == save:
                self.accelerator.save_state(folder)
        return self

    def end(self):
        optimizer = unwrapped(self.optimizer)
        saved = optimizer_by_name(self.model, optimizer)
        return {
            "weights": digest(self.model.state_dict()),
            "optimizer": digest([saved["state"], *(sorted(group.items()) for group in saved["groups"])]),
            "schedule": self.schedule.state_dict()["last_epoch"],
            "records": self.controller.lineage.digest(),
            "step": self.controller.loop.step,
        }


@pytest.mark.parametrize(("accumulate", "save"), [(1, 7), (2, 10)])
def test_a_resumed_loop_ends_as_one_that_was_not_stopped(tmp_path, accumulate, save):
    steps = {1: [4, 9], 2: [3, 6]}[accumulate]
    config = evolution(steps, care={"rewarm": {"steps": 3}})
    whole = Training(config, accumulate).run(16, save, tmp_path)
    assert [(r.operator, r.site, r.status, r.step) for r in whole.controller.lineage] == [
        ("residual", MUTATIONS[0], "applied", steps[0]),
        ("widen", MUTATIONS[1], "applied", steps[1]),
    ]
    assert held(whole.optimizer) == sorted(map(id, whole.model.parameters()))
    resumed = Training(config, accumulate)
    resumed.accelerator.load_state(tmp_path)
    assert [r.operator for r in resumed.controller.lineage] == ["residual"]
    resumed.batches = save
    resumed.run(16)
    assert resumed.end() == whole.end()
    assert held(resumed.optimizer) == sorted(map(id, resumed.model.parameters()))


def test_the_best_state_may_be_from_before_a_mutation(tmp_path):
    training = Training(evolution([3, 6])).run(3)
    made = []
    for batches in (2, 5, 8):
        training = training if made else Training(evolution([3, 6]))
        training.run(batches, batches, tmp_path / str(batches))
        made.append((training.end(), held_out(training.model)))
    model, embeddings = training.model, training.model.bert.embeddings
    for index in (0, 2, 1):  # back, on, and back again
        training.accelerator.load_state(tmp_path / str((2, 5, 8)[index]))
        assert (training.end(), held_out(training.model)) == made[index]
        assert held(training.optimizer) == sorted(map(id, model.parameters()))
        assert model.bert.embeddings is embeddings


def held_out(model):
    model.eval()
    with torch.no_grad():
        loss = model(**VAL).loss.item()
    model.train()
    return loss


def test_a_mutation_on_probation_is_kept_in_a_state(tmp_path, caplog):
    config = evolution([2], probation={"steps": 4})
    with caplog.at_level(logging.WARNING, "evolve"):
        training = Training(config, evaluate=lambda model: 1.0).run(3, 3, tmp_path)
    assert training.controller.testing
    assert "on probation" in caplog.text
    resumed = Training(config, evaluate=lambda model: 1.0)
    resumed.accelerator.load_state(tmp_path)
    assert not resumed.controller.testing
    assert digest(resumed.model.state_dict()) == digest(training.model.state_dict())


def test_what_is_wrong_is_told(tmp_path):
    training = Training(evolution([1])).run(1)
    with pytest.raises(EvolveError, match="before the first mutation"):
        register(training.accelerator, training.controller)
    (tmp_path / "empty").mkdir()
    before = training.end()
    with pytest.raises(CheckpointError, match=r"has no evolve_records\.json"):
        training.accelerator.load_state(tmp_path / "empty")
    training.accelerator.save_state(tmp_path / "saved")
    (tmp_path / "saved" / "evolve_state.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        training.accelerator.load_state(tmp_path / "saved")
    assert training.end() == before
