"""What is shown of a search: within a terminal's width, in whole words, and nothing in a folder steers the terminal."""

import io
import re
from dataclasses import replace

import pytest
from helpers.cli_runs import invoke, succeeds
from helpers.small_search import search_config
from rich.console import Console

from evolve.population.archive import Archive
from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.planner import Job
from evolve.report.search_report import search_report
from evolve.report.search_status import search_status
from evolve.report.search_view import SearchView, budget_words
from evolve.training.lock import RunLock

EVIL = "wi\x1b[2Jden[/bold][red]\u202e\r\n"
META = {
    "objectives": [["val_accuracy", "max"], ["params", "min"]],
    "budget": ["evaluations", 4],
    "executor": {"executor": "processes", "workers": 1},
    "algorithm": "nsga2",
    "space": "networks",
}


def archive(folder, operator="widen", why="", **meta):
    """A search that was killed: a root, a child that is done, one that failed, one that is out."""
    folder.mkdir(parents=True)
    with Archive.create(folder / "archive.sqlite", {**META, **meta}) as written:
        for number in range(4):
            parents, edits = ((0,), (Edit(operator, operator),)) if number else ((), ())
            who = Individual(number, parents, edits)
            job = Job(who, Proposal(parents, edits), 0)
            evaluation = written.propose(job, {"planner": {}, "seconds": 61.0})
            if number == 3:
                break
            metrics = {name: 0.5 + number for name, _ in {**META, **meta}["objectives"]}
            done = number < 2
            values = tuple(metrics.values()) if done else None
            told = replace(who, values=values, evaluations=1)
            status = "done" if done else "failed"
            written.finish(evaluation, told, status, metrics=metrics if done else {}, why=why, seconds=(1.0, 2.0))
    return folder


def shown(view, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize("view", [search_status, search_report])
def test_what_lies_in_a_folder_does_not_steer_the_terminal(view, tmp_path):
    evil = [[EVIL, "max"], [EVIL + "2", "min"]]
    folder = archive(tmp_path / f"a{EVIL.strip()}b", EVIL, EVIL, objectives=evil, algorithm=EVIL, space=EVIL)
    text = shown(view(folder))
    assert "wi\\x1b[2Jden[/bold][red]" in shown(view(folder), width=500)
    assert not set(text) & {"\x1b", "\r", "\u202e"}


def test_a_status_says_how_a_search_stands(tmp_path):
    folder = archive(tmp_path / "run")
    text = shown(search_status(folder), 200)
    assert "75% of 4 evaluations" in text
    assert "3 evaluated, 1 failed" in text
    assert "1 worker, 1m01s" in text
    assert f"No process is at it: `evolve resume {folder}` goes on." in text
    with RunLock(folder):
        assert "1 evaluation under way. The last one came back 0s ago." in shown(search_status(folder))
    with Archive.open(folder / "archive.sqlite") as written:
        written.put("finished", True)
    assert "Finished. The last one" in shown(search_status(folder))


def test_reasons_that_differ_in_figures_are_told_together(tmp_path):
    folder = archive(tmp_path / "run")
    with Archive.open(folder / "archive.sqlite") as written:
        for number, change in ((4, "8.39"), (5, "1.8e-05")):
            who = Individual(number, (0,), (Edit("remove", "1"),))
            evaluation = written.propose(Job(who, Proposal((0,), who.edits), 0), {"planner": {}, "seconds": 61.0})
            written.finish(evaluation, who, "refused", why=f"the output changed by {change}")
    text = shown(search_report(folder))
    assert "    2  refused: the output changed by 8.39" in text
    assert "1.8e-05" not in text


def test_every_line_fits_a_terminal(tmp_path):
    printed = succeeds("search", search_config(tmp_path, objectives=["val_accuracy", "params"], algorithm="nsga2"))
    lines = printed[: printed.index("Folder")].splitlines()
    assert max(map(len, lines)) <= 80
    assert printed.startswith("nsga2 seeks high val_accuracy and low params for 8 evaluations, in this process.\n")
    assert re.search(
        r"^ 12% 1 evaluated, \d+s; front of 1, new best val_accuracy [\d.]+% \(individual\s+0\)$", printed, re.M
    )


def test_nothing_evaluated_is_not_a_success_story(tmp_path):
    ended = invoke("search", search_config(tmp_path, timeout=1e-9))
    assert ended.exit_code == 1
    assert "The first model could not be trained" in ended.output
    assert "seconds were over" in succeeds("report", tmp_path / "search")


@pytest.mark.parametrize(
    ("unit", "amount", "words"),
    [
        ("evaluations", 1, "1 evaluation"),
        ("steps", 1_000_000, "1,000,000 steps"),
        ("seconds", 300, "5m00s"),
    ],
)
def test_budgets_in_words(unit, amount, words):
    assert budget_words(unit, amount) == words


def test_a_best_one_that_falls_back_makes_no_other_one_a_new_best():
    view, one, other = (
        SearchView([("val_loss", "min"), ("params", "min")], ("evaluations", 9)),
        *map(Individual, (0, 1)),
    )

    def take(who, loss, params):
        return view.take(replace(who, values=(-loss, -params)), "done", {"val_loss": loss, "params": params}, 0.0)

    assert take(one, 0.3, 10)
    assert take(other, 0.2, 20)
    assert not take(other, 0.4, 20)  # evaluated again
    assert view.best[0][0].id == 0
    assert not take(one, 0.1, 10)
    assert take(other, 0.05, 20)


def test_workers_in_words():
    assert SearchView([("val_loss", "min")], ("steps", 10), 1).line(3.0) == "0 evaluated, 1 worker, 3s"
    assert SearchView([("val_loss", "min")], ("steps", 10), 2, lost=1).line(3.0, busy=1) == (
        "0 evaluated, 1 worker lost, 1 of 2 workers busy, 3s"
    )


def test_a_folder_without_a_search_is_told(tmp_path):
    result = invoke("search", "--status", tmp_path)
    assert result.exit_code == 1
    assert "holds no search: it has no archive.sqlite" in result.stderr
