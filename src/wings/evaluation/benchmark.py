"""What a benchmark is: samples in, verdicts out, scores over them. Knows neither engines nor files.

A benchmark asks for text through a `Generate`, or for whole episodes through a `Candidate`, so that the same code runs
during training, from the command line, on any rollout engine, and in tests on given answers.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from src.environments.conversation import Generate
from src.environments.protocol import Environment, Task
from src.errors import BenchmarkDataError, check_fields
from src.protocol.dialogue import JsonValue

if TYPE_CHECKING:  # folders of evaluations are read without PyTorch
    from src.rollout.episodes import EpisodeLimits
    from src.rollout.history import PlayedEpisode

log = logging.getLogger(__name__)

UNPARSED = "unparsed"
"""Of samples whose answer means to call and cannot be read: their count; `unparsed/<category>` is a category's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a benchmark; `data` is the benchmark's own."""

    id: str
    category: str
    data: Any


@dataclass(frozen=True, slots=True)
class Subset:
    """A seeded choice of samples, stratified by category: each keeps its share, and at least one sample.

    Attributes:
        size: samples in all.
        seed: of the choice.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields("subset", self, (("size", self.size >= 1, "at least 1"),))


@dataclass(frozen=True, slots=True)
class Record:
    """The verdict on one sample.

    Attributes:
        id: of the sample, unique within the benchmark.
        category: part of the benchmark that it belongs to.
        passed: by the benchmark's official rule.
        metrics: further numbers of this sample, e.g. `{"strict": 0.0}`; averaged beside the scores.
        details: what a reader needs to understand the verdict (texts, calls, error); JSON values only.
    """

    id: str
    category: str
    passed: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """A benchmark's result.

    Attributes:
        name: of the benchmark.
        scores: fractions in [0, 1] by name, e.g. `{"overall": 0.57, "level_1": 0.62}`; and means of other numbers under
            names with a slash, e.g. `{"episode/turns": 3.2}`.
        counts: samples behind each score of a category, and what else was counted (e.g. `context_exceeded`).
        records: one a sample, in the order of the samples.
    """

    name: str
    scores: Mapping[str, float]
    counts: Mapping[str, int]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which share of the samples this process answers.

    Attributes:
        rank: of this process.
        world_size: number of processes; each answers every world_size-th sample.
        gather: the lists of all ranks, one after another, on every rank.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[list[Record]], list[Record]] = list


class Candidate(Generate, Protocol):
    """A model that answers prompts and plays episodes."""

    def play(
        self, environment: Environment, tasks: Sequence[Task], limits: EpisodeLimits
    ) -> Iterator[tuple[int, PlayedEpisode | None]]:
        """Yield (index of the task, its episode), each once, as batches finish.

        None stands for an episode whose first prompt leaves no room for an answer.

        Raises:
            EnvironmentFaultError: a world does not start.
        """
        ...


class Benchmark(ABC):
    """Something that a model can be measured on: a fixed list of samples, which a subclass answers and scores.

    Attributes:
        name: in scores, logs and files.
        on_missing: what a run does where the data is not there: stop before it starts, or leave the benchmark out.
    """

    name: str
    on_missing: Literal["error", "skip"] = "error"

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """All samples, always in the same order. Read once and kept.

        Raises:
            BenchmarkDataError: the data is not there or broken.
        """

    @abstractmethod
    def answer(self, samples: Sequence[Sample], generate: Candidate) -> Iterator[Record]:
        """Answer and judge samples; a record as soon as its sample is finished, in any order."""

    @abstractmethod
    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """(scores, counts) over records; a score without samples is left out."""

    def run(
        self,
        generate: Candidate,
        *,
        subset: Subset | None = None,
        ranks: Ranks | None = None,
        finished: Collection[Record] = (),
        on_record: Callable[[Record], None] | None = None,
    ) -> EvalReport:
        """Answer, judge and score.

        Args:
            generate: answers prompts, and plays episodes where the benchmark asks for them.
            subset: None: every sample.
            ranks: None: one process.
            finished: records of an interrupted run; these samples are not answered again.
            on_record: called with every new record of this rank as soon as it is known.

        Returns:
            The report over the chosen samples of all ranks, the same on every rank.

        Raises:
            ValueError: two samples have the same id.
        """
        ranks = ranks or Ranks()
        chosen = self.samples() if subset is None else stratified(self.samples(), subset)
        wanted = {sample.id for sample in chosen}
        if len(wanted) < len(chosen):
            raise ValueError(f"{self.name}: expected every sample to have an id of its own, found some twice.")
        records = {record.id: record for record in finished if record.id in wanted}
        todo = [sample for sample in chosen if sample.id not in records]
        made, answers = [], self.answer(todo[ranks.rank :: ranks.world_size], generate)
        try:
            for record in answers:
                made.append(record)
                if on_record is not None:
                    on_record(record)
        finally:
            if isinstance(answers, Generator):
                answers.close()  # what it holds open, also where writing a record was interrupted
        records |= {record.id: record for record in ranks.gather(made)}
        ordered = tuple(records[sample.id] for sample in chosen if sample.id in records)
        scores, counts = self.score(ordered)
        return EvalReport(self.name, scores, counts, ordered)


def stratified(samples: Sequence[Sample], subset: Subset) -> list[Sample]:
    """A seeded subset in the order of `samples`: every category in proportion, rounded by largest remainder.

    No category is left out as long as there is room for one sample of each.

    >>> samples = [Sample(str(i), "a" if i < 6 else "b", None) for i in range(8)]
    >>> [sample.category for sample in stratified(samples, Subset(4))]
    ['a', 'a', 'a', 'b']
    """
    if subset.size >= len(samples):
        return list(samples)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.category].append(index)
    sizes = _shares({category: len(indices) for category, indices in groups.items()}, subset.size)
    kept: set[int] = set()
    for category, indices in groups.items():
        kept |= set(random.Random(f"{subset.seed}:{category}").sample(indices, sizes[category]))
    return [samples[index] for index in sorted(kept)]


def _shares(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` divided in proportion to `counts`, at least 1 each where `total` allows it."""
    everything = sum(counts.values())
    exact = {key: total * count / everything for key, count in counts.items()}
    shares = {key: int(value) for key, value in exact.items()}
    if total >= len(counts):
        shares = {key: max(1, share) for key, share in shares.items()}
    by_need = sorted(exact, key=lambda key: shares[key] - exact[key])
    while (missing := total - sum(shares.values())) > 0:
        for key in by_need[:missing]:
            shares[key] += 1
        by_need = sorted(exact, key=lambda key: shares[key] - exact[key])
    for key in sorted(exact, key=lambda key: exact[key] - shares[key]):
        while sum(shares.values()) > total and shares[key] > 1:
            shares[key] -= 1
    return shares


def prepared(benchmarks: Iterable[Benchmark]) -> list[Benchmark]:
    """The benchmarks with their data read; those that lack it and whose `on_missing` is `skip` are left out.

    Raises:
        BenchmarkDataError: as the benchmark says.
    """
    kept = []
    for benchmark in benchmarks:
        try:
            benchmark.samples()
        except BenchmarkDataError as error:
            if benchmark.on_missing != "skip":
                raise
            log.warning("%s is left out: %s", benchmark.name, error)
        else:
            kept.append(benchmark)
    return kept


def mean_by_category(records: Sequence[Record], metric: str | None = None) -> dict[str, float]:
    """Share of passed records, or mean of a metric, in each category.

    >>> mean_by_category([Record("0", "a", True), Record("1", "a", False), Record("2", "b", True)])
    {'a': 0.5, 'b': 1.0}
    """
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        values[record.category].append(float(record.passed if metric is None else record.metrics[metric]))
    return {category: sum(found) / len(found) for category, found in values.items()}


def count_by_category(records: Sequence[Record]) -> dict[str, int]:
    """Number of records in each category."""
    return dict(Counter(record.category for record in records))
