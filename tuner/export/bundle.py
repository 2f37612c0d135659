"""The bundle: a model, its arguments, scores and provenance in one folder that stands alone.

``python -m tuner.export RUN_DIR --to DIR`` writes it from a finished run directory: the model that the verdict
recommends, or with ``--trial N`` the one that was asked for.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainables.files import CHECKSUMS, new_folder, sha256
from trainables.scoring.settings import EncodingSettings
from tuner.errors import BundleRefusedError, RequestError, counted
from tuner.export.finished_run import FinishedRun, read_run
from tuner.export.graphs import Graphs, check_onnx, write_graphs
from tuner.export.model_card import base_card, model_card
from tuner.export.model_folder import lacking_tokens, write_model
from tuner.export.multi_vector import left_out_token, multi_vector_folder
from tuner.export.negatives import Negatives
from tuner.export.train_script import arguments_of, copy_data, portable, train_script
from tuner.request.arguments import upstream_arguments
from tuner.run_dir.names import TRAIN_SCRIPT
from tuner.verdict.decision import KEEP, sentence, settings_notes

if TYPE_CHECKING:
    from trainables.bundle.libraries import Sample

SAMPLED_TEXTS = 4
"""Held-out queries, and passages, that are embedded to compare the libraries."""


def write_bundle(
    run_dir: Path,
    to: Path,
    *,
    gpus: int | None = None,
    trial: int | None = None,
    verify: bool = True,
    trust_remote_code: bool = False,
    with_data: bool = False,
    onnx: bool = False,
    int8: bool = False,
) -> Path:
    """Writes the bundle of a finished search; it is whole, or not there.

    Args:
        run_dir: The run directory.
        to: The bundle's folder; one that is there already is replaced.
        gpus: Workers that train.sh is for, with the same negatives a query. None: as many as trained the model.
        trial: Number of the model; 0 is the base model. None: the one that the verdict recommends.
        verify: Load what was written in FlagEmbedding and in sentence-transformers and compare embeddings.
        trust_remote_code: Code that lies beside the winner's weights may run here, as it did in training. Never taken
            from the run directory.
        with_data: Put the training data into the bundle, for train.sh; of the base model there are none.
        onnx: Write the heads as an ONNX graph, too, and compare it with the model.
        int8: And a second graph of 8-bit weights, and score both on dev.

    Returns:
        `to`.

    Raises:
        RequestError: The search is not finished, or has no winner, the trial has no weights, on `gpus` it would be
            another model, it needs `trust_remote_code`, or packages for `onnx` are missing.
        BundleRefusedError: A library does not embed as training did.
    """
    check_onnx(onnx, int8)
    run = read_run(run_dir, trial, trust_remote_code=trust_remote_code)
    _require_right_request(run, run_dir, gpus)
    with new_folder(to.resolve()) as folder, _removed_where_it_fails(folder):  # of a link, the folder that it names
        graphs = partial(_graphs, run, folder, int8) if onnx else lambda: None
        if run.is_base:
            _write_base(run, folder, graphs)
        else:
            _write_trained(run, folder, gpus or run.workers, graphs)
            if with_data:
                copy_data(run, folder)
        run.result.write(folder)
        _write_text(folder / CHECKSUMS, "".join(_checksums(folder)))
        if verify:
            _verify(run, folder)
    return to


def best_arguments(run_dir: Path, trial: int | None = None) -> dict[str, Any]:
    """Returns the model's arguments by FlagEmbedding's names, ready for its dataclasses.

    `output_dir` is left out, and so is `trust_remote_code`: whoever uses them gives it again, or not. Of the base
    model, those that it is to be used with. Where the verdict is to keep it, a warning says so first.

    Args:
        run_dir: The run directory.
        trial: See `write_bundle`.

    Raises:
        RequestError: The search is not finished, or has no winner, or there are no weights of that trial.
    """
    run = read_run(run_dir, trial)
    if run.result.verdict == KEEP:
        text = f"verdict: {KEEP}. {' '.join([run.result.reason, *map(sentence, settings_notes(run.result))])}"
        what = "those that the base model is used with" if run.is_base else f"those of trial {run.number} all the same"
        warnings.warn(f"{text} These arguments are {what}.", stacklevel=2)
    return arguments_of(run)


def check_room(to: Path) -> None:
    """Refuses a folder that holds anything, be it an earlier bundle.

    Raises:
        RequestError: Something is there, or it is the current folder.
    """
    if to.resolve() == Path.cwd():
        raise RequestError([f"--to {to}: is the folder you are in; name a new one"])
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RequestError([f"--to {to}: must be a new or empty folder, but something is there; name another"])


def _require_right_request(run: FinishedRun, run_dir: Path, gpus: int | None) -> None:
    """Refuses what cannot be written of a model, before anything is."""
    if run.needs_trust:
        raise RequestError(
            [
                f"{run_dir}: the winner was trained with --trust_remote_code, and code beside its weights would run "
                "here; give --trust_remote_code again if you trust whoever can write there"
            ]
        )
    if run.is_base and gpus is not None:
        raise RequestError([f"--gpus {gpus}: is for train.sh, and the base model has none; name a trial with --trial"])


@contextmanager
def _removed_where_it_fails(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder)
        raise


def _write_trained(run: FinishedRun, folder: Path, workers: int, graphs: Callable[[], Graphs | None]) -> None:
    trained = arguments_of(run)
    arguments = {**trained, **Negatives.of(trained, run.workers).on(workers)}
    step = Negatives.of(arguments, workers)
    write_model(run, folder)
    arguments = portable(run, arguments, folder)
    _write_arguments(folder, arguments, f"{counted(step.workers, 'worker')}, {step}")
    _write_text(folder / TRAIN_SCRIPT, train_script(run, arguments, step, lacking_tokens(run, folder)))
    (folder / TRAIN_SCRIPT).chmod(0o755)
    _write_text(folder / "README.md", model_card(run, arguments, step, folder, graphs()))


def _write_base(run: FinishedRun, folder: Path, graphs: Callable[[], Graphs | None]) -> None:
    write_model(run, folder)
    arguments = portable(run, arguments_of(run), folder)
    if arguments["model_name_or_path"] != run.base_model:
        arguments["model_name_or_path"] = "."  # these files are the model, wherever they lie
    _write_arguments(folder, arguments, f"Verdict: {run.result.verdict}. What the base model is used with.")
    _write_text(folder / "README.md", base_card(run, arguments, folder, graphs()))


def _write_arguments(folder: Path, arguments: Mapping[str, Any], comment: str) -> None:
    _write_text(folder / "best_config.json", json.dumps(arguments, indent=2, ensure_ascii=False) + "\n")
    as_yaml = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
    _write_text(folder / "best_config.yaml", f"# {comment}\n{as_yaml}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _checksums(folder: Path) -> Iterator[str]:
    """Yields the lines that ``sha256sum -c`` reads."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n"


def _graphs(run: FinishedRun, folder: Path, int8: bool) -> Graphs:
    return write_graphs(run, folder, encoding_settings(run), _sample(run, folder), int8=int8)


def _verify(run: FinishedRun, folder: Path) -> None:
    from trainables.bundle.libraries import EmbeddingsDifferError, check_bundle

    how = {"multi_vector": multi_vector_folder(folder), "trust_remote_code": run.argument("trust_remote_code")}
    try:
        check_bundle(folder, run.checkpoint, encoding_settings(run), _sample(run, folder), **how)
    except EmbeddingsDifferError as error:
        raise BundleRefusedError(f"the bundle was refused: {error}") from error


def encoding_settings(run: FinishedRun) -> EncodingSettings:
    """Returns how the model of a run was scored."""
    names = EncodingSettings.__dataclass_fields__.keys() & upstream_arguments().keys()
    return EncodingSettings(**{name: run.argument(name) for name in names})


def _sample(run: FinishedRun, folder: Path) -> "Sample":
    """Held-out texts in which every library sees the same tokens."""
    from trainables.bundle.libraries import Sample

    heldout, multi_vector = Path(run.dataset.eval_data), multi_vector_folder(folder)
    without = left_out_token(multi_vector) if multi_vector else None
    queries, passages = (_texts(heldout / name, without) for name in ("queries.jsonl", "corpus.jsonl"))
    return Sample(queries=queries, passages=passages)


def _texts(path: Path, without: str | None) -> list[str]:
    """The first texts of a file that do not contain a token, which stands for no word of theirs."""
    with path.open(encoding="utf-8") as lines:
        texts = (json.loads(line)["text"] for line in lines)
        return list(islice((text for text in texts if without is None or without not in text), SAMPLED_TEXTS))
