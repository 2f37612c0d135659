"""Rows of FlagEmbedding's training format: where they are read from, and what is wrong with one."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuner.data.findings import Findings

SUFFIXES = (".json", ".jsonl")
FIELDS = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")
NO_SUCH_DATA = "no such file or folder; check --train_data"
MINING = "mine some with FlagEmbedding's scripts/hn_mine.py"


class Fault(NamedTuple):
    """One broken rule of one row; `rule` is a short name that groups equal faults of many rows."""

    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One value of `--train_data`: a file, or a folder whose files are datasets of their own."""

    name: str
    """Last part of the path, whose `no_in_batch_neg` suffix means something to FlagEmbedding."""

    files: tuple[Path, ...]
    """The file itself, or the folder's .json and .jsonl files sorted by name."""

    is_folder: bool

    @property
    def no_in_batch_neg(self) -> bool:
        """Whether FlagEmbedding leaves the in-batch negatives out for this source."""
        stem = self.name if self.is_folder else Path(self.name).stem
        return stem.endswith("no_in_batch_neg")


def find_source(path: Path, findings: Findings) -> Source | None:
    """Lists the files behind one value of `--train_data`; what FlagEmbedding would skip in silence is told."""
    if path.is_dir():
        return _find_folder(path, findings)
    if not path.exists():
        findings.add(str(path), None, Fault("no such path", NO_SUCH_DATA))
        return None
    if path.suffix not in SUFFIXES:
        fault = Fault("other extension", f"extension {path.suffix!r} is not read; unpack or rename it to .jsonl")
        findings.add(str(path), None, fault)
        return None
    return Source(name=path.name, files=(path,), is_folder=False)


def _find_folder(folder: Path, findings: Findings) -> Source | None:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    files = tuple(entry for entry in entries if entry.is_file() and entry.suffix in SUFFIXES)
    for entry in (entry for entry in entries if entry not in files):
        fault = Fault("skipped in a folder", "skipped: only the folder's own .json and .jsonl files are training data")
        findings.add(str(entry), None, fault, fatal=False)
    if not files:
        findings.add(str(folder), None, Fault("empty folder", "the folder holds no .json or .jsonl file"))
        return None
    return Source(name=folder.resolve().name, files=files, is_folder=True)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a file row by row; blank lines and a byte order mark are passed over.

    Args:
        path: JSON Lines, or one JSON array as `datasets.load_dataset("json")` also reads.

    Yields:
        The line's number from 1 (in an array: the element's), and the decoded value or a `Fault`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf").strip()
            if number == 1 and content.startswith(b"["):
                yield from _read_array(path)
                return
            if content:
                yield number, _decode(content)


def _read_array(path: Path) -> Iterator[tuple[int, Any]]:
    content = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    yield from enumerate(content, start=1) if isinstance(content, list) else [(1, content)]


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault("UTF-8", f"not valid UTF-8 (byte {content[error.start]:#04x} at position {error.start + 1})")
    except json.JSONDecodeError as error:
        return Fault("JSON", f"not valid JSON ({error.msg} at column {error.colno}); a row is one object on one line")
    except (ValueError, RecursionError) as error:
        return Fault("JSON", f"not readable as JSON ({error})")


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
    elif not _encodable(text):
        yield Fault(f"{field} surrogate", f"'{field}' holds half of a surrogate pair, which UTF-8 cannot express")


def _passage_faults(row: dict[str, Any], field: str, why_not_empty: str) -> Iterator[Fault]:
    passages = row.get(field)
    if passages is None:
        yield Fault(f"{field} missing", f"'{field}' is missing; it must be a list of strings")
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
    elif not _encodable(text):
        message = f"passage {number} of '{field}' holds half of a surrogate pair, which UTF-8 cannot express"
        yield Fault(f"{field} item surrogate", message)


def _overlap_faults(row: dict[str, Any]) -> Iterator[Fault]:
    positives, negatives = ({_stripped(text) for text in _as_list(row.get(field))} for field in ("pos", "neg"))
    shared = (positives & negatives) - {""}
    if shared:
        message = f"'{_shorten(min(shared))}' is in 'pos' and in 'neg'; remove it from one"
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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _encodable(text: str) -> bool:
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
    return names.get(type(value).__name__, f"the number {value}")
