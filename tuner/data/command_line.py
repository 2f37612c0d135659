"""``python -m tuner.data``: `check` only checks rows, `mine` gives them negatives."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.data.mining.mine import mine
from tuner.data.mining.request import Mining
from tuner.data.mining.rule import SAMPLING_STRATEGIES, Rule
from tuner.data.survey import survey
from tuner.errors import EXIT_DONE, EXIT_REQUEST, RequestError, counted
from tuner.versions import add_version

_RULES = {
    "range_min": (int, "nearest passages that are passed over"),
    "range_max": (int, "nearest passages that are looked at (default: range_min and ten for each negative)"),
    "max_score": (float, "highest score of a negative"),
    "min_score": (float, "lowest score of a negative"),
    "absolute_margin": (float, "how far below its positive's score a negative's lies"),
    "relative_margin": (float, "the same, as a share of the positive's score"),
    "num_negatives": (int, "negatives of a row"),
    "sampling_strategy": (str, f"which of those that are left: {' or '.join(SAMPLING_STRATEGIES)}"),
}
"""Arguments of `mine_hard_negatives` -> their type, and what they are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m tuner.data check FILE...` or `python -m tuner.data mine ROWS --to FILE`.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        0, or 2 when the data or the request is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tuner.data", description="Training data in FlagEmbedding's format: checks or mends rows."
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="check|mine")
    checking = commands.add_parser("check", help="check every row")
    checking.add_argument("train_data", nargs="+", metavar="FILE", help="a file or a folder; no URL")
    checking.set_defaults(run=_check)
    _add_mining(commands.add_parser("mine", help="give rows without negatives some, and remove false ones"))
    given = parser.parse_args(argv)
    return int(given.run(given))


def _add_mining(parser: argparse.ArgumentParser) -> None:
    own = {field.name: field.default for field in dataclasses.fields(Mining)}
    parser.add_argument("rows", metavar="ROWS", help="rows as --train_data takes them; 'neg' may be missing or empty")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE", help="the .jsonl file to write")
    for name, metavar, text in (
        ("corpus", "FOLDER", "a BEIR folder (corpus.jsonl) whose passages may become negatives too"),
        ("eval_data", "FOLDER", "that of the search to come; without, it holds out queries of the rows"),
        ("model", "NAME", "embeds queries and passages: a folder, or a name on the hub"),
        ("teacher", "CROSS_ENCODER", "scores candidates; its scores are written as pos_scores and neg_scores"),
        ("query_prompt", "TEXT", "stands before every query"),
        ("corpus_prompt", "TEXT", "stands before every passage"),
    ):
        shown = f" (default: {own[name]})" if own[name] else ""
        parser.add_argument(f"--{name}", default=own[name], metavar=metavar, help=text + shown)
    for name, text in (
        ("batch_size", "texts of a batch"),
        ("max_seq_length", "tokens that are read of a text (default: as many as the model says)"),
        ("seed", "that of the search to come, which holds out the same queries for it"),
    ):
        shown = "" if own[name] is None else f" (default: {own[name]})"
        parser.add_argument(f"--{name}", type=int, default=own[name], metavar="N", help=text + shown)
    rules = {field.name: field.default for field in dataclasses.fields(Rule)}
    for name, (kind, text) in _RULES.items():
        shown = "" if rules[name] is None else f" (default: {rules[name]})"
        parser.add_argument(f"--{name}", type=kind, default=rules[name], metavar="VALUE", help=text + shown)
    parser.set_defaults(run=_mine)


def _check(given: argparse.Namespace) -> int:
    """One finding a line, then a summary."""
    surveyed = survey(given.train_data)
    for finding in surveyed.findings.all():
        print(finding)
    fatal, warnings = surveyed.findings.counts()
    counts = (
        (len(surveyed.files), "file"),
        (len(surveyed.queries), "good row"),
        (fatal, "error"),
        (warnings, "warning"),
    )
    print(", ".join(counted(*each) for each in counts))
    return EXIT_REQUEST if fatal else EXIT_DONE


def _mine(given: argparse.Namespace) -> int:
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(Mining) if field.name != "rule"}
    mining = Mining(**values, rule=Rule(**{name: getattr(given, name) for name in _RULES}))
    try:
        mined = mine(mining, print)
    except RequestError as error:
        print(error, file=sys.stderr)
        return EXIT_REQUEST
    for line in mined.lines():
        print(line)
    size = mining.store.stat().st_size / 1e6
    print(f"{mining.to}, in {mined.seconds:.1f} s; remove {mining.store} ({size:,.1f} MB) when no other mine follows")
    return EXIT_DONE
