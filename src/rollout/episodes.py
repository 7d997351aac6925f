"""Episodes in lock step: the engine answers for all that are going, environments act, and so on to their ends.

A next prompt is the ids so far, the sampled ones among them, and the ids of what was observed. Where the chat template
writes earlier messages otherwise by now, the episode goes on from what it writes, and both histories are trained.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from src.data.rendering import PromptRenderer, RenderedPrompt
from src.environments.protocol import Environment, EnvironmentFaultError, Episode, Task
from src.errors import check_fields
from src.protocol.dialogue import DataError, Message, TurnExample
from src.protocol.regions import DecodedCompletion, read_completions
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import Reward
from src.rollout.collect import ScoredCompletion, ScoredGroup, check_fresh, prompt_seed
from src.rollout.engine import Completion, RolloutEngine, SamplingParams, shortest
from src.rollout.history import EPISODE_COUNTS, Ending, History, PlayedEpisode, Turn

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """When an episode is stopped.

    Attributes:
        max_turns: answers.
        max_tokens: tokens of prompt, answers and observations together; None: as many as the engine takes. An answer
            is asked for where there is room for the longest.
        max_seconds: since its first answer was asked for, of wall clock; None: no limit. A run that is to be repeated
            bit for bit has none.
    """

    max_turns: int = 8
    max_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        rules = (
            ("max_turns", self.max_turns >= 1, "at least 1"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 2, "null or at least 2"),
            ("max_seconds", self.max_seconds is None or self.max_seconds > 0, "null or seconds above 0"),
        )
        check_fields("episodes", self, rules)


@dataclass(frozen=True, slots=True)
class EpisodeParts:
    """What an episode's reward is made of.

    Attributes:
        exact_match: 1 if the task is done.
        format: share of the answers that their environment could read.
        scores: the parts of its `EpisodeScore`.
    """

    exact_match: float
    format: float
    scores: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """All by name."""
        return {"exact_match": self.exact_match, "format": self.format, **self.scores}


@dataclass(slots=True)
class _Going:
    """An episode under way."""

    episode: Episode
    example: TurnExample
    history: History
    seed: Callable[[int], int]
    observed: tuple[Message, ...]
    turns: list[Turn] = field(default_factory=list)
    ending: Ending | None = None


class Player:
    """Plays episodes on an engine.

    Args:
        engine: samples.
        environment: of the tasks.
        renderer: of prompts and observations.
        table: the tokenizer's tokens as bytes.
        stop_ids: end-of-turn tokens.
        limits: of an episode.
        context: most tokens, as `EpisodeLimits.max_tokens`; None: no limit but the engine's.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        environment: Environment,
        renderer: PromptRenderer,
        table: TokenBytes,
        stop_ids: tuple[int, ...],
        limits: EpisodeLimits,
        context: int | None = None,
    ) -> None:
        self._engine, self.environment, self._renderer = engine, environment, renderer
        self._table, self._stop_ids, self._limits = table, stop_ids, limits
        self._longest = shortest(limits.max_tokens, context)

    def has_room(self, size: int, answer: int) -> bool:
        """Whether an answer of so many tokens may follow a history of `size` tokens."""
        longest = shortest(self._longest, self._engine.context)
        return longest is None or size + answer <= longest

    def play(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        seed: Callable[[str], int],
    ) -> list[list[PlayedEpisode]]:
        """`params.n` episodes of each prompt's task, all in lock step.

        Args:
            prompts: of tasks, as `environments.tasks` makes them.
            params: how to sample an answer.
            seed: of an answer, from `<example id>` for the first ones of a task, else from
                `<example id>/<episode>/<turn>`.

        Raises:
            EnvironmentFaultError: a world does not start, or not as its prompt says.
        """
        opened: list[Episode] = []
        with ExitStack() as stack:
            stack.callback(self._at_once, lambda episode: episode.close(), opened)
            wanted = [(prompt, index) for prompt in prompts for index in range(params.n)]
            games = self._at_once(lambda one: self._start(*one, seed, opened), wanted)
            going = games
            started = time.monotonic()
            first = self._engine.generate(
                [prompt.prompt_ids for prompt in prompts], params, [seed(prompt.example.id) for prompt in prompts]
            )
            self._take(going, [completion for completions in first for completion in completions])
            while going := [
                game for game in going if game.ending is None and self._goes_on(game, started, params.max_new_tokens)
            ]:
                ids = [game.history.ids for game in going]
                seeds = [game.seed(len(game.turns)) for game in going]
                answers = self._engine.generate(ids, replace(params, n=1), seeds)
                self._take(going, [completion for (completion,) in answers])
            ended = self._at_once(self._ended, games)
            return [ended[start : start + params.n] for start in range(0, len(ended), params.n)]

    def _at_once(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """The results of some work on worlds, on as many at a time as their environment says."""
        if self.environment.concurrent == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self.environment.concurrent, "episode") as pool:
            return list(pool.map(work, items))

    def _start(self, prompt: RenderedPrompt, index: int, seed: Callable[[str], int], opened: list[Episode]) -> _Going:
        example = prompt.example
        episode = self.environment.start(Task(example.id, example.columns, example.tags), 0)
        opened.append(episode)
        observed = episode.observe()
        if observed != example.history or episode.tools != example.tools:
            raise EnvironmentFaultError(
                f"{self.environment.name}: task '{example.id}' starts otherwise than before: expected the messages "
                f"{example.history}, found {observed}. A task's start may depend on its row and seed only."
            )
        return _Going(
            episode,
            example,
            History(prompt.prompt_ids),
            lambda turn: seed(f"{example.id}/{index}/{turn}"),
            observed,
        )

    def _take(self, going: Sequence[_Going], completions: Sequence[Completion]) -> None:
        """Read the answers, and let the environments act on them."""
        readings = [self._renderer.reading(game.example) for game in going]
        decoded = read_completions([one.token_ids for one in completions], self._table, self._stop_ids, readings)
        for game, completion, read in zip(going, completions, decoded, strict=True):
            game.turns.append(Turn(game.observed, completion, read))
            game.history.append(completion.token_ids.tolist(), sampled=True)
            game.ending = "cut" if completion.finish_reason == "length" else None
        self._at_once(_act, [game for game in going if game.ending is None])

    def _goes_on(self, game: _Going, started: float, room: int) -> bool:
        """Put what was observed behind the answer, unless a limit has come."""
        if len(game.turns) >= self._limits.max_turns:
            game.ending = "turns"
        elif self._limits.max_seconds is not None and time.monotonic() - started > self._limits.max_seconds:
            game.ending = "time"
        if game.ending is not None:
            return False
        game.observed = game.episode.observe()
        for said, observed in _ways_to_say(game.turns[-1].decoded, game.observed, self._renderer.control):
            try:
                ids, appended = self._renderer.continued(replace(game.example, target=said), observed)
                break
            except DataError:
                continue
        else:
            game.ending = "template"
            return False
        size = len(ids) + len(game.history) * appended
        if not self.has_room(size, room):
            game.ending = "tokens"
            return False
        if appended:
            game.history.append(ids.tolist(), sampled=False)
        else:
            game.history.rewrite(ids.tolist())
        game.example = replace(game.example, history=(*game.example.history, said, *observed))
        return True

    def _ended(self, game: _Going) -> PlayedEpisode:
        assert game.ending is not None
        score = game.episode.score()
        return PlayedEpisode(tuple(game.turns), score, Counter(game.episode.counts), game.ending, game.history)


def _act(game: _Going) -> None:
    """Let the environment act on the last answer."""
    game.episode.act(game.turns[-1].decoded.parsed)
    game.ending = "done" if game.episode.done else None


def _ways_to_say(
    answer: DecodedCompletion, observed: tuple[Message, ...], marks: Sequence[str]
) -> Iterator[tuple[Message, tuple[Message, ...]]]:
    """An answer and what was observed as a later prompt may show them, the best first.

    A chat template may refuse what a policy writes: several calls in one answer, or a result without a call, behind
    calls that cannot be read. Then the answer stands as it was written, and results as what the user says; where its
    own marks are refused too (gpt-oss' of a thought), without them.

    Args:
        answer: of the policy.
        observed: since.
        marks: that the template writes around messages.
    """
    read = answer.parsed
    if not read.unreadable:
        thought, response = (read.thought or "").strip(), (read.response or "").strip()
        yield Message("assistant", response, thought, read.calls or ()), observed
    written = Message("assistant", answer.text)
    yield written, observed
    in_words = tuple(Message("user", one.text) if one.role == "observation" else one for one in observed)
    yield written, in_words
    bare = answer.text
    for mark in marks:
        bare = bare.replace(mark, " ")
    yield Message("assistant", bare), in_words


class EpisodeCollector:
    """Prompts of tasks to scored groups of episodes; takes the place of `Collector`.

    Args:
        player: plays them.
        table: the tokenizer's tokens as bytes.

    Attributes:
        scores: names of what scores are made of, besides those of all completions.
        counts: `EPISODE_COUNTS`.
    """

    counts = EPISODE_COUNTS

    def __init__(self, player: Player, table: TokenBytes) -> None:
        self._player, self.table, self.scores = player, table, player.environment.parts

    def collect(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        seed: int,
        rollout_step: int,
        progress: float,
    ) -> list[ScoredGroup]:
        """Play `params.n` episodes of each task; see `Collector.collect`."""
        played = self._player.play(prompts, params, lambda key: prompt_seed(seed, rollout_step, key))
        turns = [turn for group in played for episode in group for turn in episode.turns]
        check_fresh([turn.completion for turn in turns], rollout_step)
        if not any(episode.score.parts for group in played for episode in group):
            raise EnvironmentFaultError(
                f"{self._player.environment.name}: none of {len(prompts)} tasks had a reward, found None each time."
            )
        return [scored_group(prompt, episodes) for prompt, episodes in zip(prompts, played, strict=True)]

    def demonstrate(
        self, prompts: Sequence[RenderedPrompt], targets: Sequence[Tensor], rollout_step: int, progress: float
    ) -> list[ScoredGroup]:
        """Tasks have no targets.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Tasks have no targets to imitate: train on the environment's dialogues instead.")

    def close(self) -> None:
        """End what the environment has started."""
        self._player.environment.close()


def scored_group(prompt: RenderedPrompt, episodes: Sequence[PlayedEpisode]) -> ScoredGroup:
    """The episodes of a task, each as one completion."""
    return ScoredGroup(prompt, tuple(map(_scored, episodes)))


def _scored(episode: PlayedEpisode) -> ScoredCompletion:
    """The answers of an episode end to end."""
    answers = [turn.completion for turn in episode.turns]
    entropies = [answer.entropies for answer in answers if answer.entropies is not None]
    whole = Completion(
        token_ids=torch.cat([answer.token_ids for answer in answers]),
        logprobs=torch.cat([answer.logprobs for answer in answers]),
        finish_reason=answers[-1].finish_reason,
        weights_version=answers[-1].weights_version,
        entropies=torch.cat(entropies) if len(entropies) == len(answers) else None,
    )
    read = [turn.decoded for turn in episode.turns]
    decoded = DecodedCompletion(
        "\n".join(one.text for one in read), read[-1].parsed, torch.cat([one.regions for one in read])
    )
    readable = 1 - episode.counts.get("malformed", 0) / len(read)
    parts = EpisodeParts(float(episode.score.success), readable, episode.score.parts)
    return ScoredCompletion(whole, decoded, Reward(episode.score.total, parts), episode)
