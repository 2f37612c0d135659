"""Files and folders are whole or not there."""

from pathlib import Path

import pytest

from trainables.files import append_line, new_folder, settle_folder, write_text


def test_a_new_folder_takes_the_old_ones_place_at_its_end(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with new_folder(tmp_path / "checkpoint") as folder:
            (folder / "weights").write_text(content)
    assert (tmp_path / "checkpoint" / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    with new_folder(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("first")

    def interrupted() -> None:
        with new_folder(tmp_path / "checkpoint") as folder:
            (folder / "weights").write_text("seco")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "checkpoint" / "weights").read_text() == "first"


def test_text_and_lines(tmp_path: Path) -> None:
    write_text(tmp_path / "dev.json", "{}")
    append_line(tmp_path / "metrics.jsonl", "1")
    append_line(tmp_path / "metrics.jsonl", "2")
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.json", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("left", "whole"),
    [
        ({"checkpoint": "first", ".checkpoint.tmp": "seco"}, "first"),
        ({".checkpoint.old": "first", ".checkpoint.tmp": "second"}, "first"),
        ({"checkpoint": "second", ".checkpoint.old": "first"}, "second"),
    ],
    ids=["killed while writing", "between the renames", "before the old one went"],
)
def test_a_folder_that_was_being_replaced_is_settled(left: dict[str, str], whole: str, tmp_path: Path) -> None:
    for name, content in left.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
    settle_folder(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (tmp_path / "checkpoint/weights").read_text() == whole
