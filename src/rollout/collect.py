"""Prompts to scored completions: sample, decode, parse, tag, reward. Training, validation and benchmarks share it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from src.algorithm.advantages import Credit, Estimator, group_advantages, turn_advantages, zero_variance
from src.algorithm.experience import PromptGroup
from src.data.rendering import RenderedPrompt
from src.protocol.regions import DecodedCompletion, read_completions
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rewards.functions.python_reward import Batch, score_all
from src.rewards.tool_call import Reward, RewardFunction, RewardParts
from src.rollout.engine import Completion, RolloutEngine, SamplingParams
from src.rollout.history import PlayedEpisode, tree_of_histories


class StaleRolloutError(RuntimeError):
    """A completion was sampled from other weights than the policy's current ones."""


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A completion, what it says, and what it earned.

    Of an episode these are its answers end to end: what was sampled, its regions, and the reward of the whole.

    Attributes:
        completion: as sampled.
        decoded: the same, read.
        reward: of it.
        episode: turn by turn; None: the completion is one answer.
    """

    completion: Completion
    decoded: DecodedCompletion
    reward: Reward
    episode: PlayedEpisode | None = None

    def metrics(self) -> dict[str, float]:
        """By the names that curves have: `reward/…`, `response/…` and, of an episode, `episode/…`."""
        found = {"reward/total": self.reward.total}
        found |= {f"reward/{name}": value for name, value in self.reward.parts.metrics().items()}
        found["response/tokens"] = float(len(self.completion.token_ids))
        found["response/truncated"] = float(self.completion.finish_reason == "length")
        found["response/with_call"] = float((self.decoded.regions == Region.TOOL_NAME).any())
        if self.episode is not None:
            found |= {f"episode/{name}": value for name, value in self.episode.metrics().items()}
        return found


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """One prompt and its scored completions."""

    prompt: RenderedPrompt
    completions: tuple[ScoredCompletion, ...]

    @property
    def rewards(self) -> Tensor:
        """float32 [G]."""
        return torch.tensor([scored.reward.total for scored in self.completions])

    @property
    def teaches(self) -> bool:
        """Whether the rewards differ, so that the group has advantages."""
        return not bool(zero_variance(self.rewards))

    def to_experience(self, estimator: Estimator, delta: float, credit: Credit = "episode") -> PromptGroup:
        """The group as tensors, with advantages and with token weights of 1 until the regions' are known.

        Args:
            estimator: of the advantages.
            delta: see `group_advantages`.
            credit: what the answers of episodes are credited with.
        """
        tokens = torch.cat([scored.completion.token_ids for scored in self.completions])
        rewards = self.rewards
        entropies = [scored.completion.entropies for scored in self.completions]
        told = [values for values in entropies if values is not None]
        prompt, tree, credits = self.prompt.prompt_ids, None, None
        episodes = [scored.episode for scored in self.completions if scored.episode is not None]
        if episodes:
            prompt, tree = tree_of_histories(prompt, [episode.history for episode in episodes])
        if episodes and credit == "turn":
            earned = torch.nn.utils.rnn.pad_sequence([torch.tensor(e.earned) for e in episodes], batch_first=True)
            by_turn = turn_advantages(earned, estimator=estimator, delta=delta)
            credits = torch.cat(
                [
                    row[: len(episode.turns)].repeat_interleave(torch.tensor(episode.lengths))
                    for row, episode in zip(by_turn, episodes, strict=True)
                ]
            )
        return PromptGroup(
            prompt_ids=prompt,
            token_ids=tokens,
            lengths=torch.tensor([len(scored.completion.token_ids) for scored in self.completions]),
            rollout_logprobs=torch.cat([scored.completion.logprobs for scored in self.completions]),
            regions=torch.cat([scored.decoded.regions for scored in self.completions]),
            rewards=rewards,
            advantages=group_advantages(rewards, estimator=estimator, delta=delta),
            weights=torch.ones(len(tokens)),
            credit=credits,
            rollout_entropies=torch.cat(told) if len(told) == len(entropies) else None,
            tree=tree,
        )


class GroupCollector(Protocol):
    """Prompts to scored groups: of single answers (`Collector`), or of episodes (`rollout.episodes`).

    Attributes:
        table: the tokenizer's tokens as bytes.
        scores: names of what rewards are made of, besides what all have.
        counts: names of what is counted of an episode (`ScoredCompletion.metrics`).
    """

    table: TokenBytes
    scores: tuple[str, ...]
    counts: tuple[str, ...]

    def collect(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        seed: int,
        rollout_step: int,
        progress: float,
    ) -> list[ScoredGroup]:
        """Sample and score `params.n` completions of each prompt, in order."""
        ...

    def demonstrate(
        self, prompts: Sequence[RenderedPrompt], targets: Sequence[Tensor], rollout_step: int, progress: float
    ) -> list[ScoredGroup]:
        """Groups of one completion each: the given targets, scored."""
        ...

    def close(self) -> None:
        """Give back what it has started; it is not used after."""
        ...


class Collector:
    """Samples prompts with an engine and scores what comes back.

    Args:
        engine: samples.
        reward: scores.
        table: the tokenizer's tokens as bytes.
        stop_ids: end-of-turn tokens.
        tagger: sampled ids [T] -> regions [T], in place of those of `protocol.regions`.

    Attributes:
        scores: names of what the reward logs besides the rules' components.
        counts: none.
    """

    counts: tuple[str, ...] = ()

    def __init__(
        self,
        engine: RolloutEngine,
        reward: RewardFunction,
        table: TokenBytes,
        stop_ids: tuple[int, ...],
        tagger: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._engine = engine
        self._reward = reward
        self.table, self.scores = table, tuple(getattr(reward, "names", ()))
        self._stop_ids = stop_ids
        self._tagger = tagger

    def collect(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        seed: int,
        rollout_step: int,
        progress: float,
    ) -> list[ScoredGroup]:
        """Sample and score `params.n` completions of each prompt, in order.

        Args:
            prompts: what to complete.
            params: how to sample; its stop ids are replaced by the tokenizer's where empty.
            seed: of the run; each prompt draws from its own stream (`prompt_seed`).
            rollout_step: rollout steps done, which is also the version that the weights must have.
            progress: fraction of training done.

        Raises:
            StaleRolloutError: the engine's weights are not those of `rollout_step`.
            RewardError: a reward is not finite.
        """
        seeds = [prompt_seed(seed, rollout_step, prompt.example.id) for prompt in prompts]
        sampled = self._engine.generate([prompt.prompt_ids for prompt in prompts], params, seeds)
        check_fresh([completion for completions in sampled for completion in completions], rollout_step)
        return self._score(prompts, sampled, rollout_step, progress)

    def demonstrate(
        self, prompts: Sequence[RenderedPrompt], targets: Sequence[Tensor], rollout_step: int, progress: float
    ) -> list[ScoredGroup]:
        """Groups of one completion each: the given target ids [T], scored as if they had been sampled."""
        given = [[Completion(ids, torch.zeros(len(ids)), "stop", rollout_step)] for ids in targets]
        return self._score(prompts, given, rollout_step, progress)

    def close(self) -> None:
        """Nothing to give back."""

    def _score(
        self,
        prompts: Sequence[RenderedPrompt],
        sampled: Sequence[Sequence[Completion]],
        rollout_step: int,
        progress: float,
    ) -> list[ScoredGroup]:
        """A group of each prompt; the completions of all are read in one pass."""
        token_ids = [completion.token_ids for completions in sampled for completion in completions]
        pairs = list(zip(prompts, sampled, strict=True))
        readings = [prompt.reading for prompt, completions in pairs for _ in completions]
        found = read_completions(token_ids, self.table, self._stop_ids, readings)
        if self._tagger is not None:
            found = [replace(one, regions=self._tagger(ids)) for one, ids in zip(found, token_ids, strict=True)]
        examples = [prompt.example for prompt, completions in pairs for _ in completions]
        rewards = score_all(self._reward, Batch(examples, token_ids, found, rollout_step, progress))
        read = zip(found, rewards, strict=True)
        groups = []
        for prompt, completions in pairs:
            scored = []
            for completion in completions:
                decoded, reward = next(read)
                if completion.finish_reason == "length":  # it never came to its end
                    parts = cast(RewardParts, reward.parts)
                    reward = replace(reward, parts=replace(parts, exact_match=0.0))
                scored.append(ScoredCompletion(completion, decoded, reward))
            groups.append(ScoredGroup(prompt, tuple(scored)))
        return groups


def check_fresh(completions: Sequence[Completion], rollout_step: int) -> None:
    """Refuse completions of other weights than those of `rollout_step`.

    Raises:
        StaleRolloutError: names both versions.
    """
    for completion in completions:
        if completion.weights_version != rollout_step:
            raise StaleRolloutError(
                f"rollout step {rollout_step}: expected completions from weights version {rollout_step}, found "
                f"{completion.weights_version}. Call engine.update_weights after every update."
            )


def prompt_seed(seed: int, rollout_step: int, example_id: str) -> int:
    """Seed of one prompt's samples: a function of the run, the step and the example, not of ranks or batch order."""
    digest = hashlib.sha256(f"{seed}/{rollout_step}/{example_id}".encode()).digest()
    return int.from_bytes(digest[:7])
