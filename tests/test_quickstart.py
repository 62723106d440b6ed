"""The quickstart notebook runs as it stands and holds no outputs and no paths of a machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs_and_paths() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert not re.findall(r"(?<![\w.:/])/[a-z]+/|Users", text)  # any absolute path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
def test_the_notebook_runs_and_ends_in_figures_and_pictures(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    texts = [out["data"]["text/plain"] for out in outputs if "data" in out]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    figures = next(text for text in texts if "'any': '0." in text or "'any': '1." in text)
    assert 0.3 < float(figures.split("'any': '")[1][:5]) <= 1
    assert any("Calibrated(value=" in text for text in texts)
