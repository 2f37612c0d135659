"""The bundle's ColBERT head in sentence-transformers: scored as FlagEmbedding scores it, or refused."""

import json
from pathlib import Path

import pytest
import torch
from FlagEmbedding import BGEM3FlagModel
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from transformers import AutoTokenizer

from tests.support.export_fixtures import UNIFIED, make_run
from tests.support.m3_fixtures import make_model, make_tokenizer
from tuner.errors import BundleRefusedError
from tuner.export import multi_vector
from tuner.export.bundle import write_bundle

TEXTS = ["w1 w2 w3", "w5 w5 w8 w13 w21 w34 unknown"]
MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bert", [True, False])
def test_the_colbert_head_scores_alike_in_both_libraries(normalize: bool, bert: bool, tmp_path: Path) -> None:
    asked = UNIFIED | {"normalize_embeddings": normalize, "passage_instruction_for_retrieval": "w7 "}
    bundle = write_bundle(make_run(tmp_path, arguments=asked, bert=bert), tmp_path / "bundle")
    flag = BGEM3FlagModel(
        str(bundle),
        use_fp16=False,
        devices="cpu",
        normalize_embeddings=normalize,
        passage_instruction_for_retrieval="w7 ",
    )
    model = MultiVectorEncoder(str(bundle / "colbert"), device="cpu")
    queries = flag.encode_queries(TEXTS, return_colbert_vecs=True)["colbert_vecs"]
    passages = flag.encode_corpus(TEXTS, return_colbert_vecs=True)["colbert_vecs"]
    expected = torch.tensor([[float(flag.colbert_score(query, passage)) for passage in passages] for query in queries])
    ours = model.encode_query(TEXTS)
    assert [len(vectors) for vectors in ours] == [4, 8]  # a vector for each word and the last token, not the first
    assert torch.allclose(model.similarity(ours, model.encode_document(TEXTS)), expected, atol=1e-5)


def test_the_encoder_is_in_the_bundle_once(tmp_path: Path) -> None:
    bundle = write_bundle(make_run(tmp_path, arguments=UNIFIED), tmp_path / "bundle")
    assert [path.relative_to(bundle).as_posix() for path in sorted(bundle.rglob("*.safetensors"))] == [
        "colbert/1_Dense/model.safetensors",
        "model.safetensors",
    ]
    assert json.loads((bundle / "colbert/modules.json").read_text())[-1]["type"] == MASK


def test_shards_are_found_in_the_folder_above(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments=UNIFIED)
    checkpoint = run / "trials/0007/checkpoint"
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    shards = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for shard in set(shards.values()):
        parts = {name: tensor for name, tensor in tensors.items() if shards[name] == shard}
        save_file(parts, checkpoint / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    bundle = write_bundle(run, tmp_path / "bundle")  # and both libraries agree
    written = json.loads((bundle / "colbert/model.safetensors.index.json").read_text())["weight_map"]
    assert written == {name: f"../{shard}" for name, shard in shards.items()}


def test_without_heads_or_first_token_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert not (write_bundle(make_run(tmp_path / "a"), tmp_path / "a/bundle") / "colbert").exists()
    (tmp_path / "b").mkdir()
    model = make_model(tmp_path / "b/model")
    tokenizer = make_tokenizer()
    tokenizer.cls_token = "w1"  # what no text begins with
    tokenizer.save_pretrained(model)
    bundle = write_bundle(make_run(tmp_path / "b", arguments=UNIFIED, model=model), tmp_path / "b/bundle")
    assert AutoTokenizer.from_pretrained(bundle).cls_token == "w1"
    assert not (bundle / "colbert").exists()
    assert "cannot serve the colbert head of this model" in (bundle / "README.md").read_text()


def test_a_text_that_names_the_token_is_no_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path, arguments=UNIFIED)
    corpus = run / "data/eval/corpus.jsonl"
    first = json.dumps({"_id": "p0", "title": "", "text": "w1 <s> w2"})
    corpus.write_text("\n".join([first, *corpus.read_text().splitlines()[1:]]) + "\n")
    write_bundle(run, tmp_path / "bundle")


def test_a_head_that_scores_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, arguments=UNIFIED)
    monkeypatch.setattr(multi_vector, "_first_token", lambda *_: "w1")
    with pytest.raises(BundleRefusedError, match=r"got sentence-transformers colbert 0\.0"):
        write_bundle(run, tmp_path / "bundle")
    monkeypatch.undo()
    monkeypatch.setattr(multi_vector, "_SCORE", "maxsim")
    with pytest.raises(BundleRefusedError, match=r"colbert scores must differ from FlagEmbedding's by 0\.0001 at most"):
        write_bundle(run, tmp_path / "bundle")
    assert not any("bundle" in path.name for path in tmp_path.iterdir())
