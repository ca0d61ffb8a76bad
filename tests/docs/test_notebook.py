"""The example notebooks run from top to bottom, in little and without a download."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = {
    "cifar10_residual": ["2,193,674 parameters", "2,194,442 parameters", "projection 3→128 of stride 4"],
    "growing": ["5,142 -> 19,810 parameters", "19,810 -> 77,754 parameters"],
    "pruning": ["1,527,040 FLOPs an image", "FLOPs   1,527,040 -> "],
    "own_parts": ["'2' learns its slope now.", "rejected - ", "epoch  3  widen           applied"],
    "hugging_face": ["102,720 parameters", "148,032 parameters, logits differ by 0"],
    "population": ["12 evaluations", "the first one: 19,810 parameters"],
}


def printed(notebook) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_all_are_tried():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_with_what_it_shows(name):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    sources = "".join(cell.source for cell in cells)
    assert "fake" not in sources  # real data, whatever is there and what not


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    if name == "hugging_face":
        pytest.importorskip("transformers")
    monkeypatch.delenv("CIFAR10", raising=False)
    monkeypatch.setenv("QUICK", "1")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = printed(notebook)
    for line in NOTEBOOKS[name]:
        assert line in text
