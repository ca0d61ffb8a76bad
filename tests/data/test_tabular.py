"""Tables: numbers, categories, gaps, targets of each kind, splits, and what is told about a file that does not fit."""

import datetime
import decimal
import sys

import numpy as np
import pytest
import torch

from evolve import build_model
from evolve.data import build_data
from evolve.errors import DataError

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
parquet = pytest.importorskip("pyarrow.parquet")

TRAIN = """age,city,member,weight,kind
20,Rome,true,1.5,cat
30,Bern,false,,dog
40,Rome,true,2.5,cat
50,,false,3.5,dog
"""
VAL = """age,city,member,weight,kind
60,Oslo,true,,cat
35,Bern,false,2.5,dog
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "val.csv").write_text(VAL)
    return {"path": str(tmp_path / "train.csv"), "val_path": str(tmp_path / "val.csv"), "target": "kind"}


def load(options, name="csv", **more):
    return build_data(name, batch_size=2, options={**options, **more})


def write(tmp_path, **columns):
    parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    return {"path": str(tmp_path / "table.parquet")}


def column(data, name, part="train"):
    return getattr(data, part).inputs[:, data.feature_names.index(name)]


def test_numbers_are_standardised_by_the_training_part(files):
    data = load(files)
    assert data.feature_names == ("age", "member", "weight", "city=Bern", "city=Rome")
    age = (torch.tensor([20.0, 30, 40, 50]) - 35) / np.sqrt(125)
    torch.testing.assert_close(column(data, "age"), age)
    torch.testing.assert_close(column(data, "age", "val"), (torch.tensor([60.0, 35]) - 35) / np.sqrt(125))
    assert column(data, "member").tolist() == [1, -1, 1, -1]


def test_gaps_become_the_training_mean(files):
    data = load(files)
    deviation = float(np.std([1.5, 2.5, 3.5]))
    torch.testing.assert_close(column(data, "weight"), torch.tensor([-1.0, 0, 0, 1]) / deviation)
    assert column(data, "weight", "val").tolist() == [0, 0]
    told = load(files, missing_indicators=True)
    assert told.feature_names[:4] == ("age", "member", "weight", "weight missing")
    assert column(told, "weight missing").tolist() == [0, 1, 0, 0]
    assert column(told, "weight missing", "val").tolist() == [1, 0]


def test_categories_are_those_of_the_training_part(files):
    data = load(files)
    assert column(data, "city=Rome").tolist() == [1, 0, 1, 0]
    assert column(data, "city=Bern").tolist() == [0, 1, 0, 0]
    assert data.val.inputs[0, 3:].tolist() == [0, 0]  # Oslo is unknown
    assert data.val.inputs[1, 3:].tolist() == [1, 0]


def test_codes_for_embeddings(files):
    data = load(files, categories="codes", categorical=["age"])
    inputs, targets = data.train.examples(4)
    assert inputs["categories"].tolist() == [[1, 2], [2, 1], [3, 2], [4, 0]]
    assert inputs["numbers"].shape == (4, 2)
    assert data.category_sizes == (5, 3)
    assert data.feature_names == ("member", "weight", "age", "city")
    assert data.val.examples(2)[0]["categories"].tolist() == [[0, 0], [0, 1]]
    assert (data.input_shape, targets.tolist()) == (None, [0, 1, 0, 1])


def test_rare_categories_are_unknown_ones(tmp_path, caplog):
    options = write(tmp_path, word=["b"] * 5 + ["a"] * 3 + ["c"] * 2, y=[0.5] * 10)
    with caplog.at_level("INFO"):
        data = load(options, "parquet", target="y", max_categories=2, val_path=options["path"])
    assert data.feature_names == ("word=a", "word=b")
    assert "Of the 3 categories of 'word' the 2 most frequent are kept" in caplog.text
    assert data.train.inputs.sum(0).tolist() == [3, 5]


def test_classes(files):
    data = load(files)
    assert (data.class_names, data.num_classes, data.num_outputs) == (("cat", "dog"), 2, 2)
    assert data.train.targets.tolist() == [0, 1, 0, 1]
    assert data.train.targets.dtype == torch.int64


def test_whole_numbers_are_classes_where_they_are_few(tmp_path, caplog):
    options = write(tmp_path, x=list(range(40)), few=[10, 9] * 20, many=list(range(40)), yes=[True, False] * 20)
    few = load(options, "parquet", target="few", drop=["many"])
    assert few.class_names == ("9", "10")  # by size, not by the alphabet
    assert few.val.targets.bincount().tolist() == [4, 4]
    many = load(options, "parquet", target="many")
    assert (many.num_classes, many.num_outputs, many.train.targets.shape) == (None, 1, (32, 1))
    assert load(options, "parquet", target="yes").class_names == ("False", "True")
    with caplog.at_level("INFO"):
        forced = load(options, "parquet", target="few", problem="regression")
    assert forced.train.targets.unique().tolist() == [9, 10]
    assert "taken for regression" in caplog.text


def test_a_regression_of_several_targets_fits_an_mlp(tmp_path):
    x = np.random.default_rng(0).normal(size=50)
    options = write(tmp_path, x=x, double=2 * x, minus=-x)
    data = load(options, "parquet", target=["double", "minus"])
    inputs, targets = data.train.examples(50)
    assert (inputs.shape, targets.shape, data.num_outputs) == ((40, 1), (40, 2), 2)
    torch.testing.assert_close(targets[:, 0], -2 * targets[:, 1])
    model = build_model("mlp", in_features=len(data.feature_names), hidden=[4], num_classes=data.num_outputs)
    assert torch.nn.functional.mse_loss(model(inputs), targets).ndim == 0
    assert model(inputs).shape == targets.shape


def test_several_labels(tmp_path):
    options = write(tmp_path, x=list(range(10)), red=[0, 1] * 5, big=[True, False] * 5)
    data = load(options, "parquet", target=["red", "big"])
    assert (data.class_names, data.num_outputs, data.num_classes) == (("red", "big"), 2, None)
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.sum(1).unique().tolist() == [1]
    with pytest.raises(DataError, match="'x' holds other values than 0 and 1"):
        load(options, "parquet", target=["red", "x"], problem="multilabel")


def test_other_kinds_of_numbers(tmp_path):
    days = [datetime.date(2020, 1, 1), datetime.date(2020, 1, 3)] * 4
    options = write(
        tmp_path,
        day=days,
        time=[datetime.datetime(2020, 1, d.day, 3) for d in days],
        price=[decimal.Decimal("1.50"), decimal.Decimal("2.50")] * 4,
        nothing=pa.nulls(8),
        level=pa.array(["a", "b"] * 4).dictionary_encode(),
        y=[0.0, 1.0] * 4,
    )
    data = load(options, "parquet", target="y", val_path=options["path"])
    assert data.feature_names == ("day", "time", "price", "nothing", "level=a", "level=b")
    assert data.train.inputs[0].tolist() == [-1, -1, -1, 0, 1, 0]
    assert data.train.inputs[1].tolist() == [1, 1, 1, 0, 0, 1]


def test_columns_that_tell_nothing_are_logged(tmp_path, caplog):
    options = write(
        tmp_path, row=list(range(9)), same=[3] * 9, name=[f"n{i}" for i in range(9)], one=["a"] * 9, y=[0.5] * 9
    )
    with caplog.at_level("INFO"):
        data = load(options, "parquet", target="y", val_path=options["path"])
    assert column(data, "same").unique().tolist() == [0]
    for words in (
        "'row' counts the rows: it looks like an identifier",
        "'same' is constant",
        "'name' of its own: it looks like an identifier",
        "'one' is constant",
    ):
        assert words in caplog.text


def test_the_split_is_of_its_own_seed(tmp_path):
    options = write(tmp_path, x=list(range(30)), y=[0.5] * 30)
    one, other = (build_data("parquet", seed=seed, options={**options, "target": "y"}) for seed in (1, 2))
    assert torch.equal(one.val.inputs, other.val.inputs)
    assert (one.train.samples, one.val.samples) == (24, 6)
    assert not torch.equal(one.val.inputs, load(options, "parquet", target="y", split_seed=1).val.inputs)


def test_types_are_inferred_from_the_whole_file(tmp_path):
    rows = [f"{n % 7},1" for n in range(300_000)]  # more than the megabyte that pyarrow looks at
    (tmp_path / "long.csv").write_text("\n".join(["y,x", *rows, "0.5,word"]))
    data = load({"path": str(tmp_path / "long.csv")}, target="y")
    assert data.feature_names == ("x=1", "x=word")
    assert 0.5 in torch.cat([data.train.targets, data.val.targets])


def test_a_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text(TRAIN.replace(",", ";"))
    assert load({"path": str(tmp_path / "t.csv")}, target="kind", delimiter=";", val_fraction=0.5).val.samples == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "knd"}, r"target: there is no column 'knd'. Did you mean 'kind'\?.*There are: age, city"),
        ({"drop": ["cty"]}, "drop: there is no column 'cty'. Did you mean 'city'"),
        ({"categorical": ["kind"]}, "'kind' is the target"),
        ({"target": []}, "empty list"),
        ({"drop": ["age", "city", "member", "weight"]}, "No column is left"),
        ({"target": "weight"}, r"'weight' has no value in 2 of 6 rows, the first of them row 1"),
        ({"target": "city", "problem": "regression"}, "'city' has no value in 1"),
        ({"problem": "regression"}, "'kind' holds text, not numbers. Set problem: classification"),
        ({"target": "age"}, r"class '35' of 'age' is in the held-out part alone"),
        ({"target": ["age", "kind"], "problem": "classification"}, "one target column, not 2"),
        ({"max_categories": 0}, "max_categories must be at least 1"),
        ({"delimiter": ";;"}, "one character"),
        ({"path": "nowhere.csv"}, "There is no file"),
        ({"val_path": None, "val_fraction": 0.1}, "leaves 4 samples to train on and 0 held out"),
        ({"problem": "regresion"}, "problem"),
    ],
)
def test_what_does_not_fit_is_told(files, options, words):
    with pytest.raises(DataError, match=words):
        load(files, **options)


def test_files_that_are_damaged(tmp_path, files):
    for text, words in (
        ("a,b\n1,2\n1,2,3\n", "Cannot read the table"),
        ("a,kind\n", "has no rows"),
        ("", "Cannot read the table"),
        ("kind,kind\n1,2\n", "Columns have the same name: kind"),
        ("kind,a\n1,inf\n2,3\n1,1\n2,2\n", "'a' holds infinity in row 0"),
    ):
        (tmp_path / "odd.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            load({"path": str(tmp_path / "odd.csv")}, target="kind", val_fraction=0.5)
    (tmp_path / "odd.csv").write_text("age,kind\n1,cat\n")
    with pytest.raises(DataError, match="only one of them has: city, member, weight"):
        load(files, val_path=str(tmp_path / "odd.csv"))
    (tmp_path / "odd.csv").write_text(VAL.replace("60", "old"))
    with pytest.raises(DataError, match="hold different kinds of values"):
        load(files, val_path=str(tmp_path / "odd.csv"))
    options = write(tmp_path, x=[[1, 2], [3]], y=[0.5, 1.5])
    with pytest.raises(DataError, match=r"'x' of type list.*drop"):
        load(options, "parquet", target="y", val_fraction=0.5)


def test_a_missing_library_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install pyarrow, or pip install 'evolve-torch\[tabular\]'"):
        load(files)
