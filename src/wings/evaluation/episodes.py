"""The tasks of an environment as a benchmark: whole episodes, played as in training, and judged by the environment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from src.environments.protocol import Environment, Task
from src.environments.tasks import check_reward, chosen_split
from src.errors import ConfigError, check_fields
from src.protocol.dialogue import JsonValue
from src.rollout.episodes import EpisodeLimits
from src.rollout.history import PlayedEpisode
from src.wings.evaluation.benchmark import Benchmark, Candidate, Record, Sample, Subset, stratified


class EpisodesBenchmark(Benchmark):
    """Plays tasks of an environment; a sample passes if its task is done.

    Scores: `overall` and each tag's, shares of tasks that are done; and means under the names of training's curves,
    `reward/total`, `reward/<part>` and `episode/<count>` (`rollout.history.EPISODE_COUNTS`). A task whose first prompt
    leaves no room for an answer has failed; these are counted as `context_exceeded`, and are in no mean.

    Args:
        environment: of the tasks.
        limits: of an episode.
        split: whose tasks are played; None: the first that is not trained on, or `train` where there is no other.
        limit: tasks, a seeded choice stratified by their first tags; None: all.

    Raises:
        ConfigError: there is no environment, no such split, or a limit below 1.
    """

    name = "episodes"

    def __init__(
        self,
        environment: Environment | None,
        limits: EpisodeLimits,
        split: str | None = None,
        limit: int | None = None,
    ) -> None:
        if environment is None:
            raise ConfigError(
                "benchmark=episodes: expected an environment, found none. Set environment=generated, say."
            )
        check_reward(environment, "benchmark=episodes")
        self.limit = limit
        check_fields("benchmark.episodes", self, [("limit", limit is None or limit >= 1, "null or at least 1")])
        self._environment, self._limits = environment, limits
        self._split = chosen_split(environment, split, "benchmark.episodes.split")
        self._samples: list[Sample] = []

    def samples(self) -> Sequence[Sample]:
        """The tasks; a category is a task's first tag, or the split's name. The first one is started, and closed again.

        Raises:
            BenchmarkDataError: the environment's data is not there.
            DataError: a row that no episode can start from.
            EnvironmentFaultError: the world does not start.
        """
        if not self._samples:
            tasks = self._environment.tasks(self._split)
            found = [Sample(task.id, self._tags(task)[0], task) for task in tasks]
            self._samples = found if self.limit is None else stratified(found, Subset(self.limit))
            try:
                for sample in self._samples[:1]:
                    self._environment.opening(sample.data)
            finally:
                self._environment.close()
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Candidate) -> Iterator[Record]:
        """Play the tasks, a batch side by side. The environment is closed at the end, whatever happens."""
        try:
            tasks = [sample.data for sample in samples]
            for index, episode in generate.play(self._environment, tasks, self._limits):
                yield self._record(samples[index], episode)
        finally:
            self._environment.close()

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """See the class."""
        done: dict[str, list[float]] = defaultdict(list)
        means: dict[str, list[float]] = defaultdict(list)
        for record in records:
            for tag in dict.fromkeys(("overall", *record.details.get("tags", [record.category]))):
                done[tag].append(float(record.passed))
            for name, value in record.metrics.items():
                means[name].append(value)
        counts = {tag: len(values) for tag, values in done.items()}
        counts["context_exceeded"] = sum(not record.metrics for record in records)
        return {name: sum(values) / len(values) for name, values in (*done.items(), *means.items())}, counts

    def _tags(self, task: Task) -> tuple[str, ...]:
        return task.tags or (self._split,)

    def _record(self, sample: Sample, episode: PlayedEpisode | None) -> Record:
        details: dict[str, JsonValue] = {"tags": list(self._tags(sample.data))}
        if episode is None:
            return Record(sample.id, sample.category, False, details={**details, "ending": "context_exceeded"})
        score = episode.score
        metrics = {"reward/total": score.total}
        metrics |= {f"reward/{name}": value for name, value in score.parts.items()}
        metrics |= {f"episode/{name}": value for name, value in episode.metrics().items()}
        turns = [
            {**turn.record(), "earned": earned} for turn, earned in zip(episode.turns, episode.earned, strict=True)
        ]
        details |= {"ending": episode.ending, "turns": turns}
        return Record(sample.id, sample.category, score.success, metrics, details)
