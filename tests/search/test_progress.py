"""What is said of a job that runs."""

import pytest

from trainables.tally import Position
from tuner.schedule.jobs import Row
from tuner.search.progress import _position


@pytest.mark.parametrize(
    ("steps", "scoring", "words"),
    [
        ((0, 0), None, "loading the model and the data"),
        ((3, 40), None, "step 3/40"),
        ((0, 0), ("tokenised", 8192, 0), "scoring: 8,192 passages tokenised"),
        ((40, 40), ("embedded", 1024, 60_000), "scoring: 1,024 of 60,000 passages embedded"),
    ],
)
def test_a_job_says_how_far_it_is(steps: tuple[int, int], scoring: Position | None, words: str) -> None:
    row = Row(name="0000", role="base", params={}, started=0.0, step=steps[0], steps=steps[1], scoring=scoring)
    assert _position(row) == words
