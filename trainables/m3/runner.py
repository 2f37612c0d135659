"""FlagEmbedding's M3 fine-tune, subclassed where it is slow or wrong.

The arguments, the data format, the losses and the checkpoint layout are upstream's, and so are the losses step by step
for the same arguments and seed.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from FlagEmbedding.abc.finetune.embedder import (
    AbsEmbedderTrainDataset,
    EmbedderTrainerCallbackForDataRefresh,
)
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3Model,
    EncoderOnlyEmbedderM3Runner,
    EncoderOnlyEmbedderM3Trainer,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trainables.linear import fast_linear
from trainables.m3.arguments import Arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.batching import Collator, Layout
from trainables.m3.compiling import CompiledLayers
from trainables.m3.embedding import Vocabulary, embedded_from, encode_groups, plain_embedding, token_table
from trainables.m3.heads import colbert_scores, sparse_vectors, token_vectors
from trainables.m3.lora import Adapters
from trainables.m3.packing import Packed, Padded
from trainables.m3.tokens import Tokeniser, check_rows, passage_texts, query_texts, sorted_folders, texts_of
from trainables.m3.trainer import ResumableTrainer
from trainables.varlen import attend_text_by_text, attends_text_by_text, can_pack, padding_position

_GROUP_COST = {"cpu": 32, "cuda": 2048}
"""Tokens that take as long as starting one more forward and backward pass."""

_ADAM = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that leave a parameter alone which has never had a gradient, if there is no weight decay."""


class Model(EncoderOnlyEmbedderM3Model):  # type: ignore[misc]
    """Upstream's model and losses over batches laid out by `Layout`, and heads without large intermediate tensors."""

    _keys_to_ignore_on_save = None

    checkpoint_layers = True
    """Whether layers are checkpointed where `gradient_checkpointing` allows it: only for want of memory, at the price
    of a second forward pass. Sub-batches are checkpointed whole instead, whatever this says. No loss depends on it."""

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Lets each layer's activations be computed again in the backward pass, where that is asked for.

        A frozen encoder keeps none: checkpointed, it would, since transformers has its embeddings require a gradient.
        """
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        if self.checkpoint_layers and trains and not self._is_cached:
            newer = hasattr(self.model, "activation_checkpointing_enable")
            enable = "activation_checkpointing_enable" if newer else "gradient_checkpointing_enable"
            getattr(self.model, enable)(**kwargs)

    gradient_checkpointing_enable = activation_checkpointing_enable
    """The same in transformers before 5.20."""

    @property
    def _is_cached(self) -> bool:
        return bool(self.sub_batch_size and self.sub_batch_size > 0)

    def forward(
        self,
        queries: dict[str, Any],
        passages: dict[str, Any],
        texts: dict[str, Any],
        teacher_scores: Tensor | None = None,
        no_in_batch_neg_flag: bool = False,
    ) -> Any:
        """Computes the loss of a batch.

        Args:
            queries: see `Layout.batch`, as `passages` and `texts`.
            teacher_scores: of every passage, for knowledge distillation: the bits of float32 as int32.
            no_in_batch_neg_flag: compare each query with its own passages only.
        """
        embedded = [
            side | {"embeddings": values} for side, values in zip((queries, passages), self._embed(texts), strict=True)
        ]
        with warnings.catch_warnings():
            # upstream makes a tensor of a list here, for which the host would wait
            warnings.filterwarnings("ignore", message="To copy construct from a tensor")
            scores = None if teacher_scores is None else teacher_scores.view(torch.float32)
            return super().forward(*embedded, scores, no_in_batch_neg_flag)

    def encode(self, features: dict[str, Any]) -> Any:
        """Returns the embeddings that `forward` has computed for both sides together."""
        return features["embeddings"]

    def compute_colbert_score(self, q_reps: Tensor, p_reps: Tensor, q_mask: Tensor) -> Tensor:
        """Returns scores of shape (queries, passages)."""
        scores: Tensor = colbert_scores(q_reps, p_reps, q_mask[:, 1:].sum(-1, keepdim=True)) / self.temperature
        return scores

    def _embed(self, texts: dict[str, Any]) -> list[tuple[Tensor | None, ...]]:
        """Returns dense, sparse and token vectors of the queries and of the passages."""

        def encode(group: dict[str, Any], table: Tensor | None) -> tuple[Tensor, ...]:
            return self._encode_group(group, table, texts)

        table = token_table(self.model, texts["tokens"])
        groups = encode_groups(encode, texts["groups"], table, self._is_cached)
        dense, sparse, vectors = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*groups, strict=True)
        )
        del groups
        if texts["order"] is not None:
            dense, sparse = dense[texts["order"]], sparse[texts["order"]]
        counts = list(texts["counts"])
        if not self.unified_finetuning:
            return [(side, None, None) for side in dense.split(counts)]
        colbert = token_vectors(vectors, texts["slots"], texts["shapes"])
        return list(zip(dense.split(counts), sparse.split(counts), colbert, strict=True))

    def _encode_group(self, group: dict[str, Any], table: Tensor | None, texts: dict[str, Any]) -> tuple[Tensor, ...]:
        """Returns dense and sparse vectors of each text, and vectors of their tokens but the first."""
        rows = (Packed if texts["packed"] else Padded)(group)
        with embedded_from(self.model, table, rows.places):
            hidden = rows.encode(self.model)
        dense = self._pooled(hidden, rows, group)
        if not self.unified_finetuning:
            return dense, dense.new_empty(len(dense), 0), dense.new_empty(len(dense), 0)
        weights = torch.relu(self.sparse_linear(hidden.index_select(0, group["scored"]))).squeeze(-1)
        sparse = sparse_vectors(weights, group["cells"], len(dense), texts["width"])
        return dense, sparse, self._token_vectors(hidden, group["inner"])

    def _token_vectors(self, hidden: Tensor, inner: Tensor) -> Tensor:
        vectors = self.colbert_linear(hidden).index_select(0, inner)
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # as upstream's mask does
        vectors = normalize(vectors, dim=-1) if self.normalize_embeddings else vectors
        device = vectors.device.type
        # autocast compares them in 16 bits anyway
        return vectors.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else vectors

    def _pooled(self, hidden: Tensor, rows: Padded | Packed, group: dict[str, Any]) -> Tensor:
        if self.sentence_pooling_method == "mean":
            dense = rows.mean(hidden)
        else:
            dense = hidden.index_select(0, group["last" if self.sentence_pooling_method == "last_token" else "first"])
        return normalize(dense, dim=-1) if self.normalize_embeddings else dense

    @property
    def special_tokens(self) -> list[int]:
        """Ids whose weight is always zero; a tokenizer need not have all four."""
        ids = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "eos", "pad", "unk"))
        return sorted({token for token in ids if token is not None})

    def save(self, output_dir: str) -> None:
        """Writes encoder, heads and tokenizer in FlagEmbedding's layout."""
        super().save(output_dir)
        self.tokenizer.save_pretrained(output_dir)


class Trainer(ResumableTrainer, EncoderOnlyEmbedderM3Trainer):  # type: ignore[misc]
    """Upstream's trainer, resumable; adds up its losses on the device."""

    whole_model: Callable[[], AbstractContextManager[Model]]
    """See `Runner.whole_model`."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with fast_linear(self.model):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        with self.whole_model() as model:
            model.save(str(output_dir or self.args.output_dir))


class Runner(EncoderOnlyEmbedderM3Runner):  # type: ignore[misc]
    """Upstream's runner over this module's classes.

    Args:
        arguments: from `build_arguments`.
        base: where base models are kept between trials.
        callbacks: for the trainer.
        token_cache: folder for the token ids of training texts; None to tokenise them in every batch.
        torch_compile: see `CompiledLayers`.
    """

    def __init__(
        self,
        arguments: Arguments,
        base: BaseModels,
        callbacks: list[TrainerCallback],
        token_cache: Path | None = None,
        torch_compile: bool | None = None,
    ) -> None:
        self._base = base
        self._torch_compile = torch_compile
        self._callbacks = callbacks
        self._token_cache = token_cache
        super().__init__(*arguments)

    def load_tokenizer_and_model(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer, model = load_model(Arguments(self.model_args, self.data_args, self.training_args), self._base)
        self.adapters = Adapters(model.model, self.model_args) if self.model_args.use_lora else None
        return tokenizer, model

    def load_train_dataset(self) -> AbsEmbedderTrainDataset:
        with sorted_folders():
            dataset = super().load_train_dataset()
        check_rows(dataset)
        self._check_ensemble(dataset)
        return dataset

    def _check_ensemble(self, dataset: AbsEmbedderTrainDataset) -> None:
        """Refuses what makes upstream's ensemble loss read past its scores."""
        alone = any(getattr(dataset, "no_in_batch_neg_flags", ()))
        group, batch = self.data_args.train_group_size, getattr(dataset, "defaut_batch_size", 1)
        if self.training_args.unified_finetuning and alone and batch > group:
            raise ValueError(
                "with unified_finetuning and no_in_batch_neg data, per_device_train_batch_size must be at most "
                f"train_group_size, but got {batch} and {group}: FlagEmbedding's ensemble loss has no more scores"
            )

    def load_data_collator(self) -> Collator:
        data = self.data_args
        queries = Tokeniser(self.tokenizer, data.query_max_len)
        passages = Tokeniser(self.tokenizer, data.passage_max_len)
        # with shuffle_ratio the texts are new in every epoch
        if self._token_cache is not None and data.shuffle_ratio == 0:
            source = texts_of(data, self.training_args.seed)
            queries = queries.cached(self._token_cache, f"queries {source}", query_texts(self.train_dataset))
            passages = passages.cached(self._token_cache, f"passages {source}", passage_texts(self.train_dataset))
        return Collator(self._layout(), queries, passages)

    def load_trainer(self) -> Trainer:
        self._set_parallel()
        tokens = self._reachable_tokens()
        self.vocabulary = None if tokens is None else Vocabulary(self.model.model, tokens)
        # layers with adapters have not been compiled on any card
        self._compiled_layers = CompiledLayers(self.model.model, False if self.adapters else self._torch_compile)
        trainer = Trainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
            callbacks=[*self._callbacks, self._compiled_layers],
        )
        trainer.whole_model = self.whole_model
        if self.data_args.same_dataset_within_batch:
            trainer.add_callback(EmbedderTrainerCallbackForDataRefresh(self.train_dataset))
        return trainer

    def _set_parallel(self) -> None:
        """Spares DistributedDataParallel a walk and a broadcast a step where it is known to need neither."""
        training = self.training_args
        if attends_text_by_text(self.model.model):
            for name in ("ddp_find_unused_parameters", "ddp_broadcast_buffers"):
                if getattr(training, name) is None:
                    setattr(training, name, False)

    @contextmanager
    def whole_model(self) -> Iterator[Model]:
        """Yields the model as it stands, for scoring and saving: with all tokens, and with its adapters merged."""
        with (
            self.vocabulary.whole() if self.vocabulary else nullcontext(),
            self.adapters.merged() if self.adapters else nullcontext(),
            self._compiled_layers.as_written(),
        ):
            yield self.model

    def _reachable_tokens(self) -> Any:
        """Returns every token that training can come across, or None where rows out of reach may change or be met."""
        training, is_frozen = self.training_args, self.adapters is not None
        caches = (self.data_collator.query_tokens.cache, self.data_collator.passage_tokens.cache)
        still = is_frozen or (
            training.optim in _ADAM
            and not training.weight_decay
            and _is_adam(getattr(training, "hf_deepspeed_config", None))
        )
        known = "type" not in self.train_dataset.dataset.column_names and None not in caches
        embedding = plain_embedding(self.model.model)
        if not (still and known) or embedding is None or training.fix_encoder:
            return None
        met = [cache.vocabulary for cache in caches]
        return np.unique(np.concatenate([*met, [self.tokenizer.pad_token_id]])).astype(np.int64)

    def _layout(self) -> Layout:
        training = self.training_args
        return Layout(
            pad_token_id=self.tokenizer.pad_token_id,
            special_tokens=tuple(self.model.special_tokens),
            pad_to_multiple_of=self.data_args.pad_to_multiple_of,
            padding_side=self.tokenizer.padding_side,
            sub_batch_size=training.sub_batch_size,
            group_cost=_GROUP_COST["cpu" if training.device.type == "cpu" else "cuda"],
            packed=attends_text_by_text(self.model.model),
            padding_position=padding_position(self.model.model),
            # padding on the left moves the positions of some encoders, so it has to stay as upstream's
            like_upstream=training.full_determinism or self.tokenizer.padding_side == "left",
        )


def _is_adam(deepspeed: Any) -> bool:
    """Returns whether DeepSpeed's optimizer, if it has one of its own, is Adam without weight decay."""
    if deepspeed is None or deepspeed.get_value("optimizer") is None:
        return True
    own_default = 0.01 if deepspeed.get_value("optimizer.params.torch_adam") else 0  # of torch's AdamW
    still = deepspeed.get_value("optimizer.params.weight_decay", own_default) in ("auto", 0)
    return still and deepspeed.get_value("optimizer.type") in ("Adam", "AdamW")


def load_model(arguments: Arguments, base: BaseModels) -> tuple[PreTrainedTokenizerBase, Model]:
    """Returns tokenizer and model as the runner would train them, on the CPU."""
    training = arguments.training
    tokenizer = base.tokenizer(arguments.model)
    model = Model(
        base.model(EncoderOnlyEmbedderM3Runner.get_model, arguments.model),
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
    if training.gradient_checkpointing and not training.fix_encoder:
        model.enable_input_require_grads()
    _freeze(model, training)
    if can_pack(model.model):
        attend_text_by_text(model.model)
    return tokenizer, model


def _freeze(model: Model, training: EncoderOnlyEmbedderM3TrainingArguments) -> None:
    pooler = getattr(model.model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)  # nothing takes its output
    for name, parameter in model.named_parameters():
        in_head = "colbert_linear" in name or "sparse_linear" in name
        if (training.fix_position_embedding and "position_embeddings" in name) or (
            training.fix_encoder and not in_head
        ):
            parameter.requires_grad = False
