"""What no listing names any more goes: late, by the holder of the lease alone, and nothing that is not ours."""

import json

import pytest

import tuner.run_dir.garbage
from tests.support.storage_fixtures import NewMachine, contents, objects, write
from tuner.run_dir.prefix import Prefix
from tuner.run_dir.safe_names import UnsafeNameError
from tuner.run_dir.store import MirroredRunStore

PART = "trials/0001"


def _weights(url: str) -> list[str]:
    return [path for path in objects(url) if path.endswith("/weights")]


@pytest.fixture
def twice_pushed(new_machine: NewMachine) -> MirroredRunStore:
    store = new_machine()
    for content in ("rung 1", "rung 2, better"):
        write(store, trials__0001__checkpoint__weights=content)
        store.push()
    return store


def test_what_was_replaced_goes_late_and_by_the_holder(
    twice_pushed: MirroredRunStore, new_machine: NewMachine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(_weights(url)) == 2
    driver = new_machine()
    monkeypatch.setattr(tuner.run_dir.garbage, "_KEPT_SECONDS", -2.0)
    driver._garbage.collect()  # it does not hold the lease
    twice_pushed.tidy()
    assert len(_weights(url)) == 2
    monkeypatch.undo()
    with driver.held():
        driver._garbage.collect()  # it is too early
        assert len(_weights(url)) == 2
        monkeypatch.setattr(tuner.run_dir.garbage, "_KEPT_SECONDS", -2.0)
        driver._garbage.collect()
    assert len(_weights(url)) == 1
    assert not [path for path in objects(url) if path.startswith("replaced/")]
    driver.pull()
    assert contents(driver) == {f"{PART}/checkpoint/weights": "rung 2, better"}


def test_a_search_collects_while_it_runs(
    twice_pushed: MirroredRunStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.run_dir.garbage, "_COLLECT_SECONDS", 0.05)
    monkeypatch.setattr(tuner.run_dir.garbage, "_KEPT_SECONDS", -2.0)
    import time

    with twice_pushed.held():
        for _ in range(100):
            if len(_weights(url)) == 1:
                break
            time.sleep(0.05)
    assert len(_weights(url)) == 1


def test_pushes_that_were_killed_leave_nothing_for_longer_than_a_day(
    new_machine: NewMachine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_machine()
    write(store, trials__0001__weights="1")
    store.push()
    write(store, trials__0001__weights="1, changed")
    with monkeypatch.context() as killed:
        killed.setattr(Prefix, "write_listing", _kill)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                store.push()
    store.push()
    theirs = "data/notes.txt"
    store._prefix.write(theirs, b"of the user's own, below the same prefix")
    with store.held():
        store.tidy()
        assert len(_weights(url)) == 4
        store._garbage.sweep()
        assert len(_weights(url)) == 4  # a push may still be on its way
        monkeypatch.setattr(tuner.run_dir.garbage, "_ORPHAN_SECONDS", -2.0)
        store._garbage.sweep()
    assert len(_weights(url)) == 1
    assert theirs in objects(url)
    other = new_machine()
    other.pull()
    assert contents(other) == {f"{PART}/weights": "1, changed"}


def _kill(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("key", ["../other-run.txt", "listings/best.json", "leases/x", "best/../../x", "/etc/passwd"])
def test_a_record_removes_nothing_beyond_its_part(key: str, new_machine: NewMachine, url: str) -> None:
    store = new_machine()
    write(store, best__model="weights")
    store.push()
    store._prefix.write("replaced/best/20261126T000000-0000.json", json.dumps([key]).encode())
    before = set(objects(url))
    with store.held():
        with pytest.raises(UnsafeNameError):
            store.tidy()
        assert before <= set(objects(url))
