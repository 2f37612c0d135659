"""Files and folders are whole or not there."""

from pathlib import Path

import pytest

from trainables.files import (
    CHECKSUMS,
    LISTING,
    append_line,
    files_in,
    listed,
    new_folder,
    remove_folder,
    settle_folder,
    write_text,
)


def test_a_new_folder_takes_the_old_ones_place_at_its_end(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with new_folder(tmp_path / "checkpoint") as folder:
            (folder / "weights").write_text(content)
    assert (tmp_path / "checkpoint" / "weights").read_text() == "second"
    assert files_in(tmp_path) == {"checkpoint/weights", f"checkpoint/{LISTING}"}


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


def _made(path: Path, content: str) -> None:
    with new_folder(path) as folder:
        (folder / "weights").write_text(content)


def test_what_others_put_into_a_folder_outlives_its_replacement_and_its_removal(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    _made(checkpoint, "first")
    (checkpoint / "onnx").mkdir()
    (checkpoint / "onnx" / "model.onnx").write_text("the user's own")
    _made(checkpoint, "second")
    assert (checkpoint / "weights").read_text() == "second"
    assert (checkpoint / "onnx" / "model.onnx").read_text() == "the user's own"
    remove_folder(checkpoint)
    assert files_in(tmp_path) == {"checkpoint/onnx/model.onnx"}


@pytest.mark.parametrize("new_is_there", [False, True])
def test_a_replacement_that_was_killed_is_ended(new_is_there: bool, tmp_path: Path) -> None:
    """Between its two renames, and before the old folder was gone."""
    checkpoint = tmp_path / "checkpoint"
    _made(checkpoint, "old")
    (checkpoint / "notes.txt").write_text("the user's own")
    checkpoint.rename(tmp_path / ".checkpoint.old")
    if new_is_there:
        (checkpoint).mkdir()
        (checkpoint / "weights").write_text("new")
        (checkpoint / LISTING).write_text("weights\n")
    with pytest.raises(KeyboardInterrupt), new_folder(checkpoint):
        raise KeyboardInterrupt
    assert (checkpoint / "weights").read_text() == ("new" if new_is_there else "old")
    assert (checkpoint / "notes.txt").read_text() == "the user's own"
    _made(checkpoint, "newest")
    assert files_in(tmp_path) == {f"checkpoint/{name}" for name in ("weights", "notes.txt", LISTING)}


def test_a_list_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "precious").write_text("the user's own")
    (tmp_path / "bundle" / "model").write_text("ours")
    names = ("../precious", str(tmp_path / "precious"), "model", "gone")
    (tmp_path / "bundle" / CHECKSUMS).write_text("".join(f"{'0' * 64}  {name}\n" for name in names))
    assert listed(tmp_path / "bundle") == {"model", CHECKSUMS}
    remove_folder(tmp_path / "bundle")
    assert files_in(tmp_path) == {"precious"}


def test_a_mount_point_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder cannot be renamed, and beside it is another disk."""
    (tmp_path / "disk").mkdir()
    inode = (tmp_path / "disk").stat().st_ino
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with new_folder(tmp_path / "disk") as folder:
        assert folder.is_relative_to(tmp_path / "disk")
        (folder / "weights").write_text("first")
    assert files_in(tmp_path) == {"disk/weights", f"disk/{LISTING}"}
    assert (tmp_path / "disk").stat().st_ino == inode
