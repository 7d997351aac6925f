"""`make bench`: how fast the parts are, as ratios measured side by side in one process. Asserts nothing.

    make bench ARGS="--repeats 7 --json bench.json"

Runs alternate A B A B …, so that a machine that drifts drifts for both; medians and the range of the pairwise ratios
are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.data.rendering import PromptRenderer
from src.data.sources.synthetic import SyntheticSource
from src.models.loading import PolicyConfig, load_policy
from src.models.policy import Policy
from src.models.tiny_policy import FOLDER
from src.rollout.engine import SamplingParams
from src.rollout.native import NativeEngine
from tests.benchmarks.padded import padded_logprobs, random_groups

COMPLETIONS, NEW_TOKENS, PROMPTS = 8, 48, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=FOLDER, help="model folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    args = parser.parse_args()
    loaded = load_policy(PolicyConfig(path=args.policy, dtype="float32"))
    policy, model = loaded.policy.train(), loaded.policy.model
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    prompts = [renderer.render(e).prompt_ids for e in SyntheticSource(PROMPTS, 1, seed=9).load("train")]
    groups = random_groups(prompts, COMPLETIONS, NEW_TOKENS, vocabulary=len(loaded.tokenizer))

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{PROMPTS} prompts of {sum(map(len, prompts)) // PROMPTS} tokens, {COMPLETIONS} x {NEW_TOKENS} new tokens")
    results = {
        "update: packed row / padded rows": compare(
            lambda: update(policy, lambda: packed(policy, groups)),
            lambda: update(policy, lambda: padded_logprobs(model, groups)),
            args.repeats,
        )
    }
    engine = NativeEngine(model)
    params = SamplingParams(n=COMPLETIONS, max_new_tokens=NEW_TOKENS)  # no stop ids: both decode to the end
    model.generation_config.eos_token_id = None
    results["rollout: native engine / transformers generate"] = compare(
        lambda: engine.generate(prompts, params, list(range(PROMPTS))),
        lambda: generate(policy, prompts, loaded.tokenizer.pad_token_id),
        args.repeats,
    )
    for name, result in results.items():
        print(f"{name}: {result['ratio']:.2f} [{result['ratio_min']:.2f}, {result['ratio_max']:.2f}]  "
              f"({result['a_seconds']:.3f} s / {result['b_seconds']:.3f} s)")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def compare(a: Callable[[], object], b: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median seconds of both, and of the ratio a / b pair by pair; one uncounted pair first."""
    pairs = []
    for _ in range(repeats + 1):
        times = []
        for run in (a, b):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        pairs.append(times)
    counted = pairs[1:]
    ratios = [first / second for first, second in counted]
    return {
        "a_seconds": statistics.median(first for first, _ in counted),
        "b_seconds": statistics.median(second for _, second in counted),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def packed(policy: Policy, groups: list[PromptGroup]) -> torch.Tensor:
    return policy(pack(groups)).logprobs


def update(policy: Policy, score: Callable[[], torch.Tensor]) -> None:
    """Forward and backward of the mean log-probability."""
    policy.zero_grad(set_to_none=True)
    score().mean().backward()


@torch.no_grad()
def generate(policy: Policy, prompts: list[torch.Tensor], pad: int) -> torch.Tensor:
    """The same sampling by transformers: prompts padded left and repeated for each completion."""
    longest = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0), value=pad) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).long()
    policy.model.eval()
    out = policy.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=COMPLETIONS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=pad,
    )
    policy.model.train()
    return out


if __name__ == "__main__":
    main()
