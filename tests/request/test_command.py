import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.storage_fixtures import stored
from tuner.errors import RequestError
from tuner.request.command_line import code_flags, parse, resumed
from tuner.request.config import SearchConfig, new_run_dir
from tuner.run_dir.store import open_run_dir

USERS_COMMAND = """
    --model_name_or_path BAAI/bge-m3 --cache_dir ./cache/model --train_data ./dataset.jsonl --cache_path ./cache/data
    --train_group_size 8 --query_max_len 512 --passage_max_len 512 --pad_to_multiple_of 8 --knowledge_distillation False
    --same_dataset_within_batch True --small_threshold 0 --drop_threshold 0 --output_dir ./out --overwrite_output_dir
    --learning_rate 1e-5 --fp16 --num_train_epochs 1 --per_device_train_batch_size 2 --warmup_ratio 0.1
    --gradient_checkpointing --deepspeed ./ds_stage0.json --logging_steps 1 --save_steps 10000 --negatives_cross_device
    --temperature 0.02 --sentence_pooling_method cls --normalize_embeddings True --kd_loss_type m3_kd_loss
    --unified_finetuning True --use_self_distill True --fix_encoder False --self_distill_start_step 0
"""


def test_the_users_fine_tuning_command_is_understood() -> None:
    config = parse([*shlex.split(USERS_COMMAND), "--num_trials", "4"])
    assert config.num_trials == 4
    assert config.arguments["learning_rate"] == 1e-5
    assert config.arguments["train_data"] == ["./dataset.jsonl"]
    assert config.arguments["fp16"] is True
    assert config.arguments["negatives_cross_device"] is True
    assert config.arguments["knowledge_distillation"] is False


def test_flags_mean_the_same_in_any_order_and_spelling() -> None:
    one = parse(["--train_data", "a", "b", "--fp16", "--learning_rate", "1e-5"])
    other = parse(["--learning-rate=1e-5", "--fp16", "True", "--train_data", "a", "b"])
    assert one == other


def test_everything_wrong_is_told_at_once_with_the_nearest_name() -> None:
    with pytest.raises(RequestError) as caught:
        parse(["--learning_rat", "1e-5", "--temperature", "-1", "--num_trials", "many", "stray"])
    assert len(caught.value.findings) == 4
    text = str(caught.value)
    assert "--learning_rat is no argument" in text
    assert "did you mean --learning_rate?" in text
    assert "'stray' belongs to no flag" in text
    assert "temperature > 0 must hold, but got -1.0" in text


def test_yaml_holds_the_same_names_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("train_data: [a.jsonl]\nlearning_rate: 1e-5\nnum_trials: 5\ntemperature: 0.05\n")
    config = parse(["--config", str(file), "--temperature", "0.01"])
    assert (config.num_trials, config.arguments["learning_rate"], config.arguments["temperature"]) == (5, 1e-5, 0.01)


def test_a_name_without_a_value_in_yaml_leaves_the_default(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("train_data: [a.jsonl]\nlearning_rate:\nnum_trials:\nguard:\n")
    assert parse(["--config", str(file)]) == SearchConfig(arguments={"train_data": ["a.jsonl"]})
    assert SearchConfig(arguments={"learning_rate": None}).arguments == {}


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read as YAML"):
        parse(["--config", str(tmp_path / "search.yaml")])


def test_an_unknown_name_in_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("temprature: 0.02\n")
    with pytest.raises(RequestError, match="did you mean --temperature"):
        parse(["--config", str(file)])


def test_a_resumed_search_keeps_its_settings_and_takes_new_ones(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "num_trials: 4\nmetric: dense.mrr_at_10\narguments: {train_data: [a.jsonl]}\n"
    )
    config = parse(["--resume", str(tmp_path), "--num_trials", "9"])
    assert (config.num_trials, config.metric, config.arguments["train_data"]) == (9, "dense.mrr_at_10", ["a.jsonl"])


def test_a_settings_file_may_name_what_is_resumed(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "search.yaml"
    run.mkdir()
    (run / "config.yaml").write_text("num_trials: 4\npatience: 3\narguments: {train_data: [a.jsonl]}\n")
    file.write_text(f"resume: {run}\nnum_trials: 9\n")
    config = parse(["--config", str(file), "--patience", "5"])
    assert (config.resume, config.num_trials, config.patience) == (str(run), 9, 5)
    assert config.arguments == {"train_data": ["a.jsonl"]}
    assert parse(["--config", str(file), "--resume", "none", "--train_data", "b.jsonl"]).resume is None


def test_the_run_directory_of_a_line_wins_under_both_of_its_names(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("run_dir: runs/first\narguments: {train_data: [a.jsonl], output_dir: out}\n")
    for flag in ("--run_dir", "--output_dir"):
        assert new_run_dir(parse(["--config", str(file), flag, "runs/second"]), "now") == "runs/second"
    assert new_run_dir(parse(["--config", str(file)]), "now") == "runs/first"


def test_two_run_directories_on_one_line_are_refused() -> None:
    with pytest.raises(RequestError, match=r"--run_dir a and --output_dir b both name the run directory"):
        parse(["--run_dir", "a", "--output_dir", "b"])
    assert parse(["--run_dir", "a", "--output_dir", "a"]).run_dir == "a"


def test_python_resumes_what_the_run_was_asked(tmp_path: Path) -> None:
    asked = SearchConfig(
        arguments={"train_data": ["a.jsonl"], "learning_rate": 1e-5, "seed": 1}, metric="dense.mrr_at_10", num_trials=4
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**asked.to_dict(), "command": "python -m tuner.search"}))
    config = resumed(SearchConfig(resume=str(tmp_path), num_trials=9, arguments={"fp16": True}))
    assert (config.resume, config.num_trials, config.metric) == (str(tmp_path), 9, "dense.mrr_at_10")
    assert config.seed == asked.seed
    assert config.arguments == {"train_data": ["a.jsonl"], "learning_rate": 1e-5, "fp16": True}


def test_python_resumes_nothing_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--resume .*: no search was begun there \(no config.yaml\)"):
        resumed(SearchConfig(resume=str(tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["", "num_trials: 4\n"], ids=["empty", "cut"])
def test_a_run_whose_configuration_is_lost_is_not_taken_for_the_example(left: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(left)
    with pytest.raises(RequestError, match=r"config\.yaml names neither data nor a model"):
        parse(["--resume", str(tmp_path), "--train_data", "a.jsonl"])
    with pytest.raises(RequestError, match=r"config\.yaml names neither data nor a model"):
        resumed(SearchConfig(resume=str(tmp_path)))


def test_a_configuration_on_object_storage_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_run_dir(f"file://{tmp_path}/run")
    (store.local / "config.yaml").write_text("num_trials: 4\narguments: {train_data: [a.jsonl]}\n")
    store.push()
    shutil.rmtree(store.local)
    assert parse(["--config", f"file://{tmp_path}/run/config.yaml"]).num_trials == 4
    assert parse(["--resume", f"file://{tmp_path}/run"]).num_trials == 4


def test_without_data_or_model_the_embedded_example_is_meant() -> None:
    config = parse(["--num_trials", "4"])
    assert config.is_example
    assert (config.search_space, config.num_trials) == ("example", 4)


@pytest.mark.parametrize("argv", [["--help"], ["--help-all"], ["--version"], ["--learning_rat", "1"]])
def test_help_and_refusals_load_nothing_heavy(argv: list[str]) -> None:
    """0.2 s of processor time where this was written; the limit leaves room for slower machines."""
    code = (
        "import sys; from tuner.search.run import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as error: status = error.code or 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'optuna', 'mteb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "1" in argv else 0), done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0


def _finished(folder: Path, **asked: Any) -> Path:
    folder.mkdir()
    config = SearchConfig(arguments={"train_data": ["old.jsonl"], "output_dir": "runs/1"}, **asked)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config.to_dict(), "command": "python -m tuner.search"}))
    (folder / "result.json").write_text("{}")
    return folder


def test_a_search_on_data_that_grew_has_the_line_of_the_one_before(tmp_path: Path) -> None:
    run = _finished(tmp_path / "1", num_trials=4, metric="dense.mrr_at_10", run_dir="runs/1", warm_start=("runs/0",))
    line = ["--again", str(run), "--train_data", "old.jsonl", "more.jsonl", "--num_trials", "9"]
    config = parse(line)
    assert (config.metric, config.num_trials) == ("dense.mrr_at_10", 9)
    assert config.arguments == {"train_data": ["old.jsonl", "more.jsonl"]}
    assert (config.run_dir, config.resume, config.again, config.warm_start) == (None, None, str(run), (str(run),))
    assert parse([*line, "--warm_start", "runs/0"]).warm_start == ("runs/0",)
    (tmp_path / "again.yaml").write_text(f"again: {run}\ntrain_data: [old.jsonl, more.jsonl]\nnum_trials: 9\n")
    assert parse(["--config", str(tmp_path / "again.yaml")]) == config
    arguments = {"train_data": ["old.jsonl", "more.jsonl"]}
    assert resumed(SearchConfig(again=str(run), num_trials=9, arguments=arguments)) == config


def test_a_search_that_began_again_is_resumed_without_the_one_before(tmp_path: Path) -> None:
    values = parse(["--again", str(_finished(tmp_path / "1"))]).to_dict()
    (tmp_path / "1").rename(tmp_path / "gone")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert parse(["--resume", str(tmp_path)]).again == str(tmp_path / "1")


def test_a_search_in_storage_begins_again_as_one_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    run = _finished(tmp_path / "1")
    stored(run, url := f"file://{tmp_path}/bucket/1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    here, there = (parse(["--again", place, "--num_trials", "9"]) for place in (str(run), url))
    assert there == here.replace(again=url, warm_start=(url,))
    (run / "result.json").unlink()
    stored(run, url := f"file://{tmp_path}/bucket/2")
    with pytest.raises(RequestError, match=r"its search has not ended \(no result.json\)"):
        parse(["--again", url])


def test_what_cannot_begin_again_is_refused(tmp_path: Path) -> None:
    run = _finished(tmp_path / "1")
    (run / "result.json").unlink()
    for line, said in (
        (["--again", str(run)], r"1: its search has not ended \(no result.json\); --resume .*1 ends it"),
        (["--again", str(tmp_path)], "no search was begun there"),
        (["--again", str(run), "--resume", str(run)], "--again begins a new search, and --resume goes on with one"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            parse(line)
        assert len(caught.value.findings) == 1
    with pytest.raises(RequestError, match="--again begins a new search"):
        resumed(SearchConfig(again=str(run), resume=str(run)))


@pytest.fixture
def run_with_code(tmp_path: Path) -> Path:
    """A run whose config.yaml asks for code of a model and of a module."""
    arguments = {"model_name_or_path": "somebody/model", "train_data": ["x.jsonl"], "trust_remote_code": True}
    values = {**SearchConfig(arguments=arguments, search_space="their_module:space").to_dict(), "command": "x"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "result.json").write_text("{}")
    return tmp_path


def test_a_run_directory_alone_brings_no_code(run_with_code: Path) -> None:
    for refused in (
        lambda: parse(["--resume", str(run_with_code)]),
        lambda: parse(["--again", str(run_with_code)]),
        lambda: resumed(SearchConfig(resume=str(run_with_code))),
        lambda: resumed(SearchConfig(again=str(run_with_code))),
    ):
        with pytest.raises(RequestError) as caught:
            refused()
        trust, space = caught.value.findings
        assert "code of the model somebody/model would run here; give --trust_remote_code again" in trust
        assert "give --search_space their_module:space again" in space


def test_the_configuration_of_a_run_brings_no_code_to_a_new_search(run_with_code: Path, tmp_path: Path) -> None:
    written, own = run_with_code / "config.yaml", tmp_path / "own.yaml"
    with pytest.raises(RequestError, match="trust_remote_code"):
        parse(["--config", str(written)])
    values = {name: value for name, value in yaml.safe_load(written.read_text()).items() if name != "command"}
    own.write_text(yaml.safe_dump(values))
    assert parse(["--config", str(own)]).arguments["trust_remote_code"] is True  # the user's own word


def test_code_that_is_asked_for_again_is_taken_from_a_run(run_with_code: Path) -> None:
    asked = parse(["--resume", str(run_with_code), "--trust_remote_code", "--search_space", "their_module:space"])
    assert (asked.arguments["trust_remote_code"], asked.search_space) == (True, "their_module:space")
    assert code_flags(asked) == ["--trust_remote_code", "--search_space", "their_module:space"]
    without = parse(["--resume", str(run_with_code), "--trust_remote_code", "False", "--search_space", "m3"])
    assert (without.arguments["trust_remote_code"], without.search_space) == (False, "m3")
    assert code_flags(without) == []
    again = SearchConfig(
        resume=str(run_with_code), search_space="their_module:space", arguments={"trust_remote_code": True}
    )
    assert resumed(again).arguments["trust_remote_code"] is True


def test_a_run_directory_in_storage_brings_no_code_either(
    run_with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_run_dir(f"file://{tmp_path}/bucket")
    shutil.copy(run_with_code / "config.yaml", store.local)
    store.push()
    with pytest.raises(RequestError, match="trust_remote_code"):
        parse(["--resume", f"file://{tmp_path}/bucket"])


@pytest.mark.parametrize("value", [[None], {"a": 1}, True, "a\0b"])
def test_an_earlier_search_is_named_in_text(value: object, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"again": value, "train_data": ["rows.jsonl"]}))
    with pytest.raises(RequestError, match="--again"):
        parse(["--config", str(tmp_path / "search.yaml")])


@pytest.mark.parametrize(
    "flag",
    [
        *("run_dir", "output_dir", "train_data", "eval_data", "model_name_or_path", "guard", "warm_start", "resume"),
        *("again", "search_space", "deepspeed", "cache_dir", "cache_path"),
    ],
)
def test_names_that_no_file_can_have_are_refused(flag: str) -> None:
    """Asking the system whether there is such a file is an error by itself."""
    with pytest.raises(RequestError) as refused:
        parse([f"--{flag}", f"folder/{'x' * 300}/file.jsonl"])
    assert f"--{flag} folder/xxx" in str(refused.value)
    assert "a name in it has 300 bytes, but file systems take 255 at most" in str(refused.value)


def test_names_that_no_file_can_have_are_refused_in_a_settings_file(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(f"deepspeed: {'x' * 300}.json\nagain: {'1' * 300}\n")
    with pytest.raises(RequestError, match=r"--again 1111.*a name in it has 300 bytes"):
        parse(["--config", str(tmp_path / "search.yaml")])
