"""Rows of FlagEmbedding's training format, and what is wrong with one."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

FIELDS = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")
MINING = "mine some: python -m tuner.data mine ROWS --to FILE"


class Fault(NamedTuple):
    """One broken rule of one row; `rule` is a short name that groups equal faults of many rows."""

    rule: str
    message: str


def row_faults(row: Any) -> Iterator[Fault]:
    """Yields every rule that one decoded row breaks, in the order of its fields."""
    if isinstance(row, Fault):
        yield row
    elif not isinstance(row, dict):
        yield Fault("not an object", f'a row must be an object {{"query", "pos", "neg"}}, but is {_kind(row)}')
    else:
        yield from _text_faults(row, "query", required=True)
        yield from _passage_faults(row, "pos", "a row needs at least one positive passage")
        yield from _passage_faults(row, "neg", f"FlagEmbedding fails on it in the middle of an epoch; {MINING}")
        yield from _overlap_faults(row)
        yield from _score_faults(row, "pos_scores", "pos")
        yield from _score_faults(row, "neg_scores", "neg")
        yield from _text_faults(row, "prompt", required=False)
        yield from _text_faults(row, "type", required=False)


def _text_faults(row: dict[str, Any], field: str, *, required: bool) -> Iterator[Fault]:
    text = row.get(field)
    if text is None:
        if required:
            yield Fault(f"{field} missing", f"'{field}' is missing")
    elif not isinstance(text, str):
        yield Fault(f"{field} type", f"'{field}' must be a string, but is {_kind(text)}")
    elif required and not text.strip():
        yield Fault(f"{field} empty", f"'{field}' is empty")
    elif not encodable(text):
        yield Fault(f"{field} surrogate", f"'{field}' holds half of a surrogate pair, which UTF-8 cannot express")


def _passage_faults(row: dict[str, Any], field: str, why_not_empty: str) -> Iterator[Fault]:
    passages = row.get(field)
    if passages is None:
        remedy = f"; {MINING}" if field == "neg" else ""
        yield Fault(f"{field} missing", f"'{field}' is missing; it must be a list of strings{remedy}")
    elif not isinstance(passages, list):
        yield Fault(f"{field} type", f"'{field}' must be a list of strings, but is {_kind(passages)}")
    elif not passages:
        yield Fault(f"{field} empty", f"'{field}' is an empty list: {why_not_empty}")
    else:
        yield from (fault for number, text in enumerate(passages, 1) for fault in _item_faults(field, number, text))


def _item_faults(field: str, number: int, text: Any) -> Iterator[Fault]:
    if not isinstance(text, str):
        yield Fault(f"{field} item type", f"passage {number} of '{field}' must be a string, but is {_kind(text)}")
    elif not text.strip():
        yield Fault(f"{field} item empty", f"passage {number} of '{field}' is empty; remove it")
    elif not encodable(text):
        message = f"passage {number} of '{field}' holds half of a surrogate pair, which UTF-8 cannot express"
        yield Fault(f"{field} item surrogate", message)


def _overlap_faults(row: dict[str, Any]) -> Iterator[Fault]:
    positives, negatives = ({_stripped(text) for text in _as_list(row.get(field))} for field in ("pos", "neg"))
    shared = (positives & negatives) - {""}
    if shared:
        message = f"{_shorten(min(shared))!r} is in 'pos' and in 'neg'; remove it from one"
        yield Fault("positive among negatives", message)


def _score_faults(row: dict[str, Any], field: str, passages: str) -> Iterator[Fault]:
    scores = row.get(field)
    if scores is None:
        return
    if not isinstance(scores, list):
        yield Fault(f"{field} type", f"'{field}' must be a list of numbers, but is {_kind(scores)}")
        return
    if len(scores) != len(_as_list(row.get(passages))):
        message = f"'{field}' has {len(scores)} scores for {len(_as_list(row.get(passages)))} passages of '{passages}'"
        yield Fault(f"{field} length", f"{message}; give one each, or remove the field")
    wrong = [score for score in scores if not _is_number(score)]
    if wrong:
        yield Fault(f"{field} item type", f"'{field}' must hold finite numbers, but holds {_shorten(repr(wrong[0]))}")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def encodable(text: str) -> bool:
    """Whether UTF-8 can express a text: half of a surrogate pair it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _stripped(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "str": "a string", "dict": "an object", "list": "a list", "bool": "a boolean"}
    return names.get(type(value).__name__, f"the number {_shorten(repr(value))}")
