"""The layout of a batch: every text once, in groups, with its sparse columns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trainables.m3.batching import Layout, partition
from trainables.m3.tokens import Ids

LAYOUT = Layout(
    pad_token_id=1,
    special_tokens=(0, 1, 2, 3),
    pad_to_multiple_of=None,
    padding_side="right",
    sub_batch_size=None,
    group_cost=2,
    packed=False,
    padding_position=1,
    like_upstream=False,
)


def ids(*tokens: int) -> Ids:
    return np.array([0, *tokens, 2], dtype=np.int32)


QUERIES = [ids(10, 11), ids(12)]
PASSAGES = [ids(10, 10, 20, 21, 22, 23), ids(12, 11), ids(30), ids(11, 12, 13, 14, 15)]


def texts_of(batch: dict[str, Any], name: str = "input_ids") -> list[list[int]]:
    """Returns the texts in their order, without padding."""
    rows = [text for group in batch["texts"]["groups"] for text in rows_of(group, group[name])]
    order = batch["texts"]["order"]
    return rows if order is None else [rows[place] for place in order]


def rows_of(group: dict[str, Any], values: torch.Tensor) -> list[list[int]]:
    """Returns a group's values by text, without padding."""
    values = values[group["attention_mask"].bool()] if "attention_mask" in group else values
    return [text.tolist() for text in values.split(group["lengths"].tolist())]


def columns_of(batch: dict[str, Any]) -> list[list[int]]:
    """Returns the columns of each text's tokens, in the order of the groups."""
    width, found = batch["texts"]["width"], []
    for group in batch["texts"]["groups"]:
        cells: list[list[int]] = [[] for _ in group["lengths"]]
        for cell in group["cells"].tolist():
            cells[cell // width].append(cell % width)
        found += cells
    order = batch["texts"]["order"]
    return found if order is None else [found[place] for place in order]


@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        replace(LAYOUT, like_upstream=True),
        replace(LAYOUT, sub_batch_size=2),
        replace(LAYOUT, group_cost=100),
        replace(LAYOUT, packed=True),
        replace(LAYOUT, packed=True, sub_batch_size=4),
    ],
    ids=["grouped", "like upstream", "sub-batches", "one group", "packed", "packed sub-batches"],
)
def test_every_text_is_there_once(layout: Layout) -> None:
    batch = layout.batch(QUERIES, PASSAGES)
    assert texts_of(batch) == [text.tolist() for text in (*QUERIES, *PASSAGES)]
    tokens = batch["texts"]["tokens"]
    assert [tokens[places].tolist() for places in texts_of(batch, "places")] == texts_of(batch)
    limit = layout.sub_batch_size or 6
    assert all(len(group["lengths"]) <= limit for group in batch["texts"]["groups"])


def test_columns_are_the_queries_tokens_that_are_not_special() -> None:
    batch = LAYOUT.batch(QUERIES, PASSAGES)
    assert batch["texts"]["width"] == 3  # 10, 11, 12
    assert columns_of(batch) == [[0, 1], [2], [0, 0], [2, 1], [], [1, 2]]


def test_padded_lengths_are_upstreams() -> None:
    batch = replace(LAYOUT, pad_to_multiple_of=5).batch(QUERIES, PASSAGES)
    assert batch["queries"]["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch["texts"]["shapes"] == ((2, 4), (4, 9))  # without the first token


@pytest.mark.parametrize("side", ["right", "left"])
def test_vectors_go_where_upstream_has_them(side: str) -> None:
    """Texts of 4, 3; 8, 4, 3 and 7 tokens; on the left, all but the longest have a vector for their first token too."""
    texts = replace(LAYOUT, like_upstream=True, padding_side=side).batch(QUERIES, PASSAGES)["texts"]
    queries, passages = texts["slots"].split([len(group["inner"]) for group in texts["groups"]])
    assert queries.tolist() == ([0, 1, 2, 3, 4] if side == "right" else [0, 1, 2, 3, 4, 5])
    third_passage = [20, 21] if side == "right" else [24, 25, 26]  # its row begins at 6 + 2 x 7
    assert (
        passages.tolist()[-len(third_passage) - (6 if side == "right" else 7) :][: len(third_passage)] == third_passage
    )


def test_like_upstream_is_one_padded_group_a_side() -> None:
    groups = replace(LAYOUT, like_upstream=True, padding_side="left").batch(QUERIES, PASSAGES)["texts"]["groups"]
    assert [tuple(group["input_ids"].shape) for group in groups] == [(2, 4), (4, 8)]
    assert groups[0]["input_ids"].tolist() == [[0, 10, 11, 2], [1, 0, 12, 2]]
    assert groups[0]["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_packed_texts_stay_in_their_order_in_as_few_groups_as_can_be() -> None:
    texts = replace(LAYOUT, packed=True, sub_batch_size=4).batch(QUERIES, PASSAGES)["texts"]
    assert [group["lengths"].tolist() for group in texts["groups"]] == [[4, 3, 8, 4], [3, 7]]
    assert [group["cu_seqlens"].tolist() for group in texts["groups"]] == [[0, 4, 7, 15, 19], [0, 3, 10]]
    assert texts["order"] is None


def test_queries_of_special_tokens_only() -> None:
    batch = LAYOUT.batch([ids(3)], [ids(10), ids(11)])
    assert batch["texts"]["width"] == 0
    assert all(not len(group["scored"]) for group in batch["texts"]["groups"])


def test_partition_is_the_cheapest() -> None:
    lengths = np.array([2, 2, 9, 10])
    assert partition(lengths, group_cost=5, most=4) == [2, 4]  # 4 + 5 + 20 + 5, while one group is 40 + 5
    assert partition(lengths, group_cost=100, most=4) == [4]
    assert partition(lengths, group_cost=0, most=4) == [2, 3, 4]
    assert partition(lengths, group_cost=100, most=1) == [1, 2, 3, 4]
