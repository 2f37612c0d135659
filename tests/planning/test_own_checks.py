"""What the libraries themselves say of arguments, asked before anything starts."""

from typing import Any

import pytest

from trainables.m3.arguments import refusals
from tuner.errors import RequestError
from tuner.planning.own_checks import libraries_agree
from tuner.request.config import SearchConfig


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate should be set"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ({"optim": "galore_adamw"}, "galore_torch"),
        ({"report_to": "nobody"}, "nobody is not supported"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}}, ""),
    ],
)
def test_what_a_trial_would_fail_over_is_known(arguments: dict[str, Any], words: str, tmp_path: Any) -> None:
    said = list(refusals({"use_cpu": True, **arguments}, str(tmp_path)))
    assert words in "".join(said)
    assert bool(said) == bool(words)


@pytest.mark.slow
def test_a_search_asks_while_it_prepares_its_data() -> None:
    config = SearchConfig(arguments={"train_data": "rows.jsonl", "lr_scheduler_type": "cosine_with_min_lr"})
    refused = pytest.raises(RequestError, match="transformers refuses the arguments: ValueError: One of min_lr")
    with refused, libraries_agree(config, gpu=False):
        pass


def test_usual_arguments_need_no_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    with libraries_agree(SearchConfig(arguments={"train_data": "rows.jsonl", "learning_rate": 1e-5}), gpu=False):
        pass
