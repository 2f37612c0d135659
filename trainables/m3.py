"""FlagEmbedding's M3 fine-tune, subclassed where it is slow or wrong. The only module that imports FlagEmbedding.

The arguments, the data format, the losses and the checkpoint layout are upstream's, and so are the losses step by step
for the same arguments and seed.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from FlagEmbedding.abc.finetune.embedder import (
    AbsEmbedderDataArguments,
    AbsEmbedderTrainDataset,
    EmbedderTrainerCallbackForDataRefresh,
)
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3Model,
    EncoderOnlyEmbedderM3ModelArguments,
    EncoderOnlyEmbedderM3Runner,
    EncoderOnlyEmbedderM3Trainer,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from torch import Tensor, nn
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

_OURS = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
}
"""Training arguments that differ from transformers' defaults unless given: the trial writes its own files."""

_DROPPED = ("overwrite_output_dir", "save_safetensors", "group_by_length", "logging_dir")
"""Arguments of older transformers that have no effect on a trial."""


class Arguments(NamedTuple):
    """FlagEmbedding's three dataclasses."""

    model: EncoderOnlyEmbedderM3ModelArguments
    data: AbsEmbedderDataArguments
    training: EncoderOnlyEmbedderM3TrainingArguments


def build_arguments(arguments: Mapping[str, Any], output_dir: str) -> Arguments:
    """Builds FlagEmbedding's dataclasses from argument names and values.

    Args:
        arguments: as on FlagEmbedding's command line; `warmup_ratio` and `train_data` as one string are understood.
        output_dir: nothing of a trial that succeeds is written there but what the caller writes.

    Raises:
        ValueError: a name is unknown to all three dataclasses.
    """
    values = {name: value for name, value in arguments.items() if name not in _DROPPED}
    if "warmup_ratio" in values:
        values["warmup_steps"] = values.pop("warmup_ratio")
    if isinstance(values.get("train_data"), str):
        values["train_data"] = [values["train_data"]]
    parts = (EncoderOnlyEmbedderM3ModelArguments, AbsEmbedderDataArguments, EncoderOnlyEmbedderM3TrainingArguments)
    known = {field.name for part in parts for field in fields(part)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"every argument must be FlagEmbedding's or transformers', but got {', '.join(unknown)}")
    return Arguments(*HfArgumentParser(parts).parse_dict(_OURS | values | {"output_dir": output_dir}))


@dataclass
class _Base:
    """A base model as it was read: never trained, only copied."""

    parts: dict[str, Any]
    has_heads: bool
    random: bool


class BaseModels:
    """Base models and tokenizers in host memory, so that a trial copies where the first one read files.

    Args:
        scorers: tokenised held-out data, by what it depends on; for the scoring of trials.
    """

    def __init__(self, scorers: dict[Any, Any] | None = None) -> None:
        self.scorers = {} if scorers is None else scorers
        self._models: dict[tuple[Any, ...], _Base] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(self, arguments: EncoderOnlyEmbedderM3ModelArguments) -> PreTrainedTokenizerBase:
        """Returns the model's tokenizer; `tokenizer_name` is ignored, as it is upstream."""
        key = repr(arguments)
        if key not in self._tokenizers:
            self._tokenizers[key] = AutoTokenizer.from_pretrained(
                arguments.model_name_or_path,
                cache_dir=arguments.cache_dir,
                token=arguments.token,
                use_fast=arguments.use_fast_tokenizer,
                trust_remote_code=arguments.trust_remote_code,
            )
        return self._tokenizers[key]

    def model(self, arguments: EncoderOnlyEmbedderM3ModelArguments) -> dict[str, Any]:
        """Returns encoder and heads as `EncoderOnlyEmbedderM3Runner.get_model` does, and draws what it draws.

        New heads come from torch's generator in its present state. A checkpoint that lacks encoder weights is read
        again each time, because filling them in draws too.
        """
        key = (arguments.model_name_or_path, arguments.trust_remote_code, arguments.colbert_dim, arguments.cache_dir)
        base = self._models.get(key)
        if base is None or base.random:
            before = torch.get_rng_state()
            parts: dict[str, Any] = EncoderOnlyEmbedderM3Runner.get_model(*key)
            self._models[key] = _as_base(parts, before)
            return parts
        return _copy(base)


def _as_base(parts: dict[str, Any], before: Tensor) -> _Base:
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    heads = _new_heads(parts)
    random = not torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(after)
    fresh = all(torch.equal(head.weight, parts[name].weight) for name, head in heads.items())
    return _Base({} if random else copy.deepcopy(parts), has_heads=not fresh, random=random)


def _new_heads(parts: Mapping[str, Any]) -> dict[str, nn.Linear]:
    return {
        name: nn.Linear(parts[name].in_features, parts[name].out_features)
        for name in ("colbert_linear", "sparse_linear")
    }


def _copy(base: _Base) -> dict[str, Any]:
    parts = {"model": copy.deepcopy(base.parts["model"]), **_new_heads(base.parts)}
    if base.has_heads:
        parts |= {name: copy.deepcopy(base.parts[name]) for name in ("colbert_linear", "sparse_linear")}
    return parts


class Model(EncoderOnlyEmbedderM3Model):  # type: ignore[misc]
    """Upstream's model with a sparse head that needs no tensor of texts x length x vocabulary."""

    _keys_to_ignore_on_save = None

    def _sparse_embedding(self, hidden_state: Tensor, input_ids: Tensor, return_embedding: bool = True) -> Tensor:
        weights = torch.relu(self.sparse_linear(hidden_state))
        if not return_embedding:
            return weights
        vectors = weights.new_zeros(len(input_ids), self.vocab_size)
        vectors = vectors.scatter_reduce(-1, input_ids, weights.squeeze(-1), reduce="amax")
        return vectors.index_fill(-1, torch.tensor(self.special_tokens, device=vectors.device), 0.0)

    @property
    def special_tokens(self) -> list[int]:
        """Ids whose weight is always zero; a tokenizer need not have all four."""
        ids = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "eos", "pad", "unk"))
        return sorted({token for token in ids if token is not None})

    def save(self, output_dir: str) -> None:
        """Writes encoder, heads and tokenizer in FlagEmbedding's layout."""
        super().save(output_dir)
        self.tokenizer.save_pretrained(output_dir)


class Trainer(EncoderOnlyEmbedderM3Trainer):  # type: ignore[misc]
    """Upstream's trainer; adds up the loss of its steps on the device, and writes no pickle of its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.loss_sum = torch.zeros((), device=self.args.device)
        self.loss_count = 0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, **kwargs)
        self.loss_sum += (result[0] if isinstance(result, tuple) else result).detach()
        self.loss_count += 1
        return result

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        self.model.save(output_dir or self.args.output_dir)


class Runner(EncoderOnlyEmbedderM3Runner):  # type: ignore[misc]
    """Upstream's runner over this module's classes.

    Args:
        arguments: from `build_arguments`.
        base: where base models are kept between trials.
        callbacks: for the trainer.
    """

    def __init__(self, arguments: Arguments, base: BaseModels, callbacks: list[TrainerCallback]) -> None:
        self._base = base
        self._callbacks = callbacks
        super().__init__(*arguments)

    def load_tokenizer_and_model(self) -> tuple[PreTrainedTokenizerBase, Model]:
        return load_model(Arguments(self.model_args, self.data_args, self.training_args), self._base)

    def load_train_dataset(self) -> AbsEmbedderTrainDataset:
        if not self.data_args.same_dataset_within_batch:
            self.data_args.train_data = [file for path in self.data_args.train_data for file in _files(path)]
        dataset = super().load_train_dataset()
        _check_negatives(dataset, self.data_args.train_group_size)
        return dataset

    def load_trainer(self) -> Trainer:
        trainer = Trainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
            callbacks=self._callbacks,
        )
        if self.data_args.same_dataset_within_batch:
            trainer.add_callback(EmbedderTrainerCallbackForDataRefresh(self.train_dataset))
        return trainer


def load_model(arguments: Arguments, base: BaseModels) -> tuple[PreTrainedTokenizerBase, Model]:
    """Returns tokenizer and model as the runner would train them, on the CPU."""
    training = arguments.training
    tokenizer = base.tokenizer(arguments.model)
    model = Model(
        base.model(arguments.model),
        tokenizer=tokenizer,
        negatives_cross_device=training.negatives_cross_device,
        temperature=training.temperature,
        sub_batch_size=training.sub_batch_size,
        kd_loss_type=training.kd_loss_type,
        use_mrl=training.use_mrl,
        mrl_dims=training.mrl_dims,
        sentence_pooling_method=training.sentence_pooling_method,
        normalize_embeddings=training.normalize_embeddings,
        unified_finetuning=training.unified_finetuning,
        use_self_distill=training.use_self_distill,
        self_distill_start_step=training.self_distill_start_step,
    )
    if training.gradient_checkpointing:
        model.enable_input_require_grads()
    _freeze(model, training)
    return tokenizer, model


def _freeze(model: Model, training: EncoderOnlyEmbedderM3TrainingArguments) -> None:
    for name, parameter in model.named_parameters():
        in_head = "colbert_linear" in name or "sparse_linear" in name
        if (training.fix_position_embedding and "position_embeddings" in name) or (
            training.fix_encoder and not in_head
        ):
            parameter.requires_grad = False


def _files(path: str) -> list[str]:
    """Returns the data files of a file or folder by name: `os.listdir`'s order differs between machines."""
    return sorted(str(file) for file in Path(path).iterdir()) if Path(path).is_dir() else [path]


def _check_negatives(dataset: AbsEmbedderTrainDataset, train_group_size: int) -> None:
    for column in ("pos", "neg") if train_group_size > 1 else ("pos",):
        for row, texts in enumerate(dataset.dataset[column]):
            if not texts:
                raise ValueError(f"every training row needs a text in `{column}`, but row {row + 1} has none: add one")
