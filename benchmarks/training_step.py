"""FlagEmbedding's training step against ours: time, memory and losses on the same batches.

Each side trains in a process of its own: FlagEmbedding's unmodified runner, our runner, and as a floor the encoder
alone, forward and backward on the padded batches that FlagEmbedding makes; and our runner once more with LoRA. Models
have random weights and no dropout (FlagEmbedding draws masks for padding too, so with dropout only the distribution of
the losses is the same); adapters have theirs.

The last lines are one JSON object a case. Ratios are FlagEmbedding's figure over ours, and for LoRA that of our full
training over LoRA's; `floor_ratio` is our whole step over the bare encoder's. Memory is the peak above what the process
held when its trainer was ready; a state is what is saved to resume from, weights and optimizer.

    python benchmarks/training_step.py                    # every case that this machine can run
    python benchmarks/training_step.py --vocab 30k --quick
    python benchmarks/training_step.py --train_data rows.jsonl --steps 6
    python benchmarks/training_step.py --vocab 250k --batches        # on a GPU: the fastest and the largest batch
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TrainerCallback, XLMRobertaConfig, XLMRobertaModel, set_seed

VOCABULARIES = {"30k": 30_000, "250k": 250_002}
LORA = {"use_lora": True, "lora_rank": 16, "lora_alpha": 32}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12}
"""Dense 16-bit matrix arithmetic a second, by a part of the device's name (the makers' data sheets)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and batch shape."""

    name: str
    vocab: str
    layers: int = 6
    hidden: int = 384
    heads: int = 12
    batch: int = 4
    group: int = 8
    query_len: int = 64
    passage_len: int = 192
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    sub_batch_size: int | None = None
    steps: int = 20
    seconds: float = 1500.0
    """Longest time for one side; a side that takes longer is stopped."""


def cases(vocabularies: list[str], steps: int, quick: bool) -> list[Case]:
    """Returns the cases for this machine."""
    found = [Case(name=f"cpu-{vocab}", vocab=vocab, steps=steps) for vocab in vocabularies]
    precisions = ("bf16", "fp16") if torch.cuda.is_available() else ("fp32",)
    if torch.cuda.is_available():
        found = [replace(case, name=case.name.replace("cpu", "gpu"), precision="bf16") for case in found]
    if torch.cuda.is_available() or quick:
        found += [users_setting(precision, steps) for precision in precisions]
    return [shrunk(case) for case in found] if quick else found


def users_setting(precision: str, steps: int) -> Case:
    """Returns the case of a user who fine-tunes BGE-M3: its size, and the batch that their command asks for."""
    size = Case(name=f"large-{precision}", vocab="250k", layers=24, hidden=1024, heads=16)
    return replace(size, precision=precision, batch=2, passage_len=512, gradient_checkpointing=True, steps=steps)


def shrunk(case: Case) -> Case:
    """Returns a case that runs in seconds anywhere."""
    return replace(case, layers=2, hidden=96, heads=12, batch=2, group=4, passage_len=96, steps=min(case.steps, 4))


def write_rows(path: Path, rows: int) -> None:
    """Writes training rows of random words by Zipf's law, as long as questions and encyclopaedia paragraphs are."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]

    def text(median: float, spread: float) -> str:
        return " ".join(rng.choices(words, weights, k=max(3, int(rng.lognormvariate(0, spread) * median))))

    with path.open("w") as file:
        for _ in range(rows):
            row = {"query": text(9, 0.3), "pos": [text(105, 0.5)], "neg": [text(105, 0.5) for _ in range(15)]}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path, case: Case, train_data: Path) -> None:
    """Writes a random XLM-R and a word-level tokenizer of the data's words, filled up to the vocabulary's size."""
    size = VOCABULARIES[case.vocab]
    counts = Counter[str]()
    for line in train_data.open():
        row = json.loads(line)
        counts.update(word for text in (row["query"], *row["pos"], *row["neg"]) for word in text.split())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [word for word, _ in counts.most_common(size - len(special)) if word not in special]
    names = [*special, *words, *(f"[unused{number}]" for number in range(size))][:size]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    marks = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", **marks).save_pretrained(folder)
    set_seed(0)
    config = XLMRobertaConfig(
        vocab_size=size,
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.hidden,
        max_position_embeddings=case.passage_len + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    XLMRobertaModel(config).save_pretrained(folder)


def arguments(case: Case, folder: Path, train_data: Path) -> dict[str, Any]:
    """Returns the trainer's arguments: the M3 recipe, unified with self-distillation."""
    return {
        "model_name_or_path": str(folder / "model"),
        "train_data": [str(train_data)],
        "cache_path": str(folder / "arrow"),
        "per_device_train_batch_size": case.batch,
        "train_group_size": case.group,
        "query_max_len": case.query_len,
        "passage_max_len": case.passage_len,
        "max_steps": case.steps,
        "learning_rate": 1e-5,
        "warmup_steps": 0.1,
        "unified_finetuning": True,
        "use_self_distill": True,
        "gradient_checkpointing": case.gradient_checkpointing,
        "sub_batch_size": case.sub_batch_size,
        "pad_to_multiple_of": 8,
        "bf16": case.precision == "bf16",
        "fp16": case.precision == "fp16",
        "logging_steps": 1000,
        "seed": 42,
    }


class Memory:
    """Peak memory above that at its making: of the process on a CPU, of the allocator on a GPU."""

    def __init__(self) -> None:
        self._gpu = torch.cuda.is_available()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self._start = torch.cuda.memory_allocated() if self._gpu else _status("VmRSS")

    @property
    def peak(self) -> int:
        """Bytes."""
        return (torch.cuda.max_memory_allocated() if self._gpu else _status("VmHWM")) - self._start


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch(TrainerCallback):
    """Notes when each optimizer step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Notes the time."""
        self.ends.append(_now())


def trained(case: Case, folder: Path, train_data: Path, side: str) -> dict[str, Any]:
    """Trains and returns losses, seconds of each step but the first, and peak memory."""
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner

    from trainables.m3.arguments import build_arguments
    from trainables.m3.base_models import BaseModels
    from trainables.m3.runner import Runner

    values = arguments(case, folder, train_data) | (LORA if side == "lora" else {})
    built = build_arguments(values, str(folder / side))
    runner: Any
    if side == "upstream":
        runner = EncoderOnlyEmbedderM3Runner(*built)
    else:
        # the copy for later trials is part of a search, not of a step
        runner = Runner(built, BaseModels(), [], folder / "tokens")
    watch = Stopwatch()
    runner.trainer.add_callback(watch)
    losses: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    compute_loss = runner.trainer.compute_loss

    def record(model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        if "texts" in inputs:
            tokens.append(torch.from_numpy(inputs["texts"]["lengths"]).sum())
        else:
            tokens.append(sum(inputs[part]["attention_mask"].sum() for part in ("queries", "passages")))
        loss = compute_loss(model, inputs, **kwargs)
        losses.append(loss.detach())
        return loss

    runner.trainer.compute_loss = record
    memory = Memory()
    runner.trainer.train()
    seconds = [after - before for before, after in zip(watch.ends, watch.ends[1:], strict=False)]
    return {
        "losses": [float(loss) for loss in losses],
        "seconds": seconds,
        "peak": memory.peak,
        "tokens": statistics.mean(int(count) for count in tokens),
        "state": 0 if side == "upstream" else _state_bytes(runner.trainer, folder / side),
    }


def _state_bytes(trainer: Any, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    for name, content in trainer.capture_state(folder).items():
        torch.save(content, folder / name)
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def floor(case: Case, folder: Path, train_data: Path) -> dict[str, Any]:
    """Runs the encoder forward and backward on upstream's padded batches; returns seconds and tokens of each."""
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner

    from trainables.m3.arguments import build_arguments

    built = build_arguments(arguments(case, folder, train_data), str(folder / "floor"))
    runner = EncoderOnlyEmbedderM3Runner(*built)
    encoder = runner.model.model.train()
    if case.gradient_checkpointing:
        encoder.gradient_checkpointing_enable()
    device = next(encoder.parameters()).device
    reduced = torch.float16 if case.precision == "fp16" else torch.bfloat16
    seconds, tokens = [], []
    for step, batch in enumerate(runner.trainer.get_train_dataloader()):
        if step == min(case.steps, 8):
            break
        start = _now()
        with torch.autocast(device.type, reduced, enabled=case.precision != "fp32"):
            sides = [batch[side].to(device) for side in ("queries", "passages")]
            loss = torch.stack([encoder(**side).last_hidden_state[:, 0].float().sum() for side in sides]).sum()
        torch.autograd.backward(loss)
        encoder.zero_grad()
        seconds.append(_now() - start)
        tokens.append(sum(int(side["attention_mask"].sum()) for side in sides))
    return {
        "seconds": seconds[1:],
        "tokens": statistics.mean(tokens),
        "padded": sum(s["input_ids"].numel() for s in sides),
    }


def in_process(case: Case, folder: Path, train_data: Path, side: str) -> dict[str, Any] | None:
    """Runs one side in a fresh process; returns None where it runs out of memory or time."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--train_data", str(train_data)]
    command += ["--case", json.dumps(asdict(case))]
    print(f"{case.name}: {side} ...", flush=True)
    log = folder / f"{side}.log"
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=case.seconds, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{case.name}: {side} took more than {case.seconds:.0f} s and was stopped")
            return None
    if done.returncode:
        print(f"{case.name}: {side} ended with code {done.returncode}: {log.read_text()[-600:]}")
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(case: Case, folder: Path, train_data: Path) -> dict[str, Any] | None:
    """Measures one case, prints it and returns its summary."""
    write_model(folder / "model", case, train_data)
    sides = {side: in_process(case, folder, train_data, side) for side in ("floor", "ours", "lora", "upstream")}
    bare, ours, lora, upstream = sides.values()
    if bare is None or ours is None or lora is None or upstream is None:
        return None
    print("step  FlagEmbedding        ours")
    for step, (theirs, own) in enumerate(zip(upstream["losses"], ours["losses"], strict=True), start=1):
        print(f"{step:4d}  {theirs:13.6f} {own:13.6f}")
    median = {name: statistics.median(side["seconds"]) for name, side in sides.items() if side}
    for name, side in (("upstream", upstream), ("ours", ours), ("lora", lora)):
        rate = bare["tokens"] / median[name]
        memory = f"peak {side['peak'] / 2**20:8.0f} MiB, state {side['state'] / 2**20:8.1f} MiB"
        share = "" if name == "lora" else _mfu(case, rate)
        print(f"{name:9s} {median[name]:8.3f} s a step, {memory}, {rate:8.0f} tokens/s{share}")
    print(f"floor     {median['floor']:8.3f} s a step; {bare['tokens']:.0f} tokens a batch, {bare['padded']} padded")
    return {
        "case": case.name,
        "vocab": case.vocab,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "step_time_ratio": round(median["upstream"] / median["ours"], 2),
        "peak_memory_ratio": round(upstream["peak"] / ours["peak"], 2),
        "floor_ratio": round(median["ours"] / median["floor"], 3),
        "lora_step_time_ratio": round(median["ours"] / median["lora"], 2),
        "lora_peak_memory_ratio": round(ours["peak"] / lora["peak"], 2),
        "lora_state_ratio": round(ours["state"] / lora["state"], 1),
        "max_loss_diff": max(abs(a - b) for a, b in zip(upstream["losses"], ours["losses"], strict=True)),
    }


def _mfu(case: Case, tokens_per_second: float) -> str:
    """Returns the share of the device's arithmetic that the encoder's matrix products use (6 per weight and token)."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    weights = 12 * case.layers * case.hidden**2
    return f", {6 * weights * tokens_per_second / peak:.0%} model FLOP utilisation" if peak else ""


def try_batches(case: Case, folder: Path, train_data: Path, most: int) -> None:
    """Doubles the batch of each side, 6 steps each, until it does not fit: prints each rate, so also the best one."""
    write_model(folder / "model", case, train_data)
    ways = {
        "upstream": case,
        "ours": replace(case, gradient_checkpointing=False),
        "ours in sub-batches of 32": replace(case, gradient_checkpointing=False, sub_batch_size=32),
    }
    for way, tried in ways.items():
        batch = tried.batch
        while batch <= most and (done := _one_batch(replace(tried, batch=batch, steps=6), way, folder, train_data)):
            rate = done["tokens"] / statistics.median(done["seconds"])
            print(f"{case.name}: {way}, batch {batch}: {rate:,.0f} tokens/s{_mfu(case, rate)}", flush=True)
            batch *= 2
        print(f"{case.name}: largest batch of {way}: {batch // 2}", flush=True)


def _one_batch(case: Case, way: str, folder: Path, train_data: Path) -> dict[str, Any] | None:
    return in_process(case, folder, train_data, way.split()[0])


def main() -> None:
    """Runs the cases asked for, or one side of one case (internal)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocab", choices=VOCABULARIES, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--quick", action="store_true", help="a tiny model and 4 steps: does it run?")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--train_data", type=Path, help="training rows in FlagEmbedding's format; default: random words"
    )
    parser.add_argument("--batches", action="store_true", help="also find the fastest and the largest batch")
    parser.add_argument("--most_rows", type=int, default=2048, help="with --batches: the largest batch to try")
    for internal in ("--side", "--folder", "--case"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run: Callable[..., dict[str, Any]] = floor if options.side == "floor" else trained
        case = Case(**json.loads(options.case))
        more = () if options.side == "floor" else (options.side,)
        print(json.dumps(run(case, Path(options.folder), options.train_data, *more)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_data = options.train_data or folder / "rows.jsonl"
        if not options.train_data:
            write_rows(train_data, rows=100 if options.quick else max(400, 2 * options.most_rows * options.batches))
        summaries = []
        for case in cases(options.vocab, options.steps, options.quick):
            (folder / case.name).mkdir()
            summaries.append(compare(case, folder / case.name, train_data))
            if options.batches and case.name.startswith("large"):
                try_batches(case, folder / case.name, train_data, options.most_rows)
        for summary in summaries:
            if summary is not None:
                print(json.dumps(summary))


if __name__ == "__main__":
    main()
