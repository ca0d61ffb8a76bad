"""What a worker is told of a job."""

from __future__ import annotations

from dataclasses import dataclass

from evolve.population.archive import Archive
from evolve.population.config import PopulationConfig
from evolve.population.jobs import Json
from evolve.population.planner import Job, Planner


@dataclass
class Work:
    """What a worker is at.

    Attributes:
        job: Whose.
        evaluation: Its id in the archive.
        order: What the worker was told.
        attempts: How often it was begun, as workers were lost.
        made: What the evaluator has answered when it was made; None before.
        seconds: Of making it.
    """

    job: Job
    evaluation: int
    order: Json
    attempts: int = 1
    made: Json | None = None
    seconds: float = 0.0


def order_of(job: Job, archive: Archive, planner: Planner, config: PopulationConfig) -> Json:
    """Returns the order of a job, as evaluators take it.

    Args:
        job: What is to be evaluated.
        archive: Has the genomes and weights of the parents.
        planner: Who wants it.
        config: How the population is led.
    """
    proposal, again = job.proposal, job.proposal.again is not None
    source = job.individual.id if again else next(iter(proposal.parents), None)
    first = source is None and planner.algorithm.space.rooted
    return {
        "individual": job.individual.id,
        "seed": job.seed,
        "genome": None if source is None else archive.genome(source),
        "code": proposal.code,
        "other": archive.genome(proposal.parents[1]) if len(proposal.parents) > 1 else None,
        "edits": [list(edit) for edit in proposal.edits],
        "weights": [] if source is None else archive.weights(source),
        "rung": job.rung,
        "again": again,
        "length": _length(job, first, planner, config),
        "seconds": config.timeout,
    }


def _length(job: Job, first: bool, planner: Planner, config: PopulationConfig) -> float:
    """For how many budgets of a child it is trained."""
    if first:
        return config.start
    if planner.halving and job.rung > job.individual.rung:
        return planner.halving.times(job.rung)
    return config.finish if job.proposal.last else 1.0
