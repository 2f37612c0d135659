"""Which DeepSpeed configurations are taken."""

import json
from pathlib import Path

import pytest

from trainables.deepspeed_config import check_deepspeed


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stages_that_train(stage: int, tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": stage}}
    check_deepspeed(config)
    (tmp_path / "ds.json").write_text(json.dumps(config))
    check_deepspeed(str(tmp_path / "ds.json"))


def test_no_stage_is_stage_0() -> None:
    check_deepspeed({"train_batch_size": "auto"})


def test_stage_3_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 0, 1 or 2, but got 3: .* use stage 1 or 2"):
        check_deepspeed({"zero_optimization": {"stage": 3}})


@pytest.mark.parametrize(("text", "reason"), [("{", "cannot be read"), ("[]", "holds a list")])
def test_files_that_are_no_configuration(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        check_deepspeed(str(tmp_path / "ds.json"))
