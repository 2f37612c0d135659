"""One door for values: whoever gives one, it is read in the argument's own type, or refused with the rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tuner.errors import RequestError
from tuner.request.checks import read_argument
from tuner.request.command_line import parse, resumed
from tuner.request.config import SearchConfig
from tuner.request.taken_over import taken_over

DATA = {"train_data": ["rows.jsonl"]}


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("train_data", "rows.jsonl", ["rows.jsonl"]),
        ("train_data", Path("rows.jsonl"), ["rows.jsonl"]),
        ("train_data", ("a", Path("b")), ["a", "b"]),
        ("model_name_or_path", Path("models/m3"), "models/m3"),
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", np.float64(1e-5), 1e-5),
        ("train_group_size", np.int64(4), 4),
        ("train_group_size", "4.0", 4),
        ("fp16", np.bool_(True), True),
        ("gradient_checkpointing", False, False),
        ("eval_strategy", False, "no"),  # YAML's `no`
        ("seed", 2**31 + 1, 2**31 + 1),
        ("mrl_dims", np.array([64, 128]), [64, 128]),
        ("lr_scheduler_kwargs", {"min_lr": "1e-6"}, {"min_lr": 1e-6}),  # YAML 1.1's text
    ],
)
def test_python_is_read_as_the_command_line(name: str, value: Any, read: Any) -> None:
    config = SearchConfig(arguments={**DATA, name: value})
    assert config.arguments[name] == read
    assert type(config.arguments[name]) is type(read)
    assert yaml.safe_load(yaml.safe_dump(config.to_dict()))["arguments"][name] == read


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lerning_rate", 1e-5, "--lerning_rate is no argument of .*; did you mean --learning_rate?"),
        ("num_trials", 5, r"num_trials is the search's own.*SearchConfig\(num_trials=...\)"),
        ("learning_rate", float("nan"), "--learning_rate: must be a number, and finite, but got nan"),
        ("learning_rate", True, "--learning_rate: must be a number, but got True"),
        ("learning_rate", [1e-5], "--learning_rate: must be a number, but got"),
        ("seed", 10**400, "must be a whole number of at most 64 bits"),
        ("train_data", [1.5, None], "--train_data: must be text, but got None"),
        ("train_data", [""], "one of them is empty"),
        ("model_name_or_path", "\ud800", "must be text that UTF-8 can hold"),
        ("model_name_or_path", ["a"], "--model_name_or_path: must be text, but got"),
        ("lr_scheduler_type", "cosin", "must be one of linear, cosine, "),
        ("query_instruction_format", "{}{}{}", "it must be a format of two texts"),
        ("neftune_noise_alpha", 5, "--neftune_noise_alpha: its noise is put into"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "it follows scores, which a search takes at rungs alone"),
        ("dataloader_prefetch_factor", 2, "needs --dataloader_num_workers of 1 or more"),
        ("fix_encoder", True, "nothing that --metric dense.ndcg_at_10 measures would be trained"),
    ],
)
def test_python_is_refused_in_one_line(name: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        SearchConfig(arguments={**DATA, name: value})
    assert len(caught.value.findings) == 1


def test_options_are_read_in_their_types_too() -> None:
    config = SearchConfig(num_trials="8", rungs=[0.5, np.float64(1)], guard="news", run_dir=Path("r"), time_budget=90)  # type: ignore[arg-type]
    assert (config.num_trials, config.rungs, config.guard, config.run_dir) == (8, (0.5, 1.0), ("news",), "r")
    assert config.time_budget_seconds == 90
    with pytest.raises(RequestError, match="--num_trials: must be a whole number, but got 'many'"):
        SearchConfig(num_trials="many")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"), [("disk_budget", "."), ("time_budget", "1.2.3h"), ("disk_budget", "9" * 400)]
)
def test_an_amount_that_is_none_is_refused(option: str, value: str) -> None:
    with pytest.raises(RequestError, match=f"--{option}: must be "):
        SearchConfig(**{option: value})  # type: ignore[arg-type]


def test_a_resumed_run_goes_through_the_same_door(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("num_trials: '4'\narguments: {train_data: rows.jsonl, learning_rate: 1e-5}\n")
    config = resumed(SearchConfig(resume=tmp_path, arguments={"seed": np.int64(3)}))  # type: ignore[arg-type]
    assert (config.num_trials, config.arguments["train_data"], config.arguments["learning_rate"]) == (
        4,
        ["rows.jsonl"],
        1e-5,
    )
    (tmp_path / "config.yaml").write_text("arguments: {train_data: rows.jsonl, learning_rate: fast}\n")
    with pytest.raises(RequestError, match="--learning_rate: must be a number, but got 'fast'"):
        parse(["--resume", str(tmp_path)])


def test_yaml_aliases_that_make_gigabytes_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (tmp_path / "search.yaml").write_text("\n".join([*lines, "lr_scheduler_kwargs: {x: *a9}", "train_data: *a9"]))
    with pytest.raises(RequestError, match="must hold at most 500 values"):
        parse(["--config", str(tmp_path / "search.yaml")])


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        ({"per_device_train_batch_size": 1, "train_group_size": 1}, False),
        ({"per_device_train_batch_size": 1, "train_group_size": 2}, True),
        ({"per_device_train_batch_size": 2, "train_group_size": 1}, True),
        ({"per_device_train_batch_size": 1, "train_group_size": 1, "gradient_accumulation_steps": 8}, False),
    ],
)
def test_a_loss_needs_a_second_passage(arguments: dict[str, int], taught: bool) -> None:
    if taught:
        SearchConfig(arguments={**DATA, **arguments})
        return
    with pytest.raises(RequestError, match="compared with no passage but its own, so the loss is 0"):
        SearchConfig(arguments={**DATA, **arguments})


def test_passages_of_other_workers_count_where_they_are_shared() -> None:
    alone = {**DATA, "per_device_train_batch_size": 1, "train_group_size": 1}
    SearchConfig(arguments={**alone, "negatives_cross_device": True}, workers_per_trial=2)
    with pytest.raises(RequestError, match="the loss is 0"):
        SearchConfig(arguments=alone, workers_per_trial=2)


def test_transformers_own_evaluation_is_taken_over_and_said() -> None:
    given = {"do_eval": True, "eval_strategy": "steps", "load_best_model_at_end": True, "save_strategy": "steps"}
    kept, said = taken_over({**given, "save_steps": 50.0, "group_by_length": True, "learning_rate": 1e-5})
    assert kept == {"learning_rate": 1e-5}
    assert [line.partition(":")[0] for line in said] == [
        "--do_eval, --eval_strategy",
        "--load_best_model_at_end",
        "--save_steps",
        "--group_by_length",
    ]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+pysqlite:///file:x?mode=memory&uri=true"])
def test_a_storage_in_memory_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="it is in the memory of one process"):
        SearchConfig(storage=url)


def test_a_rule_holds_for_every_reader() -> None:
    with pytest.raises(ValueError, match=r"0 < learning_rate < 1 must hold, but got 2\.0"):
        read_argument("learning_rate", "2")
