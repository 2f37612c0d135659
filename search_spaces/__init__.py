"""Search spaces: small functions of an Optuna trial.

A space is a function ``space(trial, context)`` that suggests values for some of FlagEmbedding's or transformers'
arguments, under their own names, and returns them as ``{argument name: value}``, with others that follow from them;
what it does not return stays as the user set it.
"""

from search_spaces.context import Context, SearchSpace
from search_spaces.loading import identity, load_search_space, names

__all__ = ["Context", "SearchSpace", "identity", "load_search_space", "names"]
