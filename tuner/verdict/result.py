"""What result.json holds, as values: written by the verdict, read by export, report and API."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trainables.files import write_text
from tuner.run_dir.names import BEST, RESULT_FILE
from tuner.verdict.statistics import Comparison


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and its scores: metric name -> mean over the queries of a split."""

    trial: int
    """Its number in the study; the base model is 0."""
    folder: str
    """RUN/trials/FOLDER has its scores, and its weights where they were kept."""
    alpha: float | None = None
    """Its share in the mixture with the base model; None: no mixture."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What its trial varied."""
    dev: float | None = None
    """The objective on dev; None where it was not scored."""
    test: float | None = None
    dev_all: Mapping[str, float] = field(default_factory=dict)
    test_all: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncodedBase(Model, Comparison):
    """The base model with other settings than the user's, which are `params`.

    The comparison is of the objective on test, with the base model as it is: what the settings alone give.
    """


@dataclass(frozen=True, kw_only=True)
class Base(Model):
    """The base model with the user's own settings."""

    encoded_as_best: EncodedBase | None = None
    """With the settings of the best trial, which `gain` is measured against; None where those are the user's own."""
    at_its_best: EncodedBase | None = None
    """With the settings that it has the highest score on dev with; None where those are the user's own."""


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The model that the verdict recommends, which RUN/best holds."""

    trial: int
    """Its number in the study; the base model is 0."""
    folder: str
    """RUN/trials/FOLDER has its scores."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the base model: what it is to be used with otherwise than the user does."""


@dataclass(frozen=True, kw_only=True)
class SeedScore:
    """The objective on dev of one training."""

    seed: int
    dev: float


@dataclass(frozen=True, kw_only=True)
class Best(Model, Comparison):
    """The best trained model.

    The comparison is of the objective on test, with the base model encoded alike: what training alone gave.
    """

    dev_mean: float | None = None
    """Mean over its seeds of the objective on dev."""
    dev_lower: float | None = None
    """One-sided 95% lower bound of that mean; None for a single seed."""
    seeds: Sequence[SeedScore] = ()


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial that was trained with several seeds."""

    trial: int
    dev_mean: float
    dev_lower: float | None
    seeds: Sequence[SeedScore]
    base_dev: float | None = None
    """The objective on dev of the base model encoded alike; None where it was not scored."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Trials of the search by how they ended."""

    complete: int
    pruned: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class GuardTask:
    """Main scores of the dense head on one guard task; None where it could not be scored."""

    base: float | None
    """Of the base model encoded as the best trial is."""
    best: float | None
    base_as_is: float | None = None
    """Of the base model with the user's own settings, where the best trial has others."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What was forgotten elsewhere."""

    tolerance: float
    """What a task may lose."""
    tasks: Mapping[str, GuardTask]
    lost: Sequence[str]
    """Tasks that lose more than the tolerance against either base model, or could not be scored."""
    finalists: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Number of a trial -> task -> score."""
    finalist_bases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Number of a trial -> task -> score of the base model encoded alike."""


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One mixture of base and trained model; `alpha` 0 and 1 are the two themselves."""

    alpha: float
    dev: float
    guard: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The mixtures of the winner with the base model, and which of them was chosen on dev and guards."""

    alpha: float
    reason: str
    rows: Sequence[SweepRow]


@dataclass(frozen=True, kw_only=True)
class CandidatePool:
    """The passages that dev was scored on at rungs, where the corpus has more. Test has the whole corpus."""

    passages: int
    corpus: int
    """How many passages the corpus has."""
    whole_corpus: Sequence[int]
    """Trials whose `dev` is on the whole corpus all the same, retrainings included; the others' is on the pool."""


@dataclass(frozen=True, kw_only=True)
class RangeEnd:
    """A parameter of the best trial that lies at an end of its range."""

    name: str
    value: float
    end: str
    """``largest`` or ``smallest``."""
    limit: float


@dataclass(frozen=True, kw_only=True)
class FrontRow:
    """A trial that no other beats on both objectives."""

    trial: int
    values: Mapping[str, float]
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MovedQuery:
    """A test query whose objective moved, and the ids of what the dense head retrieved for it."""

    id: str
    text: str
    before: float
    after: float
    retrieved_before: Sequence[str]
    retrieved_after: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class MovedQueries:
    """The test queries that gained most and lost most, the most first."""

    gained: Sequence[MovedQuery] = ()
    lost: Sequence[MovedQuery] = ()


@dataclass(frozen=True, kw_only=True)
class Previous:
    """The model that an earlier search recommended, where this one began with `--again`; scored on this one's test."""

    run_dir: str
    """Of the earlier search."""
    trial: int
    """Number of its winner."""
    weights: str | None = None
    """Folder of its model."""
    note: str = ""
    """Why it is not compared; nothing where it is."""
    left_out: int = 0
    """Test queries that it was trained or chosen on, and that nothing here is measured with."""
    test: float | None = None
    """Its objective on the other test queries."""
    best_test: float | None = None
    """The best's on the same."""
    versus_best: Comparison | None = None
    """The best against it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What result.json holds."""

    metric: str
    """The objective, as ``dense.ndcg_at_10``."""
    verdict: str
    """`decision.FINE_TUNE` or `decision.KEEP`."""
    reason: str
    base: Base | None
    user: Model | None
    """The user's own settings."""
    best: Best | None
    """None where no trial was trained to its end; what follows from it is then empty, too."""
    trials: Counts
    seconds: Mapping[str, float]
    """By part; ``total`` is the clock's."""
    recommended: Recommended | None = None
    """None where no trial was trained to its end, and in results of older versions."""
    guard: Guard | None = None
    """None where no guard was asked for."""
    noise: float | None = None
    """Standard deviation between seeds of one configuration, on dev."""
    ties: Sequence[int] = ()
    """Trials that the best cannot be told from, on dev."""
    finalists: Sequence[Finalist] = ()
    front: Sequence[FrontRow] | None = None
    """None for one objective."""
    objectives: Mapping[str, Comparison] | None = None
    """The gain in each of several objectives."""
    gains: Mapping[str, Comparison] = field(default_factory=dict)
    """The gain on test by metric."""
    versus_base: Comparison | None = None
    """The best against the base model as it is, settings and training together; None where they are encoded alike."""
    versus_user: Comparison | None = None
    """The best against the user's own settings; None where they are one, or the user's were not scored on test."""
    previous: Previous | None = None
    """None where the search began without `--again`."""
    optimism: float | None = None
    """The best's dev minus its test score."""
    range_ends: Sequence[RangeEnd] = ()
    """What the search would have chosen otherwise, perhaps, had it been let."""
    candidate_pool: CandidatePool | None = None
    """None where every score is on the whole corpus."""
    mixtures: Sweep | None = None
    hybrid_weights: Mapping[str, Mapping[str, float]] | None = None
    """Weights of dense, sparse and colbert in the hybrid score: the default's, and those tuned on dev, by model."""
    queries: MovedQueries = field(default_factory=MovedQueries)

    @property
    def compared(self) -> Model | None:
        """The base model that the best is compared with: encoded alike."""
        return self.base.encoded_as_best or self.base if self.base else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Verdict":
        """Returns the inverse of `to_dict`; keys that an older version did not write are empty.

        Raises:
            pydantic.ValidationError: A value is missing or of the wrong type; it is a ValueError.
        """
        return _VALUES.validate_python(values)

    def write(self, folder: Path) -> None:
        """Writes FOLDER/result.json."""
        write_text(folder / RESULT_FILE, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Verdict | None":
        """Returns what FOLDER/result.json holds; None where there is none."""
        path = folder / RESULT_FILE
        return cls.from_dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


_VALUES = TypeAdapter(Verdict)


def bundle_of(run_dir: Path, result: Verdict) -> Path | None:
    """Returns RUN/best where it is the bundle that the verdict recommends, and not an earlier one's; None otherwise."""
    bundle = run_dir / BEST
    written = Verdict.read(bundle)
    if result.best is None or written is None or written.best is None:
        return None
    if result.recommended or written.recommended:
        return bundle if written.recommended == result.recommended else None
    same = (written.best.trial, written.best.folder) == (result.best.trial, result.best.folder)
    return bundle if same else None
