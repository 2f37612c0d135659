"""A trainer whose state on disk is everything that its next step depends on."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import transformers.trainer
from torch import Tensor, nn
from transformers import PrinterCallback
from transformers import Trainer as HuggingFaceTrainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from trainables.failures import NonFiniteLoss
from trainables.m3.loss_scaling import SKIPPED_FOR_GOOD, LossScaling, gives_up
from trainables.memory.host_copies import HostCopies
from trainables.process import world_size

_WEIGHTS, _OPTIMIZER, _SCHEDULER = "weights.pt", "optimizer.pt", "scheduler.pt"
"""Files of a state, where DeepSpeed does not write its own."""

_DIVERGED = "the training loss and its gradients must be finite, but they were not"
_ADVICE = "lower learning_rate, or raise temperature"


class ResumableTrainer(HuggingFaceTrainer):
    """Adds up its losses on the device, and can be stopped and taken up again exactly, with DeepSpeed too.

    Transformers' own states lack what M3 needs: the weights under the names of the training model, the step that
    self-distillation starts by, and the draws of negatives for the batch that the loader has made ahead.

    Attributes:
        loss_sum: (), of the forward passes since it was last set to 0. Under a loss scaler those whose loss is not
            finite are left out.
        loss_count: forward passes that it is of.
        left_out: (), how many of them were left out.
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
        self.left_out = torch.zeros((), device=self.args.device)
        self.batches = 0
        self.scaling = LossScaling(self)
        self.add_callback(self.scaling)
        self._logged_from, self._logged_sum = -1, torch.zeros((), device=self.args.device)
        self._host_copies = HostCopies()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = (result[0] if isinstance(result, tuple) else result).detach()
        if self.scaling.is_on:
            finite = loss.isfinite()
            loss = torch.where(finite, loss, 0.0)
            self.left_out += ~finite
        self.loss_sum += loss
        self.loss_count += 1
        self.batches += 1
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trains on a batch; returns its loss, for the log.

        Raises:
            NonFiniteLoss: DeepSpeed has no lower loss scale left to try.
        """
        try:
            loss: Tensor = super().training_step(*args, **kwargs)
        except Exception as error:
            if not gives_up(error):
                raise
            raise NonFiniteLoss(f"{_DIVERGED} at the lowest loss scale: {_ADVICE}") from error
        return self._for_log(loss) if self.scaling.is_on else loss

    def _for_log(self, loss: Tensor) -> Tensor:
        """Replaces a loss that is not finite as `logging_nan_inf_filter` does, which would wait for the device."""
        if self._logged_from != self._globalstep_last_logged:
            self._logged_from, self._logged_sum = self._globalstep_last_logged, torch.zeros_like(loss)
        usual = self._logged_sum / (1 + self.state.global_step - self._logged_from)
        loss = torch.where(loss.isfinite(), loss, usual)
        self._logged_sum = self._logged_sum + loss
        return loss

    def check_loss(self) -> None:
        """Checks that training can lead somewhere; waits for the device once.

        Raises:
            NonFiniteLoss: a loss was not finite, or, under a loss scaler, as many steps in a row were skipped as no
                scale can help.
        """
        step = self.state.global_step
        if self.scaling.is_on:
            if (skipped := int(self.scaling.skipped)) >= SKIPPED_FOR_GOOD:
                raise NonFiniteLoss(f"{_DIVERGED} in {skipped} steps up to step {step}, at any loss scale: {_ADVICE}")
        elif not math.isfinite(float(self.loss_sum)):
            raise NonFiniteLoss(f"the training loss must be finite, but it was not at or before step {step}: {_ADVICE}")

    def take_mean_loss(self) -> float:
        """Returns the mean loss since it was last taken, over all workers.

        Raises:
            NonFiniteLoss: as `check_loss`, or none of the losses was finite. No scale takes part in a loss, and skipped
                steps leave the weights as they are: none of the losses after would be.
        """
        self.check_loss()
        taken = torch.stack([self.loss_sum, self.loss_count - self.left_out])
        if world_size() > 1:
            dist.all_reduce(taken)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        self.left_out = torch.zeros_like(self.left_out)
        mean = float(taken[0] / taken[1])
        if not math.isfinite(mean):
            step = self.state.global_step
            raise NonFiniteLoss(f"the mean training loss must be finite, but it is {mean} at step {step}: {_ADVICE}")
        return mean

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
                "cuda": torch.cuda.get_rng_state(self.args.device) if self.args.device.type == "cuda" else None,
                "self_distill_step": self.model.step,
                "loss_sum": self.loss_sum.cpu(),
                "loss_count": self.loss_count,
                "left_out": self.left_out.cpu(),
                "skipped": self.scaling.skipped.cpu(),
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
        if "skipped" in position:  # earlier versions' states count neither
            self.left_out = position["left_out"].to(self.args.device)
            self.scaling.skipped = position["skipped"].to(self.args.device)
        self._expected_weights = position["weights"]
        self._cuda_draws = position.get("cuda")  # earlier versions' states have none
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
        """Leaves Python's generator alone: it draws the negatives, one batch ahead of the step.

        Upstream's states of CUDA's are of all devices that a worker saw, by their number: after a resume on other
        machines these may be more, fewer, or in another order.
        """
        draws = random.getstate()
        super()._load_rng_state(checkpoint)
        random.setstate(draws)
        if checkpoint is not None and self.args.device.type == "cuda" and self._cuda_draws is not None:
            torch.cuda.set_rng_state(self._cuda_draws, self.args.device)


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
