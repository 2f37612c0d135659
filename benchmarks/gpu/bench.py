"""Models, rows and training that the checks of a GPU share."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback, XLMRobertaConfig, XLMRobertaModel, set_seed

from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.m3.tokens import sorted_folders
from trainables.process import trial_process

UNIFIED: dict[str, Any] = {"unified_finetuning": True, "use_self_distill": True}
METRIC = "dense.ndcg_at_10"
Result = dict[str, Any]
"""``passed`` (None where nothing is demanded) and figures."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """An XLM-R and the lengths that it reads."""

    vocab: int
    layers: int
    hidden: int
    heads: int
    query_max_len: int
    passage_max_len: int

    @property
    def matrices(self) -> int:
        """Weights of the layers' products."""
        return 12 * self.layers * self.hidden**2


SIZES = {
    "small": Size(vocab=30_000, layers=6, hidden=384, heads=12, query_max_len=32, passage_max_len=128),
    "large": Size(vocab=250_002, layers=24, hidden=1024, heads=16, query_max_len=64, passage_max_len=512),
}
TINY = {name: Size(vocab=3000, layers=2, hidden=32, heads=4, query_max_len=12, passage_max_len=40) for name in SIZES}
WARM_STEPS = 4
"""First steps of a training, in which kernels are chosen, or compiled."""

SHORT, LONG = 105, 300
"""Median words of a passage."""


@dataclass(kw_only=True)
class Trained:
    """What a training gave."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    """Of a step, on average over those after `WARM_STEPS`, for which the host waits at their end alone."""
    tokens: list[int] = field(default_factory=list)
    """Real ones, of each step."""
    peak: int = 0
    """Bytes allocated on the device at once, over what was there before."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step, on the host."""
    scales: list[float] = field(default_factory=list)
    """GradScaler's after each step: it falls where a step was skipped."""
    longest: tuple[int, int] = (0, 0)
    """Tokens of the longest query and passage."""

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return float(np.mean(self.tokens[WARM_STEPS:])) / self.seconds


class Bench:
    """Everything a check needs.

    Args:
        folder: for models and rows; what is there is used again.
        tiny: sizes that a CPU trains in moments.
    """

    def __init__(self, folder: Path, *, tiny: bool) -> None:
        self.folder = folder
        self.tiny = tiny
        self.sizes = TINY if tiny else SIZES
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.precisions = ("bf16", "fp16") if self.cuda else ("fp32",)
        self.base = BaseModels()

    def model(self, name: str, dropout: float = 0.0) -> Path:
        """Returns a random XLM-R with a word-level tokenizer, written when it is first asked for."""
        size, plain = self.sizes[name], self.folder / name
        if not (plain / "done").exists():
            _write_tokenizer(plain, size)
            set_seed(0)
            with torch.device(self.device):
                model = XLMRobertaModel(_config(size))
            model.save_pretrained(plain)
            del model
            (plain / "done").touch()
        if not dropout:
            return plain
        other = self.folder / f"{name}-{dropout}"
        if not other.exists():
            other.mkdir()
            for file in plain.iterdir():
                (other / file.name).symlink_to(file)
            values = json.loads((plain / "config.json").read_text())
            (other / "config.json").unlink()
            values |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
            (other / "config.json").write_text(json.dumps(values))
        return other

    def rows(self, median: int) -> Path:
        """Returns training rows with 7 negatives and a teacher's scores, by Zipf's law; 600, or 64 tiny ones."""
        path = self.folder / f"rows-{median}.jsonl"
        if not path.exists():
            count, median = (64, median // 15) if self.tiny else (600, median)
            draw = _Words(self.sizes["large"].vocab)
            lines = []
            for _ in range(count):
                texts = draw.texts(8, median, 0.5)
                scores = draw.rng.random(8).tolist()
                row = {"query": draw.texts(1, 9, 0.3)[0], "pos": texts[:1], "neg": texts[1:]}
                lines.append(json.dumps(row | {"pos_scores": scores[:1], "neg_scores": scores[1:]}) + "\n")
            path.write_text("".join(lines))
        return path

    def evaluation(self, passages: int, queries: int, median: int = 20) -> Path:
        """Returns a BEIR folder with dev and test, whose queries are words of their passages."""
        folder = self.folder / f"eval-{passages}"
        if not folder.exists():
            (folder / "qrels").mkdir(parents=True)
            texts = _Words(self.sizes["large"].vocab).texts(passages, median, 0.5)
            corpus = [{"_id": f"p{n:06d}", "title": "", "text": text} for n, text in enumerate(texts)]
            asked = [{"_id": f"q{n}", "text": " ".join(text.split()[:9])} for n, text in enumerate(texts[:queries])]
            for name, lines in (("corpus", corpus), ("queries", asked)):
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            judged = "".join(f"q{n}\tp{n:06d}\t1\n" for n in range(queries))
            for split in ("dev", "test"):
                (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
        return folder

    def arguments(
        self, name: str = "small", *, median: int = SHORT, dropout: float = 0.0, precision: str = "fp32", **changes: Any
    ) -> dict[str, Any]:
        """Returns a trainer's arguments: dense only, in float32, unless `changes` say otherwise."""
        size = self.sizes[name]
        values = {
            "model_name_or_path": str(self.model(name, dropout)),
            "train_data": [str(self.rows(median))],
            "cache_path": str(self.folder / "arrow"),
            "per_device_train_batch_size": 4,
            "train_group_size": 4,
            "query_max_len": size.query_max_len,
            "passage_max_len": size.passage_max_len,
            "learning_rate": 1e-5,
            "temperature": 0.02,
            "max_steps": 10,
            "warmup_ratio": 0.1,
            "seed": 42,
        }
        return values | ({precision: True} if precision != "fp32" else {}) | changes

    def users(self, name: str = "large", **changes: Any) -> dict[str, Any]:
        """Returns the arguments of a user who fine-tunes BGE-M3: batch 2, group 8, 512 tokens, checkpointing."""
        given = {"per_device_train_batch_size": 2, "train_group_size": 8, "gradient_checkpointing": True}
        return self.arguments(name, **{**UNIFIED, **given, **changes})

    def train(
        self,
        side: str,
        values: dict[str, Any],
        *,
        before: Callable[[Any], None] | None = None,
        after: Callable[[Any], None] | None = None,
        gradients: bool = False,
    ) -> Trained:
        """Trains with FlagEmbedding's unmodified runner (side ``upstream``) or with ours."""
        started = self.allocated()
        upstream = side == "upstream"
        with trial_process(self.folder / "log.txt"), sorted_folders():
            built = build_arguments(values, str(self.folder / "out"))
            with self._kept_models() if upstream else nullcontext():
                make = EncoderOnlyEmbedderM3Runner if upstream else Runner
                ours: tuple[Any, ...] = (
                    built,
                    self.base,
                    [],
                    self.folder / "tokens",
                    values.get("torch_compile", False),
                )
                runner = make(*(built if upstream else ours))
            if before:
                before(runner)
            watch = _Watch(runner, self, gradients=gradients)
            runner.trainer.add_callback(watch)
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            runner.trainer.train()
            trained = watch.result()
            trained.peak = (torch.cuda.max_memory_allocated() if self.cuda else 0) - started
            if after:
                after(runner)
            del watch, runner
        return trained

    @contextmanager
    def _kept_models(self) -> Iterator[None]:
        """Lets FlagEmbedding's runner copy the model where it would read 2.3 GB anew."""
        load = EncoderOnlyEmbedderM3Runner.get_model

        def get(path: str, trust: bool = False, dim: int = -1, cache: str | None = None) -> dict[str, Any]:
            names = {"model_name_or_path": path, "trust_remote_code": trust, "colbert_dim": dim, "cache_dir": cache}
            return self.base.model(load, SimpleNamespace(**names))

        with mock.patch.object(EncoderOnlyEmbedderM3Runner, "get_model", staticmethod(get)):
            yield

    def allocated(self) -> int:
        """Returns the bytes that PyTorch holds on the device when what is unreachable is gone."""
        gc.collect()
        if not self.cuda:
            return 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()


class _Watch(TrainerCallback):
    """Notes losses, times, tokens and the first step's gradients."""

    def __init__(self, runner: Any, bench: Bench, *, gradients: bool) -> None:
        self._runner = runner
        self._bench = bench
        self._gradients = gradients
        self._started = self._seconds = 0.0
        self._losses: list[Tensor] = []
        self._counts: list[Any] = []
        self._trained = Trained()
        compute_loss = runner.trainer.compute_loss

        def record(model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
            self._count(inputs)
            loss = compute_loss(model, inputs, **kwargs)
            self._losses.append(loss.detach())
            return loss

        runner.trainer.compute_loss = record

    def _count(self, inputs: dict[str, Any]) -> None:
        texts = inputs.get("texts")
        if texts is not None and "lengths" in texts:  # known on the host
            count, lengths = texts["counts"][0], texts["lengths"]
            self._counts.append(int(sum(lengths)))
            longest = int(max(lengths[:count])), int(max(lengths[count:]))
            self._trained.longest = tuple(map(max, zip(self._trained.longest, longest, strict=True)))  # type: ignore[assignment]
            return
        sides = texts["groups"] if texts is not None else [inputs["queries"], inputs["passages"]]
        masks = [part["attention_mask"] for side in sides for part in (side if isinstance(side, list) else [side])]
        self._counts.append(torch.stack([mask.sum() for mask in masks]).sum())

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Copies gradients, once."""
        if not self._gradients or self._trained.gradients:
            return
        embedding = self._runner.model.model.get_input_embeddings()
        for name, parameter in self._runner.model.named_parameters():
            if parameter.grad is None:
                continue
            grad = parameter.grad.detach().double().cpu()
            tokens = getattr(embedding, "tokens", None)
            if parameter is embedding.weight and tokens is not None:
                whole = grad.new_zeros(self._runner.model.model.config.vocab_size, grad.shape[1])
                whole[tokens.cpu()] = grad
                grad = whole
            self._trained.gradients[name] = grad

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:  # noqa: ARG002
        """Notes the time, when the device is done."""
        if state.global_step in (WARM_STEPS, state.max_steps):
            if self._bench.cuda:
                torch.cuda.synchronize()
            self._seconds = (time.perf_counter() - self._started) / max(1, state.max_steps - WARM_STEPS)
            self._started = time.perf_counter()
        scaler = getattr(self._runner.trainer.accelerator, "scaler", None)
        if scaler is not None:
            self._trained.scales.append(scaler.get_scale())

    def result(self) -> Trained:
        """Returns what was noted."""
        trained = self._trained
        trained.losses = [float(loss) for loss in self._losses]
        trained.tokens = [int(count) for count in self._counts]
        trained.seconds = self._seconds
        return trained


class _Words:
    """Draws texts of words by Zipf's law."""

    def __init__(self, vocab: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        count = min(20_000, vocab - 100)
        self._words = np.array([f"word{number}" for number in range(count)])
        weights = 1 / (np.arange(count) + 10)
        self._cumulative = np.cumsum(weights / weights.sum())

    def texts(self, count: int, median: float, spread: float) -> list[str]:
        """Returns texts with lognormal lengths."""
        lengths = np.maximum(3, self.rng.lognormal(0, spread, count) * median).astype(int)
        places = np.searchsorted(self._cumulative, self.rng.random(lengths.sum()))
        words = self._words[np.minimum(places, len(self._words) - 1)]
        return [" ".join(part) for part in np.split(words, np.cumsum(lengths)[:-1])]


def random_rows(count: int, median: int) -> Iterator[str]:
    """Yields lines of training rows with 7 negatives, whose queries are words of their positives."""
    draw = _Words(SIZES["large"].vocab)
    for _ in range(count):
        texts = draw.texts(8, median, 0.5)
        query = " ".join(draw.rng.permutation(texts[0].split())[:9])
        yield json.dumps({"query": query, "pos": texts[:1], "neg": texts[1:]}) + "\n"


def _config(size: Size) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.passage_max_len + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _write_tokenizer(folder: Path, size: Size) -> None:
    names = ["<s>", "<pad>", "</s>", "<unk>", *(f"word{number}" for number in range(size.vocab - 4))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    marks = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", **marks).save_pretrained(folder)
