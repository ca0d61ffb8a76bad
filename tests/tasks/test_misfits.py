"""Task, data, model and metrics that do not go together: told in one message with the cause, before the first step."""

import pytest
import yaml
from helpers.task_misfits import DATA, linear
from typer.testing import CliRunner

from evolve import Evolver, TrainingConfig
from evolve.cli import app
from evolve.errors import EvolveError, MisfitError, UnknownNameError
from evolve.tasks import Classification, Task, TaskConfig

HERE = "helpers.task_misfits:"


def model(name="linear", **options):
    return {"name": HERE + name, "options": options}


def task(name, *metrics, **options):
    return {"name": name, "options": options, **({"metrics": list(metrics)} if metrics else {})}


def f1(**options):
    return {"name": "f1", "options": options}


def monitor(metric, mode=None):
    return {"monitor": {"metric": metric, "mode": mode}}


THREE, ONE, DICT = model(), model(outputs=1), model("OwnLoss")
PIXELS, TOKENS, DETECTOR = model("Pixels"), model("Tokens"), model("Detector")
CLASSES, MASKS, TEXT, BOXES = task("classification"), task("segmentation"), task("language_modeling"), task("detection")

# data, model, task, training, what the message has to say
MISFITS = {
    "inputs in double": ("double", THREE, CLASSES, {}, ["float64", "computes in float32"]),
    "flat targets": ("flat", ONE, task("regression"), {}, ["(8, 1)", "(8,)", "targets.reshape(-1, 1)"]),
    "flat outputs": ("column", model("Flat"), task("regression"), {}, ["(8,)", "(8, 1)", "targets.reshape(-1)"]),
    "one output for three": ("three columns", ONE, task("regression"), {}, ["(8, 1)", "(8, 3)", "last layer"]),
    "numbers for classes": ("column", THREE, CLASSES, {}, ["class numbers", "float32", "mse_loss"]),
    "NaN targets": ("nan targets", ONE, task("regression"), {}, ["targets of the training data", "[3, 0]"]),
    "infinite features": ("nan features", ONE, task("regression"), {}, ["inputs of the training data", "6 of 96"]),
    "classes out of range": ("high class", THREE, CLASSES, {}, ["from 0 to 3", "4 outputs"]),
    "classes from 1": ("classes from 1", THREE, CLASSES, {}, ["from 1 to 3", "renumber the targets from 0"]),
    "several labels for one class": ("bits", THREE, CLASSES, {}, ["sum of 1", "sums up to 2", "'multilabel'"]),
    "class numbers for labels": ("classes", THREE, task("multilabel"), {}, ["(8, 3)", "(8,)"]),
    "whole numbers for labels": ("whole bits", THREE, task("multilabel"), {}, ["floating-point", "int64", ".float()"]),
    "percent for labels": ("percent bits", THREE, task("multilabel"), {}, ["between 0 and 1", "0 and 100"]),
    "too few weights": (
        "classes", THREE, task("classification", class_weights=[1.0, 2.0]), {},
        ["task.options.class_weights has 2 entries", "3 outputs", "one for each class"],
    ),
    "too few weights of pixels": (
        "masks", PIXELS, task("segmentation", class_weights=[1.0]), {}, ["task.options.class_weights has 1 entries"]
    ),
    "too few weights of labels": (
        "bits", THREE, task("multilabel", pos_weight=[1.0, 2.0]), {}, ["task.options.pos_weight", "(2,)", "output (3)"]
    ),
    "a negative weight": (
        "classes", THREE, task("classification", class_weights=[1.0, 2.0, -1.0]), {},
        ["task.options.class_weights[2]", "at least 0"],
    ),
    "no weights": ("classes", THREE, task("classification", class_weights=[]), {}, ["task.options.class_weights", "1"]),
    "weights for another loss": (
        "classes", THREE, task("classification", class_weights=[1.0, 2.0, 3.0]), {"loss": "nll_loss"},
        ["task.options.class_weights", "another loss", "training.loss.options.weight"],
    ),
    "masks with a channel": ("masks with a channel", PIXELS, MASKS, {}, ["(8, 1, 8, 8)", "targets.squeeze(1)"]),
    "smaller masks": ("masks of half the size", PIXELS, MASKS, {}, ["(8, 4, 4)", "Resize the targets", "interpolate"]),
    "smaller outputs": ("masks", model("Pixels", stride=2), MASKS, {}, ["(8, 3, 4, 4)", "interpolate"]),
    "borders": ("masks with a border", PIXELS, MASKS, {}, ["from 0 to 255", "ignore_index"]),
    "one-hot masks": ("one-hot masks", PIXELS, MASKS, {}, ["one-hot", "targets.argmax(1)"]),
    "masks of bytes": ("byte masks", PIXELS, MASKS, {}, ["int64", "uint8", ".long()"]),
    "masks of floats": ("float masks", PIXELS, MASKS, {}, ["float32", ".long()"]),
    "labels for pixels": ("labels for images", PIXELS, MASKS, {}, ["(8,)", "for each position"]),
    "one class of pixels": ("masks", model("Pixels", classes=1), MASKS, {}, ["single output"]),
    "tokens to predict out of range": ("high tokens", TOKENS, TEXT, {}, ["tokens to predict", "0 to 11", "11 outputs"]),
    "tokens out of range": (
        "high input tokens", TOKENS, TEXT, {}, ["inputs from 0 to 11", "embedding", "the vocabulary"]
    ),
    "tokens of floats": ("float tokens", TOKENS, TEXT, {}, ["embedding", ".long()"]),
    "logits of one position": ("tokens", model("Tokens", form="last"), TEXT, {}, ["(8, 11)", "positions"]),
    "logits the other way": ("tokens", model("Tokens", form="transposed"), TEXT, {}, ["(8, 11, 5)", "vocabulary"]),
    "tokens without labels": ("tokens without labels", TOKENS, TEXT, {}, ["no targets", "'input_ids'"]),
    "one label for a text": ("one label for a text", TOKENS, TEXT, {}, ["(8, 5, 11)", "the targets have shape (8,)"]),
    "text as classes": ("tokens", TOKENS, CLASSES, {}, ["classes last", "'language_modeling'", "dimension 1"]),
    "a mask that the model does not take": (
        "token fields and a mask", TOKENS, TEXT, {},
        ["forward takes (input_ids)", "'language_modeling'", "the keywords input_ids, attention_mask"],
    ),
    "a keyword that the model lacks": (
        "dict, another key", model("Form"), CLASSES, {}, ["forward takes (x)", "'classification'", "features"]
    ),
    "the same for a model with a loss": (
        "dict, another key", DICT, task("huggingface"), {}, ["forward takes (values, labels=None)", "features, labels"]
    ),
    "no loss": ("dict", model("OwnLoss", silent=True), task("huggingface"), {}, ["returned no loss", "values, labels"]),
    "no labels": ("dict without labels", DICT, task("huggingface"), {}, ["returned no loss", "needs labels"]),
    "a loss for each": ("dict", model("OwnLoss", scalar=False), task("huggingface"), {}, ["(4,)", "one number"]),
    "a pair for keywords": ("classes", THREE, task("huggingface"), {}, ["mappings", "'input_ids'", "a tuple"]),
    "a target under another key": ("dict, key y", model("Form"), CLASSES, {}, ["'values', 'y'", "task.options.target"]),
    "a target that is not there": (
        "dict, key y", model("Form"), task("classification", target="yy"), {}, ["no 'yy'", "Did you mean 'y'?"]
    ),
    "text for tensors": ("dict of text", model("Form"), CLASSES, {}, ["no tensor but", "(inputs, targets)"]),
    "inputs alone": ("inputs alone", THREE, CLASSES, {}, ["no targets", "a Tensor", "collate_fn"]),
    "one input for two": ("classes", model("TwoInputs"), CLASSES, {}, ["forward takes (left, right)", "1 argument"]),
    "ragged samples": ("ragged", THREE, CLASSES, {}, ["different shapes", "collate_fn"]),
    "outputs in a tuple": ("classes", model("Form", form="tuple"), CLASSES, {}, ["returned a tuple", "training.loss"]),
    "no boxes": ("no boxes", DETECTOR, BOXES, {}, ["Target 0 has no tensor 'boxes'", "'labels'"]),
    "boxes without labels": ("no labels", DETECTOR, BOXES, {}, ["Target 0 has no tensor 'labels'"]),
    "flat boxes": ("flat boxes", DETECTOR, BOXES, {}, ["(4,)", "(boxes, 4)"]),
    "boxes without an area": ("boxes without an area", DETECTOR, BOXES, {}, ["without an area", "(x1, y1, x2, y2)"]),
    "width and height": ("boxes with width and height", DETECTOR, BOXES, {}, ["box_convert", "'xywh', 'xyxy'"]),
    "the background's label": ("boxes of labels from 0", DETECTOR, BOXES, {}, ["label 0", "background", "Add 1"]),
    "labels of boxes too high": ("boxes of high labels", DETECTOR, BOXES, {}, ["from 7 to 7", "number of classes"]),
    "labels of boxes as floats": ("boxes of float labels", DETECTOR, BOXES, {}, [".long() for labels"]),
    "NaN in boxes": ("nan boxes", DETECTOR, BOXES, {}, ["['boxes'] of the training data", "[0, 2]"]),
    "images in one tensor": ("stacked boxes", DETECTOR, BOXES, {}, ["list of images", "(Tensor, dict)", "collate_fn"]),
    "no detector": ("boxes", PIXELS, BOXES, {}, ["forward takes (images)", "2 arguments"]),
    "boxes for a classification": ("boxes", DETECTOR, CLASSES, {}, ["forward takes (images", "'classification'"]),
    "a metric of classes": ("column", ONE, task("regression", "auroc"), {}, ["'auroc' is one of classes", "task: bin"]),
    "a metric of numbers": ("classes", THREE, task("classification", "rmse"), {}, ["'rmse' does not take", "(4, 3)"]),
    "a metric for each class": (
        "classes", THREE, task("classification", f1(average="none")), {}, ["(3,)", "{average: macro}"]
    ),
    "a metric for each output": (
        "three columns", THREE, task("regression", {"name": "r2", "options": {"multioutput": "raw_values"}}), {},
        ["(3,)", "{multioutput: uniform_average}"],
    ),
    "a matrix": ("classes", THREE, task("classification", "confusion_matrix"), {}, ["(3, 3)", "Take another metric"]),
    "an unknown option": ("classes", THREE, task("classification", f1(avrage="macro")), {}, ["'avrage'", "cannot be"]),
    "another value": ("classes", THREE, task("classification", f1(average="makro")), {}, ["options.average", "macro"]),
    "other classes": ("classes", THREE, task("classification", f1(num_classes=5)), {}, ["number of classes"]),
    "an unknown metric": ("classes", THREE, task("classification", "f1_scor"), {}, ["Did you mean 'f1_score'?"]),
    "a metric twice": ("classes", THREE, task("classification", "f1", "f1"), {}, ["two metrics", "label"]),
    "a metric called loss": (
        "classes", THREE, task("classification", {"name": "f1", "label": "loss"}), {}, ["'loss' is what", "label"]
    ),
    "a metric that returns a vector": (
        "classes", THREE, task("classification", HERE + "for_each_class"), {}, ["(3,)", "return the mean"]
    ),
    "a metric that returns text": ("classes", THREE, task("classification", HERE + "text_metric"), {}, ["gives a str"]),
    "a metric that fails": ("classes", THREE, task("classification", HERE + "failing"), {}, ["ValueError: no such"]),
    "a metric of two samples": ("one held out", ONE, task("regression"), {}, ["'r2' cannot be computed"]),
    "metrics of a function's batch": (
        "classes", THREE, task(HERE + "right", "f1"), {}, ["'f1'", "task 'right' does not say which kind"]
    ),
    "metrics of no outputs": (
        "classes", THREE, task(HERE + "without_outputs", HERE + "right_share"), {}, ["returns none", "(loss, outputs)"]
    ),
    "a monitor that is not measured": ("classes", THREE, CLASSES, monitor("val_f1"), ["not measured", "val_accuracy"]),
    "a monitor with a slip": (
        "classes", THREE, CLASSES, monitor("val_acuracy", "max"), ["'val_acuracy'", "Did you mean 'val_accuracy'?"]
    ),
    "a monitor of training": ("classes", THREE, CLASSES, monitor("train_loss"), ["no metric on held-out data"]),
    "a monitor without a way": (
        "classes", THREE, task("classification", HERE + "right_share"), monitor("val_right_share"),
        ["which way is better", "training.monitor.mode"],
    ),
    "no accuracy": ("bits", THREE, task("multilabel"), monitor("val_accuracy"), ["not measured", "val_f1, val_loss"]),
    "a task that never calls": ("classes", THREE, task(HERE + "never_calls"), {}, ["never calls the model", "model("]),
    "a task that returns a float": ("classes", THREE, task(HERE + "a_float"), {}, ["scalar tensor", "a float"]),
    "the same with outputs": ("classes", THREE, task(HERE + "float_and_outputs"), {}, ["returned a float"]),
    "a task that returns three": ("classes", THREE, task(HERE + "three"), {}, ["(Tensor, Tensor, Tensor)"]),
    "a task the other way": ("classes", THREE, task(HERE + "swapped"), {}, ["(4, 3)", "one number"]),
    "a task that returns nothing": ("classes", THREE, task(HERE + "nothing"), {}, ["NoneType"]),
    "a task for other batches": ("classes", THREE, task(HERE + "raises"), {}, ["TypeError", "The batch is (Tensor, T"]),
    "a task of an unreduced loss": ("classes", THREE, task(HERE + "unreduced"), {}, ["(4,)", "the mean"]),
    "a loss for a function": (
        "classes", THREE, task(HERE + "right"), {"loss": "cross_entropy"}, ["training.loss", "computes its loss"]
    ),
    "a loss for a model's own": ("dict", DICT, task("huggingface"), {"loss": "cross_entropy"}, ["training.loss"]),
    "a regression with classes' loss": (
        "classes", ONE, task("regression"), {"loss": "cross_entropy"}, ["single output", "cross_entropy"]
    ),
    "a classes' loss with measures of numbers": (
        "classes", THREE, task("regression"), {"loss": "cross_entropy"}, ["'rmse' does not take", "(4, 3)"]
    ),
    "an unknown task": ("classes", THREE, task("clasification"), {}, ["Did you mean 'classification'?"]),
    "an option of another task": ("classes", THREE, task("classification", ignore_index=3), {}, ["Known here: target"]),
}  # fmt: skip


def invoke(folder, monkeypatch, data, built, what, training):
    monkeypatch.chdir(folder)
    config = {
        "model": built,
        "data": {"batch_size": 4, **data},
        "task": what,
        "training": {"epochs": 1, "device": "cpu", **training},
        "output": {"dir": "run"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, ["run", "config.yaml"])


def check_message(result, words, folder):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(("Error: ", "1 fault in config.yaml:")), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize("case", MISFITS)
def test_misfits(case, tmp_path, monkeypatch, recwarn):
    kind, built, what, training, words = MISFITS[case]
    data = {"name": HERE + "data", "options": {"kind": kind}}
    result = invoke(tmp_path, monkeypatch, data, built, what, training)
    check_message(result, words, tmp_path)
    assert not [warning for warning in recwarn if "target size" in str(warning.message)]


CSV = {
    "a target that is not there": ("pricee", {}, ["no column 'pricee'", "Did you mean 'price'?"]),
    "text for numbers": ("kind", {"problem": "regression"}, ["'kind' holds text", "problem: classification"]),
    "two columns for classes": (["kind", "rooms"], {"problem": "classification"}, ["one target column"]),
    "a gap in the target": ("gaps", {}, ["'gaps' has no value in 1 of 12 rows", "row 3"]),
    "numbers for labels": (["price", "rooms"], {"problem": "multilabel"}, ["'price'", "other values than 0 and 1"]),
    "an empty held-out part": ("price", {"val_fraction": 0.0}, ["val_fraction"]),
}


@pytest.mark.parametrize("case", CSV)
def test_tables(case, tmp_path, monkeypatch):
    target, options, words = CSV[case]
    rows = [f"{i * 1.5},{i % 4},{'ab'[i % 2]},{'' if i == 3 else i * 0.1}" for i in range(12)]
    (tmp_path / "homes.csv").write_text("\n".join(["price,rooms,kind,gaps", *rows]))
    data = {"name": "csv", "options": {"path": "homes.csv", "target": target, **options}}
    check_message(invoke(tmp_path, monkeypatch, data, THREE, CLASSES, {}), words, tmp_path)


# data, model, task
FITS = {
    "targets in double": ("double regression", ONE, task("regression")),
    "tokens in memory": ("tokens", TOKENS, TEXT),
    "tokens alone": ("tokens alone", TOKENS, TEXT),
    "fields of tokens": ("token fields", TOKENS, TEXT),
    "logits in a dict": ("classes", model("Form", form="logits"), CLASSES),
    "keywords": ("dict", DICT, task("huggingface")),
    "masks": ("masks", PIXELS, task("segmentation", ignore_index=2)),
    "boxes": ("boxes", DETECTOR, BOXES),
    "a function that calls twice": ("classes", THREE, task(HERE + "calls_twice")),
    "numbers by name": ("classes", THREE, task("classification", HERE + "Several")),
    "one sample in a batch": ("single samples", ONE, task("regression")),
    "a batch larger than the data": ("few", THREE, CLASSES),
    "a class of one's own": ("classes", THREE, task(HERE + "Own")),
}


@pytest.mark.parametrize("case", FITS)
def test_what_goes_together_runs(case, tmp_path, monkeypatch):
    kind, built, what = FITS[case]
    data = {"name": HERE + "data", "options": {"kind": kind}}
    result = invoke(tmp_path, monkeypatch, data, built, what, {})
    assert result.exit_code == 0, result.output


def test_every_kind_of_data_is_used():
    used = {case[0] for case in (*MISFITS.values(), *FITS.values())}
    assert used == set(DATA)


class NoLoss(Task):
    pass


def layer_by_layer(model, batch):
    return model[1](model[0](batch[0])).mean()


# what stands for a task, the error, what it has to say
SOURCES = {
    "a number": (3, EvolveError, "evolve.tasks.Task.*found 3"),
    "a class": (Classification, EvolveError, r"make one, Classification\(\)"),
    "a slip": ("regresion", UnknownNameError, "Did you mean 'regression'"),
    "a function that is not there": ("helpers.task_misfits:nowhere", UnknownNameError, "has no 'nowhere'"),
    "no loss": (NoLoss(), MisfitError, r"NoLoss has no `loss\(model, batch\)`\. The batch is \(Tensor, Tensor\)\."),
    "a function of a batch alone": (lambda batch: batch, MisfitError, "takes 1 positional argument"),
    "layers of the model": (layer_by_layer, MisfitError, r"Call the model as a whole, model\(\.\.\.\)"),
    "another task": (TaskConfig(name="detection"), MisfitError, "list of images"),
}


def evolver_of(source, train="classes", val="classes"):
    training = TrainingConfig(epochs=1, device="cpu")
    return Evolver(
        linear(), DATA[train]()[0], DATA[val]()[1], task=source, training=training, batch_size=8, progress=False
    )


@pytest.mark.parametrize("case", SOURCES)
def test_what_stands_for_a_task_in_python(case):
    source, error, words = SOURCES[case]
    with pytest.raises(error, match=words):
        evolver_of(source).run()


@pytest.mark.parametrize("val", ["high class", "column", "double"])
def test_held_out_data_that_do_not_fit_are_called_so(val):
    with pytest.raises(MisfitError, match=r"^On the validation data: "):
        evolver_of(None, val=val).run()
