"""What a search is over: written down in its study once, and compared whenever it goes on."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from search_spaces import identity
from trainables.deepspeed_config import DS_STAGE0
from trainables.files import sha256
from tuner.data.dataset import Dataset
from tuner.errors import AnotherSearchError, RequestError
from tuner.request.arguments import searchable_numbers, translated, upstream_arguments
from tuner.request.config import SearchConfig
from tuner.study.storage import open_storage, readable
from tuner.study.study import study_names

_HARMLESS = re.compile(
    "train_data|model_name_or_path|seed|max_steps|warmup_steps|sub_batch_size|gradient_checkpointing|disable_tqdm|"
    "report_to|run_name|project|trackio_.*|.*token|push_to_hub.*|hub_.*|log(ging)?_.*|save_.*|eval_.*|do_.*|"
    "output_dir|cache_.*|resume_from_checkpoint|dataloader_(num_workers|p).*|ddp_timeout|debug|trust_remote_code|"
    "skip_memory_metrics|include_.*|load_best_model_at_end|metric_for_best_model|greater_is_better|use_cpu"
)
"""Arguments that no score depends on, or that other facts hold."""


def facts(config: SearchConfig, dataset: Dataset) -> dict[str, Any]:
    """What a search is over, and what its trials can be compared by: it goes on over nothing else."""
    return {
        "data_hash": dataset.hash,
        "search_space": identity(str(config.search_space)),
        "metric": config.metric,
        "model": config.model_name_or_path,
        "rungs": list(config.rungs),
        "candidate_pool_size": config.candidate_pool_size,
        "seed": config.seed,
        "workers": config.workers,
        "arguments": {
            **_decisive(config.arguments),
            **searchable_numbers(config.arguments, rows=dataset.rows, workers=config.workers),
        },
    }


def _decisive(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The user's arguments that change what a trial computes, where they are not upstream's defaults."""
    known = upstream_arguments()
    given = {
        name: _content(value)
        for name, value in translated(arguments).items()
        if not _HARMLESS.fullmatch(name) and (name not in known or value != known[name].default)
    }
    return dict(json.loads(json.dumps(given, default=str)))


def _content(value: Any) -> Any:
    """What tells a value from others: of a settings file the content, wherever it lies."""
    if not isinstance(value, str) or not value.endswith(".json"):
        return value
    path = Path(value) if Path(value).is_file() else DS_STAGE0
    return f"a file of content {sha256(path)[:12]}"


def claim(study: optuna.Study, facts: Mapping[str, Any]) -> None:
    """Writes down what a search is over, or refuses to go on over something else.

    Args:
        study: The search.
        facts: From `facts`.

    Raises:
        AnotherSearchError: A fact differs from what the study holds.
    """
    _refuse_others(facts, study.user_attrs)
    for name, value in facts.items():
        study.set_user_attr(name, value)


def require_untaken(storage: optuna.storages.BaseStorage, name: str | None) -> None:
    """Refuses a study that another search has begun: two would hand out the same trials.

    Args:
        storage: Where studies are.
        name: ``--study_name`` of a search that begins.

    Raises:
        RequestError: The study of that name has trials.
    """
    search, _ = study_names(name)
    if search not in optuna.get_all_study_names(storage):
        return
    trials = optuna.load_study(study_name=search, storage=storage).get_trials(deepcopy=False)
    begun = sum(trial.state != TrialState.WAITING for trial in trials)
    if begun:
        raise RequestError(
            [
                f"--study_name {search}: the storage has a study of that name with {begun} trials; take it up with "
                "--resume and its run directory, or give another --study_name"
            ]
        )


def check_claim(facts: Mapping[str, Any], run_dir: Path, storage: str | None, name: str | None) -> None:
    """Refuses what `claim` would refuse, and leaves the study as it is.

    Args:
        facts: What the search is over now.
        run_dir: The run directory.
        storage: The storage URL where it is not RUN/study.db.
        name: ``--study_name`` of the search.

    Raises:
        AnotherSearchError: A fact differs from what the study holds.
        RequestError: The storage cannot be read.
    """
    if storage is None and not (run_dir / "study.db").exists():
        return
    opened = open_storage(storage, run_dir)
    with readable(storage):
        if study_names(name)[0] in optuna.get_all_study_names(opened):
            _refuse_others(facts, optuna.load_study(study_name=study_names(name)[0], storage=opened).user_attrs)


def _refuse_others(facts: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    differing = [line for name, value in facts.items() if name in known for line in _changes(name, known[name], value)]
    if differing:
        raise AnotherSearchError(differing)


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """One line for a fact that changed; for a mapping, one for each of its names."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for part in sorted({*before, *now}):
            yield from _changes(part, before.get(part, "the default"), now.get(part, "the default"))
    elif before != now:
        yield f"--resume: {name} was {before} when the search began and is {now} now; start a new --run_dir"
