"""What Ray keeps of a worker group whose slot has died: its placement group, and with it the GPU that the next needs.

Ray removes a placement group when both the actor and the job that made it are gone. Ray Train's own cleaner asks the
dashboard which actors live, and there is none beside a local cluster.
"""

import contextlib
import time
from collections.abc import Callable

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

_SWEEP_SECONDS = 60.0
"""A slot's mailbox lives on for a moment after the slot."""


class OrphanedGroups:
    """The placement groups of the slots' worker groups, to be removed with their slots.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._groups: dict[str, str] = {}
        """Name of a slot's mailbox -> id of its group's placement group, in hexadecimal digits."""
        self._clock, self._sweep_until = clock, 0.0

    def told(self, mailbox: str, group: str) -> None:
        """A slot has said which placement group its workers are in; "": it did not know."""
        if group:
            self._groups[mailbox] = group

    def slot_died(self) -> None:
        """One of the slots has: for a minute, `sweep` looks for it."""
        self._sweep_until = self._clock() + _SWEEP_SECONDS

    def sweep(self) -> None:
        """Removes the placement groups of the slots whose mailbox is gone."""
        if self._clock() > self._sweep_until:
            return
        living = set(ray.util.list_named_actors())
        for mailbox in [name for name in self._groups if name not in living]:
            group = ray.PlacementGroupID(bytes.fromhex(self._groups.pop(mailbox)))
            with contextlib.suppress(ray.exceptions.RayError):
                remove_placement_group(PlacementGroup(group))
