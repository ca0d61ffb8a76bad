"""A run on several devices: what is compared before it begins, and how all carry out a mutation that one decides on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from evolve.data import Batches
from evolve.distributed import digest
from evolve.distributed.ranks import PATIENCE
from evolve.errors import EvolveError, LostRankError, NonFiniteLossError, NonFiniteModelError, described
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.devices import Devices, Round
from evolve.lineage import Lineage, Record
from evolve.mutation.replaying import follow
from evolve.operators import operators
from evolve.policies import Policy
from evolve.runtime.memory import out_of_memory
from evolve.surgery.optimizer_names import load_optimizer_by_name, optimizer_by_name
from evolve.training import TrainState, place_model
from evolve.training.step import follow_schedule

_SAME = "Start all ranks with the same code, configuration and seed, and give each of them all of the data."
_REPORT = "An operator that draws or reads what is no part of its plan does that; the run was not saved after it."


class SeveralDevices(Devices):
    """The ranks of a run: rank 0 decides, the others do what it did, and all are held against each other.

    Args:
        state: What training moves, on this rank.
    """

    def __init__(self, state: TrainState) -> None:
        self._state = state

    def decided(self, lineage: Lineage, policy: Policy, decide: Callable[[], Round]) -> Round:
        """Lets rank 0 decide, and all others do what it did; returns what became of its attempts.

        Rank 0 looks at the candidates, asks the policy, attempts, trains children where the policy wants them, and
        tells the records and what was remembered and spent. The others carry out the plans in the records, and take
        over the values of the model: what an operator draws is in no plan.

        Raises:
            LostRankError: If a rank has ended or does not answer.
            OutOfMemoryError: On all ranks, where rank 0 ran out of memory as it decided.
            EvolveError: Where it failed otherwise; on rank 0 its own error.
        """
        world, state, first = self._state.world, self._state, len(lineage)
        done, fault = Round([]), None
        if world.first:
            try:
                with world.alone():
                    done = decide()
            except Exception as error:  # the others must not wait for what never comes
                fault = error
        told = world.tell(
            {
                "records": [record.model_dump_json() for record in lineage.records[first:]],
                "ahead": done.ahead,
                "policy": policy.state(),
                "counts": state.counts(),
                "stop": world.stopping(False),
                "error": None if fault is None else [out_of_memory(fault), described(fault)],
            },
            long=True,  # children may take hours
        )
        if not world.first:
            stood = state.step, state.epoch
            state.take_counts(told["counts"])
            follow_schedule(state, state.step - stood[0], state.epoch - stood[1])
            policy.load_state(told["policy"])
            lineage.records += [Record.model_validate_json(record) for record in told["records"]]
        world.take_stop(told["stop"])
        if fault is not None:
            raise fault
        if told["error"] is not None:
            memory, text = told["error"]
            raise torch.OutOfMemoryError(text) if memory else EvolveError(f"Rank 0 failed as it decided: {text}")
        try:
            if not world.first:
                done = Round(follow(state.model, lineage.records[first:], state.optimizer), told["ahead"])
                place_model(state.model, state.config)
        except Exception as error:  # the others hear of it
            fault = error
        self._compare(lineage, fault, held=False)
        if any(done.answers) or done.ahead:
            self._take_over(optimizer=done.ahead > 0)
        return done

    def _take_over(self, optimizer: bool) -> None:
        """Gives model and, where a child was taken up, optimizer the values that they have on rank 0."""
        world, state = self._state.world, self._state
        world.hand_over([*state.model.parameters(), *state.model.buffers()])
        if not optimizer:
            return
        written = io.BytesIO()
        torch.save(optimizer_by_name(state.model, state.optimizer), written)
        size = world.tell(len(written.getvalue()))
        sent = torch.empty(size, dtype=torch.uint8)
        if world.first:
            sent = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
        world.hand_over([sent])
        if not world.first:
            saved = torch.load(io.BytesIO(sent.numpy().tobytes()), map_location=state.device, weights_only=True)
            load_optimizer_by_name(state.model, state.optimizer, saved)

    @contextmanager
    def carrying_out(self, lineage: Lineage) -> Iterator[None]:
        """At its end the ranks are held against each other.

        Raises:
            RanksDifferError: If structure, weights, optimizer or lineage differ.
            OutOfMemoryError: On all ranks, where memory ran out on one: all have to go back.
            LostRankError: If another rank has ended, does not answer or failed.
        """
        fault: Exception | None = None
        try:
            yield
        except LostRankError:
            raise
        except Exception as error:  # the others hear of it
            fault = error
        self._compare(lineage, fault)

    def _compare(self, lineage: Lineage, fault: Exception | None, held: bool = True) -> None:
        """Waits for all ranks, for a short while, and holds what became of the mutation on each against the others.

        Args:
            lineage: All records so far.
            fault: What went wrong on this rank.
            held: Whether what they hold is to be equal by now.
        """
        own = {
            "held": _held(self._state, lineage) if held and fault is None else {},
            "error": None if fault is None else [out_of_memory(fault), described(fault)],
        }
        found = self._state.world.gather(own, PATIENCE)
        failed = [(rank, *one["error"]) for rank, one in enumerate(found) if one["error"] is not None]
        memory = all(short for _, short, _ in failed)
        if fault is not None and (memory or not out_of_memory(fault)):
            raise fault
        if failed:
            rank, _, text = next(one for one in failed if one[1] == memory)
            told = f"Rank {rank} could not carry the mutation out: {text}"
            raise torch.OutOfMemoryError(told) if memory else LostRankError(told)
        digest.compare([one["held"] for one in found], "after the mutation", _REPORT)

    def agreed(self, value: Any) -> Any:
        """Returns rank 0's value."""
        return self._state.world.tell(value)

    def survives(self, error: Exception) -> bool:
        """Whether all ranks have met the error: a loss or a model that is not finite. Others are one rank's own."""
        return isinstance(error, NonFiniteLossError | NonFiniteModelError)

    def changing(self) -> None:
        """Takes DDP off the model; the next step puts it on again."""
        self._state.unwrap()


def check_same(state: TrainState, config: EvolutionConfig, data: Mapping[str, Batches], lineage: Lineage) -> None:
    """Holds what the ranks are about to train against each other.

    Raises:
        RanksDifferError: If code, configuration, seed, model, optimizer, data or where the run stands differ.
    """
    if not state.world.together:
        return
    settings = state.config.model_dump(mode="json")
    named = [operators.get(entry.name) for entry in config.operators]
    own = {
        "seed": settings.pop("seed"),
        "code": digest.of_code([*map(type, state.model.modules()), type(state.task), *named]),
        "configuration": digest.of_values([settings, config.model_dump(mode="json")]),
        **_held(state, lineage),
        "step": state.step,
    }
    for name, batches in data.items():
        own[f"{name} data"] = digest.of_tensors([batches.samples, len(batches), batches.examples(config.probe)])
    digest.compare(state.world.gather(own), "before the first step", _SAME)


def _held(state: TrainState, lineage: Lineage) -> dict[str, str]:
    """Digests of what a mutation changes."""
    average = state.ema.state_dict() if state.ema else {}
    return {
        **digest.of_model(state.model),
        "optimizer": digest.of_tensors([optimizer_by_name(state.model, state.optimizer), average]),
        "lineage": digest.of_values([record.model_dump_json() for record in lineage]),
    }
