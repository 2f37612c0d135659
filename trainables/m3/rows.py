"""The texts of upstream's training datasets, as its collator sees them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.m3.tokens import content_hash


@contextmanager
def sorted_folders() -> Iterator[None]:
    """Lets upstream's datasets read a folder's files by name: `os.listdir`'s order differs between machines."""
    listdir = os.listdir
    os.listdir = lambda path=".": sorted(listdir(path))  # type: ignore[assignment]
    try:
        yield
    finally:
        os.listdir = listdir


def source(data: Any, seed: int) -> str:
    """Identifies the texts that a dataset with these data arguments gives; `seed` draws those that it leaves out."""
    given = [Path(path) for path in data.train_data]
    files = [str(file) for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    query = (data.query_instruction_for_retrieval, data.query_instruction_format)
    passage = (data.passage_instruction_for_retrieval, data.passage_instruction_format)
    left_out = (data.max_example_num_per_dataset, data.small_threshold, data.drop_threshold)
    drawn = None if data.max_example_num_per_dataset == type(data).max_example_num_per_dataset else seed
    return repr((content_hash(files), data.same_dataset_within_batch, query, passage, left_out, drawn))


def queries(dataset: Any) -> Iterator[str]:
    """Yields every query as the dataset gives it to the collator."""
    data = dataset.args
    instruction = data.query_instruction_for_retrieval
    plain = instruction is None and not data.same_dataset_within_batch
    for row in dataset.dataset:
        given = row.get("prompt", instruction)
        yield row["query"] if plain else data.query_instruction_format.format(given, row["query"])


def passages(dataset: Any) -> Iterator[str]:
    """Yields every passage as the dataset gives it to the collator; those of symmetric tasks are not foreseen."""
    data = dataset.args
    instruction = data.passage_instruction_for_retrieval
    for row in dataset.dataset:
        for text in (*row["pos"], *row["neg"]):
            yield text if instruction is None else data.passage_instruction_format.format(instruction, text)


def check_rows(dataset: Any) -> None:
    """Refuses rows that upstream fails on in the middle of an epoch.

    Raises:
        ValueError: a row has no positive, or no negative although a group needs one.
    """
    for column in ("pos", "neg") if dataset.args.train_group_size > 1 else ("pos",):
        for row, texts in enumerate(dataset.dataset[column], start=1):
            if not texts:
                raise ValueError(f"every training row needs a text in `{column}`, but row {row} has none: add one")
