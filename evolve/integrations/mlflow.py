"""A run in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any, ClassVar

from evolve.errors import EvolveError
from evolve.lineage import Record
from evolve.training.events import RunBegun, RunFinished
from evolve.training.loggers import Logger, loggers, told

logger = logging.getLogger(__name__)

_LONGEST_TAG = 5000  # characters, MLflow's limit


@loggers.register("mlflow")
class MLflowLogger(Logger):
    """Logs metrics by optimizer steps, and mutations as tags and as the artifact `lineage.jsonl`.

    A run that is resumed goes on with the same MLflow run. MLflow cannot take metrics back: a step that a run went over
    twice has two values, of which the later one counts.

    Args:
        dir: The folder of `mlflow.db` and of artifacts, where `uri` is null.
        uri: Of a tracking server or store.
        experiment: Name of the experiment; it is made where there is none.
        run_name: Name of the run; MLflow makes one up where it is null.
        loss_every: Optimizer steps between two losses; 0 for none.
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow",)
    outward: ClassVar[frozenset[str]] = frozenset({"dir", "uri"})

    def __init__(
        self,
        dir: str,
        uri: str | None = None,
        experiment: str = "evolve",
        run_name: str | None = None,
        loss_every: int = 10,
    ) -> None:
        super().__init__(loss_every)
        self._dir, self._uri = Path(dir), uri
        self._experiment, self._run_name = experiment, run_name
        self._client: Any = None
        self._run: str | None = None

    def begin(self, event: RunBegun) -> None:
        """Begins an MLflow run, or goes on with the one that is remembered."""
        from mlflow.tracking import MlflowClient

        if self._uri is None:
            self._dir.mkdir(parents=True, exist_ok=True)
            if (self._dir / "mlflow.db").is_symlink():
                raise EvolveError(
                    f"'{self._dir / 'mlflow.db'}' is a link, and a run writes within its own folder alone."
                )
        self._client = MlflowClient(tracking_uri=self._uri or f"sqlite:///{(self._dir / 'mlflow.db').resolve()}")
        if self._run is not None and not self._known(self._run):
            logger.warning(
                "MLflow run %s is not in '%s' any more: a new one begins.", self._run, self._uri or self._dir
            )
            self._run = None
        if self._run is None:
            self._run = self._client.create_run(self._experiment_id(), run_name=self._run_name).info.run_id
            self._client.log_param(self._run, "budget", str(event.budget))
        else:
            self._client.update_run(self._run, status="RUNNING")
        self._check_place(self._run)

    def _known(self, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run)
        except MlflowException:
            return False
        return True

    def _check_place(self, run: str) -> None:
        """Refuses a database in the run folder that sends files elsewhere: it may be anybody's."""
        place = self._client.get_run(run).info.artifact_uri
        here = self._dir.resolve().as_uri()
        if self._uri is None and not place.startswith(f"{here}/"):
            raise EvolveError(
                f"'{self._dir / 'mlflow.db'}' keeps the files of its runs in {place}, outside of the folder. "
                "Remove it, or name the store yourself: the option uri of the logger."
            )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def mutation(self, record: Record, applied: int) -> None:
        """Sets a tag, and logs how many there are now at the step of the mutation."""
        self._client.set_tag(self._run, f"mutation.{record.index:03d}", told(record)[:_LONGEST_TAG])
        self.numbers({"mutations_applied": applied}, record.step or 0)

    def end(self, event: RunFinished) -> None:
        """Leaves all records with the run, and ends it."""
        lines = "".join(record.model_dump_json() + "\n" for record in event.run.lineage)
        self._client.log_text(self._run, lines, "lineage.jsonl")
        self._client.set_terminated(self._run, "FINISHED" if event.finished else "KILLED")

    def state_dict(self) -> dict[str, Any]:
        """Returns which MLflow run it is."""
        return {"logger": self.name, "run": self._run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with that run, where it is one of MLflow's."""
        self._run = state["run"] if state.get("logger") == self.name else None

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        place = None if self._uri else (self._dir / "artifacts").resolve().as_uri()
        return str(self._client.create_experiment(self._experiment, artifact_location=place))
