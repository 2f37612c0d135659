"""What a training step takes on a device, known before it runs. Needs neither torch nor any other library.

The bytes that autograd keeps were counted, operation by operation, on XLM-R's layers (`tests/m3/test_memory.py` counts
them again); Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, count the same
way, for arithmetic that is all in 16 bits.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.config import DEFAULT_LENGTHS

LORA_RANK = 64
"""FlagEmbedding's default."""

_FLOAT = 4
_INDEX = 8
_SPREAD = 4.0
"""Standard deviations by which the texts of the longest batch are longer together than those of a mean one."""
_WORKSPACE = 2**25
"""cuBLAS's, allocated through PyTorch (32 MiB on Hopper, less on older cards)."""
CONTEXT = 7e8
"""CUDA's context and kernels and what NCCL holds beside PyTorch's allocator: 0.5 to 0.8 GB, by the card and release."""
_CONTEXT_OF_NCCL = 5e8
_FRAGMENTS = 1.04
"""Allocator's segments over the bytes in use, where segments can grow."""
_SIMILARITIES = 2**26
"""`heads._SCORES_AT_ONCE`: token-to-token similarities at once."""
_SCORED_TOKENS = 16384
"""`EncodingSettings.batch_tokens` on a GPU."""
_SCORED_SIMILARITIES = 2**25
"""`ranking._SIMILARITIES_AT_ONCE`."""


@dataclass(frozen=True, kw_only=True)
class _Widths:
    """Bytes of a token in a layer, over the hidden size; where two are given, the second over the intermediate one."""

    kept: tuple[int, int]
    """What autograd keeps: products' inputs (in 16 bits three copies of the layer's own), the sums before each
    LayerNorm in float32, and two dropout masks."""
    forward: tuple[int, int]
    """What a layer holds at once where nothing is kept."""
    number: int
    """Of one value."""
    similarity: int
    """Of one similarity of two tokens: in the backward pass there is its gradient, too."""
    vector: int
    """Of a number of a padded token vector: as it is joined and compared, and its gradients."""


_MIXED = _Widths(kept=(26, 4), forward=(12, 4), number=2, similarity=4, vector=8)
_FULL = _Widths(kept=(34, 8), forward=(20, 8), number=4, similarity=8, vector=13)
_WORKING = (4, 4)
"""Bytes of a token in the layer that is at work, as in `_Widths`: gradients, or what the forward pass will drop."""
_INPUT = 4
"""A checkpointed layer keeps its input, LayerNorm's output, which is float32 also in 16 bits."""
_EMBEDDED = 5
"""The embeddings' sum and dropout mask."""
_LAST = 12
"""The last hidden states, copies of them for the heads, and token vectors before normalisation."""


_ADAPTED = ((5, 1), (17, 1))
"""Bytes that adapters keep of a token in a layer, as in `_Widths`, in 16 bits and in float32: each of the six has a
dropout mask, and in float32 a copy of its input, which query, key and value share otherwise."""
_ADAPTING = (1, 1)
"""Numbers that they add to the layer that is at work: an input's gradient comes from the layer and from its adapter."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of an encoder with its heads, in transformers' words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    parameters: int
    """Of the encoder and its heads."""
    colbert_dim: int

    @classmethod
    def of(cls, config: Any, *, parameters: int | None = None, colbert_dim: int = -1) -> "Shape":
        """Reads the sizes from a transformers configuration, or from an object with the same attributes.

        Args:
            config: has ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``, ``vocab_size`` and
                ``max_position_embeddings``.
            parameters: None: counted as XLM-R's are.
            colbert_dim: of FlagEmbedding's arguments; -1 for the hidden size.
        """
        size, wide = int(config.hidden_size), int(config.intermediate_size)
        dim = colbert_dim if colbert_dim > 0 else size
        shape = cls(
            hidden_size=size,
            intermediate_size=wide,
            num_hidden_layers=int(config.num_hidden_layers),
            vocab_size=int(config.vocab_size),
            parameters=parameters or 0,
            colbert_dim=dim,
        )
        if parameters is not None:
            return shape
        layers = shape.matrices + shape.num_hidden_layers * (9 * size + wide)
        embeddings = (shape.vocab_size + int(config.max_position_embeddings) + 3) * size
        return replace(shape, parameters=layers + embeddings + (size + 1) * (dim + 1))

    @classmethod
    def read(cls, model: Path, **known: Any) -> "Shape":
        """Reads the sizes from the ``config.json`` of a model's folder; `known` as for `of`."""
        values = json.loads((model / "config.json").read_text(encoding="utf-8"))
        return cls.of(type("Config", (), values), **known)

    @property
    def matrices(self) -> int:
        """Weights of the layers' products: those that autocast copies."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size)

    def adapters(self, rank: int) -> int:
        """Returns the weights of adapters of that rank (LoRA) on all of the layers' products."""
        return self.num_hidden_layers * rank * (10 * self.hidden_size + 2 * self.intermediate_size)

    def wide(self, factors: tuple[int, int]) -> int:
        """Returns bytes of a token in a layer."""
        return factors[0] * self.hidden_size + factors[1] * self.intermediate_size


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many tokens texts have."""

    mean: float
    deviation: float
    longest: int

    def of_longest(self, count: int) -> float:
        """Returns the tokens that `count` of them are likely to have at most, together."""
        return min(count * self.longest, count * self.mean + _SPREAD * self.deviation * math.sqrt(count))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts that go through the encoder for one backward pass, on one worker."""

    queries: int
    passages: int
    query_length: int
    """Of the longest query, in tokens."""
    passage_length: int
    """Of the longest passage."""
    tokens: int
    """Of all texts together: as many as the encoder goes through, so with padding where it is not packed."""

    @classmethod
    def longest(cls, arguments: Mapping[str, Any]) -> "Texts":
        """Returns a batch in which every text is as long as it may be; `arguments` by FlagEmbedding's names."""
        queries = int(arguments.get("per_device_train_batch_size") or 8)
        passages = queries * int(arguments.get("train_group_size") or 8)
        query, passage = (int(arguments.get(name) or default) for name, default in DEFAULT_LENGTHS.items())
        return cls(
            queries=queries,
            passages=passages,
            query_length=query,
            passage_length=passage,
            tokens=queries * query + passages * passage,
        )

    @classmethod
    def likely(cls, arguments: Mapping[str, Any], queries: "Lengths", passages: "Lengths") -> "Texts":
        """Returns the longest batch that a training is likely to draw, packed.

        Args:
            arguments: by FlagEmbedding's names.
            queries: of those that may be drawn, cut to the longest that is allowed.
            passages: of passages.
        """
        most = cls.longest(arguments)
        tokens = queries.of_longest(most.queries) + passages.of_longest(most.passages)
        return cls(
            queries=most.queries,
            passages=most.passages,
            query_length=queries.longest,
            passage_length=passages.longest,
            tokens=min(most.tokens, int(tokens)),
        )

    @property
    def count(self) -> int:
        """Queries and passages."""
        return self.queries + self.passages

    @property
    def padded_length(self) -> int:
        """Places of a text among the token vectors."""
        return max(self.query_length, self.passage_length)

    def at_once(self, sub_batch_size: int | None) -> int:
        """Returns the tokens whose activations are held together."""
        return min(self.tokens, sub_batch_size * self.padded_length) if sub_batch_size else self.tokens


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by what they are for."""

    weights: float
    moments: float
    """The optimizer's; of DeepSpeed also its weights and gradients in float32."""
    gradients: float
    held_gradients: float
    """The part of the gradients, and of DistributedDataParallel's buckets, that is there from step to step."""
    copies: float
    """Autocast's weights in 16 bits."""
    kept: float
    """Activations from the forward pass to the backward pass."""
    heads: float
    """Token vectors, what is computed from them and its gradients, when the backward pass begins."""
    layers: float
    """Of one layer, or one sub-batch, in the backward pass: what is computed again, and gradients."""
    ending: float
    """When the backward pass is in the first layer or the embedding, and most gradients are there."""
    scoring: float
    """At a rung, beside weights and moments."""
    beside: float
    """What the process holds outside of PyTorch's allocator."""

    @property
    def training(self) -> float:
        """The most that PyTorch's allocator gives out at once in a step (`torch.cuda.max_memory_allocated`)."""
        activations = self.copies + self.kept + max(self.heads, self.layers)
        return self._states + max(self.held_gradients + activations, self.ending)

    @property
    def allocated(self) -> float:
        """The same of a trial, which is scored at its rungs."""
        return max(self.training, self._states + self.scoring)

    @property
    def _states(self) -> float:
        return self.weights + self.moments + _WORKSPACE

    @property
    def on_device(self) -> float:
        """The most that the device has to have."""
        return self.allocated * _FRAGMENTS + self.beside


def memory(
    shape: Shape,
    arguments: Mapping[str, Any],
    *,
    texts: Texts | None = None,
    sub_batch_size: int | None = None,
    checkpointing: bool | None = None,
    reachable: int | None = None,
    workers: int = 1,
) -> Memory:
    """Returns what training takes on each worker's GPU, rungs included.

    Args:
        shape: of the model.
        arguments: of a trial, by FlagEmbedding's and transformers' names.
        texts: of the longest batch. None: every text as long as the arguments allow.
        sub_batch_size: texts whose activations are held at once. None: all of them.
        checkpointing: whether layers' activations are computed again. None: both are as the arguments say; in
            sub-batches layers are not.
        reachable: distinct tokens of the training data, where only their embeddings are trained
            (`embedding.Vocabulary`). None: the whole embedding is trained.
        workers: that train together.
    """
    texts = texts or Texts.longest(arguments)
    if checkpointing is None:
        sub_batch_size = sub_batch_size or _positive(arguments.get("sub_batch_size"))
        checkpointing = bool(arguments.get("gradient_checkpointing")) and not sub_batch_size
    left_out = 0 if reachable is None else max(0, shape.vocab_size - reachable) * shape.hidden_size
    states = _states(shape, arguments, shape.parameters - left_out, workers)
    work = _work(shape, arguments, texts, sub_batch_size, checkpointing, workers)
    if sub_batch_size:  # the first one leaves gradients of all weights
        work["layers"] += max(0.0, states["gradients"] - states["held_gradients"])
    scoring = work.pop("scoring") + left_out * _FLOAT
    ending = states["gradients"] + work.pop("embedding")
    if not arguments.get("fix_encoder"):
        rest = (shape.parameters - shape.vocab_size * shape.hidden_size) / (shape.parameters - left_out)
        ending = max(ending, states["gradients"] * rest + work["first_layer"])
    work.pop("first_layer")
    beside = CONTEXT + _CONTEXT_OF_NCCL * (workers > 1)
    return Memory(**states, **work, ending=ending, scoring=scoring, beside=beside)


def _states(shape: Shape, arguments: Mapping[str, Any], parameters: int, workers: int) -> dict[str, float]:
    """Weights, moments and gradients of a step."""
    trained = _trained(shape, arguments, parameters)
    moments = trained * _moment_bytes(arguments.get("optim"))
    gradients, buckets = trained * _FLOAT, trained * _FLOAT * (workers > 1)
    accumulates = int(arguments.get("gradient_accumulation_steps") or 1) > 1
    mixed = _is_mixed(arguments)
    if not arguments.get("deepspeed"):
        held = buckets + gradients * accumulates
        weights = parameters * _FLOAT
        return {"weights": weights, "moments": moments, "gradients": gradients + buckets, "held_gradients": held}
    stage, offloaded = _zero(arguments["deepspeed"])
    parts = workers if stage >= 1 else 1
    own = 2 if mixed else _FLOAT
    masters = trained * 2 * _FLOAT * mixed  # weights and flat gradients in float32
    return {
        "weights": parameters * own,
        "moments": 0 if offloaded else (moments + masters) / parts,
        "gradients": trained * own / (parts if stage == 2 else 1),
        "held_gradients": trained * own * accumulates,
    }


def _trained(shape: Shape, arguments: Mapping[str, Any], parameters: int) -> int:
    """Returns how many of the parameters have gradients and moments."""
    heads = (shape.hidden_size + 1) * (shape.colbert_dim + 1)
    if arguments.get("fix_encoder"):
        return heads
    return heads + shape.adapters(_rank(arguments)) if arguments.get("use_lora") else parameters


def _rank(arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("lora_rank") or LORA_RANK)


def _moment_bytes(optim: Any) -> int:
    """Returns bytes a parameter of an optimizer, by transformers' name for it: AdamW's two in float32 if not known."""
    name = str(getattr(optim, "value", optim))
    if "8bit" in name:
        return 2
    return {"sgd": 0, "adafactor": 1}.get(name, 2 * _FLOAT)


def _zero(deepspeed: Any) -> tuple[int, bool]:
    """Returns the stage of ZeRO, and whether the optimizer's state is kept off the device."""
    values = deepspeed if isinstance(deepspeed, Mapping) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    zero = values.get("zero_optimization") or {}
    where = (zero.get("offload_optimizer") or {}).get("device", "none")
    return int(zero.get("stage", 0)), where != "none" or bool(zero.get("cpu_offload"))


def _work(
    shape: Shape,
    arguments: Mapping[str, Any],
    texts: Texts,
    sub_batch_size: int | None,
    checkpointing: bool,
    workers: int,
) -> dict[str, float]:
    """Activations of a step, and what scoring takes instead."""
    mixed = _is_mixed(arguments)
    widths, size, at_once = _MIXED if mixed else _FULL, shape.hidden_size, texts.at_once(sub_batch_size)
    layer, inputs = (
        shape.wide(widths.kept) + _adapted(shape, arguments, widths),
        shape.num_hidden_layers * _INPUT * size,
    )
    unified, last = bool(arguments.get("unified_finetuning")), at_once * _LAST * size
    if arguments.get("fix_encoder"):
        kept, again = 0, shape.wide(widths.forward)
    else:
        kept, again = (inputs, layer) if checkpointing else (shape.num_hidden_layers * layer, 0)
    working = shape.wide(_WORKING) + shape.wide(_ADAPTING) * widths.number * bool(arguments.get("use_lora"))
    stored, layers = at_once * (kept + _EMBEDDED * size), at_once * (again + working)
    copies = shape.matrices * widths.number * mixed
    heads, held = _heads(shape, arguments, texts, workers, widths)
    scored = _SCORED_TOKENS * (shape.wide(widths.forward) + 2 * _FLOAT * shape.colbert_dim * unified)
    return {
        "copies": copies / shape.num_hidden_layers if checkpointing else copies,
        "kept": held if sub_batch_size else stored,
        "heads": heads if sub_batch_size else heads + last,
        "layers": layers + stored + last if sub_batch_size else layers + last * (not checkpointing),
        "first_layer": at_once * (layer + working + (_INPUT + _EMBEDDED) * size),
        "embedding": at_once * shape.wide(_WORKING),
        "scoring": copies + scored + _SCORED_SIMILARITIES * _FLOAT * unified,
    }


def _adapted(shape: Shape, arguments: Mapping[str, Any], widths: _Widths) -> int:
    """Returns the bytes that a layer's adapters keep of a token, their inner values among them."""
    if not arguments.get("use_lora"):
        return 0
    dropped = shape.wide(_ADAPTED[widths is _FULL]) if arguments.get("lora_dropout") != 0 else 0
    return dropped + 6 * _rank(arguments) * widths.number


def _heads(
    shape: Shape, arguments: Mapping[str, Any], texts: Texts, workers: int, widths: _Widths
) -> tuple[float, float]:
    """Returns what the token vectors take when the backward pass begins, and what of it stays while it lasts."""
    if not arguments.get("unified_finetuning"):
        return 0.0, 0.0
    gathered = workers if arguments.get("negatives_cross_device") else 1
    places = texts.queries * texts.query_length + texts.passages * texts.passage_length
    vectors = places * gathered * shape.colbert_dim
    queries, passages = texts.queries * gathered, texts.passages * gathered
    best = queries * texts.query_length * passages
    loss = min(_SIMILARITIES, best * texts.passage_length) * widths.similarity + best * _INDEX
    return vectors * widths.vector + loss, vectors * widths.number


def _is_mixed(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("fp16") or arguments.get("bf16"))


def _positive(value: Any) -> int | None:
    number = int(value or 0)
    return number if number > 0 else None


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How a step is computed: each way gives the same gradients."""

    sub_batch_size: int | None
    """Texts whose activations are held at once; None: all."""
    checkpointing: bool
    """Whether layers' activations are computed again."""
    bytes: float
    """That the device has to have, by `memory`."""
    smallest: bool
    """No other way takes less."""

    def __str__(self) -> str:
        at_once = "all texts at once" if self.sub_batch_size is None else f"{self.sub_batch_size} texts at once"
        again = ", layers computed again" if self.checkpointing else ""
        return f"a step takes about {self.bytes / 1e9:.1f} GB: {at_once}{again}"


def plan_step(limit: float, shape: Shape, arguments: Mapping[str, Any], *, texts: Texts, **known: Any) -> StepPlan:
    """Returns the fastest way to compute a step that takes fewer than `limit` bytes of the device, or the smallest.

    Everything at once, then with layers computed again where `arguments` allow it by ``gradient_checkpointing``, then
    in sub-batches, of which ``sub_batch_size`` of the arguments is the largest. Both ways take one more forward pass,
    but sub-batches are smaller products.

    Args:
        limit: bytes.
        shape: of the model.
        arguments: of a trial, by FlagEmbedding's and transformers' names.
        texts: of the longest batch.
        known: the other arguments of `memory`.
    """
    plans = []
    for sub_batch_size, checkpointing in _ways(arguments, texts):
        known |= {"texts": texts, "sub_batch_size": sub_batch_size, "checkpointing": checkpointing}
        takes = memory(shape, arguments, **known).on_device
        plan = StepPlan(sub_batch_size=sub_batch_size, checkpointing=checkpointing, bytes=takes, smallest=False)
        if takes < limit:
            return plan
        plans.append(plan)
    return replace(min(plans, key=lambda plan: plan.bytes), smallest=True)


def _ways(arguments: Mapping[str, Any], texts: Texts) -> Iterator[tuple[int | None, bool]]:
    """Yields ways to compute a step, the larger ones first; sub-batches of one number are of one size."""
    most = _positive(arguments.get("sub_batch_size"))
    if most is None or most >= texts.count:
        yield None, False
        if arguments.get("gradient_checkpointing"):
            yield None, True
    sizes = {-(-texts.count // number) for number in range(2, texts.count + 1)}
    for size in sorted({min(size, most or size) for size in sizes}, reverse=True):
        yield size, False
