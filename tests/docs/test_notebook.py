"""The example notebook runs from top to bottom, on made-up images and without a download."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "cifar10_residual.ipynb"


def test_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.delenv("CIFAR10", raising=False)
    monkeypatch.setenv("CURVE_PNG", str(tmp_path / "curve.png"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "2,193,674 parameters" in printed
    assert "2,194,442 parameters" in printed
    assert "projection 3→128 of stride 4" in printed
    assert "2,193,674 -> 2,194,442 parameters, 1 mutation applied" in printed
    assert (tmp_path / "curve.png").stat().st_size > 5_000
