"""What a search has done and what is under way, in one SQLite file that outlives its process.

Whatever is asked for is read from the file, by an index: nothing is held in memory, and the 100,000th child costs what
the first one did.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from evolve.errors import EvolveError
from evolve.population.archive_file import checked, connected
from evolve.population.archive_rows import (
    APPLICATION,
    EVALUATION,
    INDIVIDUAL,
    TABLES,
    VERSION,
    Evaluation,
    Status,
    as_text,
    columns,
    read_evaluation,
    read_individual,
    read_proposal,
    told,
)
from evolve.population.individual import Individual
from evolve.population.planner import Job

_EVALUATION = columns(EVALUATION, "e")
_INDIVIDUAL = columns(INDIVIDUAL, "i")
_JOURNAL = "PRAGMA journal_mode = WAL"  # others can read while one writes


class Archive:
    """A search's memory. One process writes; others may read meanwhile.

    Made by `create`, `open` or `read`. Every method that changes something is one transaction: after a kill it is there
    as a whole or not at all. What `finish` has returned from also outlives a power failure.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, Any]) -> Archive:
        """Begins an archive.

        Args:
            path: A file that is not there yet.
            meta: What is to be kept of the search as a whole, JSON values by name.

        Raises:
            EvolveError: If the file is there, or cannot be written.
        """
        if path.exists() and path.stat().st_size:  # an empty one was killed at this very place
            raise EvolveError(f"'{path}' is there already. Resume that search, remove it, or write elsewhere.")
        archive = cls(path, connected(path, "rwc"))
        with archive._writing(durable=True):
            for statement in TABLES:
                archive._db.execute(statement)
            archive._db.execute(f"PRAGMA application_id = {APPLICATION}")
            archive._db.execute(f"PRAGMA user_version = {VERSION}")
            for name, value in meta.items():
                archive._put(name, value)
        archive._db.execute(_JOURNAL)
        return archive

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Opens an archive to go on with it.

        Raises:
            EvolveError: If there is none, or it was written by another version of evolve.
        """
        archive = cls(path, checked(path, "rw"))
        archive._db.execute(_JOURNAL)
        return archive

    @classmethod
    def read(cls, path: Path) -> Archive:
        """Opens an archive to look at it, also while a search writes to it.

        Raises:
            EvolveError: If there is none, or it was written by another version of evolve.
        """
        return cls(path, checked(path, "ro"))

    def propose(self, job: Job, state: Mapping[str, Any]) -> int:
        """Writes down a job that is going out, with the planner's state after it, and returns the evaluation's id."""
        who, what = job.individual, job.proposal
        with self._writing():
            if what.again is None:
                self._db.execute(
                    "INSERT INTO individuals (id, parents, edits, code, key, proposed_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (who.id, as_text(who.parents), as_text(who.edits), as_text(who.code), who.key, time.time()),
                )
            done = self._db.execute(
                "INSERT INTO evaluations (individual, kind, rung, seed, why, proposal, key, proposed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(who.id, "new" if what.again is None else "again", job.rung, job.seed, what.why),
                    *(as_text(asdict(what)), who.key, time.time()),
                ),
            )
            self._put("state", state)
        return int(done.lastrowid or 0)

    def made(self, individual: Individual, genome: Any, metrics: Mapping[str, float]) -> None:
        """Writes down what an individual has become: its genome, code, key and costs."""
        with self._writing():
            self._db.execute(
                "UPDATE individuals SET code = ?, key = ?, metrics = ? WHERE id = ?",
                (as_text(individual.code), individual.key, as_text(metrics), individual.id),
            )
            self._db.execute("INSERT OR REPLACE INTO genomes VALUES (?, ?)", (individual.id, as_text(genome)))

    def finish(
        self,
        evaluation: int,
        individual: Individual,
        status: Status,
        *,
        metrics: Mapping[str, float] | None = None,
        weights: Sequence[str] | None = None,
        steps: int = 0,
        seconds: tuple[float, float] = (0.0, 0.0),
        worker: int | None = None,
        why: str = "",
    ) -> list[str]:
        """Writes down the end of an evaluation; on the disk when this returns.

        Args:
            evaluation: Its id.
            individual: As the planner will be told of it, and told again after a resume.
            status: How it ended.
            metrics: What was measured.
            weights: Names of the blobs that hold the individual's weights; None leaves them as they were.
            steps: Optimizer steps that were made.
            seconds: Of making it, and of training it.
            worker: Number of who did it.
            why: Why it has failed, or was not trained.

        Returns:
            The blobs that the individual no longer has, as others took their place.
        """
        now = told(individual)
        before = self.weights(individual.id) if weights is not None else []
        with self._writing(durable=True):
            changed = self._db.execute(
                "UPDATE evaluations SET status = ?, ended = ?, metrics = ?, steps = ?, make_seconds = ?,"
                " train_seconds = ?, worker = ?, told = ?, finished_at = ?,"
                " finished = (SELECT COALESCE(MAX(finished), 0) + 1 FROM evaluations) WHERE id = ? AND status = 'out'",
                (status, why, as_text(metrics or {}), steps, *seconds, worker, now, time.time(), evaluation),
            )
            if changed.rowcount != 1:
                raise RuntimeError(f"Evaluation {evaluation} is not out, so it cannot be finished.")
            self._db.execute("UPDATE individuals SET told = ? WHERE id = ?", (now, individual.id))
            if weights is not None:
                self._db.execute("UPDATE individuals SET weights = ? WHERE id = ?", (as_text(weights), individual.id))
        return [name for name in before if name not in (weights or ())]

    def lost(self, evaluation: int, worker: int, why: str) -> int:
        """Writes down that a worker was lost, and returns how often the evaluation has now been begun in vain."""
        with self._writing():
            self._db.execute("INSERT INTO losses VALUES (?, ?, ?, ?)", (evaluation, worker, why, time.time()))
            self._db.execute("UPDATE evaluations SET attempts = attempts + 1 WHERE id = ?", (evaluation,))
            found = self._db.execute("SELECT attempts - 1 FROM evaluations WHERE id = ?", (evaluation,)).fetchone()
        return int(found[0])

    def release(self, living: Collection[int]) -> list[str]:
        """Forgets the weights of all individuals but some, and returns the blobs that nobody has any more."""
        rows = self._db.execute("SELECT id, weights FROM individuals WHERE weights IS NOT NULL").fetchall()
        held = {name for who, names in rows if who in living for name in json.loads(names)}
        gone = [(who, names) for who, names in rows if who not in living]
        with self._writing():
            self._db.executemany("UPDATE individuals SET weights = NULL WHERE id = ?", [(who,) for who, _ in gone])
        return sorted({name for _, names in gone for name in json.loads(names)} - held)

    def held(self) -> set[str]:
        """Returns the names of all blobs that some individual has."""
        rows = self._db.execute("SELECT weights FROM individuals WHERE weights IS NOT NULL")
        return {name for (names,) in rows for name in json.loads(names)}

    def put(self, name: str, value: Any) -> None:
        """Keeps a JSON value of the search as a whole."""
        with self._writing():
            self._put(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns what `create` or `put` has kept, or the default."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else default

    def state(self) -> Any:
        """Returns the planner's state after the last proposal; None before there is one."""
        return self.get("state")

    def individual(self, id: int) -> Individual:
        """Returns an individual as it was told last.

        Raises:
            KeyError: If there is none.
        """
        row = self._db.execute(f"SELECT {_INDIVIDUAL}, told FROM individuals i WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise KeyError(id)
        return read_individual(row)

    def genome(self, id: int) -> Any:
        """Returns the genome of an individual; None where it was not made."""
        found = self._db.execute("SELECT genome FROM genomes WHERE individual = ?", (id,)).fetchone()
        return json.loads(found[0]) if found else None

    def weights(self, id: int) -> list[str]:
        """Returns the names of the blobs that hold an individual's weights; none where they are gone."""
        found = self._db.execute("SELECT weights FROM individuals WHERE id = ?", (id,)).fetchone()
        return json.loads(found[0]) if found and found[0] else []

    def costs(self, id: int) -> dict[str, float]:
        """Returns the metrics that were known when an individual was made, such as its parameters."""
        found = self._db.execute("SELECT metrics FROM individuals WHERE id = ?", (id,)).fetchone()
        return json.loads(found[0]) if found else {}

    def metrics(self, id: int) -> dict[str, float]:
        """Returns what the last evaluation of an individual measured, and what it costs; nothing where all failed."""
        found = self._db.execute(
            "SELECT metrics FROM evaluations WHERE individual = ? AND status = 'done' ORDER BY finished DESC LIMIT 1",
            (id,),
        ).fetchone()
        return json.loads(found[0]) if found else {}

    def finished(self) -> Iterator[tuple[Evaluation, Individual]]:
        """Goes through what is finished, in that order, each with the individual as it was told then."""
        rows = self._db.execute(
            f"SELECT {_EVALUATION}, {_INDIVIDUAL}, e.told FROM evaluations e JOIN individuals i ON i.id = e.individual"
            " WHERE finished IS NOT NULL ORDER BY finished"
        )
        for row in rows:
            yield read_evaluation(row[: len(EVALUATION)]), read_individual(row[len(EVALUATION) :])

    def out(self) -> list[tuple[int, Job, int]]:
        """Returns what is not finished: its id, its job as it was proposed, and how often it was begun."""
        rows = self._db.execute(
            "SELECT id, attempts, individual, rung, seed, proposal, key FROM evaluations WHERE status = 'out'"
            " ORDER BY id"
        ).fetchall()
        return [(id, self._job(*rest), attempts) for id, attempts, *rest in rows]

    def counts(self) -> dict[str, int]:
        """Returns how many evaluations have each status."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM evaluations GROUP BY status"))

    def losses(self) -> list[tuple[int, int, str, float]]:
        """Returns evaluation, worker, reason and time (seconds since the epoch) of every lost worker."""
        return self._db.execute("SELECT evaluation, worker, why, at FROM losses ORDER BY rowid").fetchall()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self, durable: bool = False) -> Iterator[None]:
        """One transaction; a durable one waits for the disk, and takes with it what was written before."""
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise EvolveError(f"'{self.path}' could not be written: {error}. Make room, and resume.") from error

    def _put(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, as_text(value)))

    def _job(self, who: int, rung: int, seed: int, text: str, key: str) -> Job:
        proposal = read_proposal(text)
        if proposal.again is not None:
            return Job(self.individual(who), proposal, seed, rung)
        new = Individual(who, proposal.parents, proposal.edits, proposal.code, key)  # as it was before it was made
        return Job(new, proposal, seed, rung)
