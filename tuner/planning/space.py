"""The search space, tried out before a search: what it cannot do is told before anything starts."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from search_spaces import Context, SearchSpace, load_search_space
from search_spaces.loading import suggest
from tuner.errors import RequestError
from tuner.request.arguments import translated, upstream_arguments
from tuner.request.checks import accepted_arguments, read_suggestion
from tuner.request.values import shown

_TRIALS = 50


def find_space(name: str) -> SearchSpace:
    """Returns the space called `name`, whose suggestions are in their arguments' own types.

    Raises:
        ValueError: As `load_search_space`'s, a line each.
    """
    return typed(name, load_search_space(name, read_suggestion))


def typed(name: str, space: SearchSpace) -> SearchSpace:
    """Returns `space` with its suggestions in their arguments' own types; a RequestError where they cannot be."""

    def suggest_typed(trial: optuna.Trial, context: Context) -> dict[str, Any]:
        read: dict[str, Any] = {}
        problems = []
        for argument, value in suggest(space, trial, context).items():
            try:
                is_known = argument in accepted_arguments()
                read[argument] = read_suggestion(argument, value) if is_known else value
            except ValueError as error:
                problems.append(f"--search_space {name}: it suggests {argument}={shown(value)}: {error}")
        if problems:
            raise RequestError(problems)
        return read

    return suggest_typed


def rehearse(name: str, space: SearchSpace, context: Context, *, unset: Set[str] = frozenset()) -> dict[str, list[Any]]:
    """Suggests from `space`, first the user's own settings and then at random.

    Args:
        name: What ``--search_space`` calls it.
        space: The space.
        context: The search; its `start` are the user's own settings.
        unset: Arguments of which the user has no value, nor is there one by default: not to be suggested.

    Returns:
        The arguments that it varies, and of each the values that it was seen to take, ends of ranges included.

    Raises:
        RequestError: The space raises, has no place for the user's own value or finds none, suggests what is no
            argument, or a value of another type than the argument's.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(context.start))
    returned = _suggested(name, space, context, study)
    varied = {name for arguments in returned for name in arguments}
    problems = [*_problems(study.trials, returned, varied, context.start), *_valueless(study.trials[0], unset)]
    if problems:
        raise RequestError([f"--search_space {name}: {problem}" for problem in problems])
    return {argument: _seen(argument, returned, study.trials) for argument in varied}


def _suggested(name: str, space: SearchSpace, context: Context, study: optuna.Study) -> list[dict[str, Any]]:
    """Returns the arguments of some trials."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the search
            return [suggest(typed(name, space), study.ask(), context) for _ in range(_TRIALS)]
    except RequestError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise RequestError(
            [
                f"--search_space {name}: it cannot be searched: {said}; your own settings are "
                "a trial, so the space must hold them (context.with_start and context.bounds add them)"
            ]
        ) from error


def _problems(
    trials: Sequence[FrozenTrial], returned: Sequence[Mapping[str, Any]], varied: Set[str], start: Mapping[str, Any]
) -> Iterator[str]:
    """Yields what is wrong with a space that returned the arguments `varied`, the user's own settings first."""
    suggested = {name for trial in trials for name in trial.params}
    yield from _misplaced({name: returned[0].get(name, own) for name, own in trials[0].params.items()}, start)
    for argument in _unknown(varied):
        yield f"{argument} is no argument of FlagEmbedding or transformers"
    for argument in _unknown(suggested - varied):
        yield (
            f"it suggests {argument}, which is no argument, so that your own settings cannot be a trial of it; suggest "
            "the argument itself, with log=True or choices, and return what follows from it"
        )


def _valueless(own: FrozenTrial, unset: Set[str]) -> Iterator[str]:
    """Yields a line for each suggested argument of which trial 1 would be told a value that it was not trained with."""
    for argument in sorted(unset & own.params.keys()):
        yield f"your own settings, which are trial 1, have no value of {argument}; give --{argument}"


def _seen(argument: str, returned: Sequence[Mapping[str, Any]], trials: Sequence[FrozenTrial]) -> list[Any]:
    """Values of `argument` that were returned, and where these are what was suggested, all it can be or its ends."""
    values = [arguments[argument] for arguments in returned if argument in arguments]
    own = [trial.params.get(argument) for trial in trials]
    if own != [arguments.get(argument) for arguments in returned]:
        return values
    for distribution in (trial.distributions[argument] for trial in trials if argument in trial.distributions):
        if isinstance(distribution, CategoricalDistribution):
            values += distribution.choices
        elif isinstance(distribution, IntDistribution | FloatDistribution):
            values += [distribution.low, distribution.high]
    return values


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
