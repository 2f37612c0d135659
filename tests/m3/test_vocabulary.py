"""Rows in reach train as in the whole embedding; the others stay as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.support.m3_fixtures import make_model
from trainables.m3.embedding import ReachableEmbedding, Vocabulary, plain_embedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def train(encoder: torch.nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(steps):
        ids = torch.tensor([[0, 10 + step, 11, 2], [0, 20, 2, 1]])
        encoder(input_ids=ids, attention_mask=ids.ne(1).long()).last_hidden_state.square()[ids.ne(1)].sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_training_equals_that_of_the_whole_embedding(folder: Path) -> None:
    whole, reduced = (AutoModel.from_pretrained(folder).train() for _ in range(2))
    before = whole.get_input_embeddings().weight.detach().clone()
    vocabulary = Vocabulary(reduced, np.array([0, 1, 2, 10, 11, 12, 20]))
    assert reduced.get_input_embeddings().weight.shape == (7, 16)
    train(whole)
    train(reduced)
    with vocabulary.whole():
        after = reduced.get_input_embeddings().weight.detach().clone()
    torch.testing.assert_close(after, whole.get_input_embeddings().weight.detach())
    assert torch.equal(after[30:], before[30:])
    assert not torch.equal(after[10], before[10])


def test_whole_shows_the_rows_as_they_are_and_ends(folder: Path) -> None:
    encoder = AutoModel.from_pretrained(folder)
    vocabulary = Vocabulary(encoder, np.array([1, 5, 9]))
    reachable = encoder.get_input_embeddings()
    with torch.no_grad():
        reachable.weight[1] = 7.0
    with vocabulary.whole():
        assert encoder.get_input_embeddings().weight[5].tolist() == [7.0] * 16
        assert "embeddings.word_embeddings.weight" in encoder.state_dict()
    assert encoder.get_input_embeddings() is reachable


def test_plain_embedding() -> None:
    class Scaled(torch.nn.Embedding):
        pass

    class Encoder:
        def __init__(self, embedding: torch.nn.Module) -> None:
            self.embedding = embedding

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embedding

    plain = torch.nn.Embedding(4, 2)
    reachable = ReachableEmbedding(plain, torch.tensor([1, 2]))
    cases = {plain: True, reachable: True, Scaled(4, 2): False, torch.nn.Embedding(4, 2, max_norm=1.0): False}
    for embedding, expected in cases.items():
        assert (plain_embedding(Encoder(embedding)) is embedding) == expected  # type: ignore[arg-type]
