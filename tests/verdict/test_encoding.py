"""Which arguments are no training, and what the base model encoded by them is called."""

from dataclasses import fields

from trainables.scoring.settings import ENCODING_ARGUMENTS, MODEL_ARGUMENTS, EncodingSettings
from tuner.request.arguments import upstream_arguments
from tuner.verdict.encoding import base_folder, own_settings, settings_of, shown_settings


def test_every_way_to_encode_is_an_argument_that_upstream_has() -> None:
    encoded = {field.name for field in fields(EncodingSettings)} - {"precision", "batch_tokens"}
    assert encoded | {"fp16", "bf16"} <= set(ENCODING_ARGUMENTS)
    assert {*ENCODING_ARGUMENTS, *MODEL_ARGUMENTS} <= upstream_arguments().keys()


def test_a_trial_encodes_otherwise_where_its_value_is_not_the_users() -> None:
    own = own_settings({"passage_max_len": 48, "learning_rate": 1e-5})
    assert (own["passage_max_len"], own["sentence_pooling_method"], own["query_max_len"]) == (48, "cls", 32)
    assert "learning_rate" not in own
    assert settings_of({"passage_max_len": 48, "sentence_pooling_method": "cls", "learning_rate": 2e-5}, own) == {}
    assert settings_of({"passage_max_len": 64, "temperature": 0.1}, own) == {"passage_max_len": 64}
    assert settings_of({"query_instruction_for_retrieval": None}, own) == {}


def test_the_folder_follows_from_the_settings() -> None:
    one, other = {"passage_max_len": 64, "fp16": True}, {"fp16": True, "passage_max_len": 64}
    assert base_folder({}) == "0000"
    assert base_folder(one) == base_folder(other) != base_folder({"passage_max_len": 32})
    assert base_folder(one).startswith("0000-as-")


def test_settings_are_shown_as_flags() -> None:
    shown = shown_settings({"sentence_pooling_method": "mean", "query_instruction_for_retrieval": "find: "})
    assert shown == '--sentence_pooling_method mean --query_instruction_for_retrieval "find: "'
