"""ONNX graphs of a bundle: what they compute, what is refused, what the card says."""

import re
from pathlib import Path
from typing import Any

import pytest
from FlagEmbedding import BGEM3FlagModel

from tests.support.export_fixtures import UNIFIED, make_run
from trainables.scoring.encoding import pool
from trainables.scoring.heldout import read_passages, read_qrels, read_queries
from tuner.errors import EXIT_REQUEST, BundleRefusedError
from tuner.export import graphs
from tuner.export.bundle import write_bundle
from tuner.export.command import main

TEXTS = ["w1 w2 w3 w2", "w5 w5 w8 w13 w21 w34 unknown"]
ASKED = UNIFIED | {"passage_instruction_for_retrieval": "w7 ", "sentence_pooling_method": "mean"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    assert main([str(make_run(root, arguments=ASKED)), "--to", str(root / "bundle"), "--onnx", "--int8"]) == 0
    return root / "bundle"


def _snippet(bundle: Path) -> dict[str, Any]:
    """Runs the card's own lines."""
    (code,) = [
        code for code in re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.S) if "onnx" in code
    ]
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(bundle)), names)
    return names


@pytest.mark.integration
def test_the_cards_lines_embed_as_flagembedding_does(bundle: Path) -> None:
    names = _snippet(bundle)
    assert len(names["passages"][0]["dense"]) == 16
    flag = BGEM3FlagModel(
        str(bundle),
        use_fp16=False,
        devices="cpu",
        pooling_method="mean",
        return_sparse=True,
        return_colbert_vecs=True,
        passage_instruction_for_retrieval="w7 ",
    )
    expected = flag.encode_corpus(TEXTS)
    for number, found in enumerate(names["embed"](["w7 " + text for text in TEXTS], 128)):
        assert found["dense"] == pytest.approx(expected["dense_vecs"][number], abs=1e-5)
        assert found["colbert"] == pytest.approx(expected["colbert_vecs"][number], abs=1e-5)
        weights = {int(token): weight for token, weight in expected["lexical_weights"][number].items()}
        assert found["sparse"] == pytest.approx(weights, abs=1e-5)


@pytest.mark.integration
def test_the_card_says_what_int8_loses(bundle: Path) -> None:
    (row,) = [line for line in (bundle / "README.md").read_text().splitlines() if line.startswith("| onnx/heads_int8")]
    assert re.search(r"dense 0\.\d{4} \([+-]0\.\d{4}\), sparse 0\.\d{4} \(.*\), colbert 0\.\d{4} \(.*\) \|$", row)
    assert "Scored on 20 dev queries and 40 passages." in (bundle / "README.md").read_text()
    listed = (bundle / "sha256sums.txt").read_text()
    assert "onnx/heads.onnx\n" in listed
    assert "onnx/heads.onnx.data\n" in listed
    assert len({file.stat().st_mode for file in (bundle / "onnx").iterdir()}) == 1


@pytest.mark.slow
def test_a_graph_that_embeds_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.bundle.onnx_model.pool", lambda states, mask, _: pool(states, mask, "mean"))
    with pytest.raises(BundleRefusedError, match=r"ONNX Runtime must embed as the model .* got dense 0\.\d+; export"):
        write_bundle(make_run(tmp_path), tmp_path / "bundle", onnx=True)
    assert not any("bundle" in path.name for path in tmp_path.iterdir())


def test_int8_alone_and_missing_packages_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = [str(tmp_path), "--to", str(tmp_path / "bundle")]
    assert main([*there, "--int8"]) == EXIT_REQUEST
    assert "error: --int8: is a second ONNX graph; give --onnx, too" in capsys.readouterr().err
    monkeypatch.setattr(graphs, "_PACKAGES", ("json", "no_such_package"))
    assert main([*there, "--onnx"]) == EXIT_REQUEST
    assert "--onnx: needs no_such_package; run pip install 'm3-tuner[onnx]'" in capsys.readouterr().err


def test_a_part_of_dev_has_what_its_queries_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heldout, part = make_run(tmp_path) / "data/eval", tmp_path / "part"
    part.mkdir()
    monkeypatch.setattr(graphs, "_QUERIES", 3)
    monkeypatch.setattr(graphs, "_PASSAGES", 5)
    assert graphs.part_of_dev(heldout, part) == (3, 8)  # each query has one passage
    qrels, whole = read_qrels(part, "dev"), read_qrels(heldout, "dev")
    assert qrels == {query: whole[query] for query in list(read_queries(heldout, whole))[:3]}
    passages = dict(read_passages(part))
    assert {passage for judged in qrels.values() for passage in judged} <= passages.keys()
    assert passages.items() <= dict(read_passages(heldout)).items()
