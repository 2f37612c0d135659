"""Scores without training: the base model, a checkpoint, or mixtures of the two, on a split and on guards."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.config import Report, RungReport, TrialConfig
from trainables.files import new_folder, write_text
from trainables.m3.arguments import Arguments, build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Model, load_model
from trainables.m3.tokens import fingerprint
from trainables.names import CHECKPOINT, DATA, GUARD, HYBRID, MIXTURES, MTEB, TOKENS, mteb_file, scores_file
from trainables.process import rank
from trainables.scoring.checkpoint import Parts, load_head
from trainables.scoring.corpus import Corpus
from trainables.scoring.encoding import EmbeddingModel
from trainables.scoring.measures import Scores
from trainables.scoring.metric import HEADS, MEASURES, Metric
from trainables.scoring.pool import Pool, draw_pool
from trainables.scoring.scorer import HYBRID_CANDIDATES, HYBRID_WEIGHTS, EncodingSettings, Scorer
from trainables.trial.records import Clock, write_record

_ALONE = ("deepspeed", "negatives_cross_device")
_HEADS = ("colbert_linear", "sparse_linear")


def score(config: TrialConfig, report: Report, base: BaseModels) -> None:
    """Does a score-only job.

    Its folder gets ``<split>.json``, ``guard.json`` (task -> score) and, for `alphas`, ``mixtures.json``; for `alpha`
    the mixture is saved in ``checkpoint``.
    """
    clock = Clock()
    with clock.measure("scoring"):
        means, guards, pool = (*_sweep(config, base), {}) if config.alphas else _score(config, base)
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
        split=None if config.alphas else config.split,
        pool=pool,
    )
    report(write_record(Path(config.directory), record))


def _score(config: TrialConfig, base: BaseModels) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Returns means on the split, guard scores, and what `RungReport.pool` holds."""
    folder = Path(config.directory)
    arguments, tokenizer, model = load(config, config.checkpoint, base)
    if config.alpha is not None:
        _, _, start = load(config, None, base)
        next(_mix(model, start, (config.alpha,), heads=_has_heads(config)))
        _save(model, folder / CHECKPOINT)
    judge = Judge(config, arguments, tokenizer, base)
    means: dict[str, float] = {}
    pool: dict[str, Any] = {}
    if config.split is not None:
        if config.split == "test":
            scores = judge.final_scores(_with_heads(model, config), folder)
        elif config.pool_size is not None:
            scores, pool = judge.pooled_scores(model)
        else:
            scores = judge.scores(model)
        _write(folder / scores_file(config.split), scores.to_json())
        means = scores.means
    guards = judge.guard_scores(model)
    if guards:
        _write(folder / GUARD, json.dumps(guards))
    return means, guards, pool


def _sweep(config: TrialConfig, base: BaseModels) -> tuple[dict[str, float], dict[str, float]]:
    """Scores a mixture for every alpha on dev and guards; returns those of the last."""
    arguments, tokenizer, model = load(config, config.checkpoint, base)
    _, _, start = load(config, None, base)
    judge = Judge(config, arguments, tokenizer, base)
    mixtures = _mix(model, start, config.alphas, heads=_has_heads(config))
    scores = [(alpha, judge.scores(model).means, judge.guard_scores(model)) for alpha in mixtures]
    rows = [{"alpha": alpha, "dev": dev, "guard": guard} for alpha, dev, guard in scores]
    _write(Path(config.directory) / MIXTURES, json.dumps(rows))
    return scores[-1][1:]


def load(config: TrialConfig, checkpoint: str | None, base: BaseModels) -> tuple[Arguments, Any, Model]:
    """Returns arguments, tokenizer and model of a checkpoint, or of the base model (None), on the device in float32."""
    values = {name: value for name, value in config.arguments.items() if name not in _ALONE}
    if checkpoint is not None:
        values["model_name_or_path"] = checkpoint
        base = BaseModels(scorers=base.scorers)
    arguments = build_arguments(values, config.directory)
    torch.manual_seed(arguments.training.seed)
    tokenizer, model = load_model(arguments, base)
    return arguments, tokenizer, model.to(arguments.training.device).float()  # transformers 5 keeps the file's 16 bits


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


class Judge:
    """Scores a trial's model on its held-out split.

    Args:
        config: the trial.
        arguments: lengths, instructions and pooling for scoring are those of training.
        base: where tokenised held-out data is kept between trials.
    """

    def __init__(self, config: TrialConfig, arguments: Arguments, tokenizer: Any, base: BaseModels) -> None:
        self._config = config
        self._all_heads = HEADS if arguments.training.unified_finetuning else HEADS[:1]
        self._heads = [head for head in HEADS if head in Metric.read(config.metric).heads]
        self._settings = encoding_settings(arguments)
        is_base_encoder = arguments.training.fix_encoder and config.checkpoint is None
        self._frozen_encoder = arguments.model.model_name_or_path if is_base_encoder else None
        self._tokenizer = tokenizer
        self._base = base

    @property
    def _scorer(self) -> Scorer:
        """Of the held-out set, which guards alone do not need."""
        return _kept_scorer(self._config, self._settings, self._tokenizer, self._base)

    def scores(self, model: Model) -> Scores:
        """Returns scores on the whole corpus, and of the objective: of the base model's every head.

        Of trained models those heads are scored that the objective needs.
        """
        is_base = self._config.checkpoint is None and not self._config.rungs
        return self._scores(model, self._all_heads if is_base else self._heads, None)

    def rung_scores(self, model: Model) -> Scores:
        """Returns scores on the trial's pool, where it has one, of the heads that the objective needs."""
        return self._scores(model, self._heads, self._pool)

    @cached_property
    def _pool(self) -> Pool | None:
        if self._config.pool is None or self._config.pool_hash is None:
            return None
        return Pool.read(Path(self._config.pool), self._config.pool_hash)

    def _scores(self, model: Model, heads: Sequence[str], pool: Pool | None) -> Scores:
        split, frozen = self._config.split, self._frozen_encoder
        assert split is not None
        scores = self._scorer.score(model, split, heads=heads, frozen_encoder=frozen, pool=pool)
        return scores.with_metric(self._config.metric)

    def pooled_scores(self, model: Model) -> tuple[Scores, dict[str, Any]]:
        """Returns `scores` of the base model, having written the pool, and what `RungReport.pool` holds.

        Nothing is written, and the second is empty, where the pool would be the whole corpus.
        """
        config = self._config
        assert config.split is not None
        assert config.pool is not None
        assert config.pool_size is not None
        scorer, qrels = self._scorer, self._scorer.qrels(config.split)
        rankings = scorer.rankings(model, config.split, self._all_heads, frozen_encoder=self._frozen_encoder)
        scores = Scores.of(config.split, rankings, qrels).with_metric(config.metric)
        judged = {passage for of_query in qrels.values() for passage in of_query}
        counted = {head: rankings[head] for head in self._heads}
        pool = draw_pool(
            scorer.ids, judged, counted.values(), size=config.pool_size, seed=int(config.arguments.get("seed", 0))
        )
        if pool is None:
            return scores, {}
        if rank() == 0:
            pool.write(Path(config.pool))
        value = Scores.of(config.split, counted, qrels).with_metric(config.metric).means[config.metric]
        return scores, {
            "hash": pool.hash,
            "passages": len(pool.passages),
            "corpus": pool.corpus,
            "value": value,  # on the pool: it has all that these rankings have
        }

    def final_scores(self, model: EmbeddingModel, folder: Path) -> Scores:
        """Returns scores of all heads that the model has, as mteb judges them.

        mteb knows one vector a text: it judges the dense head, our scorer the others. Its own result JSON is written to
        ``mteb.json`` in `folder`, and weights of a second hybrid score, tuned on dev, to ``hybrid.json``.
        """
        from trainables.scoring.mteb_judge import judge  # mteb takes seconds to import, and only final scores need it

        where, split = Path(self._config.eval_data), self._config.split
        assert split is not None
        scores = judge(model, self._tokenizer, self._settings, where, split, result=folder / MTEB)
        if model.sparse_linear is not None:
            weights = self._scorer.tune_hybrid_weights(model, "dev", MEASURES[0], HYBRID_CANDIDATES)
            others = self._scorer.score(model, split, heads=HEADS[1:], tuned_weights=weights)
            scores = replace(scores, per_query=scores.per_query | others.per_query)
            if rank() == 0:
                write_text(
                    folder / HYBRID,
                    json.dumps({"default": HYBRID_WEIGHTS._asdict(), "tuned": weights._asdict()}),
                )
        return scores.with_metric(self._config.metric)

    def guard_scores(self, model: Model) -> dict[str, float]:
        """Returns guard task -> main score of the dense head; mteb's results go to ``mteb-TASK.json`` in the folder.

        Raises:
            GuardUnavailable: the data of a task is neither on this machine nor to be had from the hub.
        """
        if not self._config.guards:
            return {}
        from trainables.scoring.mteb_judge import guard_score, guard_task

        scores: dict[str, float] = {}
        for guard in self._config.guards:
            task = self._base.scorers.get(("guard", guard)) or guard_task(guard)
            self._base.scorers["guard", guard] = task  # with its data, for the next model
            result = Path(self._config.directory) / mteb_file(task.metadata.name)
            scores[task.metadata.name] = guard_score(model, self._tokenizer, self._settings, task, result=result)
        return scores


def encoding_settings(arguments: Arguments) -> EncodingSettings:
    """Returns how texts are encoded for scoring: as in training."""
    data, training = arguments.data, arguments.training
    return EncodingSettings(
        query_max_len=data.query_max_len,
        passage_max_len=data.passage_max_len,
        query_instruction_for_retrieval=data.query_instruction_for_retrieval,
        query_instruction_format=data.query_instruction_format,
        passage_instruction_for_retrieval=data.passage_instruction_for_retrieval,
        passage_instruction_format=data.passage_instruction_format,
        sentence_pooling_method=training.sentence_pooling_method,
        normalize_embeddings=training.normalize_embeddings,
        precision="float16" if training.fp16 else "bfloat16" if training.bf16 else "float32",
    )


def _kept_scorer(config: TrialConfig, settings: EncodingSettings, tokenizer: Any, base: BaseModels) -> Scorer:
    key = (config.eval_data, settings, fingerprint(tokenizer))
    if key not in base.scorers:
        folder = Path(config.eval_data)
        corpus = Corpus.cached(token_cache(config), fingerprint(tokenizer), folder, tokenizer, settings)
        base.scorers[key] = Scorer(folder, tokenizer, settings, corpus)
    scorer: Scorer = base.scorers[key]
    return scorer


def token_cache(config: TrialConfig) -> Path:
    """Returns RUN/data/tokens, for a trial's folder of RUN/trials/NAME."""
    return Path(config.directory).parents[1] / DATA / TOKENS
