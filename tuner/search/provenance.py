"""The processes that a search has run in: when each began, on which machines, with which versions.

They are kept in the study, and told in the report.
"""

import datetime
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tuner.cluster.connection import address_of
from tuner.cluster.machines import machines
from tuner.cluster.slot import Slots
from tuner.planning.own_checks import machine
from tuner.request.config import SearchConfig
from tuner.study.study import SearchStudy
from tuner.study.trials import SESSIONS

_NAMED = ("m3-tuner", "torch", "transformers", "FlagEmbedding", "sentence-transformers", "optuna", "ray", "mteb")
_MOST = 20
"""How many sessions are kept, the first and the last ones."""


class Provenance:
    """One process of a search, written down in its study.

    Args:
        study: The search.
        config: What was asked.
        slots: Where its trials run.
    """

    def __init__(self, study: SearchStudy, config: SearchConfig, slots: Slots) -> None:
        self._study = study
        self.machines = machine(config) if address_of(config) is None else machines()
        self._facts: dict[str, Any] = {
            "began": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "machines": self.machines,
            "slots": _described(slots),
            "versions": {name: version(name) for name in _NAMED},
        }
        earlier = list(study.search.user_attrs.get(SESSIONS, []))
        self._earlier = [*earlier[:1], *earlier[1:][-(_MOST - 2) :]]
        self.record()

    @property
    def place(self) -> str:
        """The machines, and what of them each trial has."""
        return f"{self.machines}; {self._facts['slots']}"

    def record(self, **facts: Any) -> None:
        """Writes down what else is known of the session by now."""
        self._facts |= facts
        self._study.search.set_user_attr(SESSIONS, [*self._earlier, self._facts])


def _described(slots: Slots) -> str:
    """``2 trials at a time, each on 1 worker with 4 CPUs and 0.5 GPU``."""
    amounts: Mapping[str, float] = slots.resources
    each = " and ".join(f"{amount:g} {name}{'s' if amount > 1 else ''}" for name, amount in amounts.items())
    at_a_time = "one trial" if slots.count == 1 else f"{slots.count} trials"
    workers = "1 worker" if slots.workers == 1 else f"{slots.workers} workers, each"
    return f"{at_a_time} at a time, on {workers} with {each}"
