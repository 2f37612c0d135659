"""The search space, tried out before a search: what it cannot do is told before anything starts."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna

from search_spaces import Context, SearchSpace
from search_spaces.loading import suggest
from tuner.errors import RequestError
from tuner.request.arguments import translated, upstream_arguments

_TRIALS = 50


def rehearse(name: str, space: SearchSpace, context: Context) -> set[str]:
    """Suggests from `space`, first the user's own settings and then at random; returns the arguments that it varies.

    Args:
        name: What ``--search_space`` calls it.
        space: The space.
        context: The search; its `start` are the user's own settings.

    Raises:
        RequestError: The space raises, has no place for the user's own value, or suggests what is no argument.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(context.start))
    returned: list[dict[str, Any]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the search
            for _ in range(_TRIALS):
                returned.append(suggest(space, study.ask(), context))
    except Exception as error:
        raise RequestError(
            [
                f"--search_space {name}: it cannot be searched: {type(error).__name__}: {error}; your own settings are "
                "a trial, so the space must hold them (context.with_start and context.bounds add them)"
            ]
        ) from error
    suggested = {name for trial in study.trials for name in trial.params}
    varied = {name for arguments in returned for name in arguments}
    problems = [
        *_misplaced({name: returned[0].get(name, own) for name, own in study.trials[0].params.items()}, context.start),
        *(f"{argument} is no argument of FlagEmbedding or transformers" for argument in _unknown(varied)),
        *(
            f"it suggests {argument}, which is no argument, so that your own settings cannot be a trial of it; suggest "
            "the argument itself, with log=True or choices, and return what follows from it"
            for argument in _unknown(suggested - varied)
        ),
    ]
    if problems:
        raise RequestError([f"--search_space {name}: {problem}" for problem in problems])
    return varied


def _misplaced(taken: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """One line for each of the user's own values that the space makes another one of, as an int range of 1.5."""
    return [
        f"{name}: your own value {own[name]} is no value of the space, which takes it for {value}; give another"
        for name, value in taken.items()
        if name in own and value != own[name]
    ]


def _unknown(names: Iterable[str]) -> list[str]:
    known = upstream_arguments()
    return sorted(name for name in translated(dict.fromkeys(names)) if name not in known)
