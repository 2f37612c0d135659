"""A run directory in storage has one writer, whatever pauses in between: a lid, SIGSTOP, a request that is repeated."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import tuner.run_dir.lease
from tests.support.storage_fixtures import NewMachine, contents, objects, write
from trainables.config import Progress, Report, TrialConfig
from trainables.failures import StorageAway
from tuner.cluster.staging import MARK, OnAnyMachine
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.run_dir.lease import LeaseLostError
from tuner.run_dir.mirror import Mirror, Pusher
from tuner.run_dir.store import MirroredRunStore

PART = "trials/0007"


@pytest.fixture
def soon_stale(monkeypatch: pytest.MonkeyPatch) -> float:
    """Leases are given up after a second; returns how long to sleep for that: S3 tells times to the second."""
    monkeypatch.setattr(tuner.run_dir.lease, "_STALE_SECONDS", 1.0)
    return 2.1


def stored(new_machine: NewMachine) -> dict[str, str]:
    """All files of the run directory, as someone sees them who reads it."""
    reader = new_machine()
    reader.pull()
    return contents(reader)


def test_a_worker_whose_driver_lost_its_place_pushes_and_deletes_nothing(
    new_machine: NewMachine, url: str, soon_stale: float
) -> None:
    first = new_machine()
    with first.held():
        old = new_machine(first.lease)
        write(old, trials__0007__checkpoint__weights="rung 1", trials__0007__log="a")
        old.push([PART])
        time.sleep(soon_stale)  # the first driver's machine is asleep
        second = new_machine()
        with second.held():
            new = new_machine(second.lease)
            new.pull([PART])
            write(new, trials__0007__log="a b")
            new.push([PART])
            before = set(objects(url))

            write(old, trials__0007__checkpoint__weights="rung 2, of a search that lost its place")
            with pytest.raises(LeaseLostError, match="another search has taken this one's place"):
                old.push([PART])
            assert set(objects(url)) == before

            write(new, trials__0007__log="a b c")
            new.push([PART])
            second.tidy()
    assert stored(new_machine) == {f"{PART}/checkpoint/weights": "rung 1", f"{PART}/log": "a b c"}


def test_a_push_between_a_check_and_its_end_costs_the_holder_nothing(new_machine: NewMachine) -> None:
    """The same, where the old worker had asked just before it fell asleep: its listing comes, and is put right."""
    old = new_machine()
    write(old, trials__0007__checkpoint__weights="rung 1", trials__0007__log="a")
    old.push([PART])
    driver = new_machine()
    with driver.held():
        new = new_machine(driver.lease)
        new.pull([PART])
        write(new, trials__0007__log="a b")
        new.push([PART])
        write(old, trials__0007__checkpoint__weights="rung 2, of the old worker")
        old.push([PART])
        write(new, trials__0007__log="a b c")
        new.push([PART])
        assert stored(new_machine) == {f"{PART}/checkpoint/weights": "rung 1", f"{PART}/log": "a b c"}
        driver.tidy()
    assert stored(new_machine) == {f"{PART}/checkpoint/weights": "rung 1", f"{PART}/log": "a b c"}


def test_what_an_old_listing_brought_back_too_late_is_sent_again(new_machine: NewMachine) -> None:
    worker, late = new_machine(), new_machine()
    write(worker, trials__0007__checkpoint__weights="w", trials__0007__log="a")
    worker.push([PART])
    late.pull([PART])
    (late.local / PART / "checkpoint/weights").unlink()
    late.push([PART])
    driver = new_machine()
    with driver.held():
        driver.tidy()  # the weights are gone for good
    write(worker, trials__0007__log="a b")
    worker.push([PART])
    assert stored(new_machine) == {f"{PART}/checkpoint/weights": "w", f"{PART}/log": "a b"}


def test_a_worker_s_own_code_keeps_nothing_of_a_search_that_lost_its_place(
    new_machine: NewMachine, url: str, soon_stale: float
) -> None:
    driver = new_machine()
    write(driver, data__x="x", _dot_driver="here")
    assert MARK == ".driver"
    with driver.held():
        driver.push(["data"])

        def train(config: TrialConfig, report: Report, progress: Progress) -> None:  # noqa: ARG001
            (Path(config.directory) / "checkpoint").mkdir()
            (Path(config.directory) / "checkpoint/model").write_text("by the first")
            time.sleep(soon_stale)
            taker = new_machine()
            taker._own.take()

        job = TrialConfig(
            name="0001",
            directory=str(driver.local / "trials/0001"),
            arguments={},
            eval_data=str(driver.local / "data"),
            metric="m",
            rungs=(1.0,),
        )
        worker = OnAnyMachine(
            run_dir=url,
            root=str(driver.local),
            mark="elsewhere",
            model="m",
            model_path="/tmp",
            lease=driver.lease,
            train=train,
        )
        new_machine()
        with pytest.raises(StorageAway, match="another search has taken this one's place"):
            worker(job, lambda _: True, lambda *_: True)
        assert not [path for path in objects(url) if "trials" in path]
        with pytest.raises(SearchStopped):
            Mirror(driver).finish()


def test_a_pusher_says_that_the_place_is_lost_and_outlives_other_errors(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = new_machine()
    with driver.held():
        worker = new_machine(driver.lease)
        write(worker, trials__0007__log="a")
        pusher = Pusher(worker, PART)
        asked, push = [], worker.push

        def odd(paths: list[str]) -> None:
            asked.append(paths)
            if len(asked) == 1:
                raise ValueError("not of storage")
            push(paths)

        monkeypatch.setattr(worker, "push", odd)
        _until(lambda: pusher.ask() or len(asked) >= 2)
        pusher.require_place()
    write(worker, trials__0007__log="a b")
    _until(lambda: pusher.ask() or pusher._lost is not None)
    with pytest.raises(LeaseLostError):
        pusher.require_place()
    with pytest.raises(LeaseLostError):
        pusher.close()


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not in four seconds")


def test_a_lease_that_is_written_after_another_took_it_is_given_up(
    new_machine: NewMachine, url: str, soon_stale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first looks, sleeps, and writes; the second has taken the place in between."""
    first, second = new_machine(), new_machine()
    first._own.take()
    write_lease = first._own._leases.write
    with suppress(SearchStopped), _left_open() as open_later:

        def after_a_sleep(name: str) -> None:
            time.sleep(soon_stale)
            open_later(second.held())
            write_lease(name)

        monkeypatch.setattr(first._own._leases, "write", after_a_sleep)
        first._own.renew()
        leases = [path for path in objects(url) if path.startswith("leases/")]
        assert leases == [f"leases/{second.lease}"]
        write(second, study="second")
        second.push()
        write(first, study="first")
        with pytest.raises(SearchStopped):
            first.push()
        assert stored(new_machine) == {"study": "second"}
        second.require_held()


@contextmanager
def _left_open() -> Iterator[Callable[[Any], None]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield stack.enter_context


class Paused:
    """Storage as a machine has it that falls asleep before its request number `before`.

    Args:
        store: Whose requests to count.
        before: From 0; one that never comes is no pause.
        meanwhile: What happens while it sleeps.
    """

    def __init__(self, store: MirroredRunStore, before: int, meanwhile: Callable[[], None]) -> None:
        self._prefix, self._before, self._meanwhile = store._prefix, before, meanwhile
        self.requests = 0
        store._own._leases._prefix = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._prefix, name)
        return found if name not in ("objects", "write", "remove", "read") else self._counted(found)

    def _counted(self, request: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.requests += 1
            if self.requests == self._before + 1:
                self._meanwhile()
            return request(*arguments)

        return counted


@pytest.mark.parametrize("url", ["file"], indirect=True)
@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "has ended"])
@pytest.mark.parametrize("step", ["take", "renew"])
def test_two_never_hold_a_lease_after_a_pause_at_any_point(
    step: str, ends: bool, new_machine: NewMachine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each request that one makes, the other takes the place just before it (and gives it up again, or not)."""
    slept = 0.0
    monkeypatch.setattr(tuner.run_dir.lease, "_now", lambda: time.monotonic() + slept)
    folder = Path(url.removeprefix("file://")) / "leases"
    folder.mkdir(parents=True)
    paused_at = list[int]()
    for before in itertools.count():
        first, second = new_machine(), new_machine()

        def meanwhile(second: MirroredRunStore = second, before: int = before) -> None:
            nonlocal slept
            slept += 100
            for lease in folder.iterdir():
                os.utime(lease, ns=(0, lease.stat().st_mtime_ns - 100 * 10**9))
            second._own.take()
            paused_at.append(before)
            if ends:
                second._own._end()

        if step == "renew":
            first._own.take()
        storage = Paused(first, before, meanwhile)
        with suppress(RequestError):
            getattr(first._own, step)()
        if storage.requests <= before:
            meanwhile()  # after all of it
        holders = [store for store in (first, second) if _may_write(store)]
        assert len(holders) <= 1, f"before request {before}"
        if step == "renew":
            assert holders == ([] if ends else [second]), f"before request {before}"
        assert paused_at[-1] == before
        for store in (first, second):
            store._own._end()
        for lease in folder.iterdir():
            lease.unlink()
        if storage.requests <= before:
            break
    assert len(paused_at) > 3


def _may_write(store: MirroredRunStore) -> bool:
    try:
        store._own.check()
    except SearchStopped:
        return False
    return store.lease is not None


def test_a_clock_that_is_set_back_does_not_spare_the_question(
    new_machine: NewMachine, soon_stale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_machine(), new_machine()
    first._own.take()
    right, clocks = time.clock_gettime, {time.CLOCK_REALTIME: 3600}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: right(clock) - clocks.get(clock, 0))
    monkeypatch.setattr(time, "time", lambda: time.clock_gettime(time.CLOCK_REALTIME))
    time.sleep(soon_stale)
    with second.held():
        with pytest.raises(SearchStopped):
            first._own.check()
        second.require_held()


def test_the_thread_that_renews_outlives_any_error(new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.run_dir.lease, "_RENEW_SECONDS", 0.05)
    store, renewed = new_machine(), list[int]()
    renew = store._own.renew

    def sometimes() -> None:
        renewed.append(1)
        if len(renewed) == 1:
            raise ValueError("what Arrow raises")
        renew()

    monkeypatch.setattr(store._own, "renew", sometimes)
    with store.held():
        _until(lambda: len(renewed) > 2)
        store.require_held()


def test_a_listing_is_replaced_only_where_it_is_what_was_read(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_machine(), new_machine()
    write(first, best__a="1")
    first.push()
    second.pull()
    write(second, best__b="2")
    replaced = first._garbage.replaced

    def while_another_pushes(part: str, keys: set[str]) -> None:
        second.push()
        replaced(part, keys)

    monkeypatch.setattr(first._garbage, "replaced", while_another_pushes)
    write(first, best__a="1, changed")
    first.push()
    assert stored(new_machine) == {"best/a": "1, changed", "best/b": "2"}


def test_generations_only_rise(new_machine: NewMachine, url: str) -> None:
    for generation in (1, 2, 3):
        store = new_machine()
        with store.held():
            assert store.lease is not None
            assert store.lease.startswith(f"{generation:06d}-")
    assert [path.rpartition(".")[2] for path in objects(url) if path.startswith("leases/")] == ["ended"]
