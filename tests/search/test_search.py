"""The command as a user runs it, on a real local Ray."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from tests.support.m3_fixtures import make_model, make_rows

USERS_FLAGS = """
    --train_group_size 8 --query_max_len 32 --passage_max_len 32 --pad_to_multiple_of 8 --knowledge_distillation False
    --same_dataset_within_batch True --small_threshold 0 --drop_threshold 0 --overwrite_output_dir --learning_rate 1e-5
    --fp16 --num_train_epochs 1 --per_device_train_batch_size 2 --warmup_ratio 0.1 --gradient_checkpointing
    --logging_steps 1 --save_steps 10000 --negatives_cross_device --temperature 0.02 --sentence_pooling_method cls
    --normalize_embeddings True --kd_loss_type m3_kd_loss --unified_finetuning True --use_self_distill True
    --fix_encoder False --self_distill_start_step 0 --dataloader_drop_last True
"""


def _search(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuner.search", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=cwd, check=False)


@pytest.mark.ray
@pytest.mark.timeout(420)
def test_the_users_command_searches_four_trials(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    run_dir = tmp_path / "run"
    own = ["--num_trials", "4", "--finalists", "1", "--finalist_seeds", "1", "--gpus_per_trial", "0"]
    data = ["--model_name_or_path", str(model), "--train_data", str(rows), "--output_dir", "run"]
    done = _search(*data, *shlex.split(USERS_FLAGS), *own, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--fp16 needs a GPU" in done.stdout

    result = json.loads((run_dir / "result.json").read_text())
    assert result["verdict"] in ("fine-tune", "keep the base model")
    assert sum(result["trials"].values()) == 4
    assert result["user"]["trial"] == 1
    assert len(result["best"]["ci95"]) == 2
    assert set(result["best"]["test_all"]) >= {
        f"{head}.ndcg_at_10" for head in ("dense", "sparse", "colbert", "hybrid")
    }
    mteb = json.loads((run_dir / "trials" / "0000" / "mteb.json").read_text())
    assert mteb["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(result["base"]["test"], abs=1e-4)

    study = optuna.load_study(study_name="search", storage=f"sqlite:///{run_dir}/study.db")
    assert [trial.user_attrs.get("role") for trial in study.trials][:2] == ["base", "user"]
    assert study.trials[1].params["learning_rate"] == 1e-5
    trained = result["verdict"] == "fine-tune"  # else best/ is the base model, which has no heads here
    assert (run_dir / "best" / "colbert_linear.pt").is_file() == trained
    assert "<html" in (run_dir / "report.html").read_text()[:2000]

    again = _search(*data, *own, cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a search already" in again.stderr


def test_ten_broken_rows_are_all_told_and_nothing_is_started(tmp_path: Path) -> None:
    good = {"query": "q", "pos": ["p"], "neg": ["n"]}
    broken = [
        '{"query": "a", "pos": ["b"]',
        json.dumps([1]),
        json.dumps({**good, "query": ""}),
        json.dumps({**good, "query": 3}),
        json.dumps({**good, "pos": []}),
        json.dumps({**good, "pos": "p"}),
        json.dumps({**good, "neg": []}),
        json.dumps({**good, "neg": ["p"]}),
        json.dumps({"query": "q", "neg": ["n"]}),
        json.dumps({**good, "pos_scores": [1.0, 2.0], "neg_scores": [0.0]}),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(broken) + "\n", encoding="utf-8")
    done = _search("--train_data", "rows.jsonl", "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    for row in range(1, 11):
        assert f"rows.jsonl:{row}:" in done.stderr
    assert not (tmp_path / "run" / "study.db").exists()
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.slow
def test_a_plan_is_printed_without_training(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    done = _search(
        "--model_name_or_path", str(model), "--train_data", str(rows), "--run_dir", "run", "--dry_run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "dev and" in done.stdout
    assert not (tmp_path / "run" / "study.db").exists()


def test_a_model_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", rows=120)
    done = _search("--train_data", str(rows), "--run_dir", "run", "--cache_dir", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "BAAI/bge-m3" in line
    assert "pass --model_name_or_path a local folder" in line
