"""Scores without training: the base model, a checkpoint, or mixtures of the two, on a split and on guards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.config import Report, RungReport, TrialConfig
from trainables.files import new_folder, write_text
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Arguments, Model, build_arguments, load_model
from trainables.process import rank
from trainables.scoring.encoding import EmbeddingModel
from trainables.scoring.libraries import Parts, load_head
from trainables.trial.records import Clock, write_record
from trainables.trial.rungs import Judge

GUARD_FILE = "guard.json"
MIXTURES_FILE = "mixtures.json"
_ALONE = ("deepspeed", "negatives_cross_device")
_HEADS = ("colbert_linear", "sparse_linear")


def score(config: TrialConfig, report: Report, base: BaseModels) -> None:
    """Does a score-only job.

    Its folder gets ``<split>.json``, ``guard.json`` (task -> score) and, for `alphas`, ``mixtures.json``; for `alpha`
    the mixture is saved in ``checkpoint``.
    """
    clock = Clock()
    with clock.measure("scoring"):
        means, guards = _sweep(config, base) if config.alphas else _score(config, base)
    record = RungReport(
        rung=0,
        fraction=0.0,
        step=0,
        examples=0,
        loss=None,
        value=means.get(config.metric, 0.0),
        scores=means,
        last=True,
        guards=guards,
        seconds=clock.seconds,
    )
    report(write_record(Path(config.directory), record))


def _score(config: TrialConfig, base: BaseModels) -> tuple[dict[str, float], dict[str, float]]:
    """Returns means on the split, and guard scores."""
    folder = Path(config.directory)
    arguments, tokenizer, model = _load(config, config.checkpoint, base)
    if config.alpha is not None:
        _, _, start = _load(config, None, base)
        next(_mix(model, start, (config.alpha,), heads=_has_heads(config)))
        _save(model, folder / "checkpoint")
    judge = Judge(config, arguments, tokenizer, base)
    means: dict[str, float] = {}
    if config.split is not None:
        is_final = config.split == "test"
        scores = judge.final_scores(_with_heads(model, config), folder) if is_final else judge.scores(model)
        _write(folder / f"{config.split}.json", scores.to_json())
        means = scores.means
    guards = judge.guard_scores(model)
    if guards:
        _write(folder / GUARD_FILE, json.dumps(guards))
    return means, guards


def _sweep(config: TrialConfig, base: BaseModels) -> tuple[dict[str, float], dict[str, float]]:
    """Scores a mixture for every alpha on dev and guards; returns those of the last."""
    arguments, tokenizer, model = _load(config, config.checkpoint, base)
    _, _, start = _load(config, None, base)
    judge = Judge(config, arguments, tokenizer, base)
    mixtures = _mix(model, start, config.alphas, heads=_has_heads(config))
    scores = [(alpha, judge.scores(model).means, judge.guard_scores(model)) for alpha in mixtures]
    rows = [{"alpha": alpha, "dev": dev, "guard": guard} for alpha, dev, guard in scores]
    _write(Path(config.directory) / MIXTURES_FILE, json.dumps(rows))
    return scores[-1][1:]


def _load(config: TrialConfig, checkpoint: str | None, base: BaseModels) -> tuple[Arguments, Any, Model]:
    values = {name: value for name, value in config.arguments.items() if name not in _ALONE}
    if checkpoint is not None:
        values["model_name_or_path"] = checkpoint
        base = BaseModels(scorers=base.scorers)
    arguments = build_arguments(values, config.directory)
    torch.manual_seed(arguments.training.seed)
    tokenizer, model = load_model(arguments, base)
    return arguments, tokenizer, model.to(arguments.training.device)


def _has_heads(config: TrialConfig) -> bool:
    """Whether the base model has heads that were trained: random ones are not mixed with."""
    folder = Path(config.arguments["model_name_or_path"])
    return all((folder / f"{name}.pt").is_file() for name in _HEADS)


def _with_heads(model: Model, config: TrialConfig) -> EmbeddingModel:
    """Where only the dense vectors were trained, the base model's heads score the rest, as they do in the bundle."""
    if model.sparse_linear is not None or not _has_heads(config):
        return model
    folder, device = Path(config.arguments["model_name_or_path"]), next(model.model.parameters()).device
    colbert, sparse = (load_head(folder / f"{name}.pt") for name in _HEADS)
    assert colbert is not None
    assert sparse is not None
    return Parts(model.model, colbert.to(device), sparse.to(device))


def _mix(model: Model, start: Model, alphas: tuple[float, ...], *, heads: bool) -> Iterator[float]:
    """Yields each alpha while `model` holds start + alpha * (model - start), in the weights of encoder and heads.

    The way of Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"; FlagEmbedding's LM-Cocktail does it too.
    """
    names = ("model", *_HEADS) if heads else ("model",)
    ends = [(part.state_dict(), getattr(start, name).state_dict()) for name in names if (part := getattr(model, name))]
    pairs = [(tensor, before[key]) for now, before in ends for key, tensor in now.items() if tensor.is_floating_point()]
    trained: list[Tensor] = [tensor.clone() for tensor, _ in pairs]
    for alpha in alphas:
        for (tensor, before), after in zip(pairs, trained, strict=True):
            tensor.copy_(torch.lerp(before, after, alpha))
        yield alpha


def _save(model: Model, checkpoint: Path) -> None:
    if rank() == 0:
        with new_folder(checkpoint) as folder:
            model.save(str(folder))


def _write(path: Path, text: str) -> None:
    if rank() == 0:
        write_text(path, text)
