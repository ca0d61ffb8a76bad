"""The mutation log: typed, versioned records in a JSONL file. Knows no torch.

Base model + applied records = genome: `evolve.replay` rebuilds the architecture from them anywhere.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from evolve.errors import EvolveError, writable

Status = Literal["applied", "not_applicable", "rejected", "failed", "rolled_back"]
Preserves = Literal["exact", "approximate", "no"]

# What differs between two runs of the same seed: clocks and memory. Left out of `Lineage.digest`.
VOLATILE: dict[str, Any] = {
    **dict.fromkeys(("time", "seconds", "memory_before", "memory_after", "traceback"), True),
    "choice": {"seconds"},
}


# A metric may be no number: JSON has no word for that, and null could not be read back.
_CONFIG = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

Text = Annotated[str, AfterValidator(writable)]  # of whatever origin: it can be written, and a line stays one


class TensorSpec(BaseModel):
    """Shape and dtype (such as "float32") of one tensor of the probe batch."""

    model_config = _CONFIG

    shape: list[int]
    dtype: str


class Weighed(BaseModel):
    """Something that a policy weighed.

    Attributes:
        operator: Name of the mutation operator; "" for the model as it stands.
        site: Dotted name of the place; None where it is not one place.
        value: What it was worth; None where it could not be told.
        note: Why not, or what else is to be known.
        region: Part of the model that the policy counts it to; "" where it tells no regions apart.
    """

    model_config = _CONFIG

    operator: Text
    site: Text | None = None
    value: float | None = None
    note: Text = ""
    region: Text = ""


class Reasons(BaseModel):
    """Why a policy chose a mutation.

    Attributes:
        policy: Registered name.
        by: What the values are, such as "gradmax per flops"; "" where it weighed nothing.
        chosen: What was chosen; likewise `others`, what was weighed and not chosen.
        candidates: How many candidates (an operator at a site) there were; None in records of before this was told.
        seconds: Wall time of the choice.
    """

    model_config = _CONFIG

    policy: Text
    by: Text
    chosen: Weighed
    others: list[Weighed] = Field(default_factory=list)
    candidates: int | None = None
    seconds: float = 0.0


class Verdict(BaseModel):
    """What became of a mutation on probation.

    Attributes:
        kept: Whether it stayed.
        steps: Optimizer steps that it had.
        metric: What it was judged by, such as "val_loss".
        before: The metric right before the mutation; None where it was not finite.
        promised: What the trend before it promised for the step of the verdict; likewise `bound`, the worst value with
            which the mutation would have stayed.
        found: The metric at the verdict; None where it was no longer finite.
        points: Evaluations that the trend was taken from; 0 where there were too few and the value before stood for it.
    """

    model_config = _CONFIG

    kept: bool
    steps: int
    metric: Text
    before: float | None
    promised: float | None
    bound: float | None
    found: float | None
    points: int

    def __str__(self) -> str:
        what = f"{'Kept' if self.kept else 'Taken back'} after {self.steps} steps on probation"
        if self.found is None:
            return f"{what}: {self.metric} is no longer finite."
        if self.promised is None or self.bound is None:
            return f"{what}: {self.metric} {self.found:.4g}; before the mutation it was not finite."
        trend = f"the trend of {self.points} evaluations promised" if self.points else "before it there was"
        return f"{what}: {self.metric} {self.found:.4g}; {trend} {self.promised:.4g}, allowed was {self.bound:.4g}."


class _Origin:
    """The object that a record is of, while it lives; a copy in another process has forgotten it."""

    def __init__(self, thing: object = None) -> None:
        self._thing = None if thing is None else weakref.ref(thing)

    def __call__(self) -> object:
        return None if self._thing is None else self._thing()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin)  # records are equal by what they say

    def __hash__(self) -> int:
        return 0

    def __reduce__(self) -> tuple[type[_Origin], tuple[()]]:
        return _Origin, ()


class Note(BaseModel):
    """What a training loop may add to the record of a mutation; the fields are those of `Record`."""

    model_config = _CONFIG

    epoch: int | None = None
    step: int | None = None
    metrics_before: dict[Text, float] | None = None
    reason: Text | None = None
    choice: Reasons | None = None


class Record(BaseModel):
    """One attempted mutation, applied or refused; enough to replay it.

    Attributes:
        index: Position in the lineage, from 0.
        time: When it was attempted, ISO 8601, UTC.
        epoch: Epochs finished when it was attempted, if a training loop said so.
        step: Optimizer steps finished when it was attempted, if a training loop said so.
        operator: Registered name of the mutation operator.
        site: Dotted name of the place, after defaults were resolved.
        root: Dotted name of the submodule that was mutated on its own, where the record is of one; the site, and the
            names in the plan, begin there. "" for the whole model.
        options: The operator's options, after defaults were resolved.
        plan: What the operator settled from the probe (shapes, strides, chosen indices); replay builds from it.
        seed: Seed of everything the operator drew at random.
        status: What became of it: "applied"; "not_applicable" (the operator cannot work there); "rejected" (it broke a
            promise or a limit); "failed" (an error); "rolled_back" (taken back because memory ran out).
        message: What was done, or why not.
        reason: Why the schedule asked for it.
        choice: Why the policy chose it, where a policy did.
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
        verdict: How it did on probation, once that is over.
    """

    model_config = _CONFIG

    version: Literal[1] = 1
    index: int = 0
    time: str = ""
    epoch: int | None = None
    step: int | None = None
    operator: Text
    site: Text = ""
    root: Text = ""
    options: dict[str, Any] = Field(default_factory=dict)
    plan: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    status: Status
    message: Text
    reason: Text | None = None
    choice: Reasons | None = None
    inputs: list[TensorSpec] | None = None
    preserves: Preserves
    max_abs_diff: float | None = None
    params_before: int
    params_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    metrics_before: dict[Text, float] | None = None
    seconds: float = 0.0
    memory_before: int | None = None
    memory_after: int | None = None
    traceback: Text | None = None
    verdict: Verdict | None = None
    success: bool = False
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    def made_on(self, model: object) -> Record:
        """Notes the module that was mutated, so that `evolve.save` finds which part of the model it is."""
        self._origin = _Origin(model)
        return self

    @property
    def origin(self) -> object:
        """The module that was mutated, in the process that did it and while it lives; else None."""
        return self._origin()

    def __repr__(self) -> str:
        operator, site = _cut(self.operator, 30), _cut(self.site, 40)
        return f"<{self.index}: {operator} at '{site}' {self.status}: {_cut(self.message, 80)}>"


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


class Lineage:
    """All records from the base model on.

    Args:
        records: Records to begin with.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(records)

    @classmethod
    def read(cls, path: Path) -> list[Record]:
        """Reads the records of a JSONL file; a half-written last line (a killed run) is left out.

        Raises:
            EvolveError: If another line is no record.
        """
        records = []
        lines = path.read_bytes().split(b"\n")  # and at nothing else that Unicode calls an end of a line
        for number, line in enumerate(lines[:-1], 1):
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                where = ".".join(map(str, fault["loc"])) or "the line"
                raise EvolveError(
                    f"{path}, line {number} is not a record of this evolve: {where}: {fault['msg']}."
                ) from error
        return records

    def append(self, record: Record) -> Record:
        """Adds a record at the end and returns it with its index."""
        record = record.model_copy(update={"index": len(self.records)})
        self.records.append(record)
        return record

    def take_back(self, index: int, reason: str) -> Record:
        """Notes that an applied mutation was taken back: its record becomes `rolled_back`; returns it."""
        record = self.records[index]
        changes = {
            "status": "rolled_back",
            "success": False,
            "message": writable(f"{record.message} {reason}"),
            "params_after": record.params_before,
            "flops_after": record.flops_before,
        }
        return self._revise(index, changes)

    def judge(self, index: int, verdict: Verdict) -> Record:
        """Adds the verdict to the record of a mutation on probation; returns it."""
        self._revise(index, {"verdict": verdict})
        if verdict.kept:
            return self._revise(index, {"message": f"{self.records[index].message} {verdict}"})
        return self.take_back(index, str(verdict))

    def _revise(self, index: int, changes: Mapping[str, Any]) -> Record:
        self.records[index] = self.records[index].model_copy(update=changes)
        return self.records[index]

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
