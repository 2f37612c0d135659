"""A job on whichever machine it comes to: with this machine's paths, its inputs brought here, its outputs kept.

Where the run directory is a path that every machine sees, nothing is moved, and a machine that does not see it says so.
"""

import secrets
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.config import Progress, Report, RungReport, Train, TrialConfig
from trainables.failures import StorageAway, one_line
from trainables.names import CHECKPOINT, DATA, LOG, RESUME
from trainables.process import rank
from trainables.worker.loop import train_trial
from tuner.cluster.in_use import in_use, keep, let_go
from tuner.data.models import model_here
from tuner.errors import RequestError
from tuner.run_dir.lease import LeaseLostError
from tuner.run_dir.mirror import Pusher, alone_on_this_machine
from tuner.run_dir.names import curves_part, part_name
from tuner.run_dir.safe_names import UnsafeNameError, part_of
from tuner.run_dir.store import RunStore, open_run_dir

MARK = ".driver"
"""File in the driver's working directory that tells it from those of other machines."""
DEEPSPEED = ".deepspeed.json"


@dataclass(frozen=True, kw_only=True)
class OnAnyMachine:
    """Does jobs of a search, on every worker of a group."""

    run_dir: str
    """As the user named it."""
    root: str
    """The driver's working directory, which the paths of jobs lie in."""
    mark: str
    """What stands in the driver's `MARK`."""
    model: str
    """The base model as the user named it."""
    model_path: str
    """Where the driver found it."""
    deepspeed: str = ""
    """What stands in DeepSpeed's configuration file."""
    lease: str | None = None
    """`RunStore.lease` of the driver: nothing is pushed once that another search has its place."""
    train: Train = train_trial

    def __call__(self, config: TrialConfig, report: Report, progress: Progress) -> None:
        """Does a job.

        Raises:
            RuntimeError: This machine does not see the run directory.
            StorageAway: Object storage, or the hub where the model is there, cannot be reached; what storage lacks of
                the trial stays on this machine's disk. So where another search has the run directory by now.
            UnsafeNameError: Storage names files that would lie elsewhere.
        """
        with _reaching(self.run_dir):
            store = open_run_dir(self.run_dir, self.lease)
        if not store.is_remote:
            self._require_shared(Path(self.root))
            self.train(self._here(config, Path(self.root)), report, progress)
            return
        parts = self._parts(config)
        of_trials = [*(part for part in parts if part.startswith(part_name(""))), curves_part(config.name)]
        with in_use(store, of_trials, stays=self._is_drivers(store)):
            with _reaching(self.run_dir), alone_on_this_machine(store.local, "pulling"):
                store.pull(parts)
            here = self._here(config, store.local)
            if rank() == 0:
                self._work_and_keep(config, here, store, report, progress)
            else:
                self.train(here, report, progress)

    def _require_shared(self, root: Path) -> None:
        if not (root / MARK).exists() or (root / MARK).read_text() != self.mark:
            raise RuntimeError(
                f"--run_dir {self.run_dir}: must be seen by every machine of the cluster, but one does not see it; "
                "put it on a disk that they share, or on object storage (s3://bucket/prefix)"
            )

    def _parts(self, config: TrialConfig) -> list[str]:
        """What a job reads or writes."""
        return sorted({DATA, *(part_of(path) for path in _inside(config.to_dict(), self.root))})

    def _here(self, config: TrialConfig, local: Path) -> TrialConfig:
        values = _moved(config.to_dict(), self.root, str(local))
        arguments = values["arguments"]
        if not Path(self.model_path).exists() and arguments.get("model_name_or_path") == self.model_path:
            with _reaching(self.model):
                arguments["model_name_or_path"] = model_here(self.model, cache_dir=arguments.get("cache_dir"))
        settings = arguments.get("deepspeed")
        if isinstance(settings, str) and not Path(settings).exists():
            arguments["deepspeed"] = str(local / DEEPSPEED)
            (local / DEEPSPEED).write_text(self.deepspeed, encoding="utf-8")
        return TrialConfig.from_dict(values)

    def _work_and_keep(
        self, config: TrialConfig, here: TrialConfig, store: RunStore, report: Report, progress: Progress
    ) -> None:
        folder = Path(here.directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = part_name(config.name), curves_part(config.name)
        keep(store, written)
        pusher = Pusher(store, *written)
        keeping = _Keeping(pusher, _States(folder / RESUME), report, progress)
        try:
            self.train(here, keeping.report, keeping.progress)
        except Exception as error:
            with (folder / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{one_line(error)}\n{traceback.format_exc()}\n")
            raise
        finally:
            if keeping.is_stopped:
                for unwanted in (CHECKPOINT, RESUME):
                    shutil.rmtree(folder / unwanted, ignore_errors=True)
            with _reaching(self.run_dir):
                pusher.close()
            let_go(store, written)

    def _is_drivers(self, store: RunStore) -> bool:
        mark = store.local / MARK
        return mark.exists() and mark.read_text() == self.mark


def on_any_machine(arguments: Mapping[str, Any], model: str, store: RunStore, train: Train) -> OnAnyMachine:
    """Returns what does the jobs of a search, by `train`; marks the driver's working directory.

    Args:
        arguments: Those of every trial, with the base model's folder on the driver's machine.
        model: The base model as the user named it.
        store: The run directory.
        train: Does one job.
    """
    mark = secrets.token_hex(8)
    (store.local / MARK).write_text(mark)
    settings = arguments.get("deepspeed")
    return OnAnyMachine(
        run_dir=store.url,
        root=str(store.local),
        mark=mark,
        model=model,
        model_path=str(arguments["model_name_or_path"]),
        deepspeed=Path(settings).read_text("utf-8") if isinstance(settings, str) else "",
        lease=store.lease,
        train=train,
    )


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    """Tells a `place` that is away, for a while perhaps, from an error of the trial's own."""
    try:
        yield
    except UnsafeNameError:
        raise
    except LeaseLostError as error:
        raise StorageAway(str(error)) from error
    except (OSError, RequestError) as error:
        raise StorageAway(f"{place} cannot be reached: {error}") from error


class _Keeping:
    """Passes on what a trial says, and has pushed what it has written by then.

    Args:
        pusher: Of the trial's folder.
        states: The trial's.
        report: What its rungs are told to.
        progress: What its steps are told to.
    """

    def __init__(self, pusher: Pusher, states: "_States", report: Report, progress: Progress) -> None:
        self._pusher, self._states, self._report, self._progress = pusher, states, report, progress
        self.is_stopped = False

    def report(self, rung: RungReport) -> bool:
        """Passes a rung on; returns whether the trial goes on."""
        self._pusher.require_place()
        self._pusher.ask()
        self.is_stopped = not self._report(rung)
        return not self.is_stopped

    def progress(self, step: int, steps: int) -> bool | None:
        """Passes a step on; returns False where the trial is to be interrupted."""
        self._pusher.require_place()
        if self._states.changed():
            self._pusher.ask()
        return self._progress(step, steps)


class _States:
    """The training states of a trial, looked at from outside."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen = folder, self._names(folder)

    def changed(self) -> bool:
        """Whether one was saved since the last look."""
        before, self._seen = self._seen, self._names(self._folder)
        return bool(self._seen - before)

    @staticmethod
    def _names(folder: Path) -> set[str]:
        return {state.name for state in folder.glob("[0-9]*")}


def _inside(value: Any, root: str) -> Iterator[str]:
    """Paths below `root` anywhere in `value`, relative to it."""
    if isinstance(value, str) and value.startswith(f"{root}/"):
        yield value.removeprefix(f"{root}/")
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item, root)


def _moved(value: Any, root: str, here: str) -> Any:
    """`value` with every path below `root` below `here`."""
    if isinstance(value, str):
        return here + value.removeprefix(root) if value == root or value.startswith(f"{root}/") else value
    if isinstance(value, dict):
        return {key: _moved(item, root, here) for key, item in value.items()}
    return [_moved(item, root, here) for item in value] if isinstance(value, list | tuple) else value
