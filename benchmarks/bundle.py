"""Does an exported model score in other libraries what it scored in the search?

mteb evaluates the bundle of a finished search on the search's own test queries, loaded once by sentence-transformers
and once by FlagEmbedding; the search's own score stands beside it, and the least cosine between the libraries' vectors.

    python benchmarks/bundle.py RUN_DIR
    python benchmarks/bundle.py RUN_DIR --train     # runs its train.sh, and scores what that trained on dev
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import numpy.typing as npt
from FlagEmbedding import BGEM3FlagModel
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from trainables.config import RungReport, TrialConfig
from trainables.scoring.mteb_judge import HeldOutTask
from trainables.trial.trial import run_trial
from tuner.export.finished_run import FinishedRun, read_run

METRIC = "dense.ndcg_at_10"
SHOWN_TEXTS = 64
_INSTRUCTIONS = [f"{kind}_instruction_{part}" for kind in ("query", "passage") for part in ("for_retrieval", "format")]


class FlagModel(AbsEncoder):
    """FlagEmbedding's inference class as mteb calls it."""

    def __init__(self, run: FinishedRun, bundle: Path) -> None:
        self._run = run
        self.model = BGEM3FlagModel(
            str(bundle),
            use_fp16=False,
            devices="cpu",
            pooling_method=run.argument("sentence_pooling_method"),
            normalize_embeddings=run.argument("normalize_embeddings"),
            trust_remote_code=run.argument("trust_remote_code"),
            **{name: run.argument(name) for name in _INSTRUCTIONS},
        )
        self.mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.DOT_PRODUCT})

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> npt.NDArray[np.float32]:
        texts = [text for batch in inputs for text in batch["text"]]
        return self.vectors(texts, query=prompt_type is PromptType.query)

    def vectors(self, texts: list[str], *, query: bool) -> npt.NDArray[np.float32]:
        """Dense vectors, shape (texts, size)."""
        encode = self.model.encode_queries if query else self.model.encode_corpus
        length = self._run.argument("query_max_len" if query else "passage_max_len")
        found: npt.NDArray[np.float32] = encode(texts, max_length=length)["dense_vecs"]
        return found


def measure(run_dir: Path, bundle: Path) -> dict[str, float]:
    """Returns nDCG@10 on test by the search, sentence-transformers and FlagEmbedding, and the least cosine."""
    run, heldout = read_run(run_dir), run_dir / "data" / "eval"
    trusted = run.argument("trust_remote_code")
    sentence = SentenceTransformer(str(bundle), device="cpu", trust_remote_code=trusted)
    flag = FlagModel(run, bundle)
    scores = {
        "search": run.best.test_all[METRIC],
        "sentence-transformers": _score(sentence, heldout),
        "FlagEmbedding": _score(flag, heldout),
    }
    apart = max(scores.values()) - min(scores.values())
    return scores | {"largest difference": apart, "least cosine": _least_cosine(sentence, flag, heldout)}


def _score(model: Any, heldout: Path) -> float:
    task = HeldOutTask(heldout, "test", "HeldOut", ["eng-Latn"])
    task.load_data()
    mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    assert task.scores is not None
    return task.scores.means[METRIC]


def _least_cosine(sentence: SentenceTransformer, flag: FlagModel, heldout: Path) -> float:
    with (heldout / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(SHOWN_TEXTS), strict=False)]
    one, other = sentence.encode_document(texts, show_progress_bar=False), flag.vectors(texts, query=False)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return float(cosines.min())


def retrain(run_dir: Path, bundle: Path, output: Path) -> dict[str, float]:
    """Trains with train.sh into `output`; returns dev scores: the search's by seed, and that of what it trained."""
    run = read_run(run_dir)
    needs = {"MODEL_NAME_OR_PATH": run.base_model, "TRAIN_DATA": str(run_dir / "data" / "train")}
    environment = {**os.environ, "PYTHON": sys.executable, **needs}
    subprocess.run(["bash", str(bundle / "train.sh"), "--output_dir", str(output)], env=environment, check=True)
    saved = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    metric = run.result.metric
    reports: list[RungReport] = []
    job = TrialConfig(
        name="retrained",
        directory=str(output / "scored"),
        arguments=run.trained,
        eval_data=str(run_dir / "data" / "eval"),
        metric=metric,
        checkpoint=str(saved[0] if saved and run.rung["fraction"] < 1.0 else output),
    )

    def keep(report: RungReport) -> bool:
        reports.append(report)
        return True

    run_trial(job, keep)
    seeds = {f"dev, seed {item.seed}": item.dev for item in run.best.seeds}
    noise = {} if run.result.noise is None else {"deviation between seeds": run.result.noise}
    return seeds | noise | {"dev, by train.sh": reports[0].value}


def report(found: Mapping[str, float]) -> str:
    """Returns the lines to print."""
    return "\n".join(f"{name:<26}{value:.6f}" for name, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--bundle", type=Path, help="RUN_DIR/best if left out")
    parser.add_argument("--train", action="store_true", help="run train.sh too")
    given = parser.parse_args()
    bundle = given.bundle or given.run_dir / "best"
    print(report(measure(given.run_dir, bundle)))
    if given.train:
        with tempfile.TemporaryDirectory() as folder:
            print(report(retrain(given.run_dir, bundle, Path(folder) / "trained")))


if __name__ == "__main__":
    main()
