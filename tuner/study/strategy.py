"""How a study decides what to try and what to stop: the one place where the choice is made."""

from dataclasses import dataclass

from tuner.request.config import SearchConfig


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What a search's suggestions and its pruning follow from, besides its seed and its history.

    The defaults are what `benchmarks/search_efficiency.py` chose on the recorded tables.
    """

    sampler: str = "tpe"
    """A name in `tuner.study.samplers.sampler_names`."""
    pruner: str = "promotion"
    """A name in `tuner.study.pruners.pruner_names`."""
    reduction_factor: int = 2
    """One in so many trials goes on at each rung."""
    startup_share: float = 1 / 3
    """Share of the trials that are drawn before TPE or the GP begin."""
    startup_most: int = 10
    """The most of them."""
    prior: bool = True
    """The trials before are drawn around the user's own settings, the ranges' middle and the best so far, too."""
    exploit: float = 0.3
    """Share of the trials after them that are drawn around the best so far."""
    extrapolate: bool = True
    """Stopped trials count with the value that they would have ended with, not as worse than every other."""

    def startup(self, trials: int) -> int:
        """Returns how many trials, the user's own among them, come before the model in a search of `trials`."""
        return max(3, min(self.startup_most, round(trials * self.startup_share - 0.5))) - 1


def strategy_of(config: SearchConfig) -> Strategy:
    """Returns the strategy of a search: what its flags say, and what no flag says."""
    return Strategy(sampler=config.sampler, pruner=config.pruner, reduction_factor=config.reduction_factor)
