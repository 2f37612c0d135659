"""What goes to a cluster with ``--submit``, and what comes back."""

import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.job_submission
from ray.job_submission import JobDetails, JobStatus

import tuner
import tuner.cluster.submit
from tuner.cluster.submit import entrypoint, runtime_environment, submit
from tuner.errors import RequestError
from tuner.request.command_line import parse

ADDRESS = "http://127.0.0.1:8265"


class Cluster:
    """Stands for Ray's JobSubmissionClient: each element of `connections` is the log, or ends in an error."""

    def __init__(self, status: str, exit_code: int | None, connections: list[list[str | Exception]]) -> None:
        self.details = JobDetails(
            type="SUBMISSION", entrypoint="", status=JobStatus(status), driver_exit_code=exit_code, message="no driver"
        )
        self.connections = iter(connections)
        self.job: dict[str, Any] = {}

    def submit_job(self, **job: Any) -> None:
        self.job = {**job, "files": sorted(path.name for path in Path(job["runtime_env"]["working_dir"]).iterdir())}

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in next(self.connections):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_info(self, _: str) -> JobDetails:
        return self.details


def connect(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda _: cluster)
    monkeypatch.setattr("tuner.cluster.submit.time.sleep", lambda _: None)


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_exit_code_is_the_search_s(
    monkeypatch: pytest.MonkeyPatch, status: str, exit_code: int | None, expected: int
) -> None:
    connect(monkeypatch, Cluster(status, exit_code, [["log\n"]]))
    assert submit(ADDRESS, ["--run_dir", "s3://bucket/run"]) == expected


def test_a_lost_connection_is_taken_up_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster("SUCCEEDED", 0, [["trial 0\ntri", RuntimeError("gone")], ["trial 0\n", "trial 1\n", "done\n"]])
    connect(monkeypatch, cluster)
    assert submit(ADDRESS, ["--run_dir", "s3://bucket/run"]) == 0
    assert capsys.readouterr().out.endswith("\ntrial 0\ntrial 1\ndone\n")


def test_a_connection_that_stays_lost_says_how_to_follow_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster("RUNNING", None, [[OSError("no route")]])
    connect(monkeypatch, cluster)
    monkeypatch.setattr(tuner.cluster.submit, "_RECONNECT_SECONDS", -1)
    assert submit(ADDRESS, ["--run_dir", "s3://bucket/run"]) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert "the search goes on" in last
    assert f"ray job logs --address {ADDRESS} --follow {cluster.job['submission_id']}" in last


def test_ctrl_c_stops_following_and_not_the_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster("RUNNING", None, [])
    monkeypatch.setattr(tuner.cluster.submit, "_follow", _interrupted)
    connect(monkeypatch, cluster)
    assert submit(ADDRESS, ["--run_dir", "s3://bucket/run"]) == 130
    assert "the search goes on" in capsys.readouterr().out


def _interrupted(*_: object) -> int:
    raise KeyboardInterrupt


def test_the_driver_stays_on_the_head_and_only_settings_are_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ds_stage0.json", "dataset.jsonl", ".env", "space.yaml"):
        Path(name).write_text("{}")
    Path(".git").mkdir()
    cluster = Cluster("SUCCEEDED", 0, [[]])
    connect(monkeypatch, cluster)
    data, settings = "--train_data ./dataset.jsonl", "--deepspeed ds_stage0.json --search_space=space.yaml"
    assert submit(ADDRESS, f"--submit {ADDRESS} --run_dir s3://b/r {data} {settings}".split()) == 0

    assert cluster.job["entrypoint_resources"] == {"node:__internal_head__": 0.001}
    assert cluster.job["files"] == ["0-ds_stage0.json", "1-space.yaml"]
    assert shlex.split(cluster.job["entrypoint"]) == [
        *("python", "-m", "tuner.search", "--address", "auto", "--submit", "none", "--run_dir", "s3://b/r"),
        *("--train_data", str(tmp_path / "dataset.jsonl"), "--deepspeed", "0-ds_stage0.json"),
        "--search_space=1-space.yaml",
    ]


def test_what_is_no_path_is_sent_as_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Folders of such names lie about."""
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "random", "news"):
        Path(name).mkdir()
    asked = ["--report_to", "wandb", "--sampler=random", "--guard", "NFCorpus", "news", "--num_trials", "4"]
    sent = shlex.split(entrypoint(asked, tmp_path))[-len(asked) :]
    assert sent == [*asked[:5], str(tmp_path / "news"), *asked[6:]]


def test_searches_that_are_learned_from_are_found_from_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        Path("runs", name).mkdir(parents=True)
    sent = shlex.split(entrypoint(["--warm_start", "runs/first", "runs/second", "--seed=7"], tmp_path))
    assert sent[-4:] == ["--warm_start", str(tmp_path / "runs/first"), str(tmp_path / "runs/second"), "--seed=7"]


def test_a_search_space_function_is_sent_as_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spaces").mkdir()
    Path("spaces/mine.py").write_text("def space(trial, context): ...")
    staged = tmp_path / "staged"
    staged.mkdir()
    assert shlex.split(entrypoint(["--search_space", "spaces.mine:space"], staged))[-1] == "spaces.mine:space"
    assert (staged / "spaces/mine.py").exists()


def test_the_runtime_environment_has_this_program_and_no_variables(tmp_path: Path) -> None:
    environment = runtime_environment(tmp_path)
    assert [Path(folder).name for folder in environment["py_modules"]] == ["tuner", "search_spaces", "trainables"]
    assert environment["working_dir"] == str(tmp_path)
    assert "env_vars" not in environment


@pytest.mark.parametrize("argv", [[], ["--run_dir", "runs/first"], ["--resume=runs/first"]])
def test_a_run_directory_that_would_be_lost_is_refused(argv: list[str]) -> None:
    with pytest.raises(RequestError, match=r"needs a --run_dir .* that outlives the job"):
        submit(ADDRESS, argv)


def test_the_run_directory_may_stand_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text("num_trials: 3")
    (tmp_path / "kept.yaml").write_text("run_dir: s3://bucket/run")
    with pytest.raises(RequestError, match=r"needs a --run_dir .* but got none"):
        submit(ADDRESS, ["--config", str(tmp_path / "lost.yaml")])
    with pytest.raises(RequestError, match="No Ray cluster answers"):
        submit("http://127.0.0.1:9", ["--config", str(tmp_path / "kept.yaml")])


def test_a_job_does_not_submit_itself_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that says where to submit goes along."""
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(f"submit: {ADDRESS}\nrun_dir: s3://bucket/run\n")
    assert parse(["--config", "search.yaml"]).submit == ADDRESS
    staged = tmp_path / "staged"
    staged.mkdir()
    asked = shlex.split(entrypoint(["--config", "search.yaml"], staged))[3:]
    monkeypatch.chdir(staged)
    in_job = parse(asked)
    assert (in_job.submit, in_job.address, in_job.run_dir) == (None, "auto", "s3://bucket/run")


def test_python_does_not_submit_and_says_so() -> None:
    with pytest.raises(RequestError, match=rf"submit: from Python .* python -m tuner.search --submit {ADDRESS}"):
        tuner.run(tuner.SearchConfig(submit=ADDRESS))


@pytest.mark.parametrize("flags", [["--token", "hf_secret"], ["--hub_token=hf_secret"], ["--hub-token", "hf_secret"]])
def test_a_token_is_refused_and_not_repeated(flags: list[str]) -> None:
    with pytest.raises(RequestError, match="HF_TOKEN") as refused:
        submit(ADDRESS, ["--run-dir", "s3://b/r", *flags])
    assert "hf_secret" not in str(refused.value)


def test_no_cluster_is_one_clear_line() -> None:
    with pytest.raises(
        RequestError, match=r"No Ray cluster answers at http://127.0.0.1:9: .*ray dashboard cluster.yaml"
    ):
        submit("http://127.0.0.1:9", ["--run_dir", "s3://b/r"])


def test_a_missing_token_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", _unauthorized)
    with pytest.raises(RequestError, match="asks for a token; set RAY_AUTH_MODE=token"):
        submit(ADDRESS, ["--run_dir", "s3://b/r"])


def _unauthorized(address: str) -> None:
    raise ray.exceptions.AuthenticationError(f"{address}: 401")
