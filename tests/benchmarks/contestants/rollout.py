"""Sampling: the native engine (`ours`), or `transformers` generate with the same model."""

from __future__ import annotations

import time
from typing import Any

import torch

from src.models.loading.loading import PolicyConfig, load_policy
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from tests.benchmarks.resident import peak_of
from tests.benchmarks.serving import Channel


def native(engine: NativeEngine, prompts: list[list[int]], completions: int, new_tokens: int) -> int:
    """Sampled tokens."""
    params = SamplingParams(n=completions, max_new_tokens=new_tokens)  # no stop ids: all decode to the end
    sampled = engine.generate([torch.tensor(prompt) for prompt in prompts], params, list(range(len(prompts))))
    return sum(len(completion.token_ids) for group in sampled for completion in group)


@torch.no_grad()
def generate(model: Any, prompts: list[list[int]], completions: int, new_tokens: int) -> int:
    """Sampled tokens; prompts are padded left, and repeated for each completion."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=completions,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return (out.shape[1] - longest) * out.shape[0]


def main() -> None:
    channel = Channel()
    job = channel.receive()
    model = load_policy(PolicyConfig(path=job["folder"], dtype="float32")).policy.model.eval()
    engine = NativeEngine(model)

    def run(**work: Any) -> int:
        return native(engine, **work) if job["form"] == "ours" else generate(model, **work)

    def timed(**work: Any) -> dict[str, Any]:
        started = time.perf_counter()
        tokens = run(**work)
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    channel.send(threads=torch.get_num_threads())
    channel.serve({"rollout": timed, "memory": lambda **work: {"bytes": peak_of(lambda: run(**work))}})


if __name__ == "__main__":
    main()
