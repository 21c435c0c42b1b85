"""The notebook for Colab: kept without outputs, and run from top to bottom in its reduced setting."""

import nbformat
import pytest
import runs

NOTEBOOK = runs.ROOT / "launch" / "colab.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_shows_pictures_and_exports(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("RAE_JAX_REDUCED", "1")
    monkeypatch.setenv("RAE_JAX_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "cpu" in printed and "label agreement" in printed
    for stage in ("decoder", "flow", "flow_map"):
        assert (tmp_path / "run" / f"{stage}.safetensors").stat().st_size
