"""A model's heads in one ONNX graph, written by torch's exporter, and the same graph as ONNX Runtime runs it.

onnx and onnxruntime are imported here and nowhere else; they are the extra ``onnx``.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AutoTokenizer

from trainables.bundle.libraries import Sample, agreement, instructed, quiet
from trainables.scoring.checkpoint import Parts, load_parts
from trainables.scoring.encoding import Embeddings, Encoder, Tokens, evaluation_mode, pool, tokenise
from trainables.scoring.scorer import Scorer
from trainables.scoring.settings import EncodingSettings

INPUTS = ("input_ids", "attention_mask")
"""Both int64, (texts, tokens)."""
HEADS = ("dense", "sparse", "colbert")
"""The outputs: (texts, size), a weight for each token (texts, tokens), (texts, tokens - 1, size); padding has zeros."""
_OPSET = 18


class NoGraphError(RuntimeError):
    """torch's exporter cannot write the model as a graph."""


class Heads(nn.Module):
    """What the graph computes: token ids to what each head makes of them, as `Encoder` does.

    Args:
        parts: the encoder and its heads; without the two heads there is the dense output only.
        tokenizer: the model's.
        settings: pooling, and whether vectors are normalised.
    """

    def __init__(self, parts: Parts, tokenizer: Any, settings: EncodingSettings) -> None:
        super().__init__()
        self.encoder, self.sparse, self.colbert = parts.model, parts.sparse_linear, parts.colbert_linear
        special = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        self._unweighted = sorted({token for token in special if token is not None})
        self._settings = settings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of `HEADS`, float32."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        dense = self._normalised(pool(states, attention_mask, self._settings.sentence_pooling_method))
        if self.sparse is None or self.colbert is None:
            return (dense,)
        real = attention_mask.to(states.dtype)
        weighted = real
        for token in self._unweighted:
            weighted = weighted * (input_ids != token).to(states.dtype)
        weights = torch.relu(self.sparse(states)).squeeze(-1) * weighted
        vectors = self._normalised(self.colbert(states[:, 1:])) * real[:, 1:, None]
        return dense, weights, vectors

    def _normalised(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self._settings.normalize_embeddings else vectors


class GraphEncoder(Encoder):
    """Embeds with ONNX Runtime on the CPU, in place of the torch model that it is given beside the graph."""

    def __init__(self, graph: Path, *args: Any) -> None:
        super().__init__(*args)
        self._session = session(graph)

    def encode(self, tokens: Tokens, texts: npt.NDArray[np.int64]) -> Embeddings:
        """Returns the embeddings of some texts, those heads that the graph has."""
        ids, mask = tokens.padded(texts, self._pad_id)
        given = dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, map(torch.from_numpy, self._session.run(names, given)), strict=True))
        dense, weights, vectors = (found.get(head) for head in HEADS)
        return Embeddings(ids, dense, weights, vectors, mask.bool())


class GraphScorer(Scorer):
    """Scores graphs instead of models; those of one model share the held-out set's tokens."""

    graph: Path
    """What is scored."""

    def _encoder(self, *args: Any) -> Encoder:
        return GraphEncoder(self.graph, *args)


def session(graph: Path) -> Any:
    """Returns ONNX Runtime's session of a graph, on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def write_graph(model: Path, graph: Path, settings: EncodingSettings, *, trust_remote_code: bool) -> None:
    """Writes a model folder's heads as a graph, with its weights in a file beside it that ends in ``.data``.

    Raises:
        NoGraphError: torch's exporter cannot.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        parts = load_parts(model, trust_remote_code)
    module = Heads(parts, tokenizer, settings).eval()
    text, pad = tokenizer("a text")["input_ids"], tokenizer.pad_token_id
    ids = torch.tensor([text, [*text[:-1], pad]])
    names = HEADS if parts.sparse_linear is not None else HEADS[:1]
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    try:
        with quiet(), warnings.catch_warnings(action="ignore"), torch.inference_mode():
            torch.onnx.export(
                module,
                (ids, (ids != pad).long()),
                str(graph),
                input_names=list(INPUTS),
                output_names=list(names),
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                opset_version=_OPSET,
                dynamo=True,
                external_data=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise NoGraphError(f"torch's exporter cannot write this model as ONNX: {error}") from error


def write_int8(graph: Path, to: Path) -> None:
    """Writes a graph of 8-bit weights, scaled by channel; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            str(graph), str(to), per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True
        )
    shutil.copymode(to, to.with_name(f"{to.name}.data"))  # written for its owner alone


def graph_scores(
    model: Path,
    graphs: Mapping[str, Path],
    eval_data: Path,
    split: str,
    settings: EncodingSettings,
    *,
    trust_remote_code: bool = False,
) -> dict[str, dict[str, float]]:
    """Returns name -> score -> its mean on a split, of some graphs of one model, by our own scorer."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        parts, scorer = load_parts(model, trust_remote_code), GraphScorer(eval_data, tokenizer, settings)
    heads = HEADS if parts.sparse_linear is not None else HEADS[:1]
    found = {}
    for name, graph in graphs.items():
        scorer.graph = graph
        found[name] = dict(scorer.score(parts, split, heads).means)
    return found


def graph_agreements(
    model: Path, graph: Path, sample: Sample, settings: EncodingSettings, *, trust_remote_code: bool = False
) -> dict[str, float]:
    """Returns head -> the least agreement of a graph with the model over a sample, in batches that are padded."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        parts = load_parts(model, trust_remote_code)
    heads = HEADS if parts.sparse_linear is not None else HEADS[:1]
    found: dict[str, list[float]] = {head: [] for head in heads}
    with evaluation_mode(parts):
        both = [
            Encoder(parts, tokenizer, settings, heads, packed=False),
            GraphEncoder(graph, parts, tokenizer, settings, heads),
        ]
        for texts, longest in instructed(settings, sample):
            tokens = tokenise(tokenizer, texts, longest)
            encoded = [encoder.encode(tokens, np.arange(len(texts))) for encoder in both]
            for head in heads:
                found[head] += map(agreement, *(_rows(embeddings, head) for embeddings in encoded))
    return {head: min(values) for head, values in found.items()}


def _rows(embeddings: Embeddings, head: str) -> Iterator[npt.NDArray[np.float32]]:
    """Yields a flat vector for each text."""
    if head == "dense":
        assert embeddings.dense is not None
        yield from embeddings.dense.numpy()
    elif head == "sparse":
        assert embeddings.weights is not None
        yield from embeddings.weights.numpy()
    else:
        assert embeddings.vectors is not None
        for vectors, mask in zip(embeddings.vectors, embeddings.mask, strict=True):
            yield vectors[mask[1:]].reshape(-1).numpy()
