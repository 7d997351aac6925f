"""Forced episodes through vLLM: its log-probabilities are the trainer's on trees, its prompts those of their rows.

python -m tests.vllm.test_episodes --tasks 25        # 200 episodes a template
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.models.loading.lora import merged_named_tensors
from src.rollout.engine import EngineSource
from src.rollout.vllm.engine import vllm_engine
from tests.data.templates.test_native import template, tokenizer  # noqa: F401  # a fixture
from tests.protocol.conftest import smollm2  # noqa: F401  # a fixture
from tests.rollout.forced import PLAYERS, TEMPLATES, Keys, Outcome, Script, compare, real_tokenizer, script, small_model

pytestmark = pytest.mark.vllm

CASES = [(name, some) for name, thinks in TEMPLATES.items() for some in {thinks, False}]
FIRST_SEED = 10_000_000
"""seed * 8 + index of one request is never seed * 1 of another."""
FEW = [("qwen3", True), ("qwen3", False), ("qwen3_5_think", True), ("llama3_1", False), ("gptoss", True)]


def outcomes(
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
    folder: Path,
    cases: list[tuple[str, bool]],
    tasks: int,
) -> list[Outcome]:
    """Of each template, with thoughts or without, on one engine."""
    from tests.vllm.forcing import GIVEN

    model = small_model(tokenizer)
    model.save_pretrained(folder)
    settings = {"enforce_eager": True, "kv_cache_gib": 1.0, "max_model_len": 8192, "logprobs_mode": "raw_logprobs"}
    forcing = {"logits_processors": ["tests.vllm.forcing:Forcing"]}
    engine = vllm_engine(EngineSource(model, str(folder)), **settings, engine_args=forcing)
    engine.update_weights(merged_named_tensors(model), 0)
    found = []
    try:
        for name, thoughts in cases:
            tokenizer.chat_template = template(name)
            renderer = PromptRenderer(tokenizer, "native", date="2024-07-26")
            given = script(renderer, tasks, thoughts=thoughts)
            keys = Noted(given, GIVEN)
            found.append(compare(engine, model, renderer, given, keys))
            logging.info("%s, thoughts %s: %s", name, thoughts, found[-1])
    finally:
        engine.close()
    return found


class Noted(Keys):
    """Keys whose answers vLLM finds by the seeds that the engine gives its requests: seed times n, plus the index."""

    def __init__(self, given: Script, answers: dict[int, list[int]]) -> None:
        super().__init__()
        self._given, self._answers = given, answers

    def __call__(self, key: str) -> int:
        seed = super().__call__(key) + FIRST_SEED
        ids = self._given.of(key)
        self._answers.update({seed * len(ids) + index: one.tolist() for index, one in enumerate(ids)})
        return seed

    def seed(self, key: str) -> int:
        return super().seed(key) + FIRST_SEED


def test_the_trainer_scores_every_token_as_vllm_did(
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
    tmp_path: Path,
) -> None:
    for outcome in outcomes(tokenizer, tmp_path, FEW, tasks=2):
        assert outcome.episodes == 2 * PLAYERS and outcome.strays == 0
        assert outcome.gap < 1e-4 and outcome.called > 0.4


def main() -> int:
    """Command line; status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=25, help=f"of {PLAYERS} episodes each")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with TemporaryDirectory() as folder:
        found = outcomes(real_tokenizer(), Path(folder), CASES, options.tasks)
    return int(any(outcome.gap > 1e-4 or outcome.strays for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
