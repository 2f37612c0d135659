"""What is said of scoring's progress, counted by another thread's eyes."""

from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model
from trainables.tally import TALLY, Position, Tally


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    positions: list[Position] = []
    add = type(TALLY).add

    def watched(tally: Tally, passages: int) -> None:
        add(tally, passages)
        if TALLY.position is not None:
            positions.append(TALLY.position)

    monkeypatch.setattr(type(TALLY), "add", watched)
    return positions


def _eval_data(folder: Path, passages: int) -> Path:
    (folder / "qrels").mkdir(parents=True)
    lines = [f'{{"_id": "p{number}", "text": "w{number % 40} w3"}}\n' for number in range(passages)]
    (folder / "corpus.jsonl").write_text("".join(lines))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "w1"}\n')
    for split in ("dev", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp1\t1\n")
    return folder


@pytest.mark.parametrize("judge", ["ours", "mteb"])
def test_every_passage_is_counted_once(judge: str, seen: list[Position], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from trainables.scoring.checkpoint import Parts
    from trainables.scoring.scorer import EncodingSettings, Scorer

    folder = make_model(tmp_path / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), Parts(AutoModel.from_pretrained(folder), None, None)
    data, settings = _eval_data(tmp_path / "beir", 50), EncodingSettings(passage_max_len=16, batch_tokens=64)
    if judge == "ours":
        Scorer(data, tokenizer, settings).score(model, "dev")
        assert ("tokenised", 50, 0) in seen
    else:
        from trainables.scoring.mteb_judge import judge as judged

        judged(model, tokenizer, settings, data, "dev")
    embedded = [position for position in seen if position[0] == "embedded"]
    assert embedded[-1] == ("embedded", 50, 50)
    assert len(embedded) > 1
    assert TALLY.position is None
