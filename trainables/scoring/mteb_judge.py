"""Final scores and guard scores through ``mteb.evaluate``. The only module that imports mteb.

Importing mteb takes seconds and seeds the global random generators: import this module when the training is over.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Unpack

import datasets
import mteb
import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.results import TaskResult
from mteb.types import EncodeKwargs, PromptType
from torch.utils.data import DataLoader

from trainables.files import new_file
from trainables.process import rank
from trainables.scoring.encoding import EmbeddingModel, Embeddings, Encoder, evaluation_mode, tokenise
from trainables.scoring.heldout import read_passages, read_qrels, read_queries
from trainables.scoring.measures import Scores, measure
from trainables.scoring.metric import MEASURES, score_name
from trainables.scoring.settings import EncodingSettings
from trainables.tally import TALLY

_TREC_NAMES = {"ndcg_at_10": "ndcg_cut_10", "recall_at_10": "recall_10", "recall_at_100": "recall_100"}
"""Our measure -> pytrec_eval's, for those that mteb takes from pytrec_eval per query."""


class HeldOutTask(AbsTaskRetrieval):
    """A BEIR folder as a retrieval task of mteb.

    Args:
        eval_data: the folder; it is read when the task is evaluated.
        split: the name of a file in ``qrels/``.
        name: what results call the task.
        languages: of the texts, an ISO 639-3 code with a script, as mteb writes them.

    Raises:
        ValueError: the split does not exist.
    """

    def __init__(self, eval_data: Path, split: str, name: str, languages: Sequence[str]) -> None:
        self._folder = eval_data
        self._split = split
        self._qrels = read_qrels(eval_data, split)
        self.scores: Scores | None = None
        """Per query, once evaluated."""
        self.metadata = TaskMetadata(
            name=name,
            description=f"Held-out queries, split {split}.",
            dataset={"path": name, "revision": _revision(eval_data, split)},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=list(languages),
            main_score="ndcg_at_10",
        )
        with _generators_kept():
            super().__init__()

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Read the folder."""
        passages = list(read_passages(self._folder))
        queries = read_queries(self._folder, self._qrels)
        data = RetrievalSplitData(
            corpus=Dataset.from_dict({"id": [key for key, _ in passages], "text": [text for _, text in passages]}),
            queries=Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
            relevant_docs=self._qrels,
            top_ranked=None,
        )
        self.dataset = {"default": {self._split: data}}
        self.data_loaded = True

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Any,
        results: dict[str, dict[str, float]],
        hf_split: str,
        hf_subset: str,  # noqa: ARG002
    ) -> dict[str, float]:
        """Keep what mteb measured for each query; mteb itself reports means, rounded to five digits."""
        rankings = {query: _ranking(found) for query, found in results.items()}
        values = {
            query: measure(ranking, qrels[query]) | {ours: scores[query][trec] for ours, trec in _TREC_NAMES.items()}
            for query, ranking in rankings.items()
        }
        self.scores = Scores(
            split=hf_split,
            per_query={
                score_name("dense", name): {query: of[name] for query, of in values.items()} for name in MEASURES
            },
            retrieved={query: ranking[:10] for query, ranking in rankings.items()},
        )
        return {}


class GuardUnavailable(RuntimeError):  # noqa: N818
    """The data of a guard task could not be loaded."""


def judge(
    model: EmbeddingModel,
    tokenizer: Any,
    settings: EncodingSettings,
    eval_data: Path,
    split: str,
    *,
    languages: Sequence[str] = ("eng-Latn",),
    result: Path | None = None,
) -> Scores:
    """Score the dense head on a split with mteb.

    Args:
        model: stays on its device, and in the mode (training or not) it is in.
        tokenizer: the model's, a transformers one.
        settings: the same as in training.
        eval_data: a BEIR folder.
        split: ``dev`` or ``test``.
        languages: for the metadata in ``result``.
        result: where the first worker writes mteb's own result JSON.

    Returns:
        Metrics of the dense head per query, from mteb's search and pytrec_eval's measures.

    Raises:
        ValueError: the split does not exist.
    """
    task = HeldOutTask(eval_data, split, "HeldOut", languages)
    task.load_data()  # mteb unloads what it loaded, and the metadata with it
    _evaluate(model, tokenizer, settings, task, result)
    assert task.scores is not None
    return task.scores


def guard_task(guard: str) -> AbsTask:
    """Find a guard task.

    Args:
        guard: a BEIR folder (its ``test`` split is scored) or the name of a task of mteb.

    Raises:
        ValueError: neither such a folder nor such a task exists.
    """
    if Path(guard).is_dir():
        return HeldOutTask(Path(guard), "test", Path(guard).name, ["eng-Latn"])
    try:
        with _generators_kept():
            return mteb.get_task(guard)
    except KeyError as error:
        raise ValueError(
            f"a guard must be a BEIR folder or an mteb task, but got {guard!r} ({error.args[0]})"
        ) from None


def guard_score(
    model: EmbeddingModel, tokenizer: Any, settings: EncodingSettings, task: AbsTask, *, result: Path | None = None
) -> float:
    """Return the main score of the dense head on a guard task, in [0, 1]; other arguments as for `judge`.

    The task keeps its data, so that the next model finds it loaded.

    Raises:
        GuardUnavailable: the data of the task is neither on this machine nor to be had from the hub.
    """
    load_guard(task)
    return float(_evaluate(model, tokenizer, settings, task, result).get_score())


def load_guard(task: AbsTask) -> None:
    """Load the data of a guard task, from this machine or from the hub.

    Raises:
        GuardUnavailable: it is on neither.
    """
    with _quiet():
        try:
            task.load_data()
        except Exception as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            message = f"guard task {task.metadata.name}: its data must be on this machine or at the hub, but {first}"
            raise GuardUnavailable(message) from error


def _evaluate(
    model: EmbeddingModel, tokenizer: Any, settings: EncodingSettings, task: AbsTask, result: Path | None
) -> TaskResult:
    encoder = _DenseEncoder(model, tokenizer, settings)
    with _quiet(), _generators_kept(), evaluation_mode(model):
        evaluated = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False, co2_tracker=False)
    scores = evaluated.task_results[0]
    if result is not None and rank() == 0:
        with new_file(result) as file:
            scores.to_disk(file)
    return scores


class _DenseEncoder(AbsEncoder):
    """The dense head as an mteb encoder: texts become tokens and vectors exactly as in `Scorer`."""

    mteb_model_meta: ModelMeta

    def __init__(self, model: EmbeddingModel, tokenizer: Any, settings: EncodingSettings) -> None:
        self._encoder = Encoder(model, tokenizer, settings, ["dense"])
        self._tokenizer = tokenizer
        self._settings = settings
        self.mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.DOT_PRODUCT})

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],  # noqa: ARG002
    ) -> npt.NDArray[np.float32]:
        """Embed the texts of a data loader: those of queries as queries, all others as passages."""
        settings = self._settings
        is_query = prompt_type is PromptType.query
        formatted = settings.query_text if is_query else settings.passage_text
        texts = (formatted(text) for batch in inputs for text in batch["text"])
        tokens = tokenise(self._tokenizer, texts, settings.query_max_len if is_query else settings.passage_max_len)
        parts: list[Any] = []
        with nullcontext() if is_query else TALLY.counting("embedded", len(tokens.lengths)):
            for batch in tokens.batches(self._encoder.batch_tokens):
                parts += self._encoder.encoded(tokens, batch, _dense)
                TALLY.add(len(batch))
        vectors, numbers = (np.concatenate(found) for found in zip(*parts, strict=True))
        return vectors[np.argsort(numbers)]


def _dense(found: Embeddings) -> npt.NDArray[np.float32]:
    assert found.dense is not None
    return found.dense.cpu().numpy()


def _ranking(found: dict[str, float]) -> list[str]:
    """Passage ids by score and then by id, descending, as trec_eval orders them."""
    return sorted(found, key=lambda passage: (found[passage], passage), reverse=True)


def _revision(folder: Path, split: str) -> str:
    digest = hashlib.sha256()
    for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars of datasets off the terminal."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the global random generators, which tasks of mteb seed."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
