"""Makes networks of their parents and trains them: what a worker does."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from evolve.config import explain
from evolve.config.faults import key_text
from evolve.data import Data, map_tensors
from evolve.errors import EvolveError, MisfitError, NonFiniteLossError, NonFiniteModelError, described
from evolve.evolver.assembly import set_up
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.preflight import site_faults
from evolve.lineage import Record
from evolve.mutation import replay
from evolve.population.config import PopulationConfig, SearchConfig
from evolve.population.editing import Editor, Made, labels
from evolve.population.individual import Edit
from evolve.population.jobs import Blobs, Evaluator, Json, Setup
from evolve.population.weights import load_weights, read_weights, write_weights
from evolve.runtime.device import resolve_device
from evolve.runtime.generators import seed_everything
from evolve.runtime.memory import free_memory, out_of_memory
from evolve.structure.analysis import analyse
from evolve.structure.canonical import structure_key
from evolve.structure.inputs import as_inputs
from evolve.structure.latency import latency
from evolve.structure.probe import count_parameters
from evolve.tasks import TaskSource, build_task
from evolve.training import TrainingConfig, TrainState, check_data, evaluate, place_model, train_step
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig
from evolve.training.step import advance_schedule

_SKELETONS = 4  # models of recent genomes that are kept, so that siblings need no replay


@dataclass
class Subject:
    """What children are made of and trained on.

    Attributes:
        model: The first model.
        data: What it is trained on, and what is held out.
        training: How a child is trained, and for how long.
        optimizer: What trains it.
        lr_schedule: Over the training of a child.
        task: What a batch is.
    """

    model: nn.Module
    data: Data
    training: TrainingConfig
    optimizer: OptimizerConfig
    lr_schedule: LrScheduleConfig | None
    task: TaskSource


@dataclass
class _Child:
    """What was made last."""

    individual: int
    model: nn.Module
    parent: dict[str, Tensor]


@dataclass
class Breeder(Evaluator):
    """Makes networks of their parents and trains them.

    Attributes:
        subject: What they are made of and trained on.
        editor: Makes edits.
        probe: Samples that each mutation is verified on.
        measured: Whether the latency is sought.
    """

    subject: Subject
    editor: Editor
    probe: int = 8
    measured: bool = False
    _child: _Child | None = None
    _skeletons: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def from_setup(cls, setup: Setup) -> Breeder:
        """Returns one for a worker, which builds model and data by their names.

        Raises:
            EvolveError: If one cannot be built.
        """
        try:
            config = SearchConfig.model_validate_json(json.dumps(setup.config))
        except ValidationError as error:
            faults = "; ".join(f"{key_text(path)}: {text}" for path, text in explain(error, SearchConfig, setup.config))
            raise EvolveError(
                f"A worker lacks what this process has: {faults} Workers import model and data by name, from a module "
                "and not from the script that is run (__main__), and what is listed in `plugins`."
            ) from error
        if setup.device is not None:
            config = config.model_copy(update={"training": _with(config.training, {"device": setup.device})})
        resolve_device(config.training.device)  # a worker without it is refused at once, not each of its children
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: SearchConfig) -> Breeder:
        """Returns one that builds model and data by their names.

        Raises:
            EvolveError: If one cannot be built.
        """
        if config.model is None or config.data is None:
            raise EvolveError("A search for networks needs `model` and `data`.")
        seed = config.training.seed
        seed_everything(seed)
        data = config.data.build(seed)
        parts = config.optimizer, config.lr_schedule, config.task
        return cls.of(Subject(config.model.build(), data, config.training, *parts), config.search)

    @classmethod
    def of(cls, subject: Subject, search: PopulationConfig) -> Breeder:
        """Returns one for what has been built already."""
        editor = Editor(labels(search.operators), search.regions, search.limits)
        measured = any(objective.metric == "latency" for objective in search.objectives or ())
        return cls(subject, editor, search.probe, measured)

    def check(self) -> None:
        """Checks that model, task and data fit together, and that the sites which operators name can be there.

        Raises:
            MisfitError: With the cause.
        """
        data, named = self.subject.data, EvolutionConfig(operators=list(self.editor.operators.values()))
        state = self._state(copy.deepcopy(self.subject.model), self.subject.training)
        check_data(state, data.train, data.val)
        if faults := list(site_faults(named, state, data.train.examples(self.probe))):
            lines = [f"  search.{key_text(path)}: {message}" for path, message in faults]
            raise MisfitError("\n".join(["The search does not fit the model and its data:", *lines]))

    def tested(self, model: nn.Module) -> dict[str, float]:
        """Returns metrics of a model on the data that no decision looks at; none where there are no such data."""
        test = self.subject.data.test
        if test is None:
            return {}
        found = evaluate(self._state(model, self.subject.training), test.epoch(0))
        return {f"test_{name}": value for name, value in found.items()}

    def make(self, order: Json, blobs: Blobs) -> Json:
        """Makes a network of its parents; see `Evaluator`."""
        self._child = None
        records = [Record.model_validate(record) for record in order["genome"] or []]
        tensors = read_weights(order["weights"], blobs)
        model = self._parent(records)
        if tensors:
            load_weights(model, tensors)
        place_model(model, self.subject.training)
        made, refusals = self._edited(model, records, order)
        if (order["edits"] or order["other"]) and not made:
            return {"refused": "; ".join(dict.fromkeys(refusals)) or "nothing of the other parent fits"}
        for _, record in made:
            records.append(record.model_copy(update={"index": len(records)}))
        self._child = _Child(order["individual"], model, tensors)
        structure = analyse(model, as_inputs(model, self._inputs(model)))
        return {
            "genome": [record.model_dump(mode="json") for record in records],
            "key": structure_key(structure),
            "edits": [list(edit) for edit, _ in made],
            "metrics": {"params": count_parameters(model), "flops": structure.flops({})},
        }

    def train(self, order: Json, blobs: Blobs) -> Json:
        """Trains the network that was made last, and evaluates it; see `Evaluator`."""
        child = self._child
        if child is None or child.individual != order["individual"]:
            raise EvolveError(f"Individual {order['individual']} was not made here.")
        seed_everything(order["seed"])
        try:
            return self._trained(child, order, blobs)
        except (NonFiniteLossError, NonFiniteModelError) as error:
            return {"failed": f"diverged: {error}"}
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            free_memory()
            return {"failed": f"memory ran out: {described(error).splitlines()[0]}"}

    def _trained(self, child: _Child, order: Json, blobs: Blobs) -> Json:
        data, training = self.subject.data, _lengthened(self.subject.training, order["length"])
        state = self._state(child.model, training)
        coming = data.train.onward(order["individual"], 0)  # each child sees the data in an order of its own
        while state.progress < 1:
            train_step(state, list(islice(coming, training.accumulate)))
            state.count_time()
            if state.batch >= len(data.train):
                state.epoch, state.batch = state.epoch + 1, 0
                advance_schedule(state, "epoch")
            if order["seconds"] is not None and state.seconds > order["seconds"]:
                made = f"{state.step:,} step{'s' * (state.step != 1)}"
                return {"failed": f"its {order['seconds']:g} seconds were over after {made}"}
        metrics = self._metrics(state)
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            return {"failed": f"diverged: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite"}
        with state.ema.applied_to(child.model) if state.ema else nullcontext():  # what was evaluated is what is kept
            names = write_weights(child.model, blobs, child.parent, order["weights"])
        return {"metrics": metrics, "weights": names, "steps": state.step}

    def _metrics(self, state: TrainState) -> dict[str, float]:
        data, model = self.subject.data, state.model
        found = {f"val_{name}": value for name, value in evaluate(state, data.val.epoch(0)).items()}
        if self.measured:
            inputs = as_inputs(model, self._inputs(model))
            found["latency"] = latency(model, inputs, modules=False)[""] / max(inputs.batch_size, 1)
        return found

    def _edited(self, model: nn.Module, records: list[Record], order: Json) -> tuple[list[Made], list[str]]:
        """Makes the edits of an order; returns those that were made, and why others were not."""
        chance = random.Random(order["seed"])
        task, _ = build_task(self.subject.task)
        batch = self.subject.data.train.examples(self.probe)
        device = resolve_device(self.subject.training.device)
        inputs = task.arguments(model, batch)
        loss = task.loss_of(model, map_tensors(batch, lambda tensor: tensor.to(device)))
        made: list[Made] = []
        refusals: list[str] = []
        if order["other"] is not None:
            other = [Record.model_validate(record) for record in order["other"]]
            made += self.editor.cross(model, records, other, inputs, loss, chance)
        for edit in order["edits"]:
            answer = self.editor.edit(model, Edit(*edit), inputs, loss, chance)
            if isinstance(answer, str) or not answer:
                refusals.append(answer if isinstance(answer, str) else answer.message)
            else:
                made.append((Edit(*edit), answer.record))
        return made, refusals

    def _parent(self, records: Sequence[Record]) -> nn.Module:
        """Returns a model of the parent's structure."""
        key = json.dumps([record.model_dump(mode="json") for record in records])
        if key not in self._skeletons:
            model = copy.deepcopy(self.subject.model)
            replay(model, records)
            while len(self._skeletons) >= _SKELETONS:
                self._skeletons.pop(next(iter(self._skeletons)))
            self._skeletons[key] = model
        return copy.deepcopy(self._skeletons[key])

    def _inputs(self, model: nn.Module) -> Any:
        """Returns what the model is called with on the probe batch."""
        return build_task(self.subject.task)[0].arguments(model, self.subject.data.train.examples(self.probe))

    def _state(self, model: nn.Module, training: TrainingConfig) -> TrainState:
        """Returns what training moves."""
        place_model(model, training)
        return set_up(
            model,
            self.subject.data.train,
            training,
            optimizer=self.subject.optimizer,
            lr_schedule=self.subject.lr_schedule,
            task=self.subject.task,
            loss=None,
            probe=self.probe,
        )


def _lengthened(training: TrainingConfig, times: float) -> TrainingConfig:
    """Returns how to train so many times longer."""
    unit, amount = training.budget.unit, training.budget.amount * times
    whole = unit in ("epochs", "steps")
    return _with(training, {unit: max(1, round(amount)) if whole else amount})


def _with(training: TrainingConfig, changes: Json) -> TrainingConfig:
    return TrainingConfig.model_validate_json(json.dumps({**training.model_dump(mode="json"), **changes}))
