"""The model card: README.md of a bundle, its header in the form that the hub and mteb read."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from trainables.scoring.metric import HEADS, MEASURES, Metric, head_and_measure, score_name
from tuner.export.finished_run import FinishedRun
from tuner.export.graphs import Graphs
from tuner.export.model_folder import has_heads, has_suffixes, lacking_tokens, prompts
from tuner.export.multi_vector import left_out_token, multi_vector_folder
from tuner.export.negatives import Negatives
from tuner.export.templates import render
from tuner.export.train_script import called, memory_note, tokens_note
from tuner.run_dir.object_storage import is_url
from tuner.verdict.decision import KEEP, sentence, settings_notes
from tuner.verdict.encoding import shown_settings
from tuner.versions import __version__

_TEMPLATE = "model_card_template.md"
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


def model_card(
    run: FinishedRun, arguments: Mapping[str, Any], step: Negatives, bundle: Path, graphs: Graphs | None
) -> str:
    """Returns the text of README.md.

    Args:
        run: The search, and the trained model of it.
        arguments: What best_config.json holds.
        step: What a training step with them is.
        bundle: The folder with the model in it.
        graphs: The ONNX graphs in there, if there are any.
    """
    notes = (memory_note(run), tokens_note(lacking_tokens(run, bundle)))
    training = {"step": step, "called": called(run), "training_notes": [note for note in notes if note]}
    return _card(run, arguments, bundle, graphs=graphs, **training)


def base_card(run: FinishedRun, arguments: Mapping[str, Any], bundle: Path, graphs: Graphs | None) -> str:
    """Returns the text of README.md of the base model, which the verdict is to keep; arguments as for `model_card`."""
    return _card(run, arguments, bundle, graphs=graphs)


def _card(run: FinishedRun, arguments: Mapping[str, Any], bundle: Path, **training: Any) -> str:
    """What both cards show, by the template's names."""
    settings = run.result.recommended.settings if run.result.recommended else {}
    return render(
        _TEMPLATE,
        run=run,
        result=run.result,
        header=_header(run),
        name=_name(run),
        base=_base_name(run),
        keep=KEEP,
        notes=list(map(sentence, settings_notes(run.result))),
        with_settings=f", with `{shown_settings(settings)}`" if settings else "",
        metric=Metric.read(run.result.metric),
        held_out=run.dataset.manifest["eval"],
        gains=list(_gains(run)),
        others=list(_others(run)),
        arguments=arguments,
        argument=run.argument,
        options=_options(run),
        has_heads=has_heads(bundle),
        multi_vector=left_out_token(folder) if (folder := multi_vector_folder(bundle)) else None,
        has_suffixes=has_suffixes(run),
        prompts=prompts(run),
        seeds=", ".join(f"{item.seed}: {item.dev:.4f}" for item in run.best.seeds),
        packages={package: version(package) for package in (*_PACKAGES, *["peft"] * run.has_adapters)},
        program=f"m3-tuner {__version__}",
        **training,
    )


def _base_name(run: FinishedRun) -> str:
    """The base model's name on the hub, or its folder's last two names: the last is often only `model`."""
    base = run.base_model
    return "/".join(Path(base).parts[-2:]) if _is_local(run) else base


def _is_local(run: FinishedRun) -> bool:
    return is_url(run.base_model) or Path(run.base_model).is_absolute()


def _name(run: FinishedRun) -> str:
    above, _, name = _base_name(run).rpartition("/")
    named = above if above and name == "model" else name
    return named if run.is_base else f"{named}-fine-tuned"


def _header(run: FinishedRun) -> str:
    """The YAML that the hub reads, with the scores as mteb writes them into cards: in percent."""
    heads = [head for head in HEADS if score_name(head, MEASURES[0]) in run.model.test_all]
    return ModelCardData(
        base_model=None if _is_local(run) else run.base_model,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=list(_TAGS),
        model_name=_name(run),
        eval_results=[_result(run, head, measure) for head in heads for measure in MEASURES],
    ).to_yaml()


def _result(run: FinishedRun, head: str, measure: str) -> EvalResult:
    return EvalResult(
        task_type="Retrieval",
        task_name=f"Retrieval, {head}",
        dataset_type="held-out",
        dataset_name=_judged_on(run),
        dataset_config=head,
        dataset_split="test",
        dataset_revision=run.dataset.hash,
        metric_type=measure,
        metric_value=round(100 * run.model.test_all[score_name(head, measure)], 3),
    )


def _judged_on(run: FinishedRun) -> str:
    """The folder that --eval_data named, or the training data that the queries were held out of."""
    manifest = run.dataset.manifest
    return manifest["eval"].get("name") or ", ".join(source["name"] for source in manifest["sources"])


def _gains(run: FinishedRun) -> Iterator[dict[str, Any]]:
    """One row a score on test of what the verdict is about, with its gain over the base model."""
    models = (run.result.compared, run.result.user, run.result.best)
    for score in run.best.test_all:
        if score in run.result.gains:
            values = [model.test_all.get(score) if model else None for model in models]
            yield {"name": _score_title(run, score), "scores": values, "gain": run.result.gains[score]}


def _score_title(run: FinishedRun, score: str) -> str:
    metric = Metric.read(run.result.metric)
    if score == str(metric) and not metric.is_score:
        return f"objective `{score}`" + (", the mean of both" if metric.is_pareto else "")
    head, measure = head_and_measure(score)
    return f"{head.replace('_tuned', ', tuned weights')} {_MEASURE_NAMES.get(measure, measure)}"


def _others(run: FinishedRun) -> Iterator[dict[str, Any]]:
    """One row a score of a trial that the verdict is not about: on dev, and on test where it is known."""
    models = (run.result.base, run.best, run.model)
    for split in ("dev", "test"):
        for score in getattr(run.model, f"{split}_all"):
            values = [getattr(model, f"{split}_all").get(score) if model else None for model in models]
            yield {"name": f"{score} on {split}", "scores": values}


def _options(run: FinishedRun) -> dict[str, Any]:
    """How ``BGEM3FlagModel`` is made."""
    names = [f"{kind}_instruction_{part}" for kind in ("query", "passage") for part in ("for_retrieval", "format")]
    return {
        "pooling_method": run.argument("sentence_pooling_method"),
        "normalize_embeddings": run.argument("normalize_embeddings"),
        "query_max_length": run.argument("query_max_len"),
        "passage_max_length": run.argument("passage_max_len"),
        **{name: run.argument(name) for name in names if run.trained.get(name) is not None},
        **({"trust_remote_code": True} if run.argument("trust_remote_code") else {}),
    }
