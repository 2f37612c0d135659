"""A bundle's heads outside of FlagEmbedding: the same scores, what 8-bit weights lose, and how fast ONNX Runtime is.

python -m tuner.export RUN_DIR --to BUNDLE --onnx --int8      # its card: cosines, and int8's loss on dev
python benchmarks/heads.py RUN_DIR BUNDLE [--texts 200]       # held-out texts, on the CPU, one thread by default
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from trainables.bundle.libraries import Sample, flag_vectors, largest_difference, token_vectors
from trainables.bundle.onnx_model import HEADS, GraphEncoder, graph_agreements
from trainables.scoring.checkpoint import Parts, load_parts
from trainables.scoring.encoding import Encoder, Tokens, evaluation_mode, tokenise
from trainables.scoring.settings import EncodingSettings
from tuner.export.bundle import encoding_settings
from tuner.export.finished_run import read_run
from tuner.export.graphs import GRAPH, INT8
from tuner.export.multi_vector import left_out_token, multi_vector_folder


def measure(run_dir: Path, bundle: Path, texts: int) -> dict[str, float]:
    """Returns what the module's title says; half of the texts are queries where there are so many."""
    run = read_run(run_dir)
    settings, folder = encoding_settings(run), multi_vector_folder(bundle)
    if folder is None:
        raise SystemExit(f"{bundle}: it has no ColBERT head; take a bundle of a search with --unified_finetuning True")
    without, heldout = left_out_token(folder), Path(run.dataset.eval_data)
    queries = _texts(heldout / "queries.jsonl", texts // 2, without)
    passages = _texts(heldout / "corpus.jsonl", texts - len(queries), without)
    sample = Sample(queries=queries, passages=passages)
    flag = flag_vectors(bundle, settings, sample, ("dense", "colbert"), trust_remote_code=False)
    tokens = token_vectors(folder, settings, sample, trust_remote_code=False)
    found = {
        "queries": len(queries),
        "passages": len(passages),
        "colbert scores": tokens.scores.numel(),
        "largest difference of a colbert score": largest_difference(tokens, flag["colbert"]),
    }
    for name, graph in (("float", GRAPH), ("int8", INT8)):
        agreements = graph_agreements(bundle, bundle / graph, sample, settings)
        found |= {f"least agreement {name} {head}": value for head, value in agreements.items()}
    return found | _speeds(bundle, passages, settings)


def _speeds(bundle: Path, passages: list[str], settings: EncodingSettings) -> dict[str, float]:
    """Passages a second with all heads, the faster of two rounds."""
    tokenizer, parts = AutoTokenizer.from_pretrained(bundle), load_parts(bundle, trust_remote_code=False)
    tokens = tokenise(tokenizer, passages, settings.passage_max_len)
    how: tuple[Parts, object, EncodingSettings, tuple[str, ...]] = (parts, tokenizer, settings, HEADS)
    makers: dict[str, Callable[[], Encoder]] = {
        "torch": lambda: Encoder(*how, packed=False),
        "ONNX float": lambda: GraphEncoder(bundle / GRAPH, *how),
        "ONNX int8": lambda: GraphEncoder(bundle / INT8, *how),
    }
    with evaluation_mode(parts):
        return {f"passages/s {name}": len(passages) / _seconds(make(), tokens) for name, make in makers.items()}


def _seconds(encoder: Encoder, tokens: Tokens) -> float:
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        for batch in tokens.batches(encoder.batch_tokens):
            encoder.encode(tokens, batch)
        taken.append(time.perf_counter() - start)
    return float(np.min(taken))


def _texts(path: Path, count: int, without: str) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        texts = (json.loads(line)["text"] for line in lines)
        return list(islice((text for text in texts if without not in text), count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for key, value in measure(given.run_dir, given.bundle, given.texts).items():
        print(f"{key}: {value:.7g}")
