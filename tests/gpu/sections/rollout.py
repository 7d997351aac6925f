"""(5) Sampling: tokens a second of the native engine and of transformers' `generate`, with the same model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from src.rollout.native.engine import NativeEngine
from tests.benchmarks.contestants.rollout import generate, native
from tests.benchmarks.models import QWEN3_06B, random_model
from tests.gpu.sections.machine import fastest
from tests.gpu.settings import Found, Proof

SMALL = {"vocabulary": 4096, "width": 256, "inner": 768, "layers": 3, "heads": 8, "kv_heads": 4, "head_size": 32}


def prove(proof: Proof) -> Iterator[Found]:
    shape = SMALL if proof.small else QWEN3_06B
    tokens, new = (200, 24) if proof.small else (600, 64)
    with proof.where:
        model = random_model(**shape).eval()
    model.to(proof.where, torch.bfloat16 if proof.cuda else torch.float32)
    engine = NativeEngine(model)
    for prompts, completions in ((1, 8), (4 if proof.small else 16, 1), (4 if proof.small else 32, 8)):
        generator = torch.Generator().manual_seed(prompts)
        ids = torch.randint(shape["vocabulary"], (prompts, tokens), generator=generator).tolist()
        work = {"prompts": ids, "completions": completions, "new_tokens": new}
        sampled = prompts * completions * new
        ours = sampled / fastest(proof, lambda work=work: native(engine, **work), repeats=2)
        theirs = sampled / fastest(proof, lambda work=work: generate(model, **work), repeats=2)
        yield proof.result(
            "rollout",
            f"{prompts} prompts of {tokens}, {completions} completions of {new}",
            "tokens/s over those of generate",
            ours / theirs,
            details={"native tokens/s": ours, "generate tokens/s": theirs},
        )
