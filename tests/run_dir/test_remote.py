"""Run directories on object storage, against a local S3 server and against a mounted disk (file://)."""

import contextlib
import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

import tuner.run_dir.lease
from tests.support.storage_fixtures import NewMachine, contents, objects, write
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.object_storage import file_system
from tuner.run_dir.ownership import held, reading
from tuner.run_dir.prefix import Prefix
from tuner.run_dir.safe_names import part_of
from tuner.run_dir.store import MirroredRunStore, RunStore, open_run_dir, run_folder
from tuner.search.run import main


def _files(found: set[str]) -> set[str]:
    """Of all objects, those that are files of the run."""
    return {path for path in found if not path.startswith(("listings/", "leases/", "replaced/"))}


def test_a_path_is_worked_on_where_it_is(tmp_path: Path) -> None:
    store = open_run_dir(str(tmp_path / "run"))
    assert not store.pull()
    write(store, config_dot_yaml="seed: 1")
    store.push()
    assert store.local == tmp_path / "run"
    assert contents(store) == {"config.yaml": "seed: 1"}
    assert store.pull()
    assert not store.pull(["trials/0001"])


def test_a_run_survives_its_machine(new_machine: NewMachine) -> None:
    store = new_machine()
    assert not store.pull()
    write(store, config_dot_yaml="seed: 1", data__manifest_dot_json="{}", trials__0007__checkpoint__weights="7")
    store.push()
    before = contents(store)
    shutil.rmtree(store.local)

    other = new_machine()
    assert contents(other) == {}
    assert other.pull()
    assert contents(other) == before


def test_parts_are_pushed_and_pulled_on_their_own(new_machine: NewMachine) -> None:
    store = new_machine()
    write(store, config_dot_yaml="a", trials__0001__log_dot_txt="b", trials__0002__log_dot_txt="c")
    store.push(["trials/0001/log.txt", "config.yaml"])
    other = new_machine()
    other.pull(["config.yaml"])
    assert contents(other) == {"config.yaml": "a"}
    other.pull()
    assert contents(other) == {"config.yaml": "a", "trials/0001/log.txt": "b"}
    assert not other.pull(["trials/0002"])


def test_two_machines_write_different_trials(new_machine: NewMachine) -> None:
    first, second, driver = new_machine(), new_machine(), new_machine()
    write(first, trials__0001__log_dot_txt="one")
    write(second, trials__0002__log_dot_txt="two")
    first.push()
    second.push()
    driver.pull()
    assert contents(driver) == {"trials/0001/log.txt": "one", "trials/0002/log.txt": "two"}


def test_what_is_unfinished_is_not_pushed(new_machine: NewMachine, url: str) -> None:
    store = new_machine()
    names = (
        "config.yaml",
        ".checkpoint.tmp/weights",
        "trials/0001/.checkpoint.tmp/weights",
        "manifest.tmp",
        "study.db-journal",
    )
    for name in names:
        (store.local / name).parent.mkdir(parents=True, exist_ok=True)
        (store.local / name).write_text("x")
    store.push()
    assert [path for path in objects(url) if not path.startswith("listings/")] == [
        path for path in objects(url) if path.startswith("config.yaml/")
    ]


def test_a_push_that_is_cut_off_leaves_the_part_as_it_was(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_machine()
    write(store, trials__0001__checkpoint__weights="rung 1", trials__0001__checkpoint__tokenizer="v1")
    store.push()
    write(store, trials__0001__checkpoint__weights="rung 2, better", trials__0001__checkpoint__tokenizer="v2, longer")

    with monkeypatch.context() as patch:
        patch.setattr(Prefix, "write_listing", _no_network)
        with pytest.raises(ConnectionError):
            store.push()
    other = new_machine()
    other.pull()
    assert contents(other) == {"trials/0001/checkpoint/tokenizer": "v1", "trials/0001/checkpoint/weights": "rung 1"}

    store.push()
    other.pull()
    assert contents(other)["trials/0001/checkpoint/weights"] == "rung 2, better"


def _no_network(*_: object) -> None:
    raise ConnectionError("cut off")


def test_unchanged_files_are_sent_once_and_replaced_ones_are_removed(new_machine: NewMachine, url: str) -> None:
    store = new_machine()
    write(store, best__model="weights", best__config_dot_json="{}")
    store.push()
    first = set(objects(url))
    store.push()
    assert set(objects(url)) == first

    write(store, best__config_dot_json='{"lr": 1}')
    with store.held():
        store.push()
        store.tidy()
    second = set(objects(url))
    assert {path for path in first & second if path.endswith("model")}
    assert len(_files(second)) == len(_files(first)) == 2


def test_files_that_are_gone_here_go_in_storage(new_machine: NewMachine, url: str) -> None:
    store, other = new_machine(), new_machine()
    write(store, trials__0003__checkpoint__weights="w", trials__0003__log_dot_txt="l")
    store.push()
    other.pull()
    shutil.rmtree(store.local / "trials/0003/checkpoint")
    with store.held():
        store.push()
        store.tidy()
    assert not [path for path in objects(url) if path.endswith("weights")]
    other.pull()
    assert contents(other) == {"trials/0003/log.txt": "l"}


def test_a_machine_that_never_had_a_trial_cannot_remove_it(new_machine: NewMachine) -> None:
    store, other = new_machine(), new_machine()
    write(store, trials__0001__log_dot_txt="l")
    store.push()
    other.push(["trials/0001"])
    assert other.pull()
    assert contents(other) == {"trials/0001/log.txt": "l"}


def test_a_driver_takes_the_scores_and_leaves_the_weights(new_machine: NewMachine, url: str) -> None:
    worker, driver = new_machine(), new_machine()
    write(worker, trials__0001__dev_dot_json="{}", trials__0001__checkpoint__weights="w")
    worker.push()
    assert driver.pull(["trials/0001/dev.json"])
    assert contents(driver) == {"trials/0001/dev.json": "{}"}
    driver.push()  # what it never took is not missing
    assert [path for path in objects(url) if path.endswith("weights")]
    driver.pull(["trials/0001"])
    assert contents(driver) == contents(worker)


def test_weights_of_a_loser_are_removed_from_everywhere(new_machine: NewMachine, url: str) -> None:
    worker, driver = new_machine(), new_machine()
    write(worker, trials__0001__log_dot_txt="l", trials__0001__checkpoint__weights="w")
    worker.push()
    with driver.held():
        driver.remove(["trials/0001/checkpoint", "trials/0002/checkpoint"])
        driver.tidy()
    assert not [path for path in objects(url) if path.endswith("weights")]
    worker.pull()
    assert contents(worker) == {"trials/0001/log.txt": "l"}
    worker.remove(["trials/0001"])
    assert not new_machine().pull(["trials/0001"])


def test_the_live_page_lies_in_storage_under_its_own_name(new_machine: NewMachine, url: str) -> None:
    driver, reader = new_machine(), new_machine()
    for text in ("first", "second"):
        write(driver, live_dot_html=text, config_dot_yaml=text)
        Mirror(driver).finish()
        assert Prefix(url).read("live.html") == text.encode()
    assert [path for path in objects(url) if "live" in path] == ["live.html"]  # no part, no listing
    assert reader.pull()
    assert contents(reader) == {"config.yaml": "second"}


def test_a_browser_takes_the_live_page_for_one(new_machine: NewMachine, url: str) -> None:
    driver = new_machine()
    write(driver, live_dot_html="<p>", status_dot_json="{}")
    driver.publish()
    files, root = file_system(url)
    if files.type_name == "local":
        assert Path(root, "status.json").read_text() == "{}"
        return
    with files.open_input_stream(f"{root}/live.html") as stream:
        assert stream.metadata()["Content-Type"] == b"text/html; charset=utf-8"


def test_newer_local_files_are_kept_and_newer_stored_ones_fetched(new_machine: NewMachine) -> None:
    store, other = new_machine(), new_machine()
    write(store, study="1 trial")
    store.push()
    write(store, study="2 trials, not pushed yet")
    store.pull()
    assert contents(store) == {"study": "2 trials, not pushed yet"}

    other.pull()
    write(other, study="3 trials, on the new machine")
    other.push()
    store.pull()
    assert contents(store) == {"study": "3 trials, on the new machine"}


def test_reading_a_search_that_runs_here_leaves_its_files_as_they_are(new_machine: NewMachine) -> None:
    """What it writes is pushed later."""
    store = new_machine()
    write(store, study="1 trial", trials__0001__log_dot_txt="l")
    store.push()
    with held(store.local, "--run_dir", is_cache=True):
        shutil.rmtree(store.local / ".listings")  # as between a push and its record
        write(store, study="2 trials, not pushed yet")
        assert run_folder(store.url, ["study"]) == store.local
        assert contents(store)["study"] == "2 trials, not pushed yet"
    run_folder(store.url, ["study"])
    assert contents(store)["study"] == "1 trial"


def test_no_search_begins_where_files_are_being_fetched(new_machine: NewMachine) -> None:
    store = new_machine()
    with reading(store.local) as first, reading(store.local) as second:
        assert first
        assert second
        busy = r"another search is running there, or its files are just being fetched by another command; wait"
        with pytest.raises(RequestError, match=busy), held(store.local, "--run_dir", is_cache=True):
            pass
    beginning = pytest.raises(RequestError, match="a search is just beginning there")
    with held(store.local, "--run_dir", is_cache=True), beginning:
        run_folder(store.url)


def test_a_study_is_pushed_as_a_consistent_copy_while_it_is_written(new_machine: NewMachine) -> None:
    store = new_machine()
    with contextlib.closing(sqlite3.connect(store.local / "study.db")) as writer:
        writer.execute("create table trials (number integer)")
        writer.execute("insert into trials values (0)")
        writer.commit()
        writer.execute("insert into trials values (1)")  # in a transaction that is still open
        store.push()
        writer.commit()
    other = new_machine()
    other.pull()
    assert _numbers(other) == [0]
    store.push()
    other.pull()
    assert _numbers(other) == [0, 1]


def _numbers(store: RunStore) -> list[int]:
    with contextlib.closing(sqlite3.connect(store.local / "study.db")) as study:
        assert study.execute("pragma integrity_check").fetchone() == ("ok",)
        return [number for (number,) in study.execute("select number from trials order by number")]


def test_a_file_that_is_not_what_was_pushed_is_refused(new_machine: NewMachine, url: str) -> None:
    store = new_machine()
    write(store, best__model="weights")
    store.push()
    files, root = file_system(url)
    (key,) = (path for path in objects(url) if path.endswith("/model"))
    with files.open_output_stream(f"{root}/{key}") as sink:
        sink.write(b"weight")
    other = new_machine()
    with pytest.raises(OSError, match=r"must have 7 bytes .* but has 6 .* delete listings/best\.json"):
        other.pull()
    assert contents(other) == {}


def test_the_listing_names_size_and_hash(new_machine: NewMachine, url: str) -> None:
    store = new_machine()
    write(store, best__model="abc")
    store.push()
    files, root = file_system(url)
    with files.open_input_stream(f"{root}/listings/best.json") as stream:
        (entry,) = json.loads(stream.read())
    assert (entry["path"], entry["size"]) == ("best/model", 3)
    assert entry["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert entry["key"] in objects(url)


def test_a_prefix_has_one_search(new_machine: NewMachine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.run_dir.lease, "_RENEW_SECONDS", 0.2)
    monkeypatch.setattr(tuner.run_dir.lease, "_STALE_SECONDS", 2.5)
    first, second = new_machine(), new_machine()
    with first.held():
        time.sleep(3.6)
        write(first, best__model="first")
        first.push()
        with (
            pytest.raises(
                RequestError, match=r"another search is running there, process \d+ on .*\d s ago; .* in \d+ s"
            ),
            second.held(),
        ):
            raise AssertionError("both hold it")
        first.push()
    assert not [path for path in objects(url) if path.startswith("leases/") and path.endswith(".json")]
    with second.held():
        second.pull()
    assert contents(second) == {"best/model": "first"}


def test_the_command_is_refused_where_another_machine_s_search_runs(
    new_machine: NewMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = new_machine()
    write(first, config_dot_yaml="num_trials: 3\narguments: {train_data: [a.jsonl]}")
    first.push()
    with first.held():
        new_machine()
        assert main(["--resume", first.url]) == 2
    assert f"another search is running there, process {os.getpid()} on " in capsys.readouterr().err


def test_a_search_that_died_is_taken_up_at_once_on_its_machine_and_soon_on_others(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_machine()
    killed = first.held()
    killed.__enter__()
    again = open_run_dir(first.url).held()
    again.__enter__()
    second = new_machine()
    monkeypatch.setattr(tuner.run_dir.lease, "_STALE_SECONDS", 1.5)
    with pytest.raises(RequestError, match="try again in"), second.held():
        pass
    time.sleep(2.6)  # S3 tells times to the second
    with second.held():
        pass


def test_a_search_that_lost_its_lease_writes_nothing_more(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.run_dir.lease, "_STALE_SECONDS", 1.0)
    first, second = new_machine(), new_machine()
    mirror = Mirror(first)
    with first.held():  # its machine sleeps, and does not renew
        write(first, best__model="first")
        first.push()
        time.sleep(2.1)
        with second.held():
            second.pull()
            write(second, best__model="second")
            second.push()
            write(first, best__model="first again")
            mirror.leave()
            with pytest.raises(SearchStopped, match="another search has taken this one's place"):
                mirror.study_changed()
    third = new_machine()
    third.pull()
    assert contents(third) == {"best/model": "second"}


def test_what_another_machine_names_in_the_meantime_is_not_deleted(
    new_machine: NewMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_machine(), new_machine()
    write(first, best__model="weights", best__log="1")
    first.push()
    second.pull()
    write(second, best__log="second's")
    write_listing = Prefix.write_listing

    def slowly(*what: object) -> None:
        write_listing(*what)  # type: ignore[arg-type]
        monkeypatch.setattr(Prefix, "write_listing", write_listing)
        second.push()

    monkeypatch.setattr(Prefix, "write_listing", slowly)
    (first.local / "best/model").unlink()
    first.push()
    third = new_machine()
    with third.held():
        third.tidy()
    third.pull()
    assert contents(third) == {"best/log": "second's", "best/model": "weights"}


def test_the_working_directory_is_the_same_for_every_process_of_a_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store, again = open_run_dir("file:///runs/first"), open_run_dir("file:///runs/first")
    assert isinstance(store, MirroredRunStore)
    assert store.local == again.local
    assert store.local.name.startswith("runs-first-")
    assert open_run_dir("file:///runs-first").local != store.local


def test_a_bucket_that_is_not_there_is_one_clear_line(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        RequestError, match=r"no-such-bucket/run.* cannot be read: .*check bucket, region and credentials"
    ):
        open_run_dir(f"s3://no-such-bucket/run?endpoint_override={s3}").pull()


def test_a_secret_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(RequestError, match=r"s3://\.\.\.@bucket/run has a secret") as refused:
        open_run_dir("s3://AKIA:hunter2@bucket/run")
    assert "hunter2" not in str(refused.value)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(RequestError, match=r"ftp://host/run cannot be used as storage.*it must be s3://, gs://"):
        open_run_dir("ftp://host/run")


@pytest.mark.parametrize(
    ("path", "part"),
    [("study.db", "study.db"), ("data/train/000-a.jsonl", "data"), ("trials/0007/checkpoint/model", "trials/0007")],
)
def test_parts(path: str, part: str) -> None:
    assert part_of(path) == part
