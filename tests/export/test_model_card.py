"""The README.md of a bundle, as the model hub and its readers find it."""

import hashlib
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from tests.support.export_fixtures import UNIFIED, command_of, make_run
from tuner.export.bundle import write_bundle


def test_card_says_how_to_set_two_lengths(bundle: Path, tmp_path: Path) -> None:
    said = "cut queries after 32 tokens and passages after 128, as `encode_query` and `encode_document`"
    assert said in (bundle / "README.md").read_text()
    run = make_run(tmp_path, arguments={"query_max_len": 64, "passage_max_len": 64})
    card = write_bundle(run, tmp_path / "bundle", verify=False) / "README.md"
    assert "tokens and passages after" not in card.read_text()


def test_card_header_is_read_by_the_hub(bundle: Path) -> None:
    card = ModelCard.load(bundle / "README.md")
    results = {(result.dataset_config, result.metric_type): result for result in card.data.eval_results}
    assert results["dense", "ndcg_at_10"].metric_value == 65.0
    assert results["hybrid", "recall_at_100"].dataset_split == "test"
    assert card.text.strip().startswith("# base-fine-tuned\n\n**Verdict: fine-tune.**")
    assert 'pooling_method="mean"' in card.text
    assert "| dense nDCG@10 | 0.6000 | - | 0.6500 | +0.0500 (+0.0200 to +0.0800) |" in card.text


def test_scores_on_given_queries_are_not_said_of_the_training_data(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    assert {result.dataset_name for result in ModelCard.load(bundle / "README.md").data.eval_results} == {"heldout"}
    digest = hashlib.sha256((bundle.parent / "data" / "eval" / "qrels" / "test.tsv").read_bytes()).hexdigest()
    assert f"| `heldout/qrels/test.tsv`, as read | sha256 `{digest}` |" in text


def test_snippets_trust_code_of_the_model_where_the_run_did(bundle: Path, tmp_path: Path) -> None:
    assert "trust_remote_code" not in (bundle / "README.md").read_text().split("## Training")[0]
    run = make_run(tmp_path, arguments={"trust_remote_code": True})
    text = (write_bundle(run, tmp_path / "bundle", verify=False, trust_remote_code=True) / "README.md").read_text()
    assert "    trust_remote_code=True,\n" in text
    assert 'SentenceTransformer("path/to/this/folder", trust_remote_code=True)' in text


def test_card_says_that_compute_score_takes_no_instruction(bundle: Path, tmp_path: Path) -> None:
    said = "`compute_score` puts no instruction before texts"
    assert said in (bundle / "README.md").read_text()
    assert said not in (write_bundle(make_run(tmp_path), tmp_path / "b", verify=False) / "README.md").read_text()


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


def test_the_bundle_says_how_many_negatives_a_query_has(bundle: Path) -> None:
    said = (
        "63 negatives a query: 2 workers x 8 rows x 4 passages, less its positive (31 for the sparse and ColBERT heads)"
    )
    for name in ("train.sh", "best_config.yaml", "README.md"):
        assert said in (bundle / name).read_text()


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
