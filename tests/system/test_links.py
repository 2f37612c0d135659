"""The links of the documents lead to files, and to headings in them, that are there."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "search.ipynb"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "LOG.md", NOTEBOOK]


def _text(document: Path) -> str:
    if document.suffix != ".ipynb":
        return document.read_text("utf-8")
    cells = json.loads(document.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def _tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(_text(document))


def _links(document: Path) -> Iterator[str]:
    """Yields where the document's links and pictures lead, but for those to the web."""
    for token in _tokens(document):
        for child in token.children or ():
            link = str(child.attrGet("href") or child.attrGet("src") or "")
            if link and not re.match(r"[a-z]+:", link):
                yield unquote(link)


def _anchors(document: Path) -> set[str]:
    """Returns the names that GitHub gives to the headings: in small letters, without signs, hyphens for spaces."""
    tokens = _tokens(document)
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in _links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_both_readmes_lead_to_the_same_documents() -> None:
    english, chinese = (
        {link for link in _links(ROOT / name) if not link.startswith(("#", "README"))}
        for name in ("README.md", "README.zh.md")
    )
    assert english == chinese
    assert "docs/faq.md" in english
