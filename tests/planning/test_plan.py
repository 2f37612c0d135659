import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution

import tuner
from tests.support.fake import open_study
from tests.support.m3_fixtures import make_model, make_rows
from tuner.errors import RequestError
from tuner.planning.plan import Plan, make_plan
from tuner.request.arguments import honoured
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig
from tuner.request.storage_url import redacted
from tuner.run_dir.names import CONFIG_FILE
from tuner.study.claim import check_claim, claim, facts


def _plan(folder: Path, *, space: str = "m3", workers: int | None = None, **arguments: object) -> Plan:
    data = {"train_data": [str(make_rows(folder / "rows.jsonl", rows=120))]}
    model = {"model_name_or_path": str(make_model(folder / "model"))}
    given = {**data, **model, **arguments}
    config = SearchConfig(arguments=given, search_space=space, workers_per_trial=workers)
    return make_plan(config, folder / "run", lambda _line: None)


@pytest.mark.parametrize(
    ("given", "slots", "have", "needed"),
    [
        (0.5, 2, 0, "--gpus_per_trial 0.5 x --concurrent_trials 2 needs 1 GPUs, but PyTorch sees 0 here"),
        (None, 8, 4, "--gpus_per_trial 1 x --concurrent_trials 8 needs 8 GPUs, but PyTorch sees 4 here"),
        (None, 4, 4, ""),
        (None, 8, 0, ""),
        (0, 8, 0, ""),
    ],
)
def test_gpus_that_are_not_there_are_told_with_what_else_is_wrong(
    given: float | None, slots: int, have: int, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: have)
    config = SearchConfig(arguments={"train_data": ["absent.jsonl"]}, gpus_per_trial=given, concurrent_trials=slots)
    with pytest.raises(RequestError) as refused:
        make_plan(config, tmp_path, lambda _line: None)
    assert "absent.jsonl: no such file" in str(refused.value)
    assert ("--gpus_per_trial" in str(refused.value)) == bool(needed)
    assert needed in str(refused.value)


@pytest.mark.parametrize(("workers", "batch"), [(None, 8), (2, 4)])
def test_budgets_are_counted_in_examples(tmp_path: Path, workers: int | None, batch: int) -> None:
    """72 training rows: 18 steps of 8 rows, or of 4 on each of two workers, are 2 epochs; 9 in warm-up are a half."""
    plan = _plan(tmp_path, workers=workers, max_steps=18, per_device_train_batch_size=batch, warmup_steps=9)
    assert plan.dataset.rows == 72
    assert plan.arguments["num_train_epochs"] == 2.0
    assert plan.arguments["warmup_ratio"] == 0.5
    assert not {"max_steps", "warmup_steps"} & set(plan.arguments)


def test_rows_that_are_left_out_of_each_file_are_not_counted(tmp_path: Path) -> None:
    """FlagEmbedding draws so many of a file; a budget of 4 steps of 10 rows is then 5 epochs of 8."""
    plan = _plan(tmp_path, max_example_num_per_dataset=8, max_steps=4, per_device_train_batch_size=10)
    assert (plan.context.rows, plan.context.start["num_train_epochs"]) == (8, 5.0)


def test_what_the_user_gave_is_where_the_search_starts(tmp_path: Path) -> None:
    start = _plan(tmp_path, learning_rate=3e-6, train_group_size=4).context.start
    assert (start["learning_rate"], start["train_group_size"], start["temperature"]) == (3e-6, 4, 0.02)


def test_the_users_own_value_of_whatever_the_space_varies_is_in_it(tmp_path: Path) -> None:
    """4 passages a query and 48 tokens of it are asked for; passages have 128 by default, in the model 64."""
    space = tmp_path / "space.yaml"
    space.write_text(
        "train_group_size: {choices: [8, 16]}\nquery_max_len: {choices: [32]}\npassage_max_len: {choices: [64]}"
    )
    start = _plan(tmp_path, space=str(space), train_group_size=4, query_max_len=48).context.start
    assert (start["train_group_size"], start["query_max_len"], start["passage_max_len"]) == (4, 48, 64)


def test_a_space_without_place_for_the_users_own_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("weight_decay: {low: 0.001, high: 0.1, log: true}")
    with pytest.raises(RequestError, match="log has no place for your own value 0"):
        _plan(tmp_path, space=str(tmp_path / "space.yaml"))


@pytest.mark.parametrize(("choices", "own"), [("'', 'query: '", ""), ("null, 'query: '", None)])
def test_trial_1_is_told_no_value_that_the_user_does_not_have(choices: str, own: str | None, tmp_path: Path) -> None:
    """FlagEmbedding puts no instruction before queries where none is given: its default is None."""
    name = "query_instruction_for_retrieval"
    (tmp_path / "space.yaml").write_text(f"{name}: {{choices: [{choices}]}}")
    given: dict[str, Any] = {} if own is None else {name: own}
    plan = _plan(tmp_path, space=str(tmp_path / "space.yaml"), **given)
    study = optuna.create_study()
    study.enqueue_trial(dict(plan.context.start))
    trial = study.ask()
    assert plan.space(trial, plan.context) == trial.params == {name: own}


def test_a_space_over_what_the_user_has_no_value_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("query_instruction_for_retrieval: {choices: ['', 'query: ']}")
    with pytest.raises(
        RequestError, match="have no value of query_instruction_for_retrieval; give --query_instruction"
    ):
        _plan(tmp_path, space=str(tmp_path / "space.yaml"))


def test_queries_are_not_trained_with_the_word_none_before_them(tmp_path: Path) -> None:
    plan = _plan(tmp_path, same_dataset_within_batch=True)
    assert plan.arguments["query_instruction_for_retrieval"] == ""
    assert any("begin with 'None'" in line for line in plan.warnings)


def test_missing_instructions_and_lengths_are_said_of_batches_of_one_source_too(tmp_path: Path) -> None:
    """There the query's instruction is made empty, which is none that the user gave."""
    model = make_model(tmp_path / "tiny-e5-small")
    for batches in (True, False):
        plan = _plan(tmp_path, model_name_or_path=str(model), same_dataset_within_batch=batches)
        assert any("by its name this is an e5 model" in line for line in plan.warnings)
        assert [note.partition(" have ")[0] for note in plan.notes] == ["queries"]


def test_tokens_go_nowhere(tmp_path: Path) -> None:
    assert "token" not in _plan(tmp_path, token="hf_secret").arguments


def test_flagembeddings_own_deepspeed_file_need_not_be_there(tmp_path: Path) -> None:
    plan = _plan(tmp_path, deepspeed="../examples/finetune/ds_stage0.json")
    assert Path(plan.arguments["deepspeed"]).is_file()
    assert any("stage-0 settings are used" in line for line in plan.warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deepspeed": "absent.json"}, "there is no such file"),
        ({"knowledge_distillation": True}, "needs pos_scores and neg_scores"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        _plan(tmp_path, **changes)


def test_distillation_is_searched_where_every_row_has_scores(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--search_space m3_kd: .*needs pos_scores and neg_scores .* --teacher"):
        _plan(tmp_path, space="m3_kd")
    rows = str(make_rows(tmp_path / "scored.jsonl", rows=120, scores=True))
    plan = _plan(tmp_path, space="m3_kd", train_data=[rows])
    trial = optuna.create_study().ask()
    assert "knowledge_distillation" in plan.space(trial, plan.context)
    assert trial.distributions["knowledge_distillation"] == CategoricalDistribution((False, True))


def _refusals(plan: Plan, **changes: object) -> list[str]:
    """What a search over `plan` refuses to go on with after `changes` of options and arguments."""
    options = {name: changes.pop(name) for name in list(changes) if hasattr(plan.config, name)}
    config = plan.config.replace(arguments={**plan.config.arguments, **changes}, **options)
    study = open_study(SearchConfig(), plan.run_dir)
    claim(study.search, facts(plan.config, plan.dataset))
    try:
        check_claim(facts(config, plan.dataset), plan.run_dir, None, None)
    except RequestError as error:
        return list(error.findings)
    return []


def test_a_search_does_not_go_on_with_what_makes_other_trials(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    changes = {"gpus_per_trial": 2.0, "rungs": (0.5, 1.0), "query_max_len": 64, "per_device_train_batch_size": 128}
    assert _refusals(plan, **changes) == [
        f"--resume: {line} now; start a new --run_dir"
        for line in (
            "rungs was [0.125, 0.25, 0.5, 1.0] when the search began and is [0.5, 1.0]",
            "workers was 1 when the search began and is 2",
            "per_device_train_batch_size was 8 when the search began and is 128",
            "query_max_len was the default when the search began and is 64",
        )
    ]


def test_a_search_goes_on_with_what_changes_no_trial(tmp_path: Path) -> None:
    """A query has 32 tokens by default; and one GPU a trial is one worker, as none named is."""
    plan = _plan(tmp_path)
    options = {"num_trials": 99, "time_budget": "8h", "concurrent_trials": 4, "gpus_per_trial": 1.0, "pruner": "none"}
    arguments = {"report_to": "mlflow", "logging_steps": 3, "save_steps": 9, "query_max_len": 32, "token": "hf_secret"}
    assert _refusals(plan, **options, **arguments) == []


def test_a_search_that_wrote_down_less_goes_on(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    known = facts(plan.config, plan.dataset)
    before = {name: known[name] for name in ("data_hash", "search_space", "metric", "model")}
    claim(open_study(SearchConfig(), plan.run_dir).search, before)
    check_claim(facts(plan.config.replace(gpus_per_trial=2.0), plan.dataset), plan.run_dir, None, None)


def test_a_deepspeed_file_is_known_by_its_content(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "c.json").write_text('{"zero_optimization": {"stage": 1}}')
    config = plan.config.replace(arguments={**plan.config.arguments, "deepspeed": str(tmp_path / "a.json")})
    asked = replace(plan, config=config)
    assert _refusals(asked, deepspeed=str(tmp_path / "b.json")) == []
    assert "deepspeed was a file of content" in _refusals(asked, deepspeed=str(tmp_path / "c.json"))[0]


def test_wrong_names_are_told_together(tmp_path: Path) -> None:
    config = SearchConfig(sampler="tpo", pruner="asha", search_space="m4", metric="sparse.ndcg_at_10")
    with pytest.raises(RequestError) as caught:
        make_plan(config, tmp_path, lambda _line: None)
    assert len(caught.value.findings) == 5
    named = config.replace(arguments={"train_data": [str(tmp_path / "nothing.jsonl")]})
    with pytest.raises(RequestError) as caught:
        make_plan(named, tmp_path, lambda _line: None)
    assert caught.value.findings[-1] == f"{tmp_path}/nothing.jsonl: no such file or folder; check --train_data"


def test_a_machine_without_a_gpu_says_what_it_does_instead() -> None:
    kept, warnings = honoured({"fp16": True, "learning_rate": 1e-5}, gpu=False)
    assert "fp16" not in kept
    assert kept["learning_rate"] == 1e-5
    assert warnings == ["--fp16 needs a GPU, and none is used here: training in float32 instead"]
    assert honoured({"fp16": True}, gpu=True) == ({"fp16": True}, [])


def test_passwords_of_storages_are_not_written() -> None:
    assert redacted("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert redacted("postgresql://host/db?user=me&password=secret&x=1") == (
        "postgresql://host/db?user=me&password=***&x=1"
    )
    assert redacted("mysql://host/db?passwd=secret") == "mysql://host/db?passwd=***"
    assert redacted("mysql+pymysql://host/db?passwd=a&ssl_key_password=b") == (
        "mysql+pymysql://host/db?passwd=***&ssl_key_password=***"
    )
    assert redacted("sqlite:///study.db") == "sqlite:///study.db"


@pytest.mark.parametrize(
    ("storage", "written"),
    [
        ("studies/s.journal", "{here}/studies/s.journal"),
        ("sqlite:///s.db?timeout=9", "sqlite:///{here}/s.db?timeout=9"),
        ("sqlite:////data/s.db", "sqlite:////data/s.db"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
    ],
)
def test_a_storage_is_found_again_from_another_directory(
    storage: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = _plan(tmp_path)
    write_config(plan.config.replace(storage=storage), plan.run_dir, [])
    assert yaml.safe_load((plan.run_dir / CONFIG_FILE).read_text())["storage"] == written.format(here=tmp_path)


def test_a_configuration_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, when a search is resumed: the file is its only record."""
    plan = _plan(tmp_path)
    write_config(plan.config, plan.run_dir, [])
    before = (plan.run_dir / CONFIG_FILE).read_text()

    def fills_up(path: Path, content: bytes) -> None:
        path.write_text(content[:10].decode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.raises(OSError, match="no space left"):
        write_config(plan.config.replace(num_trials=32), plan.run_dir, [])
    assert (plan.run_dir / CONFIG_FILE).read_text() == before


def _asked(plan: Plan) -> SearchConfig:
    """What the command in config.yaml asks for."""
    command = shlex.split(yaml.safe_load((plan.run_dir / CONFIG_FILE).read_text())["command"])
    assert command[:3] == ["python", "-m", "tuner.search"]
    return parse(command[3:])


def test_a_resumed_search_keeps_the_command_that_began_it(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    request = ["--train_data", str(tmp_path / "rows.jsonl"), "--model_name_or_path", str(tmp_path / "model")]
    write_config(plan.config, plan.run_dir, [*request, "--search_space", "m3", "--token", "hf_secret"])
    before = (plan.run_dir / CONFIG_FILE).read_text()
    resumed = replace(plan, config=parse(["--resume", str(plan.run_dir), "--token", "hf_secret"]))
    write_config(resumed.config, resumed.run_dir, ["--resume", str(plan.run_dir), "--token", "hf_secret"])
    assert (plan.run_dir / CONFIG_FILE).read_text() == before
    assert "command: python -m tuner.search --train_data" in before


def test_a_search_that_was_extended_is_searched_again_as_it_was_in_the_end(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    write_config(plan.config, plan.run_dir, ["--train_data", "rows.jsonl"])
    resumed = replace(plan, config=plan.config.replace(resume=str(plan.run_dir), num_trials=32))
    write_config(resumed.config, resumed.run_dir, ["--resume", "run", "--num_trials", "32"])
    assert _asked(plan) == plan.config.replace(num_trials=32, run_dir=f"{plan.run_dir}-again")


@pytest.mark.parametrize("run_dir", ["run", None], ids=["named", "by the time"])
def test_a_search_from_python_can_be_searched_again(
    run_dir: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = _plan(tmp_path, learning_rate=3e-6)
    asked = plan.config.replace(run_dir=run_dir, storage="sqlite:///studies.db", study_name="mine", rungs=(0.5, 1.0))
    write_config(asked, plan.run_dir, None)
    storage = f"sqlite:///{tmp_path}/studies.db"
    assert _asked(plan) == asked.replace(run_dir="run-again", study_name="run-again", storage=storage)


def test_a_search_on_object_storage_is_named_by_its_url(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    write_config(plan.config.replace(run_dir="s3://bucket/first?region=eu"), plan.run_dir, None)
    command = yaml.safe_load((plan.run_dir / CONFIG_FILE).read_text())["command"]
    assert shlex.split(command)[3:] == [
        "--config", "s3://bucket/first?region=eu/config.yaml", "--run_dir", "s3://bucket/first-again?region=eu",
    ]  # fmt: skip


def test_the_example_is_a_command_without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("tuner.search.run.run_search", lambda _config, argv, _console: given.append(argv) or Path())
    for config in (SearchConfig(), SearchConfig(num_trials=4), SearchConfig(arguments={"train_data": ["a.jsonl"]})):
        tuner.run(config)
    assert given == [[], None, None]


def test_a_sum_needs_every_head_that_it_weighs(tmp_path: Path) -> None:
    data = {"train_data": [str(make_rows(tmp_path / "rows.jsonl", rows=120))]}
    config = SearchConfig(arguments=data, metric="0.5*dense.ndcg_at_10+0.5*sparse.ndcg_at_10")
    with pytest.raises(RequestError, match="only the dense head is trained; add --unified_finetuning True"):
        make_plan(config, tmp_path / "run", lambda _line: None)


def test_two_objectives_are_said_to_prune_nothing(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    arguments = {"train_data": [str(rows)], "model_name_or_path": str(model), "unified_finetuning": True}
    config = SearchConfig(arguments=arguments, metric="dense.ndcg_at_10,sparse.ndcg_at_10", patience=8)
    warnings = "\n".join(make_plan(config, tmp_path / "run", print).warnings)
    assert "no trial is pruned" in warnings
    assert "--patience 8: it is counted for one objective" in warnings


LORA: dict[str, Any] = {"use_lora": True, "lora_rank": 32, "lora_alpha": 64}


def test_lora_has_a_space_of_its_own(tmp_path: Path) -> None:
    start = _plan(tmp_path, space="", **LORA).context.start
    assert (start["lora_rank"], start["lora_alpha"], start["learning_rate"]) == (32, 64, 5e-5)


@pytest.mark.parametrize(
    ("space", "changes", "words"),
    [
        ("m3", {"lora_rank": 8}, "--lora_rank has no effect without --use_lora True"),
        ("m3_lora", {}, "--lora_rank has no effect without --use_lora True"),
        ("m3", {**LORA, "fix_encoder": True}, "--fix_encoder and --use_lora exclude each other"),
        ("m3", {**LORA, "lora_rank": 0}, "lora_rank >= 1 must hold, but got 0"),
        pytest.param(
            "m3",
            {**LORA, "target_modules": ["q_proj", "query"]},
            "--target_modules q_proj: no linear layer of the model .* it has dense, key, query, value",
            marks=pytest.mark.integration,  # another process reads the model's class
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(tmp_path: Path, space: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        _plan(tmp_path, space=space, **changes)


def test_without_peft_the_line_that_installs_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.planning.adapters.find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"needs peft, which is not installed: pip install 'peft>="):
        _plan(tmp_path, **LORA)


def test_a_search_goes_on_with_the_adapters_that_it_began_with(tmp_path: Path) -> None:
    plan = _plan(tmp_path, **LORA)
    assert _refusals(plan, lora_rank=32, lora_dropout=0.1) == []  # upstream's default
    assert _refusals(plan, lora_rank=8) == [
        "--resume: lora_rank was 32 when the search began and is 8 now; start a new --run_dir"
    ]
