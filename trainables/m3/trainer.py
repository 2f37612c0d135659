"""A trainer whose state on disk is everything that its next step depends on."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers.trainer
from torch import Tensor, nn
from transformers import PrinterCallback
from transformers import Trainer as HuggingFaceTrainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from trainables.m3.host_copies import HostCopies

_WEIGHTS, _OPTIMIZER, _SCHEDULER = "weights.pt", "optimizer.pt", "scheduler.pt"
"""Files of a state, where DeepSpeed does not write its own."""


class ResumableTrainer(HuggingFaceTrainer):
    """Adds up its losses on the device, and can be stopped and taken up again exactly, with DeepSpeed too.

    Transformers' own states lack what M3 needs: the weights under the names of the training model, the step that
    self-distillation starts by, and the draws of negatives for the batch that the loader has made ahead.
    """

    model: Any
    data_collator: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.loss_sum = torch.zeros((), device=self.args.device)
        self.loss_count = 0
        self.batches = 0
        self._host_copies = HostCopies()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        self.loss_sum += (result[0] if isinstance(result, tuple) else result).detach()
        self.loss_count += 1
        self.batches += 1
        return result

    @property
    def resumable(self) -> bool:
        """Whether the position in the data is known: processes that load data ahead do not tell."""
        return int(self.args.dataloader_num_workers) == 0

    def capture_state(self, folder: Path) -> dict[str, Any]:
        """Takes hold of everything that the next step depends on; every worker calls it with the same folder.

        Returns:
            What is to be written beside the files that it writes: file name -> what `torch.save` takes. It stays as it
            is until the next call, where the host has room for a copy; else there is nothing left to write.
        """
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        torch.save(
            {
                "batches": self.batches,
                "draws": self.data_collator.draws[self.batches],
                "self_distill_step": self.model.step,
                "loss_sum": self.loss_sum.cpu(),
                "loss_count": self.loss_count,
                "weights": weight_sums(self.model),
            },
            folder / f"position-{self.args.process_index}.pt",
        )
        if self.is_world_process_zero():
            self.state.save_to_json(str(folder / "trainer_state.json"))
        if self.is_deepspeed_enabled:
            with mock.patch.object(transformers.trainer, "_is_peft_model", return_value=True):  # without what is frozen
                self._save_optimizer_and_scheduler(str(folder))
            return {}
        if not self.is_world_process_zero():
            return {}
        torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER)
        return self._on_host({_WEIGHTS: trained_state(self.model), _OPTIMIZER: self.optimizer.state_dict()}, folder)

    def _on_host(self, contents: dict[str, Any], folder: Path) -> dict[str, Any]:
        copied = self._host_copies.of(contents)
        if copied is not None:
            return dict(copied)
        for name, content in contents.items():
            torch.save(content, folder / name)
        return {}

    def resume(self, folder: Path) -> None:
        """Trains on from a state.

        Raises:
            RuntimeError: the weights after loading are not those that were saved.
        """
        position = torch.load(folder / f"position-{self.args.process_index}.pt", weights_only=True)
        self.batches = position["batches"]
        self.model.step = position["self_distill_step"]
        self.loss_sum = position["loss_sum"].to(self.args.device)
        self.loss_count = position["loss_count"]
        self._expected_weights = position["weights"]
        self.data_collator.start(self.batches)
        _move_to(self.train_dataset, self.batches)
        random.setstate(position["draws"])
        with plain_states() if self.is_deepspeed_enabled else nullcontext():
            self.train(resume_from_checkpoint=str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights = torch.load(Path(resume_from_checkpoint) / _WEIGHTS, map_location="cpu", weights_only=True)
        # what is frozen is the base model's; that nothing else is missing, the sums of all weights will tell
        (model or self.model).load_state_dict(weights, strict=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:  # upstream loads onto the device, where there is no room for a second optimizer
            for part, name in ((self.optimizer, _OPTIMIZER), (self.lr_scheduler, _SCHEDULER)):
                part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))
        # with DeepSpeed only now the weights are in place
        if weight_sums(self.model) != self._expected_weights:
            raise RuntimeError(f"the weights read from {checkpoint} are not those that were saved: remove the folder")
        if self.is_deepspeed_enabled:
            _repeat_bias_corrections(self.model_wrapped.basic_optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Leaves Python's generator alone: it draws the negatives, one batch ahead of the step."""
        draws = random.getstate()
        super()._load_rng_state(checkpoint)
        random.setstate(draws)


@contextmanager
def plain_states() -> Iterator[None]:
    """Lets `torch.load` make nothing in the block but tensors, plain values and the four classes of DeepSpeed's states.

    DeepSpeed's loaders would unpickle whatever they are given: who can write a run directory would run code where it is
    resumed. They also miss the weights that are frozen, which are the base model's.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    load = torch.load

    def plainly(*arguments: Any, **options: Any) -> Any:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            return load(*arguments, **{**options, "weights_only": True})

    with (
        mock.patch.object(torch, "load", plainly),
        mock.patch.object(transformers.trainer, "deepspeed_load_checkpoint", _load_what_is_there),
    ):
        yield


def _load_what_is_there(engine: Any, folder: str, **_: Any) -> None:
    deepspeed_load_checkpoint(engine, folder, load_module_strict=False)  # type: ignore[no-untyped-call]


def _repeat_bias_corrections(optimizer: Any) -> None:
    """Brings DeepSpeed's Adam for CPUs to the bias corrections that it had.

    It keeps them outside of its state, as a product that grows with each step; for a step that does not follow the last
    one it takes a power instead, which is rounded otherwise. Other optimizers keep theirs in their state.
    """
    on_cpu = optimizer.param_groups[0]["params"][0].device.type == "cpu"
    offloaded = hasattr(optimizer, "ds_opt_adam")  # ZeRO's optimizer
    if not (offloaded or (hasattr(optimizer, "multi_tensor_adam") and on_cpu)):
        return
    settings = (0.0, *optimizer.param_groups[0]["betas"], optimizer.param_groups[0]["eps"])
    nothing = [torch.zeros(1) for _ in range(4)]
    for step in range(1, 1 + max(int(state.get("step", 0)) for state in optimizer.state.values())):
        if offloaded:
            optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *settings, 0.0, True, *nothing)
        else:
            mode, lists = optimizer.adam_w_mode, [[tensor] for tensor in nothing]
            optimizer.multi_tensor_adam(1, nothing[0], lists, *settings, step, mode, 1, 0.0)


def _move_to(dataset: Any, batches: int) -> None:
    """Moves a dataset that keeps its own position (`same_dataset_within_batch`) to where it was after some batches."""
    if hasattr(dataset, "batch_datas"):
        for _ in range(batches // len(dataset.batch_datas)):
            dataset.refresh_epoch()
        dataset.step = batches % len(dataset.batch_datas)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's state without the parameters that no step changes."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def weight_sums(model: nn.Module) -> list[int]:
    """Returns the sum of the bits of each tensor of a model: computed on its device, and equal for equal weights."""
    return torch.stack([_bits(tensor).sum(dtype=torch.int64) for tensor in model.state_dict().values()]).tolist()


def _bits(tensor: Tensor) -> Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(whole[tensor.element_size()])
