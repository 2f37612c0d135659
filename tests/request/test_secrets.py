"""A token and a password go where they are needed, and are written nowhere."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake import fake_train, open_study
from tests.support.m3_fixtures import make_model, make_rows
from tuner.cluster.executor import run_in_process
from tuner.cluster.staging import on_any_machine
from tuner.cluster.submit import entrypoint, refuse_shown_secrets, runtime_environment, submit
from tuner.errors import RequestError
from tuner.planning.plan import make_plan
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig
from tuner.request.storage_url import redacted
from tuner.run_dir.object_storage import url_problem
from tuner.run_dir.store import RunStore, open_run_dir
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.search.run import main

TOKEN, PASSWORD = "hf_0123456789", "correct-horse"
STORAGE = f"postgresql://tuner:{PASSWORD}@db.example.com/studies"


@pytest.mark.parametrize(
    "secret_flags",
    [
        ["--token", TOKEN, "--hub_token", TOKEN, "--storage", STORAGE],
        [f"--token={TOKEN}", f"--hub_token={TOKEN}", f"--storage={STORAGE}"],
        ["--hub-token", TOKEN, f"--hub-token={TOKEN}", "--seed", "1"],
    ],
    ids=["two words", "one word", "dashes"],
)
def test_nothing_that_a_search_writes_or_sends_holds_them(secret_flags: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    arguments = {"model_name_or_path": str(model), "train_data": [str(rows)], "token": TOKEN}
    config = SearchConfig(arguments=arguments, num_trials=3, finalists=0, storage=STORAGE)
    plan = make_plan(config, run_dir, lambda _: None)
    write_config(plan.config, plan.run_dir, secret_flags)
    study = open_study(config.replace(storage=None), run_dir)
    held: dict[str, Any] = {"run_dir": run_dir, "arguments": plan.arguments, "eval_data": plan.dataset.eval_data}
    agenda = Agenda(study, TrialConfigs(search=config, **held))
    run_in_process(agenda, fake_train)

    written = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert {"config.yaml", "study.db", "config.json", "manifest.json"} <= {path.name for path in written}
    sent = pickle.dumps(
        on_any_machine(plan.arguments, plan.config.model_name_or_path, RunStore(str(run_dir), run_dir), fake_train)
    )
    for secret in (TOKEN.encode(), PASSWORD.encode()):
        assert [path for path, content in written.items() if secret in content] == []
        assert secret not in sent


def test_a_job_carries_no_environment_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    environment = runtime_environment(tmp_path)
    assert set(environment) == {"working_dir", "py_modules", "excludes"}
    assert TOKEN not in entrypoint(["--run_dir", "s3://bucket/run"], tmp_path)
    with pytest.raises(RequestError, match="would be shown by the cluster's dashboard"):
        submit("http://127.0.0.1:1", ["--run_dir", "s3://bucket/run", "--token", TOKEN])
    with pytest.raises(RequestError, match=r"tuner:[*]{3}@db/x has a password"):
        submit("http://127.0.0.1:1", ["--run_dir", "s3://b/r", f"--storage=postgresql://tuner:{PASSWORD}@db/x"])


@pytest.mark.parametrize(
    "given", [["--token", TOKEN], [f"--token={TOKEN}"], ["--hub_token", TOKEN], [f"--hub-token={TOKEN}"]]
)
def test_no_spelling_of_a_token_is_sent(given: list[str]) -> None:
    with pytest.raises(RequestError, match="would be shown by the cluster's dashboard; set HF_TOKEN") as refused:
        submit("http://127.0.0.1:1", ["--run_dir", "s3://bucket/run", *given])
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("line", [f"token: {TOKEN}", f"storage: postgresql://tuner:{PASSWORD}@db/x"])
def test_no_file_with_a_secret_is_sent(tmp_path: Path, line: str) -> None:
    (tmp_path / "search.yaml").write_text(f"run_dir: s3://bucket/run\n{line}\n")
    with pytest.raises(RequestError, match=r"which the cluster.s dashboard would show|would be shown") as refused:
        submit("http://127.0.0.1:1", ["--config", str(tmp_path / "search.yaml")])
    assert TOKEN not in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("named_by", ["flag", "environment"])
def test_a_cluster_is_not_shown_a_secret_by_the_command_line(
    named_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray writes the driver's command line into its table of jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    if named_by == "flag":
        monkeypatch.delenv("RAY_ADDRESS")
    flags = ["--address", "10.0.0.1:6379"] if named_by == "flag" else []
    assert main([*flags, "--train_data", "x.jsonl", f"--token={TOKEN}", "--storage", STORAGE, "--run_dir", "r"]) == 2
    said = capsys.readouterr().err
    assert "--token would be shown by the cluster's dashboard" in said
    assert "has a password, which the cluster's dashboard would show" in said
    assert TOKEN not in said
    assert PASSWORD not in said
    assert list(tmp_path.iterdir()) == []


def test_what_no_command_line_holds_is_no_secret_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SearchConfig(address="10.0.0.1:6379", arguments={"token": TOKEN}, storage=STORAGE)
    refuse_shown_secrets(config, ["--config", "search.yaml"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refuse_shown_secrets(config.replace(address=None), ["--token", TOKEN])  # a cluster of the search's own


def test_code_from_a_model_is_not_run_unless_asked_for() -> None:
    from tuner.request.arguments import upstream_arguments

    assert upstream_arguments()["trust_remote_code"].default is False


AZURE = "abfss://c@account.dfs.core.windows.net/run"
OF_STORAGE = [
    f"{AZURE}?client_secret={PASSWORD}&tenant_id=t&client_id=i",
    f"{AZURE}?sv=2022&sig={PASSWORD}&se=2030",
    f"{AZURE}?SIG={PASSWORD}",
    f"{AZURE}?{PASSWORD}",
    f"s3://bucket/run?access_key=AKIA&secret_key={PASSWORD}",
    f"gs://bucket/run?access_token={PASSWORD}",
    f"s3://bucket/run?endpoint_override=http://u:{PASSWORD}@host",
    f"s3://AKIA:{PASSWORD}@bucket/run",
    f"s3://AKIA:a/{PASSWORD}@bucket/run",
    f"s3://AKIA:{PASSWORD}/b",
]


@pytest.mark.parametrize("url", OF_STORAGE)
def test_a_storage_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RequestError, match=r"a secret") as refused:
        open_run_dir(url)
    assert PASSWORD not in str(refused.value)
    for flag in ("--run_dir", "--train_data", "--eval_data", "--guard", "--model_name_or_path", "--output_dir"):
        with pytest.raises(RequestError, match=f"{flag} .*a secret") as refused:
            parse([flag, url])
        assert PASSWORD not in str(refused.value)
    with pytest.raises(RequestError, match=r"--run_dir .*a secret") as refused:
        submit("http://127.0.0.1:1", ["--run_dir", url])
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run",
        "s3://bucket/a:b@c",
        "s3://bucket/run?region=eu-west-1&scheme=http&endpoint_override=http://host:9000",
        "s3://bucket/run?endpoint_override=http%3A%2F%2F127.0.0.1%3A5599&scheme=http",
        AZURE,
        "gs://bucket/run",
        "file:///mnt/a:b@c/run",
    ],
)
def test_urls_that_say_where_and_not_who_are_taken(url: str) -> None:
    assert url_problem(url) is None


@pytest.mark.parametrize("name", ["password", "PASSWORD", "sslpassword", "passwd", "Client_Secret", "auth_token"])
def test_a_password_among_a_storage_s_options_is_hidden(name: str) -> None:
    assert redacted(f"postgresql://h/db?user=u&{name}={PASSWORD}&x=1") == f"postgresql://h/db?user=u&{name}=***&x=1"
