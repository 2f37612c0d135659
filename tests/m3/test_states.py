"""What a training state may hold: tensors, plain values and DeepSpeed's own classes, and nothing that runs."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from trainables.m3.trainer import plain_states


class Command:
    """A pickle of it runs a command where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def engine() -> TorchCheckpointEngine:
    """What DeepSpeed reads states with, as its configuration makes it."""
    return TorchCheckpointEngine(SimpleNamespace(checkpoint_config={"checkpoint_serialization": True}))


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_state_that_names_a_command_is_refused_and_runs_nothing(
    engine: TorchCheckpointEngine, as_zip: bool, tmp_path: Path
) -> None:
    state = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": Command(tmp_path / "ran")}, state, _use_new_zipfile_serialization=as_zip)
    with plain_states(), pytest.raises(pickle.UnpicklingError):
        engine.load(str(state), map_location="cpu")
    assert not (tmp_path / "ran").exists()


def test_what_deepspeed_writes_is_read(engine: TorchCheckpointEngine, tmp_path: Path) -> None:
    settings = {"init_scale": 4.0, "scale_window": 10, "min_scale": 1.0, "delayed_shift": 1}
    scaler = DynamicLossScaler(**settings, consecutive_hysteresis=False, dtype=torch.half)
    state = {
        "loss_scaler": scaler,
        "static": LossScaler(2.0),
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [{"weight": fragment_address(3, 5)}],
        "param_shapes": [{"weight": torch.Size([2, 3])}],
        "module": {"weight": torch.arange(6.0)},
    }
    engine.save(state, str(tmp_path / "state.pt"))
    with plain_states():
        found = engine.load(str(tmp_path / "state.pt"), map_location="cpu")
    assert vars(found["loss_scaler"]) == vars(scaler)
    assert found["static"].cur_scale == 2.0
    assert {name: found[name] for name in ("zero_stage", "param_slice_mappings", "param_shapes")} == {
        name: state[name] for name in ("zero_stage", "param_slice_mappings", "param_shapes")
    }
    assert torch.load.__module__ == "torch.serialization"  # only in the block
