"""One contract for every search space."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import Context, SearchSpace, load_search_space, names
from search_spaces.loading import suggest
from tuner.request.arguments import translated, upstream_arguments
from tuner.request.config import SearchConfig

SMALL = Context(rows=40, negatives=1, start={"learning_rate": 1e-5, "train_group_size": 8})
LARGE = Context(rows=100_000, negatives=15, start={"temperature": 0.02, "warmup_ratio": 0.0})
YAML = """
learning_rate: {low: 1e-6, high: 1e-4, log: true}
train_group_size: {choices: [2, 4]}
seed: {low: 1, high: 9, int: true}
"""


def constant(trial: optuna.Trial, context: Context) -> dict[str, float]:
    return {"weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1 * min(1, context.rows))}


@pytest.fixture(params=[*names(), "file.yaml", f"{__name__}:constant"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file.yaml":
        (tmp_path / "file.yaml").write_text(YAML)
        return str(tmp_path / "file.yaml")
    return str(request.param)


@pytest.mark.parametrize("context", [SMALL, LARGE])
def test_200_suggestions_are_valid_arguments_and_survive_json(name: str, context: Context) -> None:
    space = load_search_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(200):
        values = suggest(space, study.ask(), context)
        assert json.loads(json.dumps(values)) == values
        assert set(translated(values)) <= set(upstream_arguments())
        assert SearchConfig(arguments=values).problems() == []


@pytest.mark.parametrize("name", names())
def test_the_users_own_values_lie_in_the_space(name: str) -> None:
    start = {"learning_rate": 7e-4, "temperature": 0.5, "train_group_size": 3, "per_device_train_batch_size": 5}
    context = Context(rows=1000, negatives=7, start=start)
    trial = optuna.create_study().ask()
    suggest(load_search_space(name), trial, context)
    for argument, value in start.items():
        assert trial.distributions[argument]._contains(trial.distributions[argument].to_internal_repr(value))


def _from_yaml(text: str, folder: Path) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return load_search_space(str(folder / "space.yaml"))


@pytest.mark.parametrize(
    ("entry", "own", "distribution"),
    [
        ("choices: [8, 16]", 4, CategoricalDistribution((8, 16, 4))),
        ("choices: [8, 16]", 16, CategoricalDistribution((8, 16))),
        ("low: 8, high: 16, int: true", 4, IntDistribution(4, 16)),
        ("low: 8, high: 16, int: true, step: 4", 2, IntDistribution(0, 16, step=4)),
        ("low: 0.1, high: 0.3, step: 0.1", 0.45, FloatDistribution(0.1, 0.5, step=0.1)),
        ("low: 1.0e-6, high: 1e-4, log: true", 1e-3, FloatDistribution(1e-6, 1e-3, log=True)),
    ],
)
def test_a_yaml_space_holds_the_users_own_value(
    entry: str, own: float, distribution: BaseDistribution, tmp_path: Path
) -> None:
    """Ranges with steps grow by whole steps: the others of their values stay as they are."""
    trial = optuna.create_study().ask()
    suggest(_from_yaml(f"value: {{{entry}}}", tmp_path), trial, Context(rows=1, negatives=1, start={"value": own}))
    assert trial.distributions == {"value": distribution}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("low: 0.1, high: 1, log: true, step: 0.1", "log and step exclude each other"),
        ("low: 1, high: 8, int: true, log: true, step: 2", "log and step exclude each other"),
        ("low: 0.5, high: 8, int: true", "must be whole numbers, but got low=0.5"),
        ("low: 0, high: 1, step: 0", "step > 0 must hold, but got step=0.0"),
        ("low: 0, high: 1, step: much", "step='much'"),
    ],
)
def test_ranges_that_optuna_does_not_take_are_refused(entry: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        _from_yaml(f"weight_decay: {{{entry}}}", tmp_path)


@pytest.mark.parametrize(
    ("context", "group", "batch"),
    [
        (Context(rows=1000, negatives=7), (2, 8), (2, 125)),  # 8 steps of 125 rows
        (Context(rows=10, negatives=0), (1, 1), (1, 1)),
        (Context(rows=10**6, negatives=31, start={"train_group_size": 20}), (2, 20), (2, 256)),
    ],
)
def test_whole_ranges_hold_what_the_rows_and_negatives_allow(
    context: Context, group: tuple[int, int], batch: tuple[int, int]
) -> None:
    assert (context.group_bounds(2, 16), context.batch_bounds(2, 256)) == (group, batch)


def test_group_sizes_stop_at_the_negatives_there_are() -> None:
    assert Context(rows=1000, negatives=7).group_sizes([2, 4, 8, 16]) == [2, 4, 8]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m4", "must be one of example, m3, m3_kd, m3_lora, a YAML file or module:function"),
        ("tuner:nothing", "cannot be imported"),
        ("absent.yaml", "cannot be read"),
    ],
)
def test_a_space_that_nobody_has_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_search_space(name)


def test_a_broken_yaml_space_is_refused_with_all_its_faults(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("learning_rate: {low: 1, high: 0}\ntemperature: 3\nseed: {choices: []}\n")
    with pytest.raises(ValueError) as caught:
        load_search_space(str(file))
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_of_aliases_upon_aliases_is_refused_in_a_few_words(tmp_path: Path) -> None:
    """Eight levels of nine are 43 million values in 400 bytes."""
    levels = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    levels += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 8)]
    (tmp_path / "space.yaml").write_text("\n".join(levels))
    with pytest.raises(ValueError, match=r"must be \{low, high\} or \{choices\}") as refused:
        load_search_space(str(tmp_path / "space.yaml"))
    assert len(str(refused.value)) < 20_000


def test_alpha_keeps_its_ratio_to_the_rank() -> None:
    """Of your own settings, here 1 to 2; so they are a value of the space."""
    start = {"lora_rank": 32, "lora_alpha": 16}
    context = Context(rows=1000, negatives=7, start=start)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(start)
    found = [suggest(load_search_space("m3_lora"), study.ask(), context) for _ in range(20)]
    assert (found[0]["lora_rank"], found[0]["lora_alpha"]) == (32, 16)
    assert all(values["lora_alpha"] * 2 == values["lora_rank"] for values in found)
    assert len({values["lora_rank"] for values in found}) > 5
