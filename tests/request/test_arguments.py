import pytest

from tuner.request.arguments import searchable_numbers, translated, upstream_arguments


def test_arguments_are_those_of_the_upstream_dataclasses() -> None:
    """The source is parsed for speed; importing it must find the same names."""
    import dataclasses

    from trainables.m3.arguments import Arguments

    names = {field.name for part in Arguments.__annotations__.values() for field in dataclasses.fields(part)}
    assert set(upstream_arguments()) == names


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("train_group_size", "8", 8),
        ("train_group_size", 8.0, 8),
        ("fp16", "True", True),
        ("normalize_embeddings", "false", False),
        ("train_data", ["a.jsonl", "b"], ["a.jsonl", "b"]),
        ("sub_batch_size", "None", None),
        ("deepspeed", '{"zero_optimization": {"stage": 0}}', {"zero_optimization": {"stage": 0}}),
        ("report_to", "none", None),
    ],
)
def test_a_value_is_read_in_its_arguments_type(name: str, value: object, expected: object) -> None:
    assert upstream_arguments()[name].parse(value) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", "fast", "must be a number, but got 'fast'"),
        ("train_group_size", "2.5", "must be a whole number"),
        ("fp16", "maybe", "must be True or False"),
        ("sentence_pooling_method", "max", "must be one of cls, mean, last_token"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_rule(name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upstream_arguments()[name].parse(value)


def test_names_that_transformers_dropped_are_translated() -> None:
    old = {"warmup_ratio": 0.1, "overwrite_output_dir": True, "group_by_length": True, "learning_rate": 1e-5}
    new = {"warmup_steps": 0.1, "train_sampling_strategy": "group_by_length", "learning_rate": 1e-5}
    assert translated(old) == new


def test_a_number_of_warmup_steps_wins_over_a_ratio() -> None:
    assert translated({"warmup_steps": 100, "warmup_ratio": 0.1}) == {"warmup_steps": 100}
    asked = {"warmup_steps": 5, "warmup_ratio": 0.1, "per_device_train_batch_size": 8, "num_train_epochs": 2.0}
    assert searchable_numbers(asked, rows=100, workers=1)["warmup_ratio"] == 5 * 8 / 200
    assert searchable_numbers({**asked, "warmup_steps": 0}, rows=100, workers=1)["warmup_ratio"] == 0.1


@pytest.mark.parametrize(("workers", "epochs"), [(1, 2.0), (4, 8.0)])
def test_steps_are_those_of_all_workers_together(workers: int, epochs: float) -> None:
    """Of 1000 rows, 250 steps of 8 see each twice, and four workers, with a batch each, 8 times."""
    asked = {"max_steps": 250, "warmup_steps": 25, "per_device_train_batch_size": 8}
    numbers = searchable_numbers(asked, rows=1000, workers=workers)
    assert (numbers["num_train_epochs"], numbers["warmup_ratio"]) == (epochs, 0.1)
