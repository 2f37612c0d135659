"""What ``--help`` says, of every command."""

import contextlib
import re
from collections.abc import Callable
from importlib import import_module

import pytest

from tuner.errors import RequestError, counted
from tuner.request.checks import accepted_arguments
from tuner.request.command_line import parse
from tuner.request.flags import build_parser, search_options
from tuner.request.help_texts import typed
from tuner.study.pruners import pruner_names
from tuner.study.samplers import sampler_names


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the search's command line, which prints something and exits with 0."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse(argv)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def _flags(text: str) -> dict[str, str]:
    """Flag -> what is said of it, on one line."""
    text = re.sub(r"^\w.*:$", "", text.partition("\nexamples:")[0], flags=re.MULTILINE)
    parts = re.split(r"^  (?:-h, )?(--[\w-]+)", text, flags=re.MULTILINE)
    return {flag: " ".join(body.split()) for flag, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_flag_has_one_sentence_and_one_default(said: Callable[..., str]) -> None:
    text = said("--help")
    flags = _flags(text)
    assert {f"--{name}" for name in search_options()} - set(flags) == {"--replace_search"}  # which is --replace
    assert "--replace" in flags
    for flag, words in flags.items():
        if flag not in ("--help", "--help-all", "--version"):
            assert len(re.findall(r"\(default: [^)]+\)", words)) == 1, (flag, words)
            assert words.endswith(")"), (flag, words)
    groups = ["data and model", "training", "search", "judgement", "resources", "where it runs", "output", "examples"]
    assert [text.index(f"\n{title}") for title in groups] == sorted(text.index(f"\n{title}") for title in groups)
    assert text.count("    python -m tuner.search") == 4


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_fits_a_terminal_and_says_nothing_twice(flag: str, said: Callable[..., str]) -> None:
    text = said(flag)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search("deprecated|removed in v|VALUE.*VALUE|%%|`[a-z_]*_[a-z_]*`", text, re.IGNORECASE)
    for words in _flags(text).values():
        assert len(re.findall("default", words, re.IGNORECASE)) <= 1, words


def test_all_arguments_are_listed_once_where_all_are_asked_for(said: Callable[..., str]) -> None:
    text = said("--help-all")
    assert set(_flags(text)) >= {f"--{name}" for name in accepted_arguments()}
    assert len(re.findall(r"^  --seed ", text, re.MULTILINE)) == 1
    assert said("--help_all") == text


def test_a_default_is_typed_as_shown(said: Callable[..., str]) -> None:
    flags = _flags(said("--help"))
    shown = re.search(r"\(default: (.*)\)", flags["--rungs"])
    assert shown is not None
    assert parse(["--train_data", "a", "--rungs", shown[1]]).rungs == parse(["--train_data", "a"]).rungs
    assert flags["--learning_rate"].endswith("(default: 5e-5)")
    assert flags["--run_dir"].endswith("(default: --output_dir, else runs/DATE-TIME)")
    assert [typed(value) for value in (None, 3.0, 1e-08, (0.5, 1.0), True)] == ["none", "3", "1e-8", "0.5,1", "True"]


def test_help_names_what_there_is() -> None:
    text = " ".join(build_parser().format_help().split())
    for names in (sampler_names(), pruner_names()):
        assert all(re.search(rf"\b{name}\b", text) for name in names)


@pytest.mark.parametrize("room", ["search", "data", "export", "report"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_every_command_has_help_and_a_version(room: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert import_module(f"tuner.{room}.__main__").main([flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith("m3-tuner " if flag == "--version" else f"usage: python -m tuner.{room} ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--nproc_per_node 2 --train_data a",
            "--nproc_per_node is torchrun's: leave it out where it is 1; for more, write --gpus_per_trial N",
        ),
        ("torchrun -m FlagEmbedding.finetune.embedder.encoder_only.m3 --train_data a", "Leave out `torchrun"),
        ("--train_data a --guard", r"^--guard: needs a value, DIR\|TASK; see --help$"),
        ("--versoin", "did you mean --version"),
        ("--zzz 1", "--zzz is no argument of the search, FlagEmbedding or transformers; see --help"),
    ],
)
def test_what_belongs_to_torchrun_or_to_nothing_is_told(line: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse(line.split())
    assert len(caught.value.findings) == 1


def test_one_is_not_counted_as_many() -> None:
    assert [counted(n, "row") for n in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]
    assert [counted(n, "query") for n in (1, 2)] == ["1 query", "2 queries"]
