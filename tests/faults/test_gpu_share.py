"""Two slots share one card. Ray counts the card, whether this machine has it or not."""

import functools
import sys
from pathlib import Path

import pytest
import ray
import torch
from ray.train.torch import TorchConfig, TorchTrainer

import tuner.cluster.executor
from tests.faults import fault_trains
from tests.support import fake
from tests.support.fake import open_agenda
from tuner.cluster.connection import connected, slots_for
from tuner.cluster.executor import run_on_ray
from tuner.cluster.slot import Slot, WorkerGroup
from tuner.request.config import SearchConfig
from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
CONFIG = SearchConfig(
    num_trials=4, finalists=0, sampler="random", pruner="none", gpus_per_trial=0.5, concurrent_trials=2
)


class GroupWithoutNccl(WorkerGroup):
    """On a machine without CUDA, Train's workers with a GPU still ask for NCCL: this one line is not tested here."""

    def _trainer(self, trial: str) -> TorchTrainer:
        trainer = super()._trainer(trial)
        trainer.backend_config = TorchConfig(backend="gloo")  # type: ignore[attr-defined]
        return trainer


class WithoutNccl(Slot):
    def _new_group(self) -> WorkerGroup:
        return GroupWithoutNccl(self._slots, self._train, self._box)


def test_two_trials_train_on_one_card_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fake, fault_trains, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=1))
    if not torch.cuda.is_available():
        monkeypatch.setattr(tuner.cluster.executor, "Slot", WithoutNccl)
    with connected(CONFIG):
        slots = slots_for(CONFIG, tmp_path / ".ray")
        assert (slots.count, slots.workers, slots.gpus) == (2, 1, 0.5)
        run_on_ray(open_agenda(CONFIG, tmp_path), slots, train=fault_trains.beside_another)
    assert [trial.state.name for trial in read_studies(tmp_path)[0].trials] == ["COMPLETE"] * 4
    trials = tmp_path / "trials"
    assert {(trials / name / "gpus").read_text() for name in ("0001", "0002")} == {"['0']"}
