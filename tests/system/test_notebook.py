"""The example notebook: executed cell by cell on a tiny model, and as it is stored, with what it showed."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model, make_rows

NOTEBOOK = Path(__file__).parents[2] / "examples" / "search.ipynb"
_ABSOLUTE_PATH = re.compile(r"""(?<=[\s"'=(`])/\w[\w.-]*/[\w.-]+""")


def test_what_is_stored_was_shown_in_order_by_one_run_without_errors() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells[1:])
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data", "execute_result"}


def test_what_is_stored_names_no_place_of_a_machine_and_is_readable_anywhere() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert _ABSOLUTE_PATH.findall("at /opt/x/y, <a href=/b> 1/2 ./c/d https://e/f") == ["/opt/x"]
    assert _ABSOLUTE_PATH.findall(text.replace("\\n", " ").replace('\\"', '"').replace("&#39;", "'")) == []
    assert "widget" not in text
    assert len(text) < 300_000


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

    cells = {_asked(cell): cell for cell in notebook.cells if cell.cell_type == "code"}
    page, report = _html(cells["begun"]), _html(cells["result"])
    assert '<iframe srcdoc="' in page
    assert "The search has ended" in page
    assert "\nverdict     " in _stdout(cells["begun"])  # plain lines, one output together
    assert "Queries that moved" in report or "What got worse" in report
    assert any(verdict in _text(cells["verdict"]) for verdict in ("fine-tune", "keep the base model"))
    assert "over base model: " in _text(cells["gain"])
    assert "95% interval" in _text(cells["gain"])
    assert "'model_name_or_path'" in _text(cells["best_config"])
    assert "Remove an element from a set" in _text(cells["similarities"])
    trained = "fine-tune" in _text(cells["verdict"])  # else best/ is the base model, which nothing trains again
    assert (tmp_path / "run" / "best" / "train.sh").is_file() == trained


_MARKS = {
    "begun": "tuner.run(",
    "verdict": "print(result.verdict)",
    "gain": 'print(f"over',
    "best_config": "result.best_config",
    "similarities": "SentenceTransformer(",
}


def _asked(cell: object) -> str:
    """What a cell is for, by what stands in it."""
    source = cell["source"]  # type: ignore[index]
    return next((name for name, mark in _MARKS.items() if mark in source), source)


def _stdout(cell: object) -> str:
    """What a cell printed."""
    return "".join(output.get("text", "") for output in cell["outputs"] if output.get("name") == "stdout")  # type: ignore[index]


def _html(cell: object) -> str:
    """What a cell shows besides text."""
    return "".join(output.get("data", {}).get("text/html", "") for output in cell["outputs"])  # type: ignore[index]


def _text(cell: object) -> str:
    """Everything that a cell printed or returned."""
    outputs = cell["outputs"]  # type: ignore[index]
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return "\n".join("".join(text) for text in texts)
