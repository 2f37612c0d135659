"""A tiny random XLM-R with its tokenizer, training rows and held-out data, all made without a network."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel, set_seed

WORDS = [f"w{number}" for number in range(60)]
"""Words of the training data."""

UNSEEN = [f"x{number}" for number in range(20)]
"""Words that only held-out data contains."""


def make_tokenizer(words: list[str] = WORDS + UNSEEN) -> PreTrainedTokenizerFast:
    """Returns a word-level tokenizer with XLM-R's special tokens."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {token: index for index, token in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **special)


def make_bert_tokenizer(words: list[str] = WORDS + UNSEEN) -> PreTrainedTokenizerFast:
    """Returns a word-level tokenizer with BERT's special tokens: there is no end-of-sequence token."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {token: index for index, token in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_model(folder: Path, dropout: float = 0.0, bert: bool = False) -> Path:
    """Writes a 2-layer encoder of hidden size 16 with random weights, and its tokenizer."""
    set_seed(0)
    tokenizer = make_bert_tokenizer() if bert else make_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    if bert:
        BertModel(BertConfig(**shape, pad_token_id=0)).save_pretrained(folder)
    else:
        XLMRobertaModel(XLMRobertaConfig(**shape, pad_token_id=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(rng: random.Random, longest: int) -> str:
    """Returns 2 to `longest` random words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(2, longest)))


def make_rows(
    path: Path, rows: int = 40, seed: int = 0, negatives: int = 5, scores: bool = False, kind: str | None = None
) -> Path:
    """Writes training rows; the positive repeats the query's words, so there is something to learn."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            query = text(rng, 8)
            row: dict[str, Any] = {"query": query, "pos": [f"{query} {text(rng, 20)}", text(rng, 20)]}
            row["neg"] = [text(rng, 30) for _ in range(negatives)]
            if kind is not None:
                row["type"] = kind
            if scores:
                row["pos_scores"] = [rng.random() for _ in row["pos"]]
                row["neg_scores"] = [rng.random() for _ in row["neg"]]
            file.write(json.dumps(row) + "\n")
    return path


def make_eval(folder: Path, queries: int = 6, passages: int = 24) -> Path:
    """Writes a BEIR folder whose dev and test queries repeat words of their passages."""
    rng = random.Random(1)
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{rng.choice(UNSEEN)} {text(rng, 20)}" for _ in range(passages)]
    lines = [json.dumps({"_id": f"p{i}", "title": "", "text": value}) for i, value in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    asked = [" ".join(value.split()[:4]) for value in texts[: 2 * queries]]
    lines = [json.dumps({"_id": f"q{i}", "text": value}) for i, value in enumerate(asked)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    for split, chosen in (("dev", range(queries)), ("test", range(queries, 2 * queries))):
        judged = [f"q{i}\tp{i}\t1" for i in chosen]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    return folder


def make_inputs(root: Path, *, rows: int = 40, dropout: float = 0.0) -> Path:
    """Writes what a trial takes, where `unified_arguments` names it: model, rows.jsonl and eval."""
    make_model(root / "model", dropout=dropout)
    make_rows(root / "rows.jsonl", rows=rows)
    make_eval(root / "eval")
    return root


def unified_arguments(root: Path) -> dict[str, Any]:
    """Returns what a trial trains with, all heads, on `root`'s model and rows.jsonl."""
    return {
        "model_name_or_path": str(root / "model"),
        "train_data": [str(root / "rows.jsonl")],
        "cache_path": str(root / "cache"),
        "per_device_train_batch_size": 4,
        "train_group_size": 3,
        "learning_rate": 1e-3,
        "unified_finetuning": True,
        "seed": 42,
    }
