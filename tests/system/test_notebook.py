"""The example notebook, executed cell by cell on a tiny model."""

import os
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model, make_rows

NOTEBOOK = Path(__file__).parents[2] / "examples" / "search.ipynb"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(420)
def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    arguments = {
        "model_name_or_path": str(model),
        "train_data": [str(rows)],
        "query_max_len": 16,
        "passage_max_len": 32,
        "per_device_train_batch_size": 4,
    }
    own = 'num_trials=2, finalists=0, gpus_per_trial=0, run_dir="run"'
    parameters.source = f"import tuner\n\nconfig = tuner.SearchConfig(arguments={arguments!r}, {own})"
    here = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))

    NotebookClient(notebook, timeout=360, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [_text(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert '<iframe srcdoc="' in _html(notebook.cells[3])
    assert "The search has ended" in _html(notebook.cells[3])
    assert any(verdict in shown[2] for verdict in ("fine-tune", "keep the base model"))
    assert "95% interval" in shown[4]
    assert "(1, 16)" in shown[-1]
    trained = shown[2].startswith("fine-tune")  # else the bundle is the base model, which nothing trains again
    assert (tmp_path / "bundle" / "train.sh").is_file() == trained


def _html(cell: object) -> str:
    """What a cell shows besides text."""
    return "".join(output.get("data", {}).get("text/html", "") for output in cell["outputs"])  # type: ignore[index]


def _text(cell: object) -> str:
    """Everything that a cell printed or returned."""
    outputs = cell["outputs"]  # type: ignore[index]
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return "\n".join("".join(text) for text in texts)
