"""Holding out dev and test queries without leaking: rows that share a query or a positive stay on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b, sha256

from tuner.errors import RequestError

MAX_QUERIES = 500
"""Queries that dev and test get at most, each."""

MIN_QUERIES = 20
"""Queries below which dev or test says nothing, and the split is refused."""

ENOUGH_QUERIES = 200
"""Queries below which a real difference of a few points of nDCG is often lost in the noise."""

SHARE = 0.2
"""Share of the queries that dev and test get at most, each; the rest trains."""


def fingerprint(text: str) -> bytes:
    """Returns 10 bytes that stand for a text, blank space around it left out; equal on every machine."""
    return blake2b(text.strip().encode(), digest_size=10).digest()


def assign(queries: Sequence[bytes], positives: Sequence[Sequence[bytes]], *, seed: int) -> list[str]:
    """Assigns each row to "train", "dev" or "test".

    Connected rows go together, in an order drawn from the seed and the queries alone, into the first of test and dev
    that has room; what fits in neither trains.

    Args:
        queries: Fingerprint of each row's query.
        positives: Fingerprints of each row's positive passages.
        seed: Draws which queries are held out.

    Raises:
        RequestError: The data is too small, or too connected, to hold out `MIN_QUERIES` for each of dev and test.
    """
    total = len(set(queries))
    room = min(MAX_QUERIES, int(total * SHARE))
    if room < MIN_QUERIES:
        raise RequestError([_too_small(total)])
    left = {"test": room, "dev": room}
    splits = ["train"] * len(queries)
    groups = connected(queries, positives)
    for rows in sorted(groups, key=lambda rows: _draw(queries, rows, seed)):
        size = len({queries[row] for row in rows})
        split = next((name for name, free in left.items() if size <= free), "train")
        if split != "train":
            left[split] -= size
            for row in rows:
                splits[row] = split
    if room - max(left.values()) < MIN_QUERIES:
        raise RequestError([_too_connected(positives, groups)])
    return splits


def connected(queries: Sequence[bytes], positives: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """Returns the groups of rows connected by a shared query or a shared positive."""
    from scipy.cluster.hierarchy import DisjointSet  # a check of rows alone needs no scipy

    sets = DisjointSet(range(len(queries)))
    first: dict[tuple[bool, bytes], int] = {}
    for row, (query, passages) in enumerate(zip(queries, positives, strict=True)):
        for key in ((True, query), *((False, passage) for passage in passages)):
            sets.merge(row, first.setdefault(key, row))
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in range(len(queries)):
        groups[sets[row]].append(row)
    return list(groups.values())


def _draw(queries: Sequence[bytes], rows: Sequence[int], seed: int) -> bytes:
    return sha256(f"{seed} ".encode() + min(queries[row] for row in rows)).digest()


def _too_small(total: int) -> str:
    needed = next(count for count in range(total, 10**6) if int(count * SHARE) >= MIN_QUERIES)
    return (
        f"--train_data has {total} different queries, but holding out {SHARE:.0%} of them for each of dev and test "
        f"({MIN_QUERIES} at least) needs {needed}; add rows, or give held-out queries with --eval_data"
    )


def _too_connected(positives: Sequence[Sequence[bytes]], groups: Sequence[Sequence[int]]) -> str:
    counts = Counter(passage for passages in positives for passage in set(passages))
    shared = sum(count > 1 for count in counts.values())
    return (
        f"--train_data cannot be split: {max(map(len, groups)):,} of its {len(positives):,} rows are connected by "
        f"shared queries or positives ({shared:,} positive passages stand in more than one row, one of them in "
        f"{max(counts.values()):,}); give held-out queries with --eval_data"
    )
