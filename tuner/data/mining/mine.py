"""The search for negatives, from the request to the file that is written.

`python -m tuner.data mine ROWS --to FILE` writes the rows again, in their order, each with negatives.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from trainables.files import flush
from tuner.data import beir
from tuner.data.mining.material import Material, Row, read
from tuner.data.mining.request import Mined, Mining
from tuner.data.mining.rule import Rule
from tuner.data.rows import row_faults
from tuner.data.splits import fingerprint
from tuner.errors import RequestError

if TYPE_CHECKING:
    from trainables.mining import Miner


Say = Callable[[str], None]


def mine(mining: Mining, say: Say) -> Mined:
    """Writes the rows with negatives.

    A row keeps its negatives, but for such as lie as near to the query as a positive; one that is left without gets new
    ones. Passages that are positives of dev and test queries are nobody's.

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
    material = read(mining)
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


def _miner(mining: Mining) -> "Miner":
    from trainables.mining import Miner, UnusableError
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


def _remove_false(material: Material, rule: Rule, miner: "Miner", mined: Mined) -> None:
    """Removes negatives that are, or lie as near as, a positive, or are what dev and test queries look for.

    Scores that rows have go with them.
    """
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
            if score <= highest and text.strip() not in positives and fingerprint(text) not in material.held_out
        ]
        mined.own += len(row["neg"])
        mined.own_removed += len(row["neg"]) - len(kept)
        mined.kept_rows += bool(kept)
        for name in ("neg", "neg_scores"):
            if row.get(name):
                row[name] = [row[name][number] for number in kept]


def _add_negatives(material: Material, mining: Mining, miner: "Miner", mined: Mined) -> None:
    from trainables.mining import Query

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
