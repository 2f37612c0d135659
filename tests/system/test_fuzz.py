"""Whatever comes through a door is taken or refused in words: no traceback, and nothing sound that cannot be prepared.

A few hundred examples always, and ten thousand where slow tests run.
"""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces import Context
from search_spaces.loading import suggest
from trainables.scoring import heldout
from tuner.data import beir, dataset
from tuner.data.findings import Findings
from tuner.errors import RequestError
from tuner.planning.space import find_space, rehearse
from tuner.request.checks import accepted_arguments, read_argument
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig, option_types

FEW, MANY = 60, 1670
"""Examples a door: 6 doors are 360, and 10,020."""

OWN = Context(rows=1000, negatives=7, start={"learning_rate": 2e-5, "train_group_size": 4, "num_train_epochs": 1.0})
ARGUMENTS = sorted(accepted_arguments())
OPTIONS = sorted(option_types().keys() - {"resume", "submit"})

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
sound_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
numbers = st.one_of(st.integers(), st.floats(), st.integers(10**20, 10**400))
number_texts = st.sampled_from(
    ["1e-5", "2E3", "1_000", "0x10", "nan", "inf", "-1", "", " ", "None", "no", "True", "8", "0.5", "1e400", "٣", "½"]
)
scalars = st.one_of(st.none(), st.booleans(), numbers, any_text, number_texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)),
    max_leaves=5,
)
python_values = st.one_of(values, st.builds(Path, sound_text), st.just(object()), st.just(b"\xff"), st.tuples(scalars))
names = st.one_of(st.sampled_from(ARGUMENTS), st.sampled_from(OPTIONS), any_text)


def _check_configuration(config: SearchConfig) -> None:
    """It says of every value what a trial can take, and survives its file."""
    text = json.dumps(config.to_dict(), allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    written = yaml.safe_dump(config.to_dict(), allow_unicode=True)
    assert SearchConfig.from_dict(yaml.safe_load(written)) == config
    assert all(read_argument(name, value) == value for name, value in config.arguments.items())


def _taken(ask: Callable[[], SearchConfig]) -> bool:
    try:
        config = ask()
    except RequestError:
        return False
    _check_configuration(config)
    return True


def flags(argv: list[str]) -> bool:
    """A command line."""
    return _taken(lambda: parse(argv))


def configurations(given_: tuple[dict[Any, Any], dict[str, Any]]) -> bool:
    """`SearchConfig` from Python."""
    arguments, options = given_
    return _taken(lambda: SearchConfig(arguments=arguments, **options))


def files(text: str) -> bool:
    """A YAML file for ``--config``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return _taken(lambda: parse(["--config", str(file)]))


def spaces(text: str) -> bool:
    """A YAML file for ``--search_space``: what passes the rehearsal suggests values that every trial can take."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            space = find_space(str(file))
            rehearse(str(file), space, OWN)
        except ValueError:
            return False
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for _ in range(5):
            suggested = suggest(space, study.ask(), OWN)
            json.dumps(suggested, allow_nan=False)
            assert all(read_argument(name, value) == value for name, value in suggested.items())
        return True


SOUND_ROWS = [{"query": f"question {n}", "pos": [f"answer {n}"], "neg": [f"other {n}"]} for n in range(120)]


def rows(lines: list[bytes]) -> bool:
    """Training rows: what the check calls sound can be prepared."""
    sound = [json.dumps(row).encode() for row in SOUND_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(b"\n".join([*sound, *lines]))
        fatal = [finding for finding in dataset.check([str(file)]) if finding.fatal]
        try:
            prepared = dataset.prepare([str(file)], folder=Path(folder) / "data", eval_data=None, seed=1)
        except RequestError:
            assert fatal
            return False
        assert not fatal
        _check_training_rows(Path(prepared.train_data[0]))
        return True


def _check_training_rows(path: Path) -> None:
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        for line in filter(None, file.read_text("utf-8").split("\n")):  # not at U+0085
            row = json.loads(line)
            texts = [row["query"], *row["pos"], *row["neg"]]
            assert all(isinstance(text, str) and text for text in texts)
            scores = [*(row.get("pos_scores") or ()), *(row.get("neg_scores") or ())]
            assert all(math.isfinite(score) for score in scores)


def folders(parts: tuple[list[bytes], list[bytes], list[bytes]]) -> bool:
    """A BEIR folder: what is read without a fatal finding is written, and read by whoever scores."""
    corpus, queries, judgements = parts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "beir"
        (folder / "qrels").mkdir(parents=True)
        documents = [json.dumps({"_id": f"d{n}", "text": f"text {n}"}).encode() for n in range(5)]
        asked = [json.dumps({"_id": f"q{n}", "text": f"question {n}"}).encode() for n in range(10)]
        (folder / "corpus.jsonl").write_bytes(b"\n".join([*documents, *corpus]))
        (folder / "queries.jsonl").write_bytes(b"\n".join([*asked, *queries]))
        for first, split in ((0, "dev"), (5, "test")):
            judged = [b"query-id\tcorpus-id\tscore", *(f"q{first + n}\td{n}\t1".encode() for n in range(5))]
            own = judgements if split == "dev" else []
            (folder / "qrels" / f"{split}.tsv").write_bytes(b"\n".join([*judged, *own]))
        findings = Findings()
        evaluation = beir.read(folder, findings)
        if evaluation is None or findings.counts()[0]:
            assert findings.counts()[0]
            return False
        beir.write(evaluation, Path(name) / "written")
        _check_scored(Path(name) / "written")
        return True


def _check_scored(folder: Path) -> None:
    passages = dict(heldout.read_passages(folder))
    for split in beir.SPLITS:
        qrels = heldout.read_qrels(folder, split)
        assert heldout.read_queries(folder, qrels).keys() == qrels.keys()
        assert all(passage in passages for judged in qrels.values() for passage in judged)


def _yaml(value: Any) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return repr(value)


def _line(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:  # an int of more digits than Python writes
        return b"1" * 5000


def _plausible(name: str) -> st.SearchStrategy[Any]:
    """Values that an argument or option may well have, in one of the ways of writing them."""
    argument = accepted_arguments().get(name) or option_types()[name]
    if argument.choices:
        return st.sampled_from(argument.choices)
    if argument.is_list:
        return st.sampled_from(["1.0", "0.5 1.0"]) if "[float]" in argument.annotation else st.sampled_from(["8", "4"])
    if argument.is_bool:
        return st.one_of(st.booleans(), st.sampled_from(["True", "no", "1"]))
    if argument.is_whole:
        return st.one_of(st.integers(1, 64), st.sampled_from(["8", "8.0", 8.0, "1e1"]))
    if argument.is_number:
        return st.one_of(st.floats(1e-6, 0.9), st.sampled_from(["1e-5", "2E-5", 0.5, ".5"]))
    return st.sampled_from(["none", "some/path", "90"])


known = [*ARGUMENTS, *OPTIONS]
plausible = st.sampled_from(known).flatmap(lambda name: st.tuples(st.just(name), _plausible(name)))
plausible_arguments = st.sampled_from(ARGUMENTS).flatmap(lambda name: st.tuples(st.just(name), _plausible(name)))
some = st.lists(plausible, max_size=3).map(dict)
some_arguments = st.lists(plausible_arguments, max_size=3).map(dict)
tokens = st.one_of(
    plausible.map(lambda given_: f"--{given_[0]}={given_[1]}"),
    plausible.map(lambda given_: f"--{given_[0]}={given_[1]}"),
    st.builds("--{}".format, names),
    st.builds("--{}={}".format, names, st.one_of(sound_text, number_texts, any_text)),
    any_text,
)
SEARCHED = ["learning_rate", "temperature", "train_group_size", "weight_decay", "fp16", "lr_scheduler_type", "seed"]
plausible_choices = st.sampled_from(SEARCHED).flatmap(
    lambda name: st.tuples(
        st.just(name), st.fixed_dictionaries({"choices": st.lists(_plausible(name), min_size=1, max_size=4)})
    )
)
plausible_ranges = st.tuples(
    st.sampled_from([name for name in SEARCHED if name not in ("fp16", "lr_scheduler_type")]),
    st.fixed_dictionaries(
        {"low": st.sampled_from([1e-6, "1e-6", 1, "1"]), "high": st.sampled_from([0.9, "9e-1", 8, "8", 64])},
        optional={"log": st.booleans(), "int": st.booleans(), "step": st.sampled_from([1, 0.1, "1"])},
    ),
)
entries = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"low": scalars, "high": scalars, "step": scalars, "log": scalars, "int": scalars, "hgih": scalars}
    ),
    st.fixed_dictionaries({"choices": st.one_of(st.lists(values, max_size=4), values)}),
    values,
)
a_text = st.one_of(st.sampled_from(["a b", "c"]), sound_text, any_text)
sound_texts = st.lists(st.sampled_from(["a b", "c", "e\u0085f", "g\u2028h"]), min_size=1, max_size=2)
texts = st.lists(a_text, min_size=1, max_size=2)
NOTHING: st.SearchStrategy[dict[str, Any]] = st.just({})


def _changed(sound: st.SearchStrategy[dict[str, Any]], **odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A sound object, some of whose fields are odd, and none of them about as often."""
    change = st.one_of(NOTHING, st.fixed_dictionaries({}, optional=odd))
    return st.builds(lambda whole, part: {**whole, **part}, sound, change)


row_values = _changed(
    st.fixed_dictionaries({"query": st.sampled_from(["a b", "c", "d"]), "pos": sound_texts, "neg": sound_texts}),
    query=st.one_of(a_text, values),
    pos=st.one_of(texts, values),
    neg=st.one_of(texts, values),
    pos_scores=st.one_of(st.lists(numbers, max_size=2), values),
    neg_scores=st.one_of(st.lists(numbers, max_size=2), values),
    prompt=st.one_of(a_text, values),
    type=st.one_of(a_text, values),
)
fresh_ids = st.integers(100, 10**6).map("x{}".format)
documents = _changed(
    st.fixed_dictionaries({"_id": fresh_ids, "text": st.sampled_from(["a b", "c"])}),
    _id=st.one_of(fresh_ids, a_text, values),
    title=st.one_of(a_text, values),
    text=st.one_of(a_text, values),
)
varied = st.one_of(st.sampled_from(ARGUMENTS), any_text)
no_files = tokens.filter(lambda token: not token.startswith(("--h", "-h", "--config", "--resume")))


def _lines(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[bytes]]:
    odd = st.one_of(of.map(_line), values.map(_line), st.binary(max_size=20))
    return st.one_of(st.lists(of.map(_line), max_size=2), st.lists(odd, max_size=4))


fields = st.one_of(any_text, st.sampled_from(["q0", "d0", "1", "-2", "0", "q9"]))
judgements = st.one_of(
    st.tuples(st.sampled_from(["q0", "q1"]), st.sampled_from(["d0", "d3"]), st.sampled_from(["0", "2", "-1"])).map(
        lambda found: "\t".join(found).encode()
    ),
    st.lists(fields, max_size=5).map(lambda found: "\t".join(found).encode("utf-8", "surrogatepass")),
    st.binary(max_size=20),
)
DOORS: list[tuple[Callable[[Any], bool], st.SearchStrategy[Any]]] = [
    (flags, st.lists(no_files, max_size=4)),
    (
        configurations,
        st.one_of(
            st.tuples(some_arguments, NOTHING),
            st.tuples(
                st.dictionaries(st.one_of(names, st.integers()), python_values, max_size=4),
                st.dictionaries(st.sampled_from(OPTIONS), python_values, max_size=3),
            ),
        ),
    ),
    (files, st.one_of(some.map(_yaml), st.dictionaries(names, values, max_size=4).map(_yaml), any_text)),
    (
        spaces,
        st.one_of(
            st.lists(st.one_of(plausible_choices, plausible_ranges), min_size=1, max_size=3).map(dict).map(_yaml),
            st.dictionaries(varied, entries, max_size=3).map(_yaml),
            any_text,
        ),
    ),
    (rows, _lines(row_values)),
    (folders, st.tuples(_lines(documents), _lines(documents), st.lists(judgements, max_size=2))),
]
_IDS = [door.__name__ for door, _ in DOORS]


def _try(door: Callable[[Any], bool], strategy: st.SearchStrategy[Any], examples: int) -> None:
    """Tries a door, and makes sure that it was taken and refused often enough for that to mean something."""
    answers: list[bool] = []
    tried = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=examples == FEW,
    )
    tried(given(strategy)(lambda given_: answers.append(door(given_))))()
    assert 0.05 < sum(answers) / len(answers) < 0.95


@pytest.mark.parametrize(("door", "strategy"), DOORS, ids=_IDS)
def test_every_door_takes_or_refuses(door: Callable[[Any], bool], strategy: st.SearchStrategy[Any]) -> None:
    _try(door, strategy, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("door", "strategy"), DOORS, ids=_IDS)
def test_every_door_takes_or_refuses_ten_thousand_times(
    door: Callable[[Any], bool], strategy: st.SearchStrategy[Any]
) -> None:
    _try(door, strategy, MANY)


@settings(max_examples=FEW, deadline=None, database=None, derandomize=True)
@given(plausible_arguments, st.one_of(st.none(), sound_text, number_texts))
def test_the_same_text_is_read_alike_whoever_gives_it(likely: tuple[str, Any], odd: str | None) -> None:
    name, text = likely[0], str(likely[1]) if odd is None else odd
    data = {"train_data": "rows.jsonl"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_text(yaml.safe_dump({**data, name: text}, allow_unicode=True), "utf-8")
        answers = [
            _answer(lambda: parse(["--train_data=rows.jsonl", f"--{name}={text}"])),
            _answer(lambda: parse(["--config", str(file)])),
            _answer(lambda: SearchConfig(arguments={**data, name: text})),
        ]
    assert answers[0] == answers[1] == answers[2]


def _answer(ask: Callable[[], SearchConfig]) -> Any:
    try:
        return dict(ask().arguments)
    except RequestError as error:
        return error.findings
