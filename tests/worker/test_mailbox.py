"""What a slot learns from its mailbox of workers that are silent, idle or at work."""

import asyncio
from typing import Any

import pytest

from trainables.config import RungReport
from trainables.worker.loop import RUNG, Mailbox, StaleGroup

JOB: dict[str, Any] = {"name": "0001"}


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("trainables.worker.loop.time.monotonic", clock.monotonic)
    return clock


async def _with_job(workers: int = 1) -> Any:
    """A mailbox whose group number 1 has joined and has a job."""
    box: Any = Mailbox.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    await box.expect(1)
    for rank in range(workers):
        await box.join(1, rank, object())
    await box.submit(JOB)
    return box


@pytest.mark.parametrize(
    ("beats", "idle"),
    [
        ([(0, 0, 5.0), (10, 0, 5.01), (20, 0, 5.02)], 20.0),  # nothing but the heart
        ([(0, 0, 5.0), (10, 0, 9.0), (20, 0, 9.01)], 10.0),  # computed until second 10
        ([(0, 0, 5.0), (10, 1, 5.01), (20, 1, 5.02)], 10.0),  # came to a step, on a GPU
        ([(0, 0, 5.0), (10, 1, 5.01), (20, 2, 5.02)], 0.0),
    ],
)
def test_idle_is_neither_computing_nor_getting_on(clock: Clock, beats: list[Any], idle: float) -> None:
    async def found() -> dict[str, Any]:
        box = await _with_job()
        for clock.seconds, step, cpu in beats:
            assert await box.beat(1, 0, step, 100, cpu)
        status: dict[str, Any] = await box.status()
        return status

    status = asyncio.run(found())
    assert status["idle"] == (0, idle)
    assert status["silent"] == (0, 0.0)


def test_the_rank_that_was_silent_for_longest_is_named(clock: Clock) -> None:
    async def found() -> dict[str, Any]:
        box = await _with_job(workers=2)
        clock.seconds = 7.0
        await box.beat(1, 0, 3, 100, 1.0)
        clock.seconds = 9.0
        status: dict[str, Any] = await box.status()
        return status

    status = asyncio.run(found())
    assert status["silent"] == (1, 9.0)
    assert status["position"] == (3, 100)
    assert status["joined"] == 2


def test_waiting_for_an_answer_is_not_idleness(clock: Clock) -> None:
    async def found() -> list[Any]:
        box = await _with_job()
        await box.beat(1, 0, 5, 100, 1.0)
        rung = asyncio.create_task(box.say(1, {"event": RUNG, "report": RungReport.__name__}))
        assert (await box.event(1.0))["event"] == RUNG
        clock.seconds = 60.0
        waiting = (await box.status())["idle"]
        await box.answer(True)
        return [waiting, await rung, (await box.status())["idle"]]

    assert asyncio.run(found()) == [(0, 0.0), True, (0, 0.0)]


def test_a_group_that_was_given_up_is_refused() -> None:
    async def beat() -> None:
        box = await _with_job()
        await box.expect(2)
        await box.beat(1, 0, 0, 0, 0.0)

    with pytest.raises(StaleGroup, match="group 1 was given up: group 2 is in its place"):
        asyncio.run(beat())


def test_scoring_is_told_with_the_beat_of_the_first_worker() -> None:
    async def said() -> list[Any]:
        box = await _with_job(workers=2)
        await box.beat(1, 0, 3, 9, 0.0, False, ("embedded", 10, 50))
        await box.beat(1, 1, 3, 9, 0.0, False, ("embedded", 20, 50))
        during = (await box.status())["scoring"]
        await box.beat(1, 0, 3, 9, 0.0)
        return [during, (await box.status())["scoring"]]

    assert asyncio.run(said()) == [("embedded", 10, 50), None]
