"""(1) Attention of packed rows against float64, forward and backward, and how often FlexAttention is compiled.

The attention is the one that a training calls. On CUDA that is compiled FlexAttention, on a CPU the tiles; there the
forward of FlexAttention is compiled and compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from src.algorithm.packing import GroupLayout
from src.models.attention.packed import packed_attention_forward
from src.models.attention.plan import AttentionPlan, token_ends
from tests.gpu.settings import Found, Proof
from tests.models.rows import in_blocks, in_blocks_of, layouts_of

SHAPES: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "padded": [(150, (40, 33, 1))],
    "exact": [(128, (65, 65))],
    "one block": [(40, (30, 30))],
    "5 groups": [(100, (30, 17)), (9, (70,)), (64, (65, 65)), (200, (2, 3, 4)), (33, (120,))],
}
"""Prompts with the sampled tokens of their completions; inputs are one fewer."""
TREE = GroupLayout(0, (64, 70, 40, 33, 20), (-1, 0, 1, 2, 1))
"""Runs that follow each other, four deep."""
LONG = [(1024, (385,) * 8)] * 4  # 4 * (1024 + 8 * 384) = 16,384
LONG_SMALL = [(256, (97,) * 8)] * 2  # 2 * (256 + 8 * 96) = 2,048
HEADS, KEY_HEADS = 4, 2
BARS = {torch.bfloat16: 2e-2, torch.float32: 2e-6}
"""Largest error over the largest entry."""
GRAPHS_BAR = 3
_STRIP = 1024


def prove(proof: Proof) -> Iterator[Found]:
    long = "2k" if proof.small else "16k"
    rows = {name: layouts_of(shape) for name, shape in SHAPES.items()}
    rows |= {"a tree": (TREE,), long: layouts_of(LONG_SMALL if proof.small else LONG)}
    dtypes = (torch.bfloat16,) if proof.cuda else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        for size in (64, 128):
            for name, layouts in rows.items():
                worst = errors(proof, layouts, size, dtype)
                yield proof.result(
                    "attention",
                    f"{str(dtype).removeprefix('torch.')}, head size {size}, {HEADS} on {KEY_HEADS} heads, {name}",
                    "largest error of out, dq, dk, dv over the largest entry",
                    max(worst.values()),
                    bar=BARS[dtype],
                    at_most=True,
                    details=worst,
                )
    yield from graphs(proof)


def errors(proof: Proof, layouts: tuple[GroupLayout, ...], size: int, dtype: torch.dtype) -> dict[str, float]:
    """Largest error of the output and of each gradient, over the largest entry of what it should be."""
    layouts = in_blocks(layouts)
    plan = AttentionPlan(layouts, proof.where)
    inputs, upstream = _inputs(proof, plan.tokens, size, dtype)
    out, _ = packed_attention_forward(_layer(), *inputs, plan)
    found = (out, *torch.autograd.grad((out * upstream).sum(), inputs))
    expected = exact(inputs, upstream, layouts)
    names = ("out", "dq", "dk", "dv")
    return {
        name: float((ours.detach().double() - theirs).abs().max() / theirs.abs().max())
        for name, ours, theirs in zip(names, found, expected, strict=True)
    }


def exact(inputs: Sequence[Tensor], upstream: Tensor, layouts: tuple[GroupLayout, ...]) -> tuple[Tensor, ...]:
    """Output [1, L, H, D] and gradients by query, key and value in float64, a strip of queries at a time."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    ends = token_ends(layouts, q.device)
    outputs = []
    for start in range(0, len(ends), _STRIP):
        queries = torch.arange(start, min(start + _STRIP, len(ends)), device=q.device)[:, None]
        keys = torch.arange(len(ends), device=q.device)
        mask = (keys <= queries) & (queries < ends)
        wide = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (k, v))
        key, value = wide
        scores = (q[:, :, queries[:, 0]] @ key.transpose(2, 3)) * q.shape[-1] ** -0.5
        out = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)
        (out * upstream[:, queries[:, 0]].double()).sum().backward()
        outputs.append(out.detach())
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return torch.cat(outputs, dim=1), q.grad, k.grad, v.grad


def graphs(proof: Proof) -> Iterator[Found]:
    """Graphs that are compiled for 50 rows of random lengths, with gradients and without in turns."""
    generator = torch.Generator().manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    attend = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    worst = 0.0
    count = 10 if proof.small else 50
    for index in range(count):
        prompt, *lengths = (int(torch.randint(2, 120, (), generator=generator)) for _ in range(4))
        layouts = in_blocks_of([(prompt + (0 if proof.cuda else 128), tuple(lengths))] * (1 + index % 5))
        plan = AttentionPlan(layouts, proof.where)
        dtype = torch.bfloat16 if proof.cuda else torch.float32
        inputs, upstream = _inputs(proof, plan.tokens, 64, dtype)
        if proof.cuda:
            with torch.inference_mode(index % 3 == 2), torch.set_grad_enabled(index % 3 == 0):
                out, _ = packed_attention_forward(_layer(), *inputs, plan)
        else:
            q, k, v = (x.detach() for x in inputs)
            with torch.no_grad():
                out = attend(q, k, v, block_mask=plan.block_mask, enable_gqa=True).transpose(1, 2)
        expected = exact(inputs, upstream, layouts)[0]
        worst = max(worst, float((out.double() - expected).abs().max() / expected.abs().max()))
    yield proof.result(
        "attention",
        f"{count} rows of random lengths",
        "graphs of compiled FlexAttention",
        counters["stats"]["unique_graphs"],
        bar=GRAPHS_BAR,
        at_most=True,
        details={"largest error": worst},
    )
    if not proof.cuda:
        yield "On a CPU trainings compute tiles. FlexAttention was compiled here for forwards alone."


def _layer() -> nn.Module:
    """What transformers' SDPA reads off an attention layer."""
    module = nn.Module()
    module.num_key_value_groups = HEADS // KEY_HEADS  # type: ignore[assignment]
    return module


def _inputs(proof: Proof, tokens: int, size: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values [1, heads, L, D] as a layer makes them, and an upstream gradient [1, L, H, D]."""
    generator = torch.Generator().manual_seed(1)

    def draw(heads: int) -> Tensor:
        return torch.randn(1, tokens, heads, size, generator=generator).to(proof.where, dtype)

    inputs = [draw(heads).transpose(1, 2).requires_grad_() for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return inputs, draw(HEADS)
