"""Negatives for rows that have none, and the removal of such as are positives in truth.

`python -m tuner.data mine ROWS --to FILE` writes the rows again, in their order, each with negatives.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from trainables.config import DEFAULT_MODEL, DEFAULT_SEED
from trainables.files import flush
from tuner.data import beir
from tuner.data.dataset import find_leaks
from tuner.data.findings import Findings
from tuner.data.mining_rule import Rule
from tuner.data.rows import row_faults
from tuner.data.sources import JSON_SUFFIXES
from tuner.data.splits import assign, fingerprint
from tuner.data.survey import Survey, rows_of, survey
from tuner.errors import RequestError

if TYPE_CHECKING:
    from trainables.scoring.mining import Miner

_MENDED = ("neg missing", "neg empty", "positive among negatives")

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Mining:
    """What is asked for."""

    rows: str
    """A file or folder of rows, with or without negatives; what `--train_data` takes."""
    to: Path
    """The JSON Lines file to write."""
    corpus: str | None = None
    """A BEIR folder whose passages may become negatives, beside those of the rows."""
    eval_data: str | None = None
    """The BEIR folder of the search to come. None: it will hold out queries of the rows."""
    model: str = DEFAULT_MODEL
    teacher: str | None = None
    """A cross-encoder, which scores candidates and the rows that are written."""
    rule: Rule = field(default_factory=Rule)
    query_prompt: str | None = None
    corpus_prompt: str | None = None
    batch_size: int = 32
    max_seq_length: int | None = None
    """Tokens that are read of a text. None: as many as the model says."""
    seed: int = DEFAULT_SEED
    """That of the search to come, which holds out other queries for another one."""

    @property
    def store(self) -> Path:
        """Where embeddings and scores are kept; hidden, so that nobody reads it as data."""
        return self.to.with_name(f".{self.to.name}.mining")

    def problems(self) -> list[str]:
        """Returns one line for each part that is wrong in itself."""
        checks = [
            (self.to.suffix in JSON_SUFFIXES, f"--to {self.to}: must end in {', '.join(JSON_SUFFIXES)}"),
            (self.to.parent.is_dir(), f"--to {self.to}: there is no folder {self.to.parent}; make it first"),
            (not os.path.lexists(self.to), f"--to {self.to}: is there already; remove it, or name another file"),
            (self.batch_size >= 1, f"--batch_size must be 1 or more, but got {self.batch_size}"),
            (
                self.max_seq_length is None or self.max_seq_length >= 2,
                f"--max_seq_length must be 2 or more, but got {self.max_seq_length}",
            ),
        ]
        return [message for holds, message in checks if not holds] + self.rule.problems()


@dataclass(kw_only=True)
class Mined:
    """What has become of the rows."""

    rows: int = 0
    kept_rows: int = 0
    """Rows that keep negatives of their own."""
    mined_rows: int = 0
    own: int = 0
    """Negatives that rows came with."""
    own_removed: int = 0
    """Of these, positives or too near to them."""
    negatives: int = 0
    """Negatives that are written."""
    removed: int = 0
    """Candidates that were too near to a positive."""
    removed_rows: int = 0
    """Rows that had such."""
    held_out: int = 0
    """Passages that are left out as positives of dev or test queries."""
    drawn: int = 0
    """Negatives drawn at random, where too few candidates were left."""
    drawn_rows: int = 0
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yields what a person reads."""
        yield (
            f"{self.rows:,} rows, {self.negatives:,} negatives: {self.kept_rows:,} rows kept their own, "
            f"{self.mined_rows:,} got new ones"
        )
        if self.own:
            yield f"removed {self.own_removed:,} of {self.own:,} negatives that rows came with, as near as a positive"
        yield f"removed {self.removed:,} candidates of {self.removed_rows:,} rows, as near as a positive"
        yield f"left out {self.held_out:,} passages that are positives of dev or test queries"
        if self.drawn:
            yield f"drew {self.drawn:,} negatives of {self.drawn_rows:,} rows at random: too few candidates were left"


def mine(mining: Mining, say: Say) -> Mined:
    """Writes the rows with negatives.

    A row keeps its negatives, but for such as lie as near to the query as a positive; one that is left without gets new
    ones. Passages that are positives of dev and test queries become nobody's.

    Args:
        mining: What is asked for.
        say: Told what is being done, a line each.

    Raises:
        RequestError: With everything that is wrong with the request and the rows, before anything is embedded.
    """
    began = time.monotonic()
    if problems := mining.problems():
        raise RequestError(problems)
    say(f"checking {mining.rows}")
    material = _read(mining)
    miner = _miner(mining)
    passages = material.passages()
    say(f"{len(material.rows):,} rows, {len(passages):,} passages; what is computed is kept in {mining.store}")
    miner.embed(passages)
    mined = Mined(rows=len(material.rows), held_out=material.left_out)
    if any(row["neg"] for row in material.rows):
        _remove_false(material, mining.rule, miner, mined)
    if not all(row["neg"] for row in material.rows):
        _add_negatives(material, mining, miner, mined)
    if mining.teacher:
        _add_scores(material.rows, miner)
    mined.negatives = sum(len(row["neg"]) for row in material.rows)
    _write(material.rows, mining.to)
    mined.seconds = time.monotonic() - began
    return mined


@dataclass(kw_only=True)
class _Material:
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


def _read(mining: Mining) -> _Material:
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


def _material(surveyed: Survey, texts: Sequence[str], held_out: set[bytes]) -> _Material:
    rows = [{**row, "neg": row.get("neg") or []} for row in _rows(surveyed)]
    positives: dict[str, dict[str, None]] = {}
    for row in rows:
        positives.setdefault(row["query"].strip(), {}).update((text.strip(), None) for text in row["pos"])
    every = dict.fromkeys([*texts, *(text.strip() for row in rows for text in [*row["pos"], *row["neg"]])])
    corpus = [text for text in every if fingerprint(text) not in held_out]
    return _Material(
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


def _miner(mining: Mining) -> "Miner":
    from trainables.scoring.mining import Miner, UnusableError
    from tuner.data.models import model_here

    model = model_here(mining.model, flag="--model")
    teacher = model_here(mining.teacher, flag="--teacher") if mining.teacher else None
    try:
        return Miner(
            model,
            teacher,
            mining.store,
            batch_size=mining.batch_size,
            query_prompt=mining.query_prompt,
            corpus_prompt=mining.corpus_prompt,
            max_seq_length=mining.max_seq_length,
        )
    except UnusableError as error:
        raise RequestError([str(error)]) from error


def _remove_false(material: _Material, rule: Rule, miner: "Miner", mined: Mined) -> None:
    """Removes negatives that are, or lie as near as, a positive; scores that rows have go with them."""
    rows = [row for row in material.rows if row["neg"]]
    queries = [row["query"].strip() for row in rows]
    asked = [
        [*material.positives[query], *(text.strip() for text in row["neg"])]
        for query, row in zip(queries, rows, strict=True)
    ]
    for row, query, scores in zip(rows, queries, miner.scores(queries, asked), strict=True):
        positives = material.positives[query]
        highest = rule.highest(scores[: len(positives)])
        kept = [
            number
            for number, (text, score) in enumerate(zip(row["neg"], scores[len(positives) :], strict=True))
            if score <= highest and text.strip() not in positives
        ]
        mined.own += len(row["neg"])
        mined.own_removed += len(row["neg"]) - len(kept)
        mined.kept_rows += bool(kept)
        for name in ("neg", "neg_scores"):
            if row.get(name):
                row[name] = [row[name][number] for number in kept]


def _add_negatives(material: _Material, mining: Mining, miner: "Miner", mined: Mined) -> None:
    from trainables.scoring.mining import Query

    bare = [row for row in material.rows if not row["neg"]]
    texts = list(dict.fromkeys(row["query"].strip() for row in bare))
    queries = [Query(text=text, positives=material.positives[text]) for text in texts]
    found: dict[str, list[str]] = {}
    rows_of_query = Counter(row["query"].strip() for row in bare)
    for query, near in zip(queries, miner.candidates(queries, material.corpus, mining.rule.reach), strict=True):
        draw = Random(f"{mining.seed} {query.text}")
        allowed = [scored for scored in near.passages if fingerprint(scored[0]) not in material.held_out]
        highest = mining.rule.highest(near.positives)
        chosen = [passage for passage, _ in mining.rule.choose(allowed, highest, draw)]
        false = [passage for passage, score in allowed if score > highest]
        missing = mining.rule.num_negatives - len(chosen)
        drawn = _drawn(material.corpus, missing, {*chosen, *false, *query.positives}, draw)
        found[query.text] = chosen + drawn
        times = rows_of_query[query.text]
        mined.removed += times * len(false)
        mined.removed_rows += times * bool(false)
        mined.drawn += times * len(drawn)
        mined.drawn_rows += times * bool(drawn)
    if lacking := [query for query, negatives in found.items() if not negatives]:
        raise RequestError([_nothing_left(query) for query in lacking[:10]])
    for row in bare:
        row["neg"] = found[row["query"].strip()]
        for name in ("pos_scores", "neg_scores"):  # of a teacher that has not seen the new ones
            row.pop(name, None)
    mined.mined_rows += len(bare)


def _drawn(corpus: Sequence[str], count: int, without: set[str], draw: Random) -> list[str]:
    """Draws passages at random, as FlagEmbedding's hn_mine.py does where too few are left."""
    if count <= 0:
        return []
    numbers = draw.sample(range(len(corpus)), min(len(corpus), count + len(without)))
    return [text for text in (corpus[number] for number in numbers) if text not in without][:count]


def _nothing_left(query: str) -> str:
    return (
        f"the query {query[:40]!r}: every passage is as near to it as its positive, or one of them; give more passages "
        "with --corpus, or a smaller --relative_margin"
    )


def _add_scores(rows: Sequence[Row], miner: "Miner") -> None:
    """Gives rows the fields that FlagEmbedding's `--knowledge_distillation` reads."""
    queries = [row["query"] for row in rows]
    for row, scores in zip(rows, miner.labels(queries, [[*row["pos"], *row["neg"]] for row in rows]), strict=True):
        row["pos_scores"], row["neg_scores"] = scores[: len(row["pos"])], scores[len(row["pos"]) :]


def _write(rows: Sequence[Row], path: Path) -> None:
    faults = [fault.message for row in rows for fault in row_faults(row)]
    assert not faults, f"mined rows must be sound, but: {faults[:3]}"
    temporary = path.with_name(f".{path.name}.tmp")
    beir.write_jsonl(temporary, rows)
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)
