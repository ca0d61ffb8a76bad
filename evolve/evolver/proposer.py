"""One round of attempts: what the policy chooses is tried until something is applied, and the run follows it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from evolve.care import NewParameters, after_mutation, grown
from evolve.evolver.children import ChildTrainer
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.context import RunContext
from evolve.evolver.devices import Round
from evolve.evolver.loop import Loop
from evolve.evolver.loss_curve import LossCurve
from evolve.evolver.timing import load_named_state, named_state
from evolve.lineage import Lineage, Reasons, Weighed
from evolve.mutation.api import MutationResult, mutate, sites
from evolve.mutation.limits import Limits
from evolve.mutation.preview import preview
from evolve.operators.regroup import taken_out
from evolve.policies import Candidate, Choice, Policy
from evolve.structure.sites import EVERYWHERE
from evolve.surgery.parts import ParametersBefore
from evolve.training.events import ForecastMade, Run

logger = logging.getLogger(__name__)


class Proposer:
    """Tries candidates on a running model, one after the other, until one is applied.

    Attributes:
        policy: Which operator, and where.
        lineage: Takes the records.
        curve: The training losses of the model as it is, where the policy looks at them.
        ahead: Steps that the model made as a child, where the last round let it take up what a child had learned.

    Args:
        config: What may be tried.
        loop: The training.
        lineage: Every mutation attempted so far.
        new_parameters: Cares for what a mutation brings.
        stopping: Says whether the run is to stop.
    """

    def __init__(
        self,
        config: EvolutionConfig,
        loop: Loop,
        lineage: Lineage,
        new_parameters: NewParameters,
        stopping: Callable[[], bool],
    ) -> None:
        self.policy: Policy = config.policy.build()
        self.policy.follow(loop.monitor)
        self.lineage = lineage
        self.curve = LossCurve()
        self.ahead = 0
        self._config = config
        self._loop = loop
        self._new_parameters = new_parameters
        self._stopping = stopping
        if config.repay and loop.flops_per_sample == 0:
            logger.warning("evolution.repay says nothing about this model: its FLOPs cannot be counted.")

    def watch(self, loss: float | Tensor) -> None:
        """Takes note of the loss of a step; its value is waited for only where the policy looks at it."""
        if self.policy.needs_losses and math.isfinite(value := float(loss)):
            self.curve.add(self._loop.step, value)
            self.policy.heard(self._loop.step, value, self._loop.progress)

    def news(self, run: Run) -> list[ForecastMade]:
        """Returns what the policy has looked ahead to, or what became of it, since it was last asked."""
        return [ForecastMade(run, *one) for one in self.policy.news()]

    def attempt(self, reason: str, history: Sequence[Mapping[str, Any]]) -> list[MutationResult]:
        """Makes up to `attempts` attempts and returns what became of them; at most one of the policy's is applied.

        Where that is a growth and `care.shrink` is set, `shrink_perturb` of the whole model follows, as an attempt of
        its own. Optimizers, moving average and counts have followed when it returns. None is made where weighing them
        took the rest of the budget.

        Args:
            reason: Why a mutation is due.
            history: One mapping of metrics for each finished epoch.
        """
        loop, self.ahead = self._loop, 0
        before = ParametersBefore(loop.model)
        with loop.devices.carrying_out(self.lineage):
            done = loop.devices.decided(self.lineage, self.policy, lambda: self._decide(reason, history))
            self.ahead = done.ahead
            applied = [answer for answer in done.answers if answer]
            if applied:
                self.curve.restart()
                care = self._config.care
                after_mutation(
                    care,
                    loop,
                    self._new_parameters,
                    before,
                    applied,
                    loop.batches(care.batchnorm) if care.batchnorm else (),
                    adopted=self.ahead > 0,
                )
        return list(done.answers)

    def _decide(self, reason: str, history: Sequence[Mapping[str, Any]]) -> Round:
        """Makes attempts, and lets the model take up what a child has learned where the policy chose by one."""
        loop = self._loop
        note = {
            "epoch": loop.epoch,
            "step": loop.step,
            "reason": reason,
            "metrics_before": {k: v for k, v in history[-1].items() if k.startswith("val_")} if history else None,
        }
        context = self.context(history)
        answers, chosen = self._try_candidates(context, note)
        if answers and (shrink := self._shrinking(answers[-1])):
            answers.append(self._log(shrink, self.seed, {**note, "reason": "care.shrink after a growth"}))
        if chosen is None:
            return Round(answers, context.ahead)
        loop.mutated([answer for answer in answers if answer])
        return Round(answers, context.adopt(chosen))

    def _try_candidates(
        self, context: RunContext, note: Mapping[str, Any]
    ) -> tuple[list[MutationResult], Candidate | None]:
        """Makes attempts until one is applied; returns what became of them, and what was applied."""
        answers: list[MutationResult] = []
        candidates = self.candidates(self._loop.model)
        if not candidates:
            logger.warning("A mutation was due (%s), but there is no site for any of the operators.", note["reason"])
        for _ in range(self._config.attempts if candidates else 0):
            started = time.perf_counter()
            choice = self.policy.choose(candidates, context)
            self._loop.count_time()
            if self._loop.progress >= 1:
                logger.info("A mutation was due (%s), but choosing took the rest of the budget.", note["reason"])
                break
            if self._stopping():  # it may have chosen among fewer than it would have: the resumed run asks it anew
                break
            if choice is None:
                logger.info("A mutation was due (%s); the policy chose none.", note["reason"])
                break
            reasons = self._reasons(choice, len(candidates), time.perf_counter() - started)
            seed = context.seed_of(choice.candidate, self.seed)
            repaid = self._repaid()[1]
            answers.append(
                self._log(choice.candidate, seed, {**note, "reason": note["reason"] + repaid, "choice": reasons})
            )
            if answers[-1]:
                return answers, choice.candidate
            self.policy.forget()
            context.keep_own()
            context.tried.append(choice.candidate)
        return answers, None

    def _shrinking(self, result: MutationResult) -> Candidate | None:
        """What follows a growth where `care.shrink` is set."""
        shrink = self._config.care.shrink
        if shrink is None or not grown(result):
            return None
        return Candidate("shrink_perturb", EVERYWHERE, shrink.model_dump())

    def context(self, history: Sequence[Mapping[str, Any]]) -> RunContext:
        """Returns what the policy can ask about the run as it stands."""
        trainer = ChildTrainer(self._loop, self._bred, self.seed, self._stopping)
        return RunContext(self._loop, self.lineage.records, history, trainer, curve=self.curve)

    def _bred(self, loop: Loop, candidate: Candidate, seed: int) -> MutationResult:
        """Makes a child of a copy: the candidate's mutation, and the shrinking that would follow it."""
        result = self.mutate(loop, candidate, seed)
        if shrink := self._shrinking(result):
            self.mutate(loop, shrink, seed)
        return result

    def _log(self, candidate: Candidate, seed: int, note: Mapping[str, Any]) -> MutationResult:
        """Makes one attempt on the running model and appends its record to the lineage."""
        result = self.mutate(self._loop, candidate, seed, note)
        return replace(result, record=self.lineage.append(result.record))

    def _reasons(self, choice: Choice, count: int, seconds: float) -> Reasons:
        candidate = choice.candidate
        chosen = Weighed(
            operator=candidate.operator,
            site=candidate.site,
            value=choice.value,
            note=choice.note,
            region=choice.region,
        )
        name = self._config.policy.name
        others = list(choice.others)
        return Reasons(policy=name, by=choice.by, chosen=chosen, others=others, candidates=count, seconds=seconds)

    def _repaid(self) -> tuple[Limits, str]:
        """The limits with what the budget left repays, and that figure to be told where it is the one that counts."""
        limits, epochs = self._config.limits, self._config.repay
        most = self._loop.limit_flops(epochs) if epochs else None
        if most is None or (limits.flops is not None and limits.flops <= most):
            return limits, ""
        told = f"; for {epochs:g} more epochs the budget left pays for no more than {most:,} FLOPs a sample"
        return limits.model_copy(update={"flops": most}), told

    def candidates(self, model: nn.Module) -> list[Candidate]:
        """Returns what could be tried on the model as it stands."""
        found = []
        for entry, operator in enumerate(self._config.operators):
            places = operator.sites or sites(
                model, operator.name, example_inputs=self._loop.example, **operator.options
            )
            found += [Candidate(operator.name, place, operator.options, entry) for place in places]
        return found

    def leaving(self) -> dict[str, list[int]]:
        """Returns what `narrow`, as it is configured, would take out of the model as it stands: positions by group."""
        loop = self._loop
        narrow = [candidate for candidate in self.candidates(loop.model) if candidate.operator == "narrow"]
        found: dict[str, list[int]] = {}
        for candidate in narrow:
            plan = preview(
                loop.model,
                candidate.operator,
                candidate.site or EVERYWHERE,
                example_inputs=loop.example,
                seed=self.seed,
                loss=loop.loss,
                loss_batches=loop.loss_batches(),
                **candidate.options,
            )
            found |= taken_out(plan) if plan else {}
        return found

    def state(self) -> dict[str, Any]:
        """Returns what the policy has to remember and the losses that it looks at, as JSON values."""
        return {"policy": named_state(self.policy), "losses": self.curve.state_dict()}

    def load_state(self, state: Mapping[str, Any], moved: bool) -> None:
        """Takes up what `state` returned; the budget may have `moved` since.

        Raises:
            CheckpointError: If it is of another policy.
        """
        load_named_state(self.policy, state["policy"], "evolution.policy")
        self.curve.load_state_dict(state["losses"])
        if moved:
            self.policy.forget()

    @property
    def seed(self) -> int:
        """The seed of the next attempt."""
        return (self._loop.seed * 1_000_003 + len(self.lineage)) % 2**31

    def mutate(self, loop: Loop, chosen: Candidate, seed: int, note: Mapping[str, Any] | None = None) -> MutationResult:
        """Makes one attempt on the running model or a copy; nothing is written to the lineage."""
        return mutate(
            loop.model,
            chosen.operator,
            site=chosen.site,
            optimizer=loop.optimizers,
            example_inputs=loop.example,
            seed=seed,
            loss=loop.loss,
            loss_batches=loop.loss_batches(),
            limits=self._repaid()[0],
            note=note,
            **chosen.options,
        )
