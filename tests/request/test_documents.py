"""The lines that the documents tell people and programs to type: each is understood."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tuner.data.command_line import main as data_main
from tuner.errors import EXIT_REQUEST
from tuner.request.command_line import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "README.zh.md",
    "AGENTS.md",
    "docs/recipes.md",
    "docs/faq.md",
    "docs/cluster.md",
    "docs/lora.md",
)
_COMMAND = re.compile(r"^(?:    |\+)(?:[A-Z_]+=\S+ )*python -m (tuner\.(?:search|data)\b.*)", re.MULTILINE)


def _lines(document: str, command: str) -> Iterator[list[str]]:
    """Yields the arguments of each such command in a document's blocks of code."""
    text = re.sub(r"^-torchrun.*\n", "", (ROOT / document).read_text("utf-8"), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    for line in _COMMAND.findall(text):
        words = shlex.split(line, comments=True)
        if words[0] == command:
            yield words[1:]


def _named(document: str, command: str) -> list[tuple[str, list[str]]]:
    return [(document, line) for line in _lines(document, command)]


SEARCHES = [each for document in DOCUMENTS for each in _named(document, "tuner.search")]
OF_DATA = [each for document in DOCUMENTS for each in _named(document, "tuner.data")]


def test_documents_have_lines() -> None:
    assert {document for document, _ in SEARCHES} == set(DOCUMENTS)
    assert sum(document == "docs/recipes.md" for document, _ in SEARCHES) == 10
    assert [line[0] for document, line in OF_DATA if document in ("AGENTS.md", "docs/recipes.md")] == [
        "check", "mine", "mine"
    ]  # fmt: skip


@pytest.fixture
def finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the runs that lines go on from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("night", "first"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        text = yaml.safe_dump({"arguments": {"train_data": ["old.jsonl"]}})
        (tmp_path / "runs" / name / "config.yaml").write_text(text)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps({}))
    return tmp_path


@pytest.mark.usefixtures("finished_runs")
@pytest.mark.parametrize(("document", "line"), SEARCHES, ids=[document for document, _ in SEARCHES])
def test_every_line_of_a_search_is_understood(document: str, line: list[str]) -> None:
    at = line.index("--resume") if "--resume" in line and "s3://" in " ".join(line) else None
    config = parse(line if at is None else [*line[:at], *line[at + 2 :]])  # a bucket that is not there
    assert at is not None or config.arguments["train_data"], document


@pytest.mark.usefixtures("finished_runs")
@pytest.mark.parametrize(("document", "line"), OF_DATA, ids=[document for document, _ in OF_DATA])
def test_every_line_about_data_is_understood_and_lacks_the_data_alone(
    document: str, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not understood ends as argparse ends, by SystemExit."""
    assert document
    assert data_main(line) == EXIT_REQUEST
    out = capsys.readouterr()
    assert line[1] in out.out + out.err
