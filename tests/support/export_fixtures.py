"""A finished run of a tiny random model: data, one trained trial's files and result.json; what train.sh would start."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3DataArguments,
    EncoderOnlyEmbedderM3ModelArguments,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from transformers import HfArgumentParser

from tests.support.m3_fixtures import make_eval, make_model, make_rows
from trainables.scoring.metric import MEASURES
from tuner.data import dataset as data
from tuner.request.arguments import translated
from tuner.request.config import SearchConfig

SECRET = "hf_secret"
RUNGS = (0.25, 1.0)
UNIFIED = {"unified_finetuning": True, "use_self_distill": True}
UPSTREAM = HfArgumentParser(
    (
        EncoderOnlyEmbedderM3ModelArguments,
        EncoderOnlyEmbedderM3DataArguments,
        EncoderOnlyEmbedderM3TrainingArguments,
    )
)
"""FlagEmbedding's own reading of arguments."""


def make_run(
    root: Path,
    *,
    arguments: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    verdict: str = "fine-tune",
    model: Path | None = None,
    best_rung: int = 2,
    bert: bool = False,
) -> Path:
    """Writes root/run, in which trial 7 has won.

    Args:
        root: An empty folder; the base model and the training data go there too.
        arguments: The user's, beside model and data; `unified_finetuning` gives the checkpoint its heads.
        options: The search's own.
        verdict: As result.json says it.
        model: The base model, and what the trial made of it; None makes a tiny one.
        best_rung: Which of `RUNGS` the checkpoint is from.
        bert: Make a BERT, which has no end-of-sequence token, in place of an XLM-R.
    """
    run = root / "run"
    model = model or make_model(root / "base", bert=bert)
    rows, heldout = make_rows(root / "rows.jsonl"), make_eval(root / "heldout", queries=20, passages=40)
    asked = {"model_name_or_path": str(model), "train_data": [str(rows)], **(arguments or {})}
    config = SearchConfig(arguments=asked, run_dir=str(run), rungs=RUNGS, **(options or {}))
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    dataset = data.prepare([str(rows)], folder=run / "data", eval_data=str(heldout), seed=config.seed)
    params = {"learning_rate": 3e-5, "temperature": 0.02, "train_group_size": 4, "warmup_ratio": 0.1}
    trained = translated(
        asked | params | {"train_data": list(dataset.train_data), "seed": config.seed, "token": SECRET}
    )
    _write_trial(run / "trials" / "0007", trained, model, best_rung)
    (run / "result.json").write_text(json.dumps(_result(verdict, params, trained.get("unified_finetuning", False))))
    return run


def recommend_base(run: Path, settings: dict[str, Any]) -> None:
    """Lets the verdict be to keep the base model, with `settings` in place of the user's."""
    result = json.loads((run / "result.json").read_text())
    base = result["base"] | {"folder": "0000-as-1a2b3c4d", "params": settings, "test": 0.64}
    gain = {key: result["best"][key] for key in result["gains"]["dense.ndcg_at_10"]}
    result["base"]["encoded_as_best"] = result["base"]["at_its_best"] = base | gain
    result["verdict"] = "keep the base model"
    result["recommended"] = {"trial": 0, "folder": base["folder"], "settings": settings}
    (run / "result.json").write_text(json.dumps(result))


def write_heads(folder: Path, size: int = 16) -> None:
    """Writes FlagEmbedding's two heads, of random weights, for an encoder of a hidden size."""
    import torch

    torch.manual_seed(1)
    for name, width in (("colbert", size), ("sparse", 1)):
        torch.save(torch.nn.Linear(size, width).state_dict(), folder / f"{name}_linear.pt")


def rename_base(run: Path, named: str, found: Path | None = None) -> None:
    """Lets the user have named the base model `named`, and the trials have found it in `found`."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["arguments"]["model_name_or_path"] = named
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if found is not None:
        record = run / "trials" / "0007" / "config.json"
        values = json.loads(record.read_text())
        values["arguments"]["model_name_or_path"] = str(found)
        record.write_text(json.dumps(values))


def command_of(bundle: Path, *extra: str, base: Path | None = None) -> list[str]:
    """What train.sh would start, word by word, told by the environment where the run's data and the base model are."""
    root = bundle.parents[1] if bundle.name == "best" else bundle.parent
    needs = [f"TRAIN_DATA={root / 'run/data/train'}", f"MODEL_NAME_OR_PATH={base or root / 'base'}"]
    shown = bundle.parent / "shown"
    shown.mkdir(exist_ok=True)
    python = shown / "python"
    python.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] || printf "%s\\0" "$@"\n')
    python.chmod(0o755)
    script = ["env", *needs, f"PYTHON={python}", "bash", str(bundle / "train.sh"), *extra]
    words = subprocess.run(script, capture_output=True, text=True, check=True, cwd="/").stdout.split("\0")[:-1]
    assert words[:2] == ["-m", "torch.distributed.run"]
    return words[2:]


def _write_trial(trial: Path, trained: dict[str, Any], model: Path, best_rung: int) -> None:
    shutil.copytree(model, trial / "checkpoint", ignore=shutil.ignore_patterns("*_linear.pt"))
    (trial / "checkpoint" / "training_args.bin").write_bytes(b"a pickle")
    if trained.get("unified_finetuning"):
        write_heads(trial / "checkpoint", json.loads((model / "config.json").read_text())["hidden_size"])
    (trial / "config.json").write_text(json.dumps({"name": "0007", "arguments": trained}))
    values = [0.7 if rung == best_rung else 0.6 for rung in (1, 2)]
    reports = [
        {"rung": rung, "fraction": RUNGS[rung - 1], "step": 5 * rung, "examples": 20 * rung, "value": value}
        for rung, value in enumerate(values, start=1)
    ]
    reports.append({"rung": 0, "fraction": 0.0, "step": 0, "examples": 0, "value": 0.9})  # scored on test later
    (trial / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))


def _result(verdict: str, params: dict[str, Any], unified: bool) -> dict[str, Any]:
    heads = ("dense", "sparse", "colbert", "hybrid") if unified else ("dense",)
    scores = {f"{head}.{measure}": 0.65 for head in heads for measure in MEASURES}
    counts = {"win": 12, "tie": 6, "loss": 2}
    gain = {"gain": 0.05, "ci95": [0.02, 0.08], "p_value": 0.001, "queries": 20, "detectable": 0.04}
    gain["win_tie_loss"] = counts
    test = {"dev": 0.6, "test": 0.6, "test_all": dict.fromkeys(scores, 0.6)}
    return {
        "metric": "dense.ndcg_at_10",
        "verdict": verdict,
        "reason": "The gain was measured.",
        "base": {"trial": 0, "folder": "0000", "params": {}, **test},
        "user": None,
        "best": {
            "trial": 7,
            "params": params,
            "folder": "0007",
            "alpha": None,
            "dev": 0.7,
            "test": 0.65,
            "test_all": scores,
            "seeds": [{"seed": 42, "dev": 0.7}, {"seed": 43, "dev": 0.69}],
            **gain,
        },
        "trials": {"complete": 8, "pruned": 0, "failed": 0},
        "seconds": {"total": 60.0},
        "gains": dict.fromkeys(scores, gain),
        "guard": None,
        "mixtures": None,
        "hybrid_weights": None,
    }
