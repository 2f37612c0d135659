"""The folder ``colbert/`` of a bundle: its ColBERT head as sentence-transformers' ``MultiVectorEncoder``.

It takes the encoder's weights from the bundle, by an index of shards, and repeats configuration and tokenizer only.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tuner.export.finished_run import FinishedRun

_FOLDER = "colbert"
_SCORE = "meanmaxsim"
"""FlagEmbedding's: the mean over the query's tokens of the best match, not the sum."""

_REPEATED = (
    *("config.json", "sentence_bert_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "*.jinja", "*.py"),
)
_INDEX = "model.safetensors.index.json"
_LIBRARY = "sentence_transformers"


def write_multi_vector(run: FinishedRun, folder: Path) -> None:
    """Writes ``colbert/`` into a bundle that is a sentence-transformers model and has FlagEmbedding's two heads.

    FlagEmbedding gives no vector to a text's first token. The built-in modules can leave out a token by its name, not
    by its place, so nothing is written where texts do not begin with a token of their own.
    """
    first = _first_token(run, folder)
    if first is None:
        return
    target = folder / _FOLDER
    target.mkdir()
    for file in sorted({file for pattern in _REPEATED for file in folder.glob(pattern)}):
        shutil.copyfile(file, target / file.name)
    _write_json(target / _INDEX, _index(folder))
    settings = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    own = {"model_type": "MultiVectorEncoder", "similarity_fn_name": _SCORE}
    _write_json(target / "config_sentence_transformers.json", settings | own)
    _write_modules(run, target, folder / "colbert_linear.pt", first)


def multi_vector_folder(bundle: Path) -> Path | None:
    """Returns the folder in a bundle that ``MultiVectorEncoder`` opens; None where it has none."""
    folder = bundle / _FOLDER
    return folder if folder.is_dir() else None


def left_out_token(folder: Path) -> str:
    """Returns the token that the ``MultiVectorEncoder`` in a folder leaves out, which stands before each text."""
    (settings,) = folder.glob("*_MultiVectorMask/config.json")
    return str(json.loads(settings.read_text("utf-8"))["skiplist_words"][0])


def _first_token(run: FinishedRun, folder: Path) -> str | None:
    """The token that stands before every text; None where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=run.argument("trust_remote_code"))
    first = tokenizer.cls_token
    return first if first is not None and tokenizer("")["input_ids"][:1] == [tokenizer.cls_token_id] else None


def _index(folder: Path) -> dict[str, Any]:
    """The index of shards that lie in the folder above."""
    if (folder / _INDEX).is_file():
        index: dict[str, Any] = json.loads((folder / _INDEX).read_text("utf-8"))
        return index | {"weight_map": {name: f"../{shard}" for name, shard in index["weight_map"].items()}}
    from safetensors import safe_open

    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as opened:
        names = list(opened.keys())
    return {
        "metadata": {"total_size": weights.stat().st_size},
        "weight_map": dict.fromkeys(names, f"../{weights.name}"),
    }


def _write_modules(run: FinishedRun, target: Path, head: Path, first: str) -> None:
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    modules: list[tuple[str, dict[str, Any]]] = [
        ("base.modules.dense.Dense", tokens | _write_linear(head, target / "1_Dense")),
        *([("base.modules.normalize.Normalize", tokens)] if run.argument("normalize_embeddings") else []),
        (
            "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
            {"skiplist_words": [first], "skiplist_tasks": ["query", "document"]},
        ),
    ]
    listed = [("", f"{_LIBRARY}.base.modules.transformer.Transformer")]
    for number, (kind, settings) in enumerate(modules, start=1):
        path = f"{number}_{kind.rpartition('.')[2]}"
        (target / path).mkdir(exist_ok=True)
        _write_json(target / path / "config.json", settings)
        listed.append((path, f"{_LIBRARY}.{kind}"))
    entries = [{"idx": idx, "name": str(idx), "path": path, "type": kind} for idx, (path, kind) in enumerate(listed)]
    _write_json(target / "modules.json", entries)


def _write_linear(head: Path, target: Path) -> dict[str, Any]:
    """Writes the head's weights as a ``Dense`` module has them, and returns its settings."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(head, map_location="cpu", weights_only=True)
    target.mkdir()
    save_file({f"linear.{name}": value.contiguous() for name, value in state.items()}, target / "model.safetensors")
    size_out, size_in = state["weight"].shape
    return {
        "in_features": size_in,
        "out_features": size_out,
        "bias": "bias" in state,
        "activation_function": "torch.nn.modules.linear.Identity",
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
