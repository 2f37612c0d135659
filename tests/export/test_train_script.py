"""train.sh of a bundle: a command that FlagEmbedding accepts, and that trains the winner again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.m3.test_m3_workers import work
from tests.support.export_fixtures import UNIFIED, UPSTREAM, command_of, make_run, rename_base
from trainables.config import TrialConfig
from trainables.m3.arguments import read_command_line
from tuner.api import export_best
from tuner.export.bundle import best_arguments, write_bundle
from tuner.export.command import main
from tuner.export.finished_run import read_run


def test_train_script_is_a_command_flagembedding_accepts(bundle: Path) -> None:
    command = command_of(bundle, "--learning_rate", "1e-6")
    start = ["--standalone", "--nproc_per_node", "2", "-m", "FlagEmbedding.finetune.embedder.encoder_only.m3"]
    assert command[:5] == start
    words = [word for word in command[5:] if "deepspeed" not in word]  # reading it would set DeepSpeed up
    model, data, training = UPSTREAM.parse_args_into_dataclasses(words)
    assert Path(model.model_name_or_path).resolve() == bundle.parents[1] / "base"
    assert [Path(path).resolve() for path in data.train_data] == [bundle.parent / "data/train/000-rows.jsonl"]
    assert (data.train_group_size, training.temperature, training.warmup_steps) == (4, 0.02, 0.1)
    assert (training.unified_finetuning, training.negatives_cross_device) == (True, True)
    assert data.query_instruction_format == "{}\n{}"
    assert training.learning_rate == 1e-6  # flags given to the script win
    assert training.save_strategy == "no"


def test_weights_of_an_earlier_rung_are_saved_where_they_were_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, best_rung=1)
    assert {"save_strategy": "steps", "save_steps": 0.25}.items() <= best_arguments(run).items()
    assert "trained/checkpoint-5" in (write_bundle(run, tmp_path / "b", verify=False) / "README.md").read_text()


def test_a_winner_trained_on_the_cpu_is_trained_there_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"use_cpu": True, "negatives_cross_device": True})
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    _, _, training = UPSTREAM.parse_args_into_dataclasses(command_of(bundle)[5:])
    assert training.use_cpu
    assert not training.negatives_cross_device  # one worker; FlagEmbedding refuses it without a process group
    assert "--use_cpu False" in (bundle / "train.sh").read_text()


def test_sub_batches_are_left_out_and_their_memory_is_said(tmp_path: Path) -> None:
    """FlagEmbedding's unified fine-tuning crashes on them: it pads each sub-batch on its own."""
    run = make_run(tmp_path, arguments={**UNIFIED, "sub_batch_size": 3})
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert "sub_batch_size" not in best_arguments(run)
    _, _, training = UPSTREAM.parse_args_into_dataclasses(command_of(bundle)[5:])
    assert training.sub_batch_size is None
    for name in ("train.sh", "README.md"):
        said = " ".join((bundle / name).read_text().replace("# ", "").split())
        assert "sub-batches of 3, of the same gradients" in said
        assert "needs more memory than the search did" in said


def test_a_tokenizer_that_flagembedding_cannot_train_with_is_refused(tmp_path: Path) -> None:
    """A BERT has no end-of-sequence token."""
    run = make_run(tmp_path, arguments=UNIFIED, bert=True)
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        command_of(bundle)
    said = "cannot train the sparse head of a model whose tokenizer has no eos_token"
    assert caught.value.returncode == 2
    assert said in caught.value.stderr
    assert said in (bundle / "README.md").read_text()
    assert command_of(bundle, "--model_name_or_path", "copy")[-2:] == ["--model_name_or_path", "copy"]
    (tmp_path / "dense").mkdir()
    assert command_of(write_bundle(make_run(tmp_path / "dense", bert=True), tmp_path / "dense/bundle", verify=False))


def test_adapters_are_trained_again_by_our_own_command(tmp_path: Path) -> None:
    """FlagEmbedding has none for M3. Ours trains in sub-batches, and without an end-of-sequence token."""
    lora = {"use_lora": True, "lora_rank": 4, "target_modules": ["query", "value"], "sub_batch_size": 3}
    bundle = write_bundle(make_run(tmp_path, arguments=UNIFIED | lora, bert=True), tmp_path / "bundle", verify=False)
    command = command_of(bundle)
    assert command[:5] == ["--standalone", "--nproc_per_node", "1", "-m", "trainables.m3"]
    arguments = read_command_line(command[5:])
    assert (arguments.model.use_lora, arguments.model.lora_rank) == (True, 4)
    assert arguments.model.target_modules == ["query", "value"]
    assert arguments.training.sub_batch_size == 3
    assert "FlagEmbedding has LoRA for decoder models only" in (bundle / "train.sh").read_text()
    card = (bundle / "README.md").read_text()
    assert "trains it again with m3-tuner alone" in card
    assert "merged into the weights" in card
    done = subprocess.run(
        ["env", "PYTHON=/bin/false", "bash", str(bundle / "train.sh")], capture_output=True, text=True
    )
    assert "m3-tuner, which /bin/false does not have" in done.stderr


def test_a_python_without_flagembedding_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(make_run(tmp_path), tmp_path / "bundle", verify=False)
    script = ["env", "PYTHON=/bin/false", "bash", str(bundle / "train.sh")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PYTHON=.venv/bin/python" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "lora"), [(1, {}), (2, {}), (1, {"use_lora": True, "lora_rank": 4})])
def test_train_script_trains_the_winner_again(workers: int, lora: dict[str, Any], tmp_path: Path) -> None:
    """On two workers, with passages shared between them, which FlagEmbedding refuses to workers that train alone."""
    arguments = {**UNIFIED, **lora, "per_device_train_batch_size": 4, "num_train_epochs": 1.0, "use_cpu": True}
    run = make_run(
        tmp_path,
        arguments=arguments | {"negatives_cross_device": workers > 1},
        options={"workers_per_trial": workers},
    )
    trial = run / "trials" / "0007"
    arguments = json.loads((trial / "config.json").read_text())["arguments"] | {"learning_rate": 1e-3}
    shutil.rmtree(trial)
    config = TrialConfig(
        name="0007",
        directory=str(trial),
        arguments=arguments,
        eval_data=str(tmp_path / "heldout"),
        metric="dense.ndcg_at_10",
        rungs=(0.5, 1.0),
        workers=workers,
    )
    work({"trial": config.to_dict()}, tmp_path / "job", workers)
    (trial / "config.json").write_text(json.dumps(config.to_dict()))
    bundle = write_bundle(run, run / "best", verify=False)

    environment = {**os.environ, "PYTHON": sys.executable}
    environment["MODEL_NAME_OR_PATH"] = str(tmp_path / "base")
    subprocess.run(["bash", bundle / "train.sh"], env=environment, cwd=tmp_path, check=True)
    best = read_run(run).rung
    again = tmp_path / "trained" / ("" if best["fraction"] == 1.0 else f"checkpoint-{best['step']}")
    expected, found = (load_file(folder / "model.safetensors") for folder in (bundle, again))
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)
    untrained = load_file(tmp_path / "base" / "model.safetensors")
    assert not all(torch.allclose(expected[name], untrained[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("named", ["s3://bucket/it's } base", "models/it's } base"])
def test_a_base_that_flagembedding_cannot_load_is_asked_for(named: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rename_base(run, named, found=Path("/not/here/it's } base"))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    where = named if "://" in named else "it's } base"
    done = _run(bundle, "--train_data", "rows.jsonl")
    assert done.returncode == 2
    assert f"a copy of {where}: MODEL_NAME_OR_PATH=FOLDER, or --model_name_or_path FOLDER" in done.stderr
    assert f"#   - a copy of {where}: MODEL_NAME_OR_PATH=FOLDER" in (bundle / "train.sh").read_text()
    assert command_of(bundle, base=Path("a copy"))[5:7] == ["--model_name_or_path", "a copy"]


def _run(bundle: Path, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs train.sh with a Python that has FlagEmbedding and starts nothing."""
    python = bundle.parent / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    script = ["bash", str(bundle / "train.sh"), *flags]
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(python), **environment}
    return subprocess.run(script, capture_output=True, text=True, check=False, env=variables, cwd=bundle.parent)


def test_a_bundle_names_no_place_of_the_machine_that_it_was_made_on(bundle: Path) -> None:
    root = str(bundle.parents[1])
    for file in bundle.rglob("*"):
        if file.suffix in (".sh", ".md", ".json", ".yaml", ".txt"):
            assert root not in file.read_text("utf-8"), file
    config = json.loads((bundle / "best_config.json").read_text())
    assert (config["model_name_or_path"], config["train_data"]) == ("path/to/base", ["data/train/000-rows.jsonl"])


def test_all_that_a_bundle_needs_elsewhere_is_said_at_once(bundle: Path, tmp_path: Path) -> None:
    away = tmp_path / "other machine" / "bundle"
    shutil.copytree(bundle, away)
    done = _run(away)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "train.sh needs",
        "  - the training rows 000-rows.jsonl: TRAIN_DATA=FOLDER that has them, or --train_data FILE...",
        "  - a copy of base: MODEL_NAME_OR_PATH=FOLDER, or --model_name_or_path FOLDER",
    ]
    head = (away / "train.sh").read_text().partition("set -euo pipefail")[0]
    for said in (
        "FlagEmbedding 1.4",
        "2 workers",
        "training rows: 000-rows.jsonl",
        "a copy of base: MODEL_NAME_OR_PATH",
    ):
        assert said in head
    given = ("--train_data", "rows.jsonl", "--model_name_or_path=copy")
    assert _run(away, *given).returncode == 0
    rows = bundle.parent / "data" / "train"
    assert _run(away, TRAIN_DATA=str(rows), MODEL_NAME_OR_PATH="copy").returncode == 0
    assert _run(away, TRAIN_DATA=str(tmp_path), MODEL_NAME_OR_PATH="copy").returncode == 2


def test_a_bundle_with_its_data_needs_no_run_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rename_base(run, "BAAI/bge-m3", found=Path("/cache/models--BAAI--bge-m3/snapshots/5617a9f"))
    write_bundle(run, tmp_path / "made", verify=False, with_data=True)
    shutil.move(tmp_path / "made", tmp_path / "elsewhere")
    shutil.rmtree(run)
    assert _run(tmp_path / "elsewhere").returncode == 0
    assert "data/train/000-rows.jsonl" in (tmp_path / "elsewhere" / "sha256sums.txt").read_text()
    assert "from the Hugging Face Hub or its cache" in (tmp_path / "elsewhere" / "train.sh").read_text()


def test_a_model_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rename_base(run, "BAAI/bge-m3", found=Path("/cache/models--BAAI--bge-m3/snapshots/5617a9f"))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "best_config.json").read_text())["model_name_or_path"] == "BAAI/bge-m3"
    assert ModelCard.load(bundle / "README.md").data.base_model == "BAAI/bge-m3"
    assert command_of(bundle)[5:7] == ["--model_name_or_path", "BAAI/bge-m3"]


def test_the_command_for_other_gpus_keeps_the_negatives_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, options={"gpus_per_trial": 0})
    _, data, training = UPSTREAM.parse_args_into_dataclasses(
        command_of(write_bundle(run, tmp_path / "bundle", gpus=2, verify=False))[5:]
    )
    assert (training.per_device_train_batch_size, training.negatives_cross_device) == (4, True)  # 8 on one worker
    assert data.train_group_size == 4
    assert "--nproc_per_node 2" in (tmp_path / "bundle/train.sh").read_text()

    assert main([str(run), "--to", str(tmp_path / "other"), "--gpus", "3"]) == 2
    assert "8 queries a step cannot be divided by 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_python_exports_for_other_gpus_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.export.bundle._verify", lambda *_: None)
    run = make_run(tmp_path, options={"gpus_per_trial": 0})
    assert "--nproc_per_node 2" in (export_best(run, tmp_path / "bundle", gpus=2) / "train.sh").read_text()
