"""One folder for two libraries: FlagEmbedding's layout, and at the same time a sentence-transformers model."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainables.names import HEADS
from trainables.scoring.metric import MEASURES, score_name
from tuner.data.models import model_here
from tuner.errors import RequestError
from tuner.export.finished_run import FinishedRun
from tuner.export.multi_vector import write_multi_vector
from tuner.run_dir.names import BEST

_KEPT = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *HEADS)
"""Weights and tokenizer. The two heads are the only pickles."""
_OF_BASE = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja", *HEADS),
)
"""The same of a base model, whose folder is not the search's own: nothing else that lies there goes along."""
_CODE = "*.py"
"""The model's own, which goes along where it was trusted."""

_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "cache_dir")
"""What configurations of older transformers say of the machine they were written on."""

_UNWEIGHED = ("cls_token", "eos_token", "pad_token", "unk_token")
"""Special tokens whose sparse weight is always zero."""

_POOLING = {"cls": "cls_token", "mean": "mean_tokens", "last_token": "lasttoken"}
"""FlagEmbedding's name -> sentence-transformers' ``pooling_mode_*``."""


def write_model(run: FinishedRun, folder: Path) -> None:
    """Writes the model into `folder`, with the files that make it a sentence-transformers model."""
    kept = _OF_BASE if run.is_base else _KEPT
    _copy_checkpoint(run.checkpoint, folder, (*kept, _CODE) if run.argument("trust_remote_code") else kept)
    if not any(folder.glob("*.safetensors")):
        _convert(run, folder)
    _add_heads_of_base(run, folder)
    _write_modules(run, folder)
    if has_heads(folder):
        write_multi_vector(run, folder)


def has_heads(folder: Path) -> bool:
    """Whether a model folder has the two heads of its own."""
    return all((folder / name).is_file() for name in HEADS)


def lacking_tokens(run: FinishedRun, folder: Path) -> list[str]:
    """Returns the special tokens without which FlagEmbedding cannot train the sparse head, and this model has not."""
    if run.has_adapters or not run.argument("unified_finetuning"):
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=run.argument("trust_remote_code"))
    return [name for name in _UNWEIGHED if getattr(tokenizer, name) is None]


def prompts(run: FinishedRun) -> dict[str, str]:
    """Returns sentence-transformers' prompts for the instructions of the model, empty without any."""
    return {"query": _prefix(run, "query") or "", "document": _prefix(run, "passage") or ""}


def has_suffixes(run: FinishedRun) -> bool:
    """Whether an instruction's format goes on after the text, which no prompt of sentence-transformers can say."""
    return any(_prefix(run, kind) is None for kind in ("query", "passage"))


def _copy_checkpoint(checkpoint: Path, folder: Path, kept: Sequence[str]) -> None:
    for pattern in kept:
        for file in checkpoint.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    for path in (folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()):
        settings = json.loads(path.read_text("utf-8"))
        _write_json(path, {key: value for key, value in settings.items() if key not in _PLACES})


def _convert(run: FinishedRun, folder: Path) -> None:
    """Writes the weights of a base model that has them as a pickle only, as safetensors."""
    from transformers import AutoModel

    trusted = run.argument("trust_remote_code")
    AutoModel.from_pretrained(str(run.checkpoint), trust_remote_code=trusted).save_pretrained(str(folder))


def _add_heads_of_base(run: FinishedRun, folder: Path) -> None:
    """Where only the dense vectors were trained, the base model's heads go along: they are what scores the rest."""
    base = Path(run.trained.get("model_name_or_path", run.config.model_name_or_path))
    places = [place for place in (base, run.folder / BEST) if has_heads(place)]
    if run.is_base or has_heads(folder) or not (places or _is_scored_with_heads(run)):
        return
    places = places or [place for place in _base_now(run) if has_heads(place)]
    if not places:
        raise RequestError(
            [f"{base}: the base model's sparse and ColBERT heads are to be there, but they are not; bring them back"]
        )
    for name in HEADS:
        shutil.copyfile(places[0] / name, folder / name)


def _base_now(run: FinishedRun) -> Iterator[Path]:
    """Yields where the base model that config.yaml names is found now, if it is."""
    with suppress(RequestError):
        yield Path(model_here(run.config.model_name_or_path, cache_dir=run.config.arguments.get("cache_dir")))


def _is_scored_with_heads(run: FinishedRun) -> bool:
    return score_name("sparse", MEASURES[0]) in (run.model.test_all or run.best.test_all)


def _write_modules(run: FinishedRun, folder: Path) -> None:
    """Writes sentence-transformers' files, in the form that its older versions write and all of them read.

    Only lengths of queries and passages that differ are news to those before 6.0, which refuse them.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if run.argument("normalize_embeddings"):
        modules.append(("2_Normalize", "Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    for path, kind in modules[1:]:
        (folder / path).mkdir()
        _write_json(folder / path / "config.json", _pooling(run, folder) if kind == "Pooling" else {})
    query, passage = run.argument("query_max_len"), run.argument("passage_max_len")
    lengths = {"query_length": query, "document_length": passage} if query != passage else {}
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": max(query, passage), "do_lower_case": False, **lengths}
    )
    _write_json(folder / "config_sentence_transformers.json", _library_settings(run))


def _pooling(run: FinishedRun, folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    size = AutoConfig.from_pretrained(folder, trust_remote_code=run.argument("trust_remote_code")).hidden_size
    chosen = run.argument("sentence_pooling_method")
    modes = {f"pooling_mode_{mode}": name == chosen for name, mode in _POOLING.items()}
    return {"word_embedding_dimension": size, **modes, "include_prompt": True}


def _library_settings(run: FinishedRun) -> dict[str, Any]:
    libraries = {"sentence_transformers": "sentence-transformers", "transformers": "transformers", "pytorch": "torch"}
    return {
        "__version__": {name: version(package) for name, package in libraries.items()},
        "prompts": prompts(run),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if run.argument("normalize_embeddings") else "dot",
    }


def _prefix(run: FinishedRun, kind: str) -> str | None:
    """Returns what stands before the text; None where something stands after it."""
    instruction = run.argument(f"{kind}_instruction_for_retrieval")
    if instruction is None:
        return ""
    before, text, after = run.argument(f"{kind}_instruction_format").format(instruction, "\0").partition("\0")
    return before if text and not after else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
