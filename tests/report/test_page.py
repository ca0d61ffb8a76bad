"""The page of `evolve report --html`: what it holds, how small it is, and that nothing of a run folder acts in it."""

import json
import re
from html.parser import HTMLParser

import pytest
from helpers.cli_runs import invoke, succeeds, write_config
from helpers.small_search import search_config

from evolve.lineage import Reasons, Record, Weighed
from evolve.report.architecture_changes import blocks, compare
from evolve.report.page.chart import Scale, path, round_values, thin
from evolve.report.page.page import MOST_BYTES, report_page
from evolve.report.paid import metric_changes, what_paid
from evolve.report.run_data import read_run
from evolve.training.architecture import ModuleLine

LINE = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.6, "val_accuracy": 0.7, "params": 100}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e{{ 7*7 }}'\"&"


def record(**changes):
    fields = {"operator": "widen", "site": "0", "status": "applied", "message": "Widened.", "preserves": "exact"}
    return Record(**{**fields, "params_before": 10, "params_after": 20, "success": True, **changes})


def folder(tmp_path, metrics=(LINE,), records=(), **files):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (tmp_path / "lineage.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return tmp_path


class Parsed(HTMLParser):
    """The tags of a page, its text, and what its scripts hold."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.scripts, self._inside = [], "", [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data

    @property
    def data(self):
        return [json.loads(text) for text in self.scripts[:-1]]


def page_of(path):
    return Parsed(report_page([read_run(path)]))


def test_a_run_from_the_command_line(tmp_path):
    evolution = {
        "schedule": {"name": "at", "options": {"epochs": [1]}},
        "operators": [{"name": "widen", "sites": ["1"], "options": {"factor": 2.0}}],
    }
    config = write_config(tmp_path, evolution=evolution)
    succeeds("run", config)
    told = succeeds("report", tmp_path / "run", "--html", tmp_path / "page.html", "--svg", tmp_path / "curves.svg")
    assert re.search(r"Wrote .*page\.html \(\d+ kB\)", told.replace("\n", ""))
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    for text in ("What each operator paid", "Architecture before and after", "Made with", "torch 2.", "evolution:"):
        assert text in page.text
    assert [tag for tag, attrs in page.tags if "data-chart" in attrs].count("figure") >= 5
    assert "<svg" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_forecasts_stand_beside_what_the_run_came_to(tmp_path):
    facts = {"step": 60, "progress": 0.06, "operator": EVIL, "steps": 20, "cost": 1.78, "slope": [0.3, 0.02]}
    facts |= {"lead": [0.1, 0.01], "needed": 0.05, "grows": True, "until": 0.8, "ends": [[0.61, 0.02], [0.52, 0.01]]}
    came = {"step": 800, "progress": 0.8, "loss": 0.53, "steps": 50, "expected": [0.52, 0.01]}
    page = page_of(folder(tmp_path, forecasts__jsonl=json.dumps(facts) + "\n" + json.dumps(came) + "\n"))
    text = " ".join(page.text.split())
    assert "Forecasts of the training loss" in text
    assert "600.10.0580%0.61 ± 0.0260.52 ± 0.013" in text
    assert "for 1.78 times the cost0.53" in text
    assert "Forecasts" not in page_of(folder(tmp_path / "none")).text


def test_it_asks_for_no_other_file_and_allows_no_other_script(tmp_path):
    page = page_of(folder(tmp_path / "run", records=[record(step=10)]))
    asking = [
        (tag, name, value)
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data") and not str(value).startswith(("#", "data:,"))
    ]
    assert asking == []
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


@pytest.mark.parametrize("several", [False, True])
def test_whatever_a_name_holds_is_text(tmp_path, several):
    choice = Reasons(policy=EVIL, by=EVIL, chosen=Weighed(operator=EVIL, site=EVIL, note=EVIL), others=[])
    fields = dict.fromkeys(("operator", "site", "message", "reason"), EVIL)
    modules = [{"name": name, "kind": EVIL, "settings": EVIL, "params": 5, "inserted": [EVIL]} for name in ("", EVIL)]
    run = folder(
        tmp_path / "run",
        [{**LINE, f"val_{EVIL}": 1.0}],
        [record(step=10, choice=choice, **fields)],
        architecture__json=json.dumps({"first": modules, "last": [*modules, {**modules[1], "name": EVIL + "2"}]}),
        environment__json=json.dumps({"sessions": [{"system": EVIL, "versions": {EVIL: EVIL}, "devices": [EVIL]}]}),
        config__yaml=f"seed: {EVIL}",
    )
    text = report_page([read_run(run)] * (1 + several))
    page = Parsed(text)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 2 + 2 * several
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not {"\x1b", "\u202e"} & set(text)
    assert "{{ 7*7 }}" in page.text
    assert page.data  # which is JSON that a browser reads


@pytest.mark.parametrize("values", [(1e-300, 1e300), (5e-324, 1e-323), (1.7e308, -1.7e308)])
def test_the_largest_and_smallest_numbers_that_there_are(tmp_path, values):
    lines = [{**LINE, "step": step, "val_loss": value} for step, value in enumerate(values)]
    path = folder(tmp_path / "run", lines)
    assert 'aria-label="loss over the run' in report_page([read_run(path)])
    assert "val loss" in succeeds("report", path)


def test_many_long_runs_fit_into_a_megabyte(tmp_path):
    lines = [
        {**LINE, "epoch": n, "step": 10 * n, **{f"val_m{k}": n * 0.37 % (k + 1) for k in range(8)}}
        for n in range(1, 601)
    ]
    text = report_page([read_run(folder(tmp_path / f"run{n}", lines)) for n in range(8)])
    assert len(text.encode()) <= MOST_BYTES
    assert text.count('<figure class="chart"') > 8 * 8


def test_a_thousand_mutations_fit_into_a_megabyte(tmp_path):
    others = [
        Weighed(operator="widen", site=f"layer{n}.0.conv{n}", value=n / 7, note="a reason " * 9) for n in range(60)
    ]
    choice = Reasons(policy="gradient", by="senn per flops", chosen=others[0], others=others)
    records = [
        record(index=n, step=10 * n, epoch=n, choice=choice, site=f"layer{n}", message=f"Why {n}: " + "so " * 100)
        for n in range(1000)
    ]
    lines = [{**LINE, "epoch": n, "step": 10 * n, "val_loss": 1 / n} for n in range(1, 1001)]
    text = report_page([read_run(folder(tmp_path / "run", lines, records))])
    assert len(text.encode()) <= MOST_BYTES
    rows = [attrs["id"] for tag, attrs in Parsed(text).tags if attrs.get("id", "").startswith("r-")]
    assert rows[-1] == "r-0-999"
    marks = next(
        attrs["d"] for tag, attrs in Parsed(text).tags if (tag, attrs.get("class")) == ("path", "mark applied")
    )
    assert "V880" in marks  # below the curves, as there are many
    assert "V0" not in marks


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "text", -1, 0, 10**400])
@pytest.mark.parametrize("key", ["val_loss", "params", "epoch", "step"])
def test_any_value_in_the_metrics(tmp_path, key, value):
    page = page_of(folder(tmp_path / "run", [LINE, {**LINE, key: value}], [record(step=3), record()]))
    assert "What each operator paid" in page.text
    assert page.data


def test_a_folder_without_anything_else_is_shown(tmp_path):
    page = page_of(folder(tmp_path / "run", metrics=()))
    for text in ("No epoch has finished yet.", "No mutation was attempted.", "Hardware and versions are not in this"):
        assert text in page.text


def test_a_picture_is_called_what_was_asked_for(tmp_path):
    pytest.importorskip("matplotlib")
    succeeds("report", folder(tmp_path / "run"), "--svg", tmp_path / "curves.v1")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "curves.v1.svg"}


def test_a_search_has_its_front_and_families(tmp_path):
    config = search_config(tmp_path, objectives=["val_accuracy", "params"], algorithm="nsga2")
    succeeds("search", config)
    succeeds("report", tmp_path / "search", "--html", tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Front of val_accuracy and params" in page.text
    assert re.search(r"versions.*torch 2\.", page.text, re.S)
    assert re.search(r"seed\s*0", page.text)
    front, family = page.data[0]["pictures"]
    assert {point[2] for point in front} == {point[2] for point in family}
    assert any(point[5] == [0] for point in family)  # children of the first
    ended = invoke("report", tmp_path / "search", "--png", tmp_path / "picture.png")
    assert "Curves are of runs." in ended.output
    assert ended.exit_code == 1


def test_a_folder_of_runs_is_one_page(tmp_path):
    for name in ("one", "two"):
        folder(tmp_path / name, [LINE, {**LINE, "epoch": 2, "step": 20}], [record(step=10)])
    succeeds("report", tmp_path, "--html", tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Side by side" in page.text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "details" and "id" in attrs] == ["part-0", "part-1"]
    assert len(page.data) == 3
    label, points = page.data[0]["charts"][0][0]
    assert (label, len(points)) == ("one", 2)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    ended = invoke("report", folder(tmp_path / "run"), "--html", tmp_path / "none" / "page.html")
    assert ended.exit_code == 1
    assert "cannot be written" in ended.output


def line(name, kind="Linear", settings="", params=0, inserted=()):
    return ModuleLine(name=name, kind=kind, settings=settings, params=params, inserted=list(inserted))


BEFORE = [
    line("", "Net"),
    line("a", settings="4, 8", params=40),
    line("b", "ReLU"),
    line("c", params=9),
    line("d", params=7),
]
AFTER = [
    line("", "Net"),
    line("a", settings="4, 16", params=80, inserted=["evolved.x"]),
    line("b", "ReLU"),
    line("d", params=7),
    line("evolved", "Store"),
    line("evolved.x", "Block", params=5),
]


def test_what_changed_in_an_architecture():
    rows = {row.label: row for row in compare(BEFORE, AFTER)}
    assert {label: row.change for label, row in rows.items()} == {
        "Net": "inside", "a": "changed", "+ x": "added", "b": "same", "c": "removed", "d": "same",
    }  # fmt: skip
    assert list(rows) == ["Net", "a", "+ x", "b", "c", "d"]
    assert (rows["Net"].params_before, rows["Net"].params_after) == (56, 92)
    assert rows["a"].before == [("Linear(", False), ("4, ", False), ("8)", True)]
    assert rows["a"].after == [("Linear(", False), ("4, ", False), ("16)", True)]
    assert (rows["+ x"].depth, rows["+ x"].params_before, rows["+ x"].params_after) == (2, None, 5)


def test_what_stayed_is_told_together():
    many = [line("", "Net"), *(line(f"l{n}", params=n) for n in range(9))]
    (_, row) = compare(many, many)
    assert (row.label, row.after, row.params_after) == ("l0 … l8", [("9 modules as before", False)], 36)


def test_blocks_are_the_modules_with_parameters():
    before, after = blocks(BEFORE, AFTER)
    assert [(part, [(b.name, b.change) for b in found]) for part, found in before] == [
        ("a", [("a", "changed")]), ("c", [("c", "removed")]), ("d", [("d", "same")]),
    ]  # fmt: skip
    assert [(part, [(b.name, b.change) for b in found]) for part, found in after] == [
        ("a", [("a", "changed"), ("evolved.x", "added")]), ("d", [("d", "same")]),
    ]  # fmt: skip
    assert {b.change for _, found in blocks(None, AFTER)[1] for b in found} == {"same"}


def test_modules_that_name_each_other_are_no_trap():
    loop = [line(""), line("a", inserted=["b"]), line("b", inserted=["a"]), line("", inserted=[""])]
    assert len(compare(loop, loop)) == 1
    deep = [line(""), *(line(".".join("a" * n), params=1) for n in range(1, 400))]
    assert len(compare(deep, [*deep, line("b")])) >= 2


def test_what_operators_paid(tmp_path):
    losses = [1.0, 0.8, 0.5, 0.4, 0.1]
    lines = [{**LINE, "epoch": n + 1, "step": 10 * (n + 1), "val_loss": loss} for n, loss in enumerate(losses)]
    back = {"status": "rolled_back", "success": False, "params_after": 10}
    tried = [
        record(index=0, step=10),
        record(index=1, step=20, operator="deepen", **back),
        record(index=2, step=30, operator="deepen", params_after=15),
        record(index=3, step=50),
    ]
    run = read_run(folder(tmp_path / "run", lines, tried), {"val_loss": "min"}, "val_loss")
    assert metric_changes(run) == pytest.approx({0: 0.5 - 1.0, 2: 0.1 - 0.5})  # none after the last epoch
    widen, deepen = what_paid(run)
    assert (widen.tried, widen.applied, widen.params, widen.median_change) == (2, 2, 20, pytest.approx(-0.5))
    assert (deepen.tried, deepen.applied, deepen.taken_back, deepen.refused, deepen.params) == (2, 1, 1, 0, 5)


def test_points_of_a_curve():
    across, up = Scale(0, 10), Scale(0, 1)
    assert path([(0, 0), (5, 0.5), (10, 1)], across, up) == "M0 1000L500 500L1000 0"
    assert path([(0, 0), (5, float("nan")), (10, 1)], across, up) == "M0 1000M1000 0"
    assert path([(5, 0.5)], across, up) == "M500 500h.1"
    assert Scale.over([1, 1000], log=True, margin=0).at(10) == pytest.approx(333.3)
    assert Scale.over([1, 1000], log=True, margin=0).ticks() == [1, 10, 100, 1000]
    assert round_values(0, 10) == [0, 2, 4, 6, 8, 10]
    assert round_values(3, 3) == [3]


def test_thinning_keeps_the_ends_and_the_extremes():
    points = [(float(x), 0.0) for x in range(10_000)]
    points[1234], points[4321] = (1234.0, 9.0), (4321.0, -9.0)
    kept = thin(points, 600)
    assert len(kept) <= 1300
    assert {points[0], points[-1], points[1234], points[4321]} <= set(kept)
