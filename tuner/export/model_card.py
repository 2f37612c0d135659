"""The model card: README.md of a bundle, its header in the form that the hub and mteb read."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from trainables.scoring.metric import HEADS, MEASURES, Metric, head_and_measure, score_name
from tuner.errors import printable
from tuner.export.finished_run import FinishedRun
from tuner.export.model_folder import has_heads, has_suffixes, lacking_tokens
from tuner.export.negatives import Negatives
from tuner.export.train_script import memory_note, tokens_note
from tuner.run_dir.object_storage import is_url
from tuner.verdict.decision import KEEP, modes, sentence, settings_notes
from tuner.verdict.encoding import shown_settings
from tuner.verdict.result import Verdict
from tuner.verdict.statistics import Comparison

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "FlagEmbedding",
    "sentence-transformers",
    "deepspeed",
    "optuna",
    "ray",
    "mteb",
)
_MEASURE_NAMES = {
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_10": "Recall@10",
    "recall_at_100": "Recall@100",
}
_TAGS = ["sentence-transformers", "FlagEmbedding", "feature-extraction", "sentence-similarity", "mteb"]


def model_card(run: FinishedRun, arguments: Mapping[str, Any], step: Negatives, bundle: Path) -> str:
    """Returns the text of README.md.

    Args:
        run: The search, and the trained model of it.
        arguments: What best_config.json holds.
        step: What a training step with them is.
        bundle: The folder with the model in it.
    """
    guarded = run.is_best and run.result.guard is not None
    parts = [
        f"# {_name(run)}\n\n{_verdict(run)}",
        f"## Scores\n\n{_scores(run)}",
        *([f"## Elsewhere\n\n{_guards(run)}"] if guarded else []),
        f"## Use\n\n{_use(run)}\n\n{_heads_note(run, bundle)}",
        f"## Training\n\n{_training(run, arguments, step, bundle)}",
        f"## Provenance\n\n{_provenance(run)}",
    ]
    return _with_header(run, parts)


def base_card(run: FinishedRun, arguments: Mapping[str, Any], bundle: Path) -> str:
    """Returns the text of README.md of the base model, which the verdict is to keep; arguments as for `model_card`."""
    heads = "" if has_heads(bundle) else " It has no sparse and colbert heads: FlagEmbedding makes random ones."
    shown = "\n".join(
        f"| {_code(name)} | {_cell(value)} |" for name, value in arguments.items() if name != "model_name_or_path"
    )
    parts = [
        f"# {_name(run)}\n\n{_verdict(run)}",
        f"## Scores\n\n{_scores(run)}",
        f"## Use\n\n{_use(run)}\n\nNothing of this model was trained.{heads} {_lengths_note(run, 'These files cut')}",
        f"## Settings\n\n| argument | value |\n|---|---|\n{shown}\n\n{_BASE_NOTE.format(trial=run.best.trial)}",
        f"## Provenance\n\n{_provenance(run)}",
    ]
    return _with_header(run, parts)


_BASE_NOTE = (
    "`best_config.json` and `best_config.yaml` hold them, too. A trained model of the search, and the command that "
    "trains it again, are written by `python -m tuner.export RUN_DIR --trial {trial} --to DIR`."
)


def _with_header(run: FinishedRun, parts: Sequence[str]) -> str:
    header = yaml.safe_dump(_header(run), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n"


def _base_name(run: FinishedRun) -> str:
    """The base model's name on the hub, or its folder's last two names: the last is often only `model`."""
    base = run.base_model
    return "/".join(Path(base).parts[-2:]) if _is_local(run) else base


def _is_local(run: FinishedRun) -> bool:
    return is_url(run.base_model) or Path(run.base_model).is_absolute()


def _name(run: FinishedRun) -> str:
    name = _base_name(run).rpartition("/")[2]
    return name if run.is_base else f"{name}-fine-tuned"


def _header(run: FinishedRun) -> dict[str, Any]:
    base = {} if _is_local(run) else {"base_model": run.base_model}
    results = [_result(run, head) for head in HEADS if score_name(head, MEASURES[0]) in run.model.test_all]
    return {
        **base,
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": _TAGS,
        "model-index": [{"name": _name(run), "results": results}],
    }


def _result(run: FinishedRun, head: str) -> dict[str, Any]:
    """One head's scores as mteb writes them into cards: in percent."""
    test = run.model.test_all
    return {
        "task": {"type": "Retrieval", "name": f"Retrieval, {head}"},
        "dataset": {
            "type": "held-out",
            "name": _judged_on(run),
            "config": head,
            "split": "test",
            "revision": run.dataset.hash,
        },
        "metrics": [{"type": name, "value": round(100 * test[score_name(head, name)], 3)} for name in MEASURES],
    }


def _judged_on(run: FinishedRun) -> str:
    """The folder that --eval_data named, or the training data that the queries were held out of."""
    manifest = run.dataset.manifest
    return manifest["eval"].get("name") or ", ".join(source["name"] for source in manifest["sources"])


def _verdict(run: FinishedRun) -> str:
    verdict, reason = run.result.verdict, run.result.reason
    text = " ".join([f"**Verdict: {verdict}.** {reason}", *map(sentence, settings_notes(run.result))])
    if run.is_base:
        return f"{text}\n\n{_of_base(run)}"
    if verdict == KEEP:
        return (
            f"{text}\n\nUse `{_base_name(run)}` as it is{_with_settings(run)}. The weights here are those of trial "
            f"{run.number}, exported because they were asked for."
        )
    if not run.is_best:
        text += (
            f"\n\nThe verdict is about trial {run.best.trial}. The weights here are those of trial {run.number}, "
            "exported because they were asked for."
        )
    return text


def _of_base(run: FinishedRun) -> str:
    return (
        f"The weights here are those of `{_base_name(run)}`, as they were{_with_settings(run)}. With these files both "
        "libraries encode as it was scored."
    )


def _with_settings(run: FinishedRun) -> str:
    settings = run.result.recommended.settings if run.result.recommended else {}
    return f", with `{shown_settings(settings)}`" if settings else ""


def _scores(run: FinishedRun) -> str:
    if not (run.is_base or run.is_best):
        return _scores_of_other(run)
    best, gains, result = run.best, run.result.gains, run.result
    queries = run.dataset.manifest["eval"]["queries"]
    encoded = result.base.encoded_as_best if result.base else None
    title = "base model, encoded alike" if encoded else "base model"
    rows = [
        f"| on test | {title} | own settings | best trial | gain (95% interval) |",
        "|---|---|---|---|---|",
        *(_score_row(run.result, metric, gains[metric]) for metric in best.test_all if metric in gains),
    ]
    about = (
        f"{queries['test']} held-out test queries, scored once; {queries['dev']} dev queries chose among the trials. "
        f"Objective: {Metric.read(result.metric).label}; on dev the best trial has {_score(best.dev)}. "
        f"The interval is a paired bootstrap over queries, p = {best.p_value:.4f}."
    )
    return "\n".join(rows) + f"\n\n{about}"


def _scores_of_other(run: FinishedRun) -> str:
    """Of a trial that the verdict is not about: dev, and test where it is known."""
    known = {"base model": run.result.base, "best trial": run.best, f"trial {run.number}": run.model}
    splits = [(split, f"{split}_all") for split in ("dev", "test") if getattr(run.model, f"{split}_all")]
    rows = [f"| | {' | '.join(known)} |", "|---|---|---|---|"]
    for split, values in splits:
        for metric in getattr(run.model, values):
            cells = [_score(getattr(model, values).get(metric)) if model else "-" for model in known.values()]
            rows.append(f"| {metric} on {split} | {' | '.join(cells)} |")
    untested = "" if run.model.test_all else " It was not scored on test."
    return "\n".join(rows) + f"\n\nTrial {run.number} was not judged.{untested}"


def _score_row(result: Verdict, score: str, gain: Comparison) -> str:
    metric = Metric.read(result.metric)
    if score == str(metric) and not metric.is_score:
        name = f"objective `{score}`" + (", the mean of both" if metric.is_pareto else "")
    else:
        head, measure = head_and_measure(score)
        name = f"{head.replace('_tuned', ', tuned weights')} {_MEASURE_NAMES.get(measure, measure)}"
    models = (result.compared, result.user, result.best)
    values = [model.test_all.get(score) if model else None for model in models]
    cells = [_score(value) for value in values]
    low, high = gain.ci95
    return f"| {name} | {' | '.join(cells)} | {gain.gain:+.4f} ({low:+.4f} to {high:+.4f}) |"


def _guards(run: FinishedRun) -> str:
    guard, mixtures = run.result.guard, run.result.mixtures
    assert guard is not None
    cells = ((_cell(task), _score(scores.base), _score(scores.best)) for task, scores in guard.tasks.items())
    rows = ["| guard task | base model | best trial |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]
    about = f"Main scores of the dense head, by mteb; a loss of more than {guard.tolerance:g} turns the verdict."
    return "\n".join(rows) + f"\n\n{about}" + (f" {mixtures.reason}" if mixtures else "")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _use(run: FinishedRun) -> str:
    trusted = ", trust_remote_code=True" if run.argument("trust_remote_code") else ""
    return f"```python\n{_flag_snippet(run)}\n```\n\n```python\n{_SENTENCE_SNIPPET.format(trust=trusted)}\n```"


def _flag_snippet(run: FinishedRun) -> str:
    names = [f"{kind}_instruction_{part}" for kind in ("query", "passage") for part in ("for_retrieval", "format")]
    given = {name: run.argument(name) for name in names if run.trained.get(name) is not None}
    options = {
        "pooling_method": run.argument("sentence_pooling_method"),
        "normalize_embeddings": run.argument("normalize_embeddings"),
        "query_max_length": run.argument("query_max_len"),
        "passage_max_length": run.argument("passage_max_len"),
        **given,
        **({"trust_remote_code": True} if run.argument("trust_remote_code") else {}),
    }
    lines = [f"    {name}={_literal(value)}," for name, value in options.items()]
    return "\n".join(
        [
            "from FlagEmbedding import BGEM3FlagModel",
            "",
            'model = BGEM3FlagModel(\n    "path/to/this/folder",\n    use_fp16=False,',
            *lines,
            ")",
            'queries = model.encode_queries(["a question"])["dense_vecs"]',
            'passages = model.encode_corpus(["a passage"])["dense_vecs"]',
        ]
    )


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


_SENTENCE_SNIPPET = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{trust})
queries = model.encode_query(["a question"])
passages = model.encode_document(["a passage"])"""


def _heads_note(run: FinishedRun, bundle: Path) -> str:
    notes = [f"`pooling_method` matters: this model was trained with `{run.argument('sentence_pooling_method')}`."]
    if run.argument("unified_finetuning"):
        notes.append("The sparse and colbert heads were trained with the encoder.")
    elif has_heads(bundle):
        notes.append(
            "Only the dense vectors were trained: the sparse and colbert heads are the base model's, unchanged."
        )
    else:
        notes.append(
            "Only the dense vectors were trained, and the base model has no sparse and colbert heads: "
            "FlagEmbedding makes random ones, so do not use them."
        )
    if (weights := run.result.hybrid_weights) and run.is_best:
        notes.append(
            f"The hybrid score is `colbert+sparse+dense` of `compute_score` with `{modes(weights['default'])}`; with "
            f"tuned weights, chosen on dev, it takes `{modes(weights['best'])}`."
        )
    if any(run.argument(f"{kind}_instruction_for_retrieval") for kind in ("query", "passage")):
        notes.append(
            "`compute_score` puts no instruction before texts: format them with it yourself, as in best_config.json, "
            "before you call it."
        )
    notes.append(_lengths_note(run, "Training cut"))
    if has_suffixes(run):
        notes.append(
            "An instruction goes on after the text, which prompts of sentence-transformers cannot say: format texts "
            "yourself there, as in best_config.json."
        )
    return " ".join(note for note in notes if note)


def _lengths_note(run: FinishedRun, cut: str) -> str:
    query, passage = run.argument("query_max_len"), run.argument("passage_max_len")
    if query == passage:
        return ""
    return (
        f"{cut} queries after {query} tokens and passages after {passage}, as `encode_query` and "
        f"`encode_document` of sentence-transformers do from version 6 on; its `encode` has one length, "
        f"{max(query, passage)}. An earlier version opens the model when `query_length` and `document_length` are "
        "taken out of sentence_bert_config.json."
    )


def _training(run: FinishedRun, arguments: Mapping[str, Any], step: Negatives, bundle: Path) -> str:
    rung = run.rung
    notes = "".join(f" {note}" for note in (memory_note(run), tokens_note(lacking_tokens(run, bundle))) if note)
    shown = "\n".join(f"| {_code(name)} | {_cell(value)} |" for name, value in run.model.params.items())
    return (
        f"Trial {run.number} of the search, {rung['step']} steps with seed {arguments['seed']}, "
        f"{rung['examples']} rows seen ({rung['fraction']:.0%} of its training): the best of its scores on dev.\n\n"
        f"| searched | value |\n|---|---|\n{shown}\n\n"
        "`bash train.sh` trains it again with FlagEmbedding alone, on "
        f"{step.workers} worker{'s' if step.workers > 1 else ''}, {step}. More or fewer workers make another model; "
        "`python -m tuner.export --gpus N` writes the command that makes the same one, or says that there is none. "
        f"`best_config.json` and `best_config.yaml` hold the same arguments; paths in them are relative to this folder."
        f"{_where_saved(rung)}{notes}{_mixed(run)}"
    )


def _cell(value: Any) -> str:
    """A value in a table: names of files and of tasks come from whoever made them."""
    return html.escape(_one_line(value), quote=False).replace("|", "\\|").replace("`", "&#96;")


def _code(value: Any) -> str:
    """A name in a table, as code; nothing in it ends the code or the row."""
    return f"`{_one_line(value).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _one_line(value: Any) -> str:
    return printable(" ".join(str(value).split()))


def _mixed(run: FinishedRun) -> str:
    alpha = run.model.alpha
    if alpha is None:
        return ""
    return (
        f"\n\nThe weights in this folder are a mixture of trained and base model, {alpha:g} to {1 - alpha:g} "
        f"(base + {alpha:g} * (trained - base)), chosen on dev and guards. `train.sh` trains the model before it was "
        "mixed; FlagEmbedding's LM-Cocktail mixes two models by such weights."
    )


def _where_saved(rung: Mapping[str, Any]) -> str:
    if rung["fraction"] == 1.0:
        return ""
    return (
        f" These weights are those of its `trained/checkpoint-{rung['step']}`; it goes on to the end of the schedule."
    )


def _provenance(run: FinishedRun) -> str:
    rows = [f"| base model | {_code(_base_name(run))} |", *_data_rows(run), *_seed_rows(run)]
    rows += [f"| {package} | {version(package)} |" for package in _PACKAGES]
    notes = "Packages are those installed when this was written. `sha256sum -c sha256sums.txt` checks the files."
    return "\n".join(["| what | which |", "|---|---|", *rows]) + f"\n\n{notes}"


def _data_rows(run: FinishedRun) -> Iterator[str]:
    yield f"| data, as split | sha256 `{run.dataset.hash}` |"
    yield f"| training rows | {run.dataset.rows} |"
    for source in run.dataset.manifest["sources"]:
        yield f"| {_code(source['name'])} | sha256 {_code(source['sha256'])} |"
    given = run.dataset.manifest["eval"]
    for name, digest in given["files"].items() if "name" in given else ():
        yield f"| {_code(given['name'] + '/' + name)}, as read | sha256 {_code(digest)} |"


def _seed_rows(run: FinishedRun) -> Iterator[str]:
    yield f"| seed of split, search and training | {run.config.seed} |"
    if not run.is_best:
        return
    scores = ", ".join(f"{item.seed}: {item.dev:.4f}" for item in run.best.seeds)
    yield f"| dev score by training seed | {scores} |"
