"""Nothing of the user's is touched: a run directory is the program's own, or empty."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

import tuner
from tests.support.m3_fixtures import make_eval, make_model, make_rows
from trainables.files import new_folder
from tuner.errors import RequestError
from tuner.planning.plan import make_plan
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config_file import keep
from tuner.run_dir.ownership import MARK, held, is_ours, mark
from tuner.run_dir.store import open_run_dir
from tuner.schedule.disk import TrialFolders
from tuner.search.place import make_room, room
from tuner.search.run import main
from tuner.study.storage import open_storage


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, and what each file and link holds."""
    return {path.relative_to(folder).as_posix(): _content(path) for path in folder.rglob("*")}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def errors_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and the BEIR folder `eval`."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "model"), make_rows(folder / "rows.jsonl", rows=120)
    make_eval(folder / "eval", queries=20, passages=40)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project, which the shell stands in."""
    folder = tmp_path / "project"
    for name in ("data/train", "data/eval", "data/raw", "settings", "best", "trials/2023-A"):
        (folder / name).mkdir(parents=True)
    make_rows(folder / "data" / "train" / "mine.jsonl", rows=120)
    for name in (
        "data/train/NOTES.md", "data/eval/by-hand.tsv", "config.yaml", "data/raw/precious.parquet",
        "settings/prod.toml", "best/model.safetensors", "trials/2023-A/patients.csv", "result.json", "report.html",
    ):  # fmt: skip
        (folder / name).write_text("mine: 1\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("named", ["--run_dir", "--output_dir"])
@pytest.mark.parametrize(
    "flags", [[], ["--dry_run"], ["--overwrite_output_dir"], ["--replace"], ["--dry_run", "--overwrite_output_dir"]]
)
def test_a_project_is_no_run_directory(
    flags: list[str], named: str, project: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training data were deleted and its config.yaml overwritten, in a dry run too, without a word."""
    before = contents(project)
    request = ["--model_name_or_path", str(inputs / "model"), "--train_data", "data/train"]
    assert main([*request, named, ".", *flags]) == 2
    (error,) = errors_of(capsys)
    assert error.startswith(f"error: {named} {project}: must be new, empty or the run directory of a search, but it")
    assert "(best, config.yaml, data, report.html, ...); name another --run_dir" in error
    assert contents(project) == before


def test_python_is_refused_a_project_too(project: Path) -> None:
    before = contents(project)
    arguments = {"train_data": ["data/train"], "output_dir": ".", "overwrite_output_dir": True}
    with pytest.raises(RequestError, match=r"--output_dir .*: must be new, empty or the run directory of a search"):
        tuner.run(tuner.SearchConfig(arguments=arguments))
    assert contents(project) == before


def test_a_project_is_not_resumed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "config.yaml").write_text("train_data: data/train\n")
    before = contents(project)
    assert main(["--resume", "."]) == 2
    assert f"--resume {project}: must be new, empty or the run directory of a search" in errors_of(capsys)[0]
    assert contents(project) == before


@pytest.mark.parametrize(
    ("flags", "there"),
    [
        pytest.param(["--dry_run"], False, marks=pytest.mark.integration),
        pytest.param(["--dry_run"], True, marks=pytest.mark.slow),
        (["--metric", "sparse.ndcg_at_10"], False),
        (["--metric", "sparse.ndcg_at_10"], True),
    ],
    ids=["dry run", "dry run, folder there", "refused", "refused, folder there"],
)
def test_nothing_is_left_where_nothing_was(
    flags: list[str], there: bool, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "runs" / "new").mkdir(parents=True)
    request = ["--model_name_or_path", str(inputs / "model"), "--train_data", str(inputs / "rows.jsonl")]
    assert main([*request, "--run_dir", "runs/new", *flags]) == (0 if "--dry_run" in flags else 2)
    assert set(contents(tmp_path)) == ({"runs", "runs/new"} if there else set())


def test_a_plan_from_python_leaves_nothing(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuner.planning.estimate.describe", lambda _: [])
    arguments = {"model_name_or_path": str(inputs / "model"), "train_data": [str(inputs / "rows.jsonl")]}
    tuner.run(tuner.SearchConfig(arguments=arguments, dry_run=True))
    assert contents(tmp_path) == {}


@pytest.mark.integration
def test_a_plan_of_the_example_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuner.planning.estimate.describe", lambda _: [])
    assert main(["--dry_run"]) == 0
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("place", ["/", "~", "~/.."])
def test_a_home_is_no_run_directory(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Be it empty."""
    (tmp_path / "above" / "home").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "above" / "home"))
    assert main(["--run_dir", str(Path(place).expanduser())]) == 2
    assert "a search needs a directory of its own, and this one is /, a home or above one" in errors_of(capsys)[0]
    assert set(contents(tmp_path)) == {"above", "above/home"}


def test_a_file_is_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["--run_dir", str(tmp_path / "file")]) == 2
    assert "must be a directory, but is a file" in errors_of(capsys)[0]


@pytest.mark.parametrize(
    "name", ["data", "trials", "best", "config.yaml", "data/train", "trials/0001", "trials/0001/x"]
)
def test_links_out_of_the_run_directory_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, other = tmp_path / "run", tmp_path / "other"
    (run_dir / name).parent.mkdir(parents=True)
    other.mkdir()
    (other / "precious").write_text("mine")
    (run_dir / name).symlink_to(other)
    mark(run_dir)
    before = contents(tmp_path)
    assert main(["--run_dir", str(run_dir), "--overwrite_output_dir"]) == 2
    assert f"a search writes only inside of its run directory, but {name} leads to {other}" in errors_of(capsys)[0]
    assert contents(tmp_path) == before


def test_a_run_directory_may_be_a_link_itself(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As to a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    monkeypatch.setattr("tuner.planning.estimate.describe", lambda _: [])
    request = ["--model_name_or_path", str(inputs / "model"), "--train_data", str(inputs / "rows.jsonl")]
    assert main([*request, "--run_dir", str(tmp_path / "run"), "--dry_run"]) == 0
    assert set(contents(tmp_path)) == {"disk", "run"}


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        ("--train_data", "data/train/000-rows.jsonl"),
        ("--eval_data", "data/eval"),
        ("--guard", "data/guards/own"),
        ("--config", "config.yaml"),
        ("--model_name_or_path", "best"),
        ("--model_name_or_path", "trials/0001/checkpoint"),
        ("--search_space", "settings/space.yaml"),
    ],
)
@pytest.mark.parametrize("replacing", ["--overwrite_output_dir", "--replace"])
def test_inputs_where_the_search_writes_are_refused(
    flag: str, place: str, replacing: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / place).parent.mkdir(parents=True)
    if Path(place).suffix:
        (run_dir / place).write_text("" if place == "config.yaml" else "{}")
    else:
        (run_dir / place).mkdir()
    mark(run_dir)
    before = contents(run_dir)
    request = [] if flag == "--train_data" else ["--train_data", str(inputs / "rows.jsonl")]
    assert main([*request, flag, str(run_dir / place), "--run_dir", str(run_dir), replacing]) == 2
    (error,) = errors_of(capsys)
    assert error.startswith(f"error: {flag} {run_dir / place}: an input must not lie where the search writes")
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "result.json",
        "report.html",
        "live.html",
        "status.json",
        "study.db",
        "best/x",
        "data/manifest.json",
    ],
)
def test_what_no_search_wrote_is_not_written_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a directory that bears the mark, too."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name == "study.db":
        with closing(sqlite3.connect(tmp_path / name)) as database:
            database.execute("CREATE TABLE mine (number INTEGER)")
    else:
        (tmp_path / name).write_text("mine: 1")
    before = (tmp_path / name).read_bytes()
    mark(tmp_path)
    assert main(["--run_dir", str(tmp_path), "--replace"]) == 2
    (error,) = errors_of(capsys)
    assert f"{tmp_path / name.replace('/x', '')} stands where the search writes, and no search wrote it" in error
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.integration
def test_a_study_that_is_no_database_is_told_as_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.db").write_text("mine: 1")
    mark(tmp_path)
    assert main(["--run_dir", str(tmp_path), "--replace"]) == 2
    (error,) = errors_of(capsys)
    assert "no study can be read there" in error
    assert (tmp_path / "study.db").read_text() == "mine: 1"


def _as_today(run_dir: Path, *others: str) -> None:
    """What versions without a mark have left."""
    run_dir.mkdir()
    asked = {**parse(["--train_data", "rows.jsonl"]).to_dict(), "command": "python -m tuner.search"}
    del asked["replace_search"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(asked))
    if "study" in others:
        optuna.create_study(storage=f"sqlite:///{run_dir}/study.db")
    if "manifest" in others:
        (run_dir / "data").mkdir()
        manifest = {"hash": "0", "rows": 1, "train": [], "eval": {"files": {}}}
        (run_dir / "data" / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("others", [["study"], ["manifest"], []])
def test_run_directories_of_before_the_mark_are_known(others: list[str], tmp_path: Path) -> None:
    """By config.yaml with the study or the manifest; config.yaml alone may be a copy in somebody's project."""
    _as_today(tmp_path / "run", *others)
    assert is_ours(tmp_path / "run") == bool(others)
    if others:
        with held(tmp_path / "run", "--resume"):
            assert (tmp_path / "run" / MARK).is_file()


def test_the_lock_follows_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file at its end was emptied."""
    mark(tmp_path)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    assert main(["--run_dir", str(tmp_path)]) == 2
    assert "cannot be written" in errors_of(capsys)[0]
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_called_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As NFS and Lustre may be mounted; it was told as another search that is running there."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(["--run_dir", str(tmp_path / "run")]) == 2
    (error,) = errors_of(capsys)
    assert f"its file system cannot lock files ({os.strerror(number)})" in error


NAMES = (
    "config.yaml", "study.db", "report.html", "result.json", "live.html", "status.json", "notes.txt", ".lock",
    ".dry-run/x", ".replaced/config.yaml", ".replaced-begun/study.db", ".replaced-forgotten/x", "settings/a.yaml",
    ".ray/x", "settings/0123456789ab.yaml",
    "data/manifest.json", "data/.new/train/000-rows.jsonl", "data/train/000-rows.jsonl", "data/train/mine.jsonl",
    "data/eval/corpus.jsonl", "data/eval/qrels/dev.tsv", "data/guards/own/corpus.jsonl", "data/example/dataset.jsonl",
    "data/raw/x.parquet", "data/tokens/x.npy", "trials/2023-A/x.csv", "trials/0001/metrics.jsonl",
    "trials/0001/checkpoint/model.safetensors", "trials/0001/resume/x", "best/model.safetensors", "best/README.md",
    "data", "trials", "best", "settings", "mlflow.db", "tensorboard/x", "replaced-20260101-000000/config.yaml",
)  # fmt: skip
"""Names that a search writes, and others beside them."""
TEXTS = st.sampled_from(["mine", "{}", "[]", "mine: 1\n", "", "<html>", "SQLite format 3\0", "\0\xff"])
FILES = st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1, max_size=8)
REPLACING = st.sampled_from(["--overwrite_output_dir", "--replace"])
FLAGS = st.lists(st.sampled_from(["--dry_run", "--overwrite_output_dir", "--replace"]), unique=True)


def _filled(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Writes the files into a new folder, those that can be; returns what is there then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        parents = [parent for parent in path.parents if parent.is_relative_to(folder)]
        if not path.exists() and not any(parent.is_file() for parent in parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="latin-1")
    return contents(folder)


def _somebodys_directory_stays(files: dict[str, str], flags: list[str], named: str, folder: Path) -> None:
    before = _filled(folder, files)
    assume(set(before) != {".lock"} or files[".lock"])
    assert main(["--train_data", "rows.jsonl", named, str(folder), *flags]) == 2
    assert contents(folder) == before


OTHERS = tuple(name for name in NAMES if not name.startswith(("trials/0001", ".", "data/tokens", "data/.new")))
"""Names that are not the program's by themselves in a directory that bears the mark."""
BESIDE = (
    "notes.txt", "settings/a.yaml", "data/train/mine.jsonl", "data/eval/by-hand.tsv", "data/guards/mine/corpus.jsonl",
    "data/guards/notes.txt", "data/raw/x.parquet", "trials/2023-A/x.csv", "trials/0002/notes.txt", "tensorboard/x",
    "trials/0002/checkpoint.zip", "replaced-20260101-000000/config.yaml", "data/example/dataset.jsonl", ".replaced-x",
)  # fmt: skip
"""Those of names that no search writes to."""
IN_A_RUN = st.dictionaries(st.sampled_from(BESIDE), TEXTS, min_size=1, max_size=8) | st.dictionaries(
    st.sampled_from(OTHERS + BESIDE), TEXTS, min_size=1, max_size=4
)


def _what_is_not_ours_stays(files: dict[str, str], flags: list[str], folder: Path, inputs: Path) -> None:
    """Through all that a search of the directory does with files, twice, but for training.

    An empty study.db is a search's own: SQLite leaves one where a search is killed in its first moment.
    """
    before = _filled(folder, files)
    if files.get("study.db") == "":
        before.pop("study.db", None)
    mark(folder)
    request = ["--model_name_or_path", str(inputs / "model"), "--train_data", str(inputs / "rows.jsonl")]
    more = ["--eval_data", str(inputs / "eval"), "--guard", str(inputs / "eval"), "--run_dir", str(folder)]
    for _ in range(2):
        with suppress(RequestError):  # something stands in the way
            _search_but_for_training([*request, *more, *flags], folder)
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before


def _search_but_for_training(argv: list[str], folder: Path) -> None:
    config, store = parse(argv), open_run_dir(str(folder))
    with held(folder, "--run_dir"), room(config, store):
        plan = make_plan(config, folder, lambda _: None)
        write_config(keep(plan.config, folder), plan.run_dir, None)
        make_room(config, store, Console(quiet=True))
        optuna.create_study(storage=open_storage(None, folder), study_name="search", load_if_exists=True)
        for content in ("first", "second"):
            with new_folder(folder / "trials" / "0002" / "checkpoint") as checkpoint:
                (checkpoint / "model.safetensors").write_text(content)
        TrialFolders(folder / "trials").keep(set(), set())


QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
LONG = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place") / "directory"


@QUICK
@given(files=FILES, flags=FLAGS, named=st.sampled_from(["--run_dir", "--output_dir"]))
def test_somebodys_directory_stays(files: dict[str, str], flags: list[str], named: str, place: Path) -> None:
    _somebodys_directory_stays(files, flags, named, place)


@pytest.mark.integration
@settings(QUICK, max_examples=8)
@given(files=IN_A_RUN, flag=REPLACING)
def test_what_is_not_ours_stays(files: dict[str, str], flag: str, place: Path, inputs: Path) -> None:
    _what_is_not_ours_stays(files, [flag], place, inputs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@LONG
@given(files=FILES, flags=FLAGS, named=st.sampled_from(["--run_dir", "--output_dir"]))
def test_somebodys_directory_stays_a_thousand_times(
    files: dict[str, str], flags: list[str], named: str, place: Path
) -> None:
    _somebodys_directory_stays(files, flags, named, place)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(LONG, max_examples=300)
@given(files=IN_A_RUN, flag=REPLACING)
def test_what_is_not_ours_stays_three_hundred_times(
    files: dict[str, str], flag: str, place: Path, inputs: Path
) -> None:
    _what_is_not_ours_stays(files, [flag], place, inputs)
