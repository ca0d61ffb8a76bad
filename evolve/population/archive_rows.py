"""The tables of an archive, and what their rows stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evolve.population.individual import Edit, Individual, Proposal

APPLICATION = 0x65766F6C  # "evol": tells an archive from other SQLite files
VERSION = 1

TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # `told` is what the planner was told last: values, evaluations, rung, failure. An evaluation keeps what it was.
    """CREATE TABLE individuals (
        id INTEGER PRIMARY KEY, parents TEXT NOT NULL, edits TEXT NOT NULL, code TEXT NOT NULL, key TEXT NOT NULL,
        metrics TEXT NOT NULL DEFAULT '{}', told TEXT NOT NULL DEFAULT '[null, 0, 0, ""]', weights TEXT,
        proposed_at REAL NOT NULL)""",
    "CREATE INDEX individuals_with_weights ON individuals (id) WHERE weights IS NOT NULL",
    # Beside the individuals, whose rows are written again whenever they are evaluated: genomes are long.
    "CREATE TABLE genomes (individual INTEGER PRIMARY KEY, genome TEXT NOT NULL)",
    """CREATE TABLE evaluations (
        id INTEGER PRIMARY KEY, individual INTEGER NOT NULL, kind TEXT NOT NULL, rung INTEGER NOT NULL,
        seed INTEGER NOT NULL, status TEXT NOT NULL DEFAULT 'out', why TEXT NOT NULL, ended TEXT NOT NULL DEFAULT '',
        metrics TEXT NOT NULL DEFAULT '{}', steps INTEGER NOT NULL DEFAULT 0, make_seconds REAL NOT NULL DEFAULT 0,
        train_seconds REAL NOT NULL DEFAULT 0, worker INTEGER, attempts INTEGER NOT NULL DEFAULT 1,
        proposed_at REAL NOT NULL, finished_at REAL, finished INTEGER UNIQUE, told TEXT, proposal TEXT NOT NULL,
        key TEXT NOT NULL)""",
    "CREATE INDEX evaluations_by_status ON evaluations (status)",
    "CREATE INDEX evaluations_by_individual ON evaluations (individual)",
    "CREATE TABLE losses (evaluation INTEGER NOT NULL, worker INTEGER NOT NULL, why TEXT NOT NULL, at REAL NOT NULL)",
)

Status = Literal["out", "done", "failed", "duplicate", "refused"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of an individual.

    Attributes:
        id: Counts from 1 in the order in which they were proposed.
        individual: Whose.
        kind: "new", or "again" where it was trained on.
        rung: How often its training will have been made longer.
        seed: Of all that was drawn.
        status: "out" until it is finished.
        why: Why it was proposed.
        ended: Why it has failed, or was not trained.
        metrics: What was measured.
        steps: Optimizer steps that were made.
        make_seconds: Of making it; likewise `train_seconds`.
        worker: Number of who did it; None where nobody did.
        attempts: How often it was begun, as workers were lost.
        proposed_at: Seconds since the epoch.
        finished_at: The same; None while it is out.
    """

    id: int
    individual: int
    kind: Literal["new", "again"]
    rung: int
    seed: int
    status: Status
    why: str
    ended: str
    metrics: Mapping[str, float]
    steps: int
    make_seconds: float
    train_seconds: float
    worker: int | None
    attempts: int
    proposed_at: float
    finished_at: float | None


EVALUATION = tuple(Evaluation.__dataclass_fields__)
INDIVIDUAL = ("id", "parents", "edits", "code", "key")


def columns(names: Sequence[str], table: str) -> str:
    """Returns columns of a table as a query names them."""
    return ", ".join(f"{table}.{name}" for name in names)


def as_text(value: Any) -> str:
    """Returns a JSON value as it is kept."""
    return json.dumps(value, separators=(",", ":"))


def told(individual: Individual) -> str:
    """Returns what may change of an individual with each evaluation, as it is kept."""
    return as_text([individual.values, individual.evaluations, individual.rung, individual.failure])


def read_evaluation(row: Sequence[Any]) -> Evaluation:
    """Returns what a row of `EVALUATION` stands for."""
    values = dict(zip(EVALUATION, row, strict=True))
    return Evaluation(**{**values, "metrics": json.loads(values["metrics"])})


def read_individual(row: Sequence[Any]) -> Individual:
    """Returns what a row of `INDIVIDUAL` and `told` stands for."""
    id, parents, edits, code, key, text = row
    values, evaluations, rung, failure = json.loads(text)
    return Individual(
        id=id,
        parents=tuple(json.loads(parents)),
        edits=tuple(Edit(*edit) for edit in json.loads(edits)),
        code=json.loads(code),
        key=key,
        values=None if values is None else tuple(values),
        evaluations=evaluations,
        rung=rung,
        failure=failure,
    )


def read_proposal(text: str) -> Proposal:
    """Returns a proposal that was kept as text."""
    said = json.loads(text)
    edits = tuple(Edit(*edit) for edit in said["edits"])
    return Proposal(**{**said, "parents": tuple(said["parents"]), "edits": edits})
