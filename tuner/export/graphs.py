"""The folder ``onnx/`` of a bundle: its heads in one ONNX graph, compared with the model before it is kept."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.scoring.metric import MEASURES, score_name
from trainables.scoring.settings import EncodingSettings
from tuner.errors import BundleRefusedError, RequestError
from tuner.export.finished_run import FinishedRun

if TYPE_CHECKING:
    from trainables.bundle.libraries import Sample

GRAPH, INT8 = "onnx/heads.onnx", "onnx/heads_int8.onnx"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_QUERIES, _PASSAGES = 200, 2000
"""Dev queries that the int8 graph is scored on, at most, and passages beside those that are judged for them."""
_DEV = "dev"


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What was written, and how it compares with the model."""

    agreements: Mapping[str, float]
    """Head -> the least agreement of the graph's vectors with the model's: the cosine, less what lengths differ by."""
    int8_agreements: Mapping[str, float]
    """The same of the int8 graph; empty without it."""
    scores: Mapping[str, Mapping[str, float]]
    """``float``, ``int8`` -> head -> nDCG@10 on dev; empty without the int8 graph."""
    queries: int
    passages: int
    megabytes: Mapping[str, float]
    """The graph -> its size, with its weights."""


def check_onnx(onnx: bool, int8: bool) -> None:
    """Refuses what could not be written here, before anything is.

    Raises:
        RequestError: A package is missing, or ``--int8`` stands alone.
    """
    if int8 and not onnx:
        raise RequestError(["--int8: is a second ONNX graph; give --onnx, too"])
    if onnx and (missing := [package for package in _PACKAGES if find_spec(package) is None]):
        raise RequestError([f"--onnx: needs {', '.join(missing)}; run pip install 'm3-tuner[onnx]'"])


def write_graphs(run: FinishedRun, folder: Path, settings: EncodingSettings, sample: "Sample", *, int8: bool) -> Graphs:
    """Writes the graph of a bundle's model, and with `int8` a second one of 8-bit weights.

    Args:
        run: The search.
        folder: The bundle with the model in it.
        settings: How the model was scored.
        sample: Texts to compare.
        int8: Write the second graph and score both on dev, on a part of it where it is large.

    Raises:
        BundleRefusedError: torch's exporter cannot write the model, or ONNX Runtime does not embed as the model does.
    """
    from trainables.bundle import onnx_model
    from trainables.bundle.libraries import LEAST_AGREEMENT

    trusted = {"trust_remote_code": run.argument("trust_remote_code")}
    (folder / GRAPH).parent.mkdir()
    try:
        onnx_model.write_graph(folder, folder / GRAPH, settings, **trusted)
    except onnx_model.NoGraphError as error:
        raise BundleRefusedError(f"the bundle was refused: {error}") from error
    agreements = onnx_model.graph_agreements(folder, folder / GRAPH, sample, settings, **trusted)
    _refuse_differing(agreements, LEAST_AGREEMENT)
    int8_agreements: Mapping[str, float] = {}
    scores: Mapping[str, Mapping[str, float]] = {}
    counts = (0, 0)
    if int8:
        onnx_model.write_int8(folder / GRAPH, folder / INT8)
        int8_agreements = onnx_model.graph_agreements(folder, folder / INT8, sample, settings, **trusted)
        scores, counts = _scores_on_dev(run, folder, settings, list(agreements))
    return Graphs(
        agreements=agreements,
        int8_agreements=int8_agreements,
        scores=scores,
        queries=counts[0],
        passages=counts[1],
        megabytes={graph: _megabytes(folder / graph) for graph in ((GRAPH, INT8) if int8 else (GRAPH,))},
    )


def _refuse_differing(agreements: Mapping[str, float], least: float) -> None:
    if differing := {head: value for head, value in agreements.items() if not value > least}:
        values = ", ".join(f"{head} {value:.6f}" for head, value in differing.items())
        raise BundleRefusedError(
            f"the bundle was refused: ONNX Runtime must embed as the model (agreement > {least}), but got "
            f"{values}; export without --onnx"
        )


def _scores_on_dev(
    run: FinishedRun, folder: Path, settings: EncodingSettings, heads: Sequence[str]
) -> tuple[dict[str, dict[str, float]], tuple[int, int]]:
    """Returns graph -> head -> nDCG@10, and of how many queries and passages."""
    from trainables.bundle.onnx_model import graph_scores

    graphs, trusted = {"float": folder / GRAPH, "int8": folder / INT8}, run.argument("trust_remote_code")
    with tempfile.TemporaryDirectory() as part:
        counts = part_of_dev(Path(run.dataset.eval_data), Path(part))
        found = graph_scores(folder, graphs, Path(part), _DEV, settings, trust_remote_code=trusted)
    names = {head: score_name(head, MEASURES[0]) for head in heads}
    return {graph: {head: found[graph][name] for head, name in names.items()} for graph in graphs}, counts


def part_of_dev(heldout: Path, folder: Path) -> tuple[int, int]:
    """Writes a held-out set of the first dev queries, the passages judged for them and the first others.

    Returns:
        How many queries and passages it has.
    """
    from trainables.scoring.heldout import read_passages, read_qrels, read_queries

    qrels = read_qrels(heldout, _DEV)
    queries = dict(islice(read_queries(heldout, qrels).items(), _QUERIES))
    judged = {passage for query in queries for passage in qrels[query]}
    passages: dict[str, str] = {}
    others = 0
    for passage, text in read_passages(heldout):
        if passage in judged or others < _PASSAGES:
            passages[passage] = text
            others += passage not in judged
    _write_rows(folder / "queries.jsonl", queries)
    _write_rows(folder / "corpus.jsonl", passages)
    (folder / "qrels").mkdir()
    rows = [f"{query}\t{passage}\t{grade}" for query in queries for passage, grade in qrels[query].items()]
    text = "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
    (folder / "qrels" / f"{_DEV}.tsv").write_text(text, encoding="utf-8", newline="\n")
    return len(queries), len(passages)


def _write_rows(path: Path, texts: Mapping[str, str]) -> None:
    rows = (json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items())
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")


def _megabytes(graph: Path) -> float:
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")) / 1e6
