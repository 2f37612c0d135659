"""Attention over texts end to end, and scoring, on the device."""

import importlib
import itertools
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import UNIFIED, Bench, Result
from trainables.m3.arguments import build_arguments
from trainables.m3.runner import Model, load_model
from trainables.scoring.scorer import EncodingSettings, Scorer


def attention(bench: Bench) -> Result:
    """13: packed attention equals PyTorch's text by text, forward and backward; dropout repeats under one seed."""
    try:
        varlen: Any = importlib.import_module("trainables.varlen")
    except ImportError:
        return {"passed": None, "note": "trainables.varlen is not there"}
    lengths = [1, 7, 64, 200, 33] if bench.tiny else [1, 7, 64, 512, 300, 129, 33, 480]
    ends = np.cumsum([0, *lengths])
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=bench.device)
    kinds = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3} if bench.cuda else {torch.float32: 1e-5}
    found: Result = {}

    def packed(parts: list[torch.Tensor], dropout: float = 0.0) -> torch.Tensor:
        kernel = varlen.kernel_of(bench.device, parts[0].dtype, parts[0].shape[-1])
        given = {"cu_seqlens": cu_seqlens, "longest": max(lengths), "text_lengths": lengths, "kernel": kernel}
        given["dropout"] = dropout
        attended: torch.Tensor = varlen.attend(torch.nn.Identity(), *parts, None, **given)[0]
        return attended

    for dtype, tolerance in kinds.items():
        torch.manual_seed(0)
        parts = [torch.randn(1, 16, ends[-1], 64, device=bench.device, dtype=dtype) for _ in range(3)]
        weight = torch.randn(1, ends[-1], 16, 64, device=bench.device, dtype=dtype)
        exact = [part.double().requires_grad_() for part in parts]
        wanted = torch.cat(
            [_alone(*(part[:, :, start:end] for part in exact)) for start, end in itertools.pairwise(ends)],
            dim=1,
        )
        parts = [part.requires_grad_() for part in parts]
        got = packed(parts)
        outputs = _apart(wanted, got)
        wanted_grads = torch.autograd.grad((wanted * weight.double()).sum(), exact)
        got_grads = torch.autograd.grad((got * weight).sum(), parts)
        grads = max(_apart(*pair) for pair in zip(wanted_grads, got_grads, strict=True))
        repeats = []
        for _ in range(2):
            torch.manual_seed(1)
            repeats.append(packed(parts, 0.1).detach())
        kept = not torch.equal(repeats[0], got.detach()) and torch.equal(*repeats)
        passed = outputs <= tolerance and grads <= 2 * tolerance and kept
        found[str(dtype)] = {"output": outputs, "gradients": grads, "dropout_repeats": kept, "passed": passed}
    return {"passed": all(case["passed"] for case in found.values()), **found}


def _alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _apart(wanted: torch.Tensor, got: torch.Tensor) -> float:
    return float((wanted - got.double()).abs().max() / wanted.abs().max())


def scoring(bench: Bench) -> Result:
    """14: passages a second, not slower than sentence-transformers' own encoding; rankings against float64."""
    passages, queries = (60, 10) if bench.tiny else (6000, 400)
    folder = bench.evaluation(passages, queries, median=20 if bench.tiny else 150)
    found: Result = {}
    model = _model(bench, "large")
    best = 0.0
    sizes = (None,) if bench.tiny else (16384, 32768, 65536)
    for precision in ("float16", "bfloat16") if bench.cuda else ("float32",):
        for batch_tokens in sizes if precision != "bfloat16" else sizes[:1]:
            for heads in (["dense"], None) if batch_tokens == sizes[0] else (["dense"],):
                settings = _settings(bench, "large", precision=precision, batch_tokens=batch_tokens)
                seconds = _scored(bench, folder, model, settings, heads)
                name = f"{precision} {batch_tokens} {'dense' if heads else 'all'}"
                found[name] = {part: round(value, 3) for part, value in seconds.items()}
                if heads:
                    best = max(best, passages / sum(seconds.values()))
    found["passages_per_s"] = round(best, 1)
    del model
    bench.allocated()
    found["sentence_transformers_per_s"] = round(_sentence_transformers(bench, folder), 1)
    found["apart"] = _ranking(bench)
    faster = bench.tiny or best >= found["sentence_transformers_per_s"]
    return {"passed": faster and found["apart"] <= 1e-4, **found}


def _model(bench: Bench, name: str) -> Model:
    arguments = build_arguments(bench.arguments(name, **UNIFIED), str(bench.folder / "out"))
    model: Model = load_model(arguments, bench.base)[1].to(bench.device).eval()
    return model


def _settings(bench: Bench, name: str, **changes: Any) -> EncodingSettings:
    size = bench.sizes[name]
    return EncodingSettings(query_max_len=size.query_max_len, passage_max_len=size.passage_max_len, **changes)


def _scored(
    bench: Bench, folder: Any, model: Model, settings: EncodingSettings, heads: list[str] | None
) -> dict[str, float]:
    """Returns seconds of reading and tokenising, and of scoring."""
    started = time.perf_counter()
    scorer = Scorer(folder, model.tokenizer, settings)
    read = time.perf_counter()
    scorer.score(model, "dev", heads=heads)
    if bench.cuda:
        torch.cuda.synchronize()
    return {"tokenise_s": read - started, "score_s": time.perf_counter() - read}


def _sentence_transformers(bench: Bench, folder: Any) -> float:
    """Returns passages a second of `SentenceTransformer.encode`, the better of two sizes of batch."""
    from sentence_transformers import SentenceTransformer

    from trainables.scoring.heldout import read_passages

    size = bench.sizes["large"]
    model = SentenceTransformer(str(bench.model("large")), device=str(bench.device))
    model.max_seq_length = size.passage_max_len
    if bench.cuda:
        model.half()
    texts = [text for _, text in read_passages(folder)]
    rates = []
    for batch in (32, 128):
        model.encode(texts[:batch], batch_size=batch, convert_to_tensor=True)
        started = time.perf_counter()
        model.encode(texts, batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
        if bench.cuda:
            torch.cuda.synchronize()
        rates.append(len(texts) / (time.perf_counter() - started))
    return max(rates)


def _ranking(bench: Bench) -> float:
    """Returns by how much the float64 scores of the ten best passages, in the order of float32, rise at most."""
    folder = bench.evaluation(50 if bench.tiny else 500, 10 if bench.tiny else 50)
    model = _model(bench, "small")
    settings = _settings(bench, "small")
    scores = Scorer(folder, model.tokenizer, settings).score(model, "dev", heads=["dense"])
    exact = _model(bench, "small").double()
    from trainables.scoring.heldout import read_passages, read_qrels, read_queries

    def vectors(texts: list[str], length: int) -> torch.Tensor:
        rows = [exact.tokenizer(text, truncation=True, max_length=length, return_tensors="pt") for text in texts]
        with torch.no_grad():
            firsts = [exact.model(**row.to(bench.device)).last_hidden_state[0, 0] for row in rows]
        return torch.nn.functional.normalize(torch.stack(firsts), dim=-1)

    passages = dict(read_passages(folder))
    queries = read_queries(folder, read_qrels(folder, "dev"))
    places = {name: place for place, name in enumerate(passages)}
    size = bench.sizes["small"]
    encoded = vectors(list(passages.values()), size.passage_max_len)
    similarities = (vectors(list(queries.values()), size.query_max_len) @ encoded.T).cpu()
    rises = []
    for query, row in zip(queries, similarities, strict=True):
        ranked = row[[places[name] for name in scores.retrieved[query]]]
        best = row.topk(len(ranked)).values
        rises.append(float((best - ranked).abs().max()))
    return max(rises)
