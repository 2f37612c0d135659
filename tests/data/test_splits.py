from collections import Counter

import pytest

from tuner.data.splits import assign, connected, fingerprint
from tuner.errors import RequestError


def keys(*names: str) -> list[bytes]:
    return [fingerprint(name) for name in names]


def test_fingerprint_leaves_blank_space_out_and_is_the_same_everywhere() -> None:
    assert fingerprint(" 西湖\n") == fingerprint("西湖")
    assert fingerprint("a").hex() == "eb1fc979bd34e716e325"


def test_rows_are_connected_through_queries_and_positives_but_not_across_the_two() -> None:
    queries = keys("a", "b", "a", "c", "d", "p")
    positives = [keys("p"), keys("q", "r"), keys("s"), keys("s", "q"), keys("t"), keys("u")]
    assert connected(queries, positives) == [[0, 1, 2, 3], [4], [5]]


def test_each_of_dev_and_test_gets_the_share_and_no_group_is_torn() -> None:
    queries = keys(*(f"query {row}" for row in range(600)))
    positives = [keys(f"passage {row // 3}") for row in range(600)]
    splits = assign(queries, positives, seed=1)
    assert Counter(splits) == {"train": 360, "dev": 120, "test": 120}
    assert all(len(set(splits[start : start + 3])) == 1 for start in range(0, 600, 3))


def test_a_repeated_query_counts_once() -> None:
    queries = keys(*(f"query {row // 2}" for row in range(400)))
    positives = [keys(f"passage {row}") for row in range(400)]
    splits = assign(queries, positives, seed=1)
    assert Counter(splits) == {"train": 240, "dev": 80, "test": 80}


def test_dev_and_test_stop_growing() -> None:
    queries = keys(*(f"query {row}" for row in range(5000)))
    assert Counter(assign(queries, [[query] for query in queries], seed=1)) == {"train": 4000, "dev": 500, "test": 500}


def test_the_seed_draws_and_the_order_of_rows_does_not() -> None:
    queries = keys(*(f"query {row}" for row in range(200)))
    positives = [[query] for query in queries]
    first = assign(queries, positives, seed=1)
    assert assign(queries[::-1], positives[::-1], seed=1) == first[::-1]
    assert assign(queries, positives, seed=2) != first


def test_a_group_too_large_to_hold_out_trains() -> None:
    queries = keys(*(f"query {row}" for row in range(400)))
    positives = [keys("shared") if row < 150 else keys(f"passage {row}") for row in range(400)]
    splits = assign(queries, positives, seed=1)
    assert set(splits[:150]) == {"train"}
    assert Counter(splits) == {"train": 240, "dev": 80, "test": 80}


def test_too_few_queries_say_how_many_are_needed() -> None:
    queries = keys(*(f"query {row}" for row in range(99)))
    with pytest.raises(RequestError, match=r"has 99 different queries.* needs 100;.*--eval_data"):
        assign(queries, [[query] for query in queries], seed=1)
    more = keys(*(f"query {row}" for row in range(100)))
    assert Counter(assign(more, [[query] for query in more], seed=1))["dev"] == 20


def test_one_giant_group_is_refused_with_its_size_and_what_is_shared() -> None:
    queries = keys(*(f"query {row}" for row in range(200)))
    positives = [keys("yes") if row < 190 else keys(f"passage {row}") for row in range(200)]
    with pytest.raises(RequestError, match=r"190 of its 200 rows.*\(1 positive passages .* in 190\)"):
        assign(queries, positives, seed=1)
