"""What negatives are mined from: the rows, and the passages that nobody is to be tested on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.data import beir
from tuner.data.dataset import find_leaks
from tuner.data.findings import Findings
from tuner.data.mining.request import Mining
from tuner.data.splits import assign, fingerprint
from tuner.data.survey import Survey, rows_of, survey
from tuner.errors import RequestError

_MENDED = ("neg missing", "neg empty", "positive among negatives")
"""Findings that mining mends."""

Row = dict[str, Any]


@dataclass(kw_only=True)
class Material:
    """Rows and the passages that may become their negatives; texts are compared without the blank space around them."""

    rows: list[Row]
    corpus: list[str]
    """Different passages, those of held-out queries left out."""
    held_out: set[bytes]
    """Fingerprints of the positives of dev and test queries."""
    left_out: int
    """How many passages these are."""
    positives: Mapping[str, tuple[str, ...]]
    """Query -> its positives in all rows."""

    def passages(self) -> list[str]:
        """All passages that will be scored."""
        own = (text.strip() for row in self.rows for text in [*row["pos"], *row["neg"]])
        return list(dict.fromkeys([*self.corpus, *own]))


def read(mining: Mining) -> Material:
    surveyed = survey([_here(mining.rows)], to_be_mended=_MENDED)
    findings, held_out = surveyed.findings, set[bytes]()
    if mining.eval_data:
        evaluation = beir.read(Path(_here(mining.eval_data)), findings)
        find_leaks(surveyed, evaluation)
        held_out |= _judged(evaluation)
    folder = Path(_here(mining.corpus)) if mining.corpus else None
    known = _own_passages(surveyed) if folder else set()
    texts = _corpus(folder, findings, known, held_out) if folder else []
    if findings.counts()[0]:
        raise RequestError([str(finding) for finding in findings.all() if finding.fatal])
    if not mining.eval_data:
        splits = assign(surveyed.queries, surveyed.positives, seed=mining.seed)
        held_out |= {
            text for split, own in zip(splits, surveyed.positives, strict=True) if split != "train" for text in own
        }
    return _material(surveyed, texts, held_out)


def _here(location: str) -> str:
    from tuner.data.inputs import local_copy  # a check of rows alone needs no other package

    return local_copy(location)


def _material(surveyed: Survey, texts: Sequence[str], held_out: set[bytes]) -> Material:
    rows = [{**row, "neg": row.get("neg") or []} for row in _rows(surveyed)]
    positives: dict[str, dict[str, None]] = {}
    for row in rows:
        positives.setdefault(row["query"].strip(), {}).update((text.strip(), None) for text in row["pos"])
    every = dict.fromkeys([*texts, *(text.strip() for row in rows for text in [*row["pos"], *row["neg"]])])
    corpus = [text for text in every if fingerprint(text) not in held_out]
    return Material(
        rows=rows,
        corpus=corpus,
        held_out=held_out,
        left_out=len(every) - len(corpus),
        positives={query: tuple(own) for query, own in positives.items()},
    )


def _rows(surveyed: Survey) -> Iterator[Row]:
    return rows_of(path for path, _ in surveyed.files)


def _own_passages(surveyed: Survey) -> set[bytes]:
    return {text for own in surveyed.positives for text in own}


def _corpus(folder: Path, findings: Findings, known: set[bytes], held_out: set[bytes]) -> list[str]:
    """Returns the passages of a BEIR folder, and adds to `held_out` what its own dev and test queries look for."""
    splits = [split for split in beir.SPLITS if (folder / "qrels" / f"{split}.tsv").is_file()]
    if splits:
        evaluation = beir.read(folder, findings, splits=splits, flag="--corpus")
        passages = list(evaluation.corpus) if not findings.counts()[0] else []
        held_out |= _judged(beir.Evaluation(corpus=passages, queries={}, qrels=evaluation.qrels)) if passages else set()
    else:
        passages = list(beir.read_corpus(folder, findings, flag="--corpus"))
    return [_as_rows_have_it(passage, known) for passage in passages if beir.full_text(passage)]


def _as_rows_have_it(passage: beir.Passage, known: set[bytes]) -> str:
    """The passage with its title, as it is scored; without, where rows have it so: it is the same passage."""
    text = passage["text"].strip()
    return text if fingerprint(text) in known else beir.full_text(passage)


def _judged(evaluation: beir.Evaluation) -> set[bytes]:
    """Fingerprints of the passages that queries look for, with and without their titles."""
    relevant = {
        passage
        for qrels in evaluation.qrels.values()
        for judged in qrels.values()
        for passage, score in judged.items()
        if score > 0
    }
    texts = (
        text
        for passage in evaluation.corpus
        if passage["_id"] in relevant
        for text in (passage["text"], beir.full_text(passage))
    )
    return {fingerprint(text) for text in texts}
