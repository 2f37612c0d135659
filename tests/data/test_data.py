import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.m3_fixtures import make_eval
from tuner.data.command_line import main
from tuner.data.dataset import check, load, prepare
from tuner.data.splits import fingerprint
from tuner.errors import RequestError

TEN_BROKEN_ROWS = (
    b'{"query": "a", "pos": ["b"], "neg": ["c"]',
    b'["query", "pos", "neg"]',
    b'{"pos": ["b"], "neg": ["c"]}',
    b'{"query": "", "pos": ["b"], "neg": ["c"]}',
    b'{"query": "a", "pos": "b", "neg": ["c"]}',
    b'{"query": "a", "pos": [], "neg": ["c"]}',
    b'{"query": "a", "pos": ["b"], "neg": []}',
    b'{"query": "a", "pos": ["b"], "neg": ["b"]}',
    b'{"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [1, 2], "neg_scores": [1]}',
    b'{"query": "\xff", "pos": ["b"], "neg": ["c"]}',
)

HASH_OF_200_ROWS = "3184e9f3b0980c04c619e78ccc3d3ddf0ae3ebc9639091033968d150060cfd82"
"""Of `rows(200)` split with seed 42; a change of it means that results found before are not comparable."""


def rows(count: int, name: str = "问题") -> list[dict[str, Any]]:
    return [
        {"query": f"{name} {row}", "pos": [f"{name}的答案 {row}"], "neg": [f"{name}的答案 {row + 1}", "无关的段落"]}
        for row in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def judged(path: Path) -> dict[str, set[str]]:
    """Query id -> ids of the relevant passages."""
    relevant: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, score = line.split("\t")
        assert score == "1"
        relevant.setdefault(query, set()).add(passage)
    return relevant


def test_every_row_is_in_exactly_one_split(tmp_path: Path) -> None:
    given = rows(200)
    dataset = prepare([write(tmp_path / "dataset.jsonl", given)], folder=tmp_path / "data", eval_data=None, seed=42)
    trained = read(dataset.train_data[0])
    dev, test = (judged(Path(dataset.eval_data) / "qrels" / f"{split}.tsv") for split in ("dev", "test"))
    assert (dataset.rows, len(trained), len(dev), len(test)) == (120, 120, 40, 40)
    queries = {row["_id"]: row["text"] for row in read(Path(dataset.eval_data) / "queries.jsonl")}
    assert {row["query"] for row in trained} | set(queries.values()) == {row["query"] for row in given}
    assert trained == [row for row in given if row["query"] not in queries.values()]


def test_the_corpus_is_every_passage_once(tmp_path: Path) -> None:
    dataset = prepare([write(tmp_path / "dataset.jsonl", rows(200))], folder=tmp_path / "data", eval_data=None, seed=42)
    corpus = read(Path(dataset.eval_data) / "corpus.jsonl")
    assert sorted(row["text"] for row in corpus) == sorted({f"问题的答案 {row}" for row in range(201)} | {"无关的段落"})
    assert all(row["_id"] == fingerprint(row["text"]).hex() for row in corpus)


def test_a_held_out_query_has_the_positives_of_all_its_rows(tmp_path: Path) -> None:
    given = rows(300)
    for number in range(0, 300, 2):
        given[number + 1]["query"] = given[number]["query"]
    dataset = prepare([write(tmp_path / "dataset.jsonl", given)], folder=tmp_path / "data", eval_data=None, seed=42)
    relevant = judged(Path(dataset.eval_data) / "qrels" / "test.tsv")
    assert len(relevant) == 30  # a fifth of 150 different queries
    for number in range(0, 300, 2):
        query = fingerprint(given[number]["query"]).hex()
        if query in relevant:
            assert relevant[query] == {fingerprint(row["pos"][0]).hex() for row in given[number : number + 2]}


def test_ten_different_broken_rows_are_refused_together(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join(TEN_BROKEN_ROWS) + b"\n")
    with pytest.raises(RequestError) as refused:
        prepare([str(path)], folder=tmp_path / "data", eval_data=None, seed=42)
    assert [line.split(":")[1] for line in refused.value.findings] == [str(row) for row in range(1, 11)]
    assert not (tmp_path / "data").exists()


def test_held_out_queries_in_the_training_data_are_refused_by_row(tmp_path: Path) -> None:
    given = prepare([write(tmp_path / "dataset.jsonl", rows(200))], folder=tmp_path / "given", eval_data=None, seed=42)
    with pytest.raises(RequestError) as refused:
        prepare([str(tmp_path / "dataset.jsonl")], folder=tmp_path / "data", eval_data=given.eval_data, seed=42)
    assert sum("stands in dev or test" in line for line in refused.value.findings) == 50
    assert any("30 more of this kind (held-out query in training)" in line for line in refused.value.findings)


def test_with_held_out_queries_given_every_row_trains(tmp_path: Path) -> None:
    other = prepare([write(tmp_path / "other.jsonl", rows(200))], folder=tmp_path / "given", eval_data=None, seed=42)
    path = write(tmp_path / "dataset.jsonl", rows(12, "别的问题"))
    dataset = prepare([path], folder=tmp_path / "data", eval_data=other.eval_data, seed=42)
    assert {"origin": "--eval_data", "name": "eval"}.items() <= dataset.manifest["eval"].items()
    assert dataset.rows == 12
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv"):
        assert (Path(dataset.eval_data) / name).read_bytes() == (Path(other.eval_data) / name).read_bytes()


def test_hashes_depend_on_contents_and_seed_alone(tmp_path: Path) -> None:
    def prepared(name: str, seed: int) -> str:
        path = write(tmp_path / name / f"{name}.jsonl", rows(200))
        return prepare([path], folder=tmp_path / name / "data", eval_data=None, seed=seed).hash

    assert prepared("a", 42) == prepared("b", 42) == HASH_OF_200_ROWS
    assert prepared("a", 43) != prepared("b", 42)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_hashes_do_not_depend_on_the_process(tmp_path: Path, hash_seed: str) -> None:
    path = write(tmp_path / "dataset.jsonl", rows(200))
    code = (
        "import sys; from pathlib import Path; from tuner.data.dataset import prepare;"
        "print(prepare([sys.argv[1]], folder=Path(sys.argv[2]), eval_data=None, seed=42).hash)"
    )
    command = [sys.executable, "-c", code, path, str(tmp_path / "data")]
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == HASH_OF_200_ROWS


def test_names_that_mean_something_survive(tmp_path: Path) -> None:
    folder = tmp_path / "retrieval_no_in_batch_neg"
    write(folder / "b.json", rows(100, "乙"))
    write(folder / "a.jsonl", rows(100, "甲"))
    single = write(tmp_path / "sts_no_in_batch_neg.json", rows(100, "丙"))
    dataset = prepare([str(folder), single], folder=tmp_path / "data", eval_data=None, seed=42)
    assert [Path(path).name for path in dataset.train_data] == [
        "000-retrieval_no_in_batch_neg",
        "001-sts_no_in_batch_neg.jsonl",
    ]
    assert sorted(path.name for path in Path(dataset.train_data[0]).iterdir()) == ["000-a.jsonl", "001-b.jsonl"]
    assert [train["no_in_batch_neg"] for train in dataset.manifest["train"]] == [True, True]


def test_only_fields_that_training_reads_are_written(tmp_path: Path) -> None:
    given = [
        {**row, "pos_scores": [1.0], "neg_scores": [0.5, 0], "id": number, "type": None}
        for number, row in enumerate(rows(200))
    ]
    dataset = prepare([write(tmp_path / "dataset.jsonl", given)], folder=tmp_path / "data", eval_data=None, seed=42)
    assert dataset.has_scores
    assert set(read(dataset.train_data[0])[0]) == {"query", "pos", "neg", "pos_scores", "neg_scores"}


def test_one_row_with_few_negatives_does_not_limit_all(tmp_path: Path) -> None:
    given = rows(200)
    for row in given[10:]:
        row["neg"] = [f"无关的段落 {number}" for number in range(7)]
    dataset = prepare([write(tmp_path / "dataset.jsonl", given)], folder=tmp_path / "data", eval_data=None, seed=42)
    assert dataset.negatives == 7
    assert dataset.manifest["negatives_per_row"] == {"min": 2, "median": 7}


def test_a_prepared_folder_can_be_moved_and_names_no_place(tmp_path: Path) -> None:
    prepared = prepare(
        [write(tmp_path / "dataset.jsonl", rows(200))], folder=tmp_path / "data", eval_data=None, seed=42
    )
    assert str(tmp_path) not in (tmp_path / "data" / "manifest.json").read_text(encoding="utf-8")
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    loaded = load(moved)
    assert loaded.hash == prepared.hash
    assert loaded.train_data == (str(moved / "train" / "000-dataset.jsonl"),)
    assert len(read(loaded.train_data[0])) == loaded.rows


def test_preparing_again_replaces_what_was_there(tmp_path: Path) -> None:
    prepare([write(tmp_path / "a.jsonl", rows(200))], folder=tmp_path / "data", eval_data=None, seed=42)
    prepare([write(tmp_path / "b.jsonl", rows(150))], folder=tmp_path / "data", eval_data=None, seed=42)
    assert [path.name for path in (tmp_path / "data" / "train").iterdir()] == ["000-b.jsonl"]


def test_few_held_out_queries_are_a_warning(tmp_path: Path) -> None:
    dataset = prepare([write(tmp_path / "dataset.jsonl", rows(200))], folder=tmp_path / "data", eval_data=None, seed=42)
    assert [line.partition(";")[0] for line in dataset.manifest["warnings"]] == [
        "dataset.jsonl: dev has 40 queries",
        "dataset.jsonl: test has 40 queries",
    ]


def test_checking_lists_warnings_and_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.jsonl", [*rows(2), *rows(1), {"query": "空"}])
    assert [(finding.row, finding.rule, finding.fatal) for finding in check([path])] == [
        (3, "repeated row", False),
        (4, "pos missing", True),
        (4, "neg missing", True),
    ]


def test_the_command_says_the_findings_and_whether_they_are_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = write(tmp_path / "sound.jsonl", rows(2))
    broken = write(tmp_path / "broken.jsonl", [{"query": "空", "pos": ["段落"], "neg": []}])
    assert main(["check", sound]) == 0
    assert capsys.readouterr().out == "1 file, 2 good rows, 0 errors, 0 warnings\n"
    assert main(["check", sound, broken]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{broken}:1: 'neg' is an empty list")
    assert lines[-1] == "2 files, 2 good rows, 1 error, 0 warnings"


def test_the_command_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    path = write(tmp_path / "sound.jsonl", rows(1))
    command = [sys.executable, "-S", "-m", "tuner.data", "check", path]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)


def test_given_queries_that_are_too_few_to_judge_by_are_refused(tmp_path: Path) -> None:
    held_out = make_eval(tmp_path / "held-out", queries=19, passages=40)
    with pytest.raises(RequestError) as caught:
        prepare([write(tmp_path / "a.jsonl", rows(200))], folder=tmp_path / "data", eval_data=str(held_out), seed=42)
    assert [line.partition(";")[0] for line in caught.value.findings] == [
        f"{held_out}/qrels/{split}.tsv: {split} must have at least 20 queries, but has 19" for split in ("dev", "test")
    ]
