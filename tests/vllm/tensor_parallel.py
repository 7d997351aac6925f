"""Two ranks that are one engine; torchrun starts this file. Prints the worst gap and what each rank sampled."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from src.models.loading.lora import merged_named_tensors
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import vllm_engine
from tests.vllm.scoring import SMALL_ENGINE, gap, ids, load, nudge, prompts

SAMPLED = SamplingParams(n=2, max_new_tokens=16)


def main(folder: Path, output: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, (shared, first, second) = load(folder), prompts(7, 60, 33)
    engine = vllm_engine(EngineSource(model, str(folder)), tensor_parallel_size=2, **SMALL_ENGINE)
    asked, seeds = ([shared, first], [1, 2]) if rank == 0 else ([second, shared], [3, 1])
    found = []
    for version in range(2):
        nudge(model, seed=version)
        engine.update_weights(merged_named_tensors(model), version)
        sampled = engine.generate(asked, SAMPLED, seeds)
        found.append({"ids": ids(sampled), "gap": gap(model, asked, sampled)})
    alone = engine.generate(asked if rank == 0 else [], SAMPLED, seeds if rank == 0 else [])
    engine.close()
    dist.barrier()  # the trainer's group is still there
    (output / f"{rank}.json").write_text(json.dumps({"steps": found, "alone": ids(alone)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
