"""The mutation log: typed, versioned records in a JSONL file. Knows no torch.

Base model + applied records = genome: `evolve.replay` rebuilds the architecture from them anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["applied", "not_applicable", "rejected", "failed", "rolled_back"]
Preserves = Literal["exact", "approximate", "no"]

# What differs between two runs of the same seed: clocks and memory. Left out of `Lineage.digest`.
VOLATILE = {"time", "seconds", "memory_before", "memory_after", "traceback"}


class TensorSpec(BaseModel):
    """Shape and dtype (such as "float32") of one tensor of the probe batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: list[int]
    dtype: str


class Record(BaseModel):
    """One attempted mutation, applied or refused; enough to replay it.

    Attributes:
        index: Position in the lineage, from 0.
        time: When it was attempted, ISO 8601, UTC.
        epoch: Epochs finished when it was attempted, if a training loop said so.
        step: Optimizer steps finished when it was attempted, if a training loop said so.
        operator: Registered name of the mutation operator.
        site: Dotted name of the place, after defaults were resolved.
        options: The operator's options, after defaults were resolved.
        plan: What the operator settled from the probe (shapes, strides, chosen indices); replay builds from it.
        seed: Seed of everything the operator drew at random.
        status: What became of it: "applied"; "not_applicable" (the operator cannot work there); "rejected" (it broke a
            promise or a limit); "failed" (an error); "rolled_back" (taken back because memory ran out).
        message: What was done, or why not.
        reason: Why the schedule and the policy asked for it.
        inputs: Shapes and dtypes of the probe batch, in the order of the flattened arguments.
        preserves: The operator's declaration for these options.
        max_abs_diff: Measured max|difference| of the outputs on the probe batch, eval and train mode together.
        params_before: Parameters before; likewise `params_after`.
        flops_before: FLOPs of one forward pass of one sample (2 per multiply-accumulate); likewise `flops_after`.
        metrics_before: Validation metrics before the mutation.
        seconds: Wall time of the attempt.
        memory_before: Bytes in use before: accelerator allocations, or resident memory on a CPU; likewise
            `memory_after`.
        traceback: Where an operator failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    index: int = 0
    time: str = ""
    epoch: int | None = None
    step: int | None = None
    operator: str
    site: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    plan: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    status: Status
    message: str
    reason: str | None = None
    inputs: list[TensorSpec] | None = None
    preserves: Preserves
    max_abs_diff: float | None = None
    params_before: int
    params_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    metrics_before: dict[str, float] | None = None
    seconds: float = 0.0
    memory_before: int | None = None
    memory_after: int | None = None
    traceback: str | None = None
    success: bool = False


class Lineage:
    """All records from the base model on, mirrored to `lineage.jsonl` where a path is given.

    Args:
        path: The JSONL file, written from scratch; None keeps the lineage in memory.
        records: Records to begin with.
    """

    def __init__(self, path: Path | None = None, records: Iterable[Record] = ()) -> None:
        self.path = path
        self.records: list[Record] = list(records)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite(path)

    @classmethod
    def read(cls, path: Path) -> list[Record]:
        """Reads the records of a JSONL file; a half-written last line (a killed run) is left out."""
        records = []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n"):
                records.append(Record.model_validate_json(line))
        return records

    def append(self, record: Record) -> Record:
        """Adds a record at the end, on disk too, and returns it with its index."""
        record = record.model_copy(update={"index": len(self.records)})
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        return record

    def take_back(self, index: int, reason: str) -> Record:
        """Notes that an applied mutation was taken back: its record becomes `rolled_back`; returns it."""
        record = self.records[index]
        changes = {
            "status": "rolled_back",
            "success": False,
            "message": f"{record.message} {reason}",
            "params_after": record.params_before,
            "flops_after": record.flops_before,
        }
        self.records[record.index] = record.model_copy(update=changes)
        if self.path is not None:
            self._rewrite(self.path)
        return self.records[record.index]

    def _rewrite(self, path: Path) -> None:
        temporary = path.with_name(path.name + ".new")
        temporary.write_text("".join(r.model_dump_json() + "\n" for r in self.records), encoding="utf-8")
        os.replace(temporary, path)

    @property
    def applied(self) -> list[Record]:
        """The records that are part of the model as it stands."""
        return [record for record in self.records if record.status == "applied"]

    def digest(self) -> str:
        """SHA-256 over everything but clocks and memory: equal for two runs that did the same."""
        stable = [record.model_dump(mode="json", exclude=VOLATILE) for record in self.records]
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)
