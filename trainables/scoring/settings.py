"""How texts become embeddings, and which arguments decide that: what a search space may vary without any training."""

from dataclasses import dataclass, fields
from typing import Literal

from trainables.config import DEFAULT_LENGTHS


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How texts become embeddings. Names, meanings and defaults are FlagEmbedding's, where it has them."""

    query_max_len: int = DEFAULT_LENGTHS["query_max_len"]
    """Tokens of a query after truncation, special tokens included."""
    passage_max_len: int = DEFAULT_LENGTHS["passage_max_len"]
    """Tokens of a passage after truncation, special tokens included."""
    query_instruction_for_retrieval: str | None = None
    """Goes into the first place of ``query_instruction_format``; without it the query stands alone."""
    query_instruction_format: str = "{}{}"
    """Format of instruction and query."""
    passage_instruction_for_retrieval: str | None = None
    """Goes into the first place of ``passage_instruction_format``; without it the passage stands alone."""
    passage_instruction_format: str = "{}{}"
    """Format of instruction and passage."""
    sentence_pooling_method: Literal["cls", "mean", "last_token"] = "cls"
    """How a text's token vectors become its dense vector."""
    normalize_embeddings: bool = True
    """Give dense and token vectors the length 1."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """The encoder's arithmetic on a GPU (autocast). Scores are always computed in float32."""
    batch_tokens: int | None = None
    """Tokens in one forward pass, padding included. None: as many as are fastest, 2048 on a CPU, 16384 on a GPU."""

    def query_text(self, query: str) -> str:
        """Return the query with its instruction."""
        return _instructed(query, self.query_instruction_for_retrieval, self.query_instruction_format)

    def passage_text(self, passage: str) -> str:
        """Return the passage with its instruction."""
        return _instructed(passage, self.passage_instruction_for_retrieval, self.passage_instruction_format)


def _instructed(text: str, instruction: str | None, template: str) -> str:
    return text if instruction is None else template.replace("\\n", "\n").format(instruction, text)


_ON_THE_DEVICE = ("precision", "batch_tokens")
"""Fields that FlagEmbedding has no argument for."""

ENCODING_ARGUMENTS = (
    *(field.name for field in fields(EncodingSettings) if field.name not in _ON_THE_DEVICE),
    *("fp16", "bf16", "tf32"),
)
"""FlagEmbedding's and transformers' arguments that change how a text is encoded; the last three are the precision."""

MODEL_ARGUMENTS = ("model_name_or_path", "trust_remote_code", "use_fast_tokenizer", "colbert_dim")
"""Arguments that change which model it is that training begins from."""

UNTRAINED_ARGUMENTS = (*ENCODING_ARGUMENTS, *MODEL_ARGUMENTS)
"""All arguments that move a score although nothing is trained.

A gain from these alone is no gain of fine-tuning: where a space varies one, the base model is scored with the trial's
value, too, and the two are compared that are encoded alike. Every other argument acts through training alone.
"""
