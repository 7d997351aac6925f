"""The attention of packed rows, in each form that a device may need, against SDPA with the dense mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from src.algorithm.packing import GroupLayout
from src.errors import ConfigError
from src.models.attention import packed
from src.models.attention import tiles as attention_tiles
from src.models.attention.packed import (
    _attend_by_group,
    _row_mask,
    flex_attend,
    flex_supports,
    packed_attention_forward,
    planned,
)
from src.models.attention.plan import AttentionPlan, backward_tiles, block_mask, dense_mask
from src.models.compiling import many_graphs
from tests.models.reference import LargestTensor
from tests.models.rows import CPU, in_blocks_of, layouts_of, random_layouts, random_trees


def layer(groups: int = 2) -> nn.Module:
    """What transformers' SDPA reads off an attention layer."""
    module = nn.Module()
    module.num_key_value_groups = groups
    return module


def inputs(
    layouts: tuple[GroupLayout, ...],
    dim: int,
    dtype: torch.dtype,
    heads: tuple[int, int] = (4, 2),
    device: torch.device = CPU,
) -> list[Tensor]:
    """Queries, keys, values [1, heads, L, D] with L outermost in memory, as a layer makes them; upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    size = sum(layout.num_tokens for layout in layouts)

    def draw(count: int) -> Tensor:
        return torch.randn(1, size, count, dim, generator=generator, dtype=torch.float64).to(device, dtype)

    q, k, v = (draw(count).transpose(1, 2).requires_grad_() for count in (heads[0], heads[1], heads[1]))
    return [q, k, v, draw(heads[0])]


def expected(layouts: tuple[GroupLayout, ...], q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(layouts, q.device), scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("piece", [3, 256])
def test_tiles_give_the_attention_and_gradients_of_the_dense_mask(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "backward_tiles", partial(backward_tiles, piece=piece))
    generator = torch.Generator().manual_seed(0)
    for repeat in range(80):
        layouts = random_trees(generator) if repeat % 2 else random_layouts(generator)
        q, k, v, upstream = inputs(layouts, 3, torch.float64)
        plan = AttentionPlan(layouts, CPU)
        found, _ = packed_attention_forward(layer(), q, k, v, plan, scaling=0.7)
        reference = expected(layouts, q, k, v, 0.7)
        torch.testing.assert_close(found, reference, atol=1e-12, rtol=0)
        by_found = torch.autograd.grad((found * upstream).sum(), (q, k, v))
        by_reference = torch.autograd.grad((reference * upstream).sum(), (q, k, v))
        torch.testing.assert_close(by_found, by_reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (6, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_long_rows_in_low_precision(
    dtype: torch.dtype, tolerance: float, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Against the same inputs in double: errors relative to the largest entry, as the precision has it.

    A score has 64 terms, and so has a gradient of one: √64 2^-24 = 4.8e-7, four times that in the worst of many.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # tiles are shared out as two threads would have them
    layouts = layouts_of([(421, (390, 33, 33, 1)), (70, (300,))])
    q, k, v, upstream = inputs(layouts, 64, dtype, heads, device)
    found, _ = packed_attention_forward(layer(heads[0] // heads[1]), q, k, v, AttentionPlan(layouts, device))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    reference = expected(layouts, *exact, None)
    by_found = torch.autograd.grad((found * upstream).sum(), (q, k, v))
    by_reference = torch.autograd.grad((reference * upstream.double()).sum(), exact)
    for ours, theirs in zip((found, *by_found), (reference, *by_reference), strict=True):
        assert (ours.double() - theirs).abs().max() < tolerance * theirs.abs().max()


def test_group_masks_give_the_same_and_take_dropout(device: torch.device) -> None:
    layouts = layouts_of([(7, (5, 1, 9)), (12, (4,)), (3, (2, 2))])
    q, k, v, _ = inputs(layouts, 4, torch.float64, device=device)
    plan = AttentionPlan(layouts, device)
    found = _attend_by_group(layer(), q, k, v, plan, 0.0, None)
    torch.testing.assert_close(found, expected(layouts, q, k, v, None), atol=1e-12, rtol=0)
    ones = torch.ones_like(v)  # each output is the sum of the weights: 1, or a multiple of 2 / keys after dropping half
    dropped, _ = packed_attention_forward(layer(), torch.zeros_like(q), k, ones, plan, dropout=0.5)
    kept = dropped[0, :, 0, 0] * dense_mask(layouts, device)[0, 0].sum(1) / 2
    torch.testing.assert_close(kept, kept.round(), atol=1e-9, rtol=0)
    assert dropped.std() > 0.1


def test_flex_attention_agrees_with_the_dense_mask() -> None:
    tree = GroupLayout(0, (64, 70, 40, 33, 20), (-1, 0, 1, 2, 1))  # four deep
    layouts = in_blocks_of([(150, (40, 33, 1)), (9, (70,)), (64, (65, 65))], first=tree)
    q, k, v = (x.detach() for x in inputs(layouts, 16, torch.float32, (6, 2))[:3])
    with torch.no_grad():
        found = flex_attend(q, k, v, block_mask(layouts, CPU), 0.3).transpose(1, 2)
        # A score is 0.3 times 16 products, up to 8, and is rounded by √16 2^-24 8 = 1.9e-6, two by 2.7e-6. Where two
        # keys share the weight it moves by up to a quarter of that, the output by that times their distance, up to 8.
        torch.testing.assert_close(found, expected(layouts, q, k, v, 0.3), atol=1e-5, rtol=0)


def test_autocast_computes_in_its_own_precision() -> None:
    layouts = layouts_of([(5, (3, 4))])
    q, k, v, _ = inputs(layouts, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = packed_attention_forward(layer(), q, k, v.bfloat16(), AttentionPlan(layouts, CPU))
    assert found.dtype == torch.bfloat16
    # values below 4 and an output below 4, each rounded to 8 bits: 2^-7 + 2^-7 = 1.6e-2
    torch.testing.assert_close(found.float(), expected(layouts, q, k, v, None), atol=2e-2, rtol=0)


def test_nothing_of_row_by_row_size_is_made_and_no_key_is_copied() -> None:
    layouts = layouts_of([(32, (33,) * 16)] * 4)
    size = sum(layout.num_tokens for layout in layouts)  # 4 * (32 + 16 * 32) = 2,176
    q, k, v = (torch.randn(1, 2, size, 8, requires_grad=True) for _ in range(3))
    plan = AttentionPlan(layouts, CPU)
    with LargestTensor() as seen:
        found, _ = packed_attention_forward(layer(1), q, k, v, plan)
        found.sum().backward()
    assert seen.numel == size * 2 * 8  # the outputs, and the gradients


# Windows, sinks and caps

SHAPES = [(9, (5, 1, 9)), (3, (4, 7))]


def within(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A window of 4 tokens, as transformers gives it: of positions."""
    return key > query - 4


def explicit(
    layouts: tuple[GroupLayout, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    cap: float | None,
    window: bool,
) -> Tensor:
    """Softmax over all visible keys, written out, with the sink as one more score."""
    mask = dense_mask(layouts, CPU, within if window else None)
    scores = q @ k.repeat_interleave(2, dim=1).transpose(2, 3) * 0.7
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.exp() * mask
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + sink.exp()[:, None, None]
    return ((weights / total) @ v.repeat_interleave(2, dim=1)).transpose(1, 2)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [False, True])
def test_windows_sinks_and_caps_are_those_of_the_whole_softmax(sinks: bool, cap: float | None, window: bool) -> None:
    layouts = layouts_of(SHAPES)
    q, k, v, upstream = inputs(layouts, 4, torch.float64)
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True) if sinks else None
    plan = AttentionPlan(layouts, CPU, within if window else None)
    found, _ = packed_attention_forward(layer(), q, k, v, plan, scaling=0.7, softcap=cap, s_aux=sink)
    reference = explicit(layouts, q, k, v, sink, cap, window)
    torch.testing.assert_close(found, reference, atol=1e-6, rtol=0)
    wants = [x for x in (q, k, v, sink) if x is not None]
    by_found = torch.autograd.grad((found * upstream).sum(), wants)
    by_reference = torch.autograd.grad((reference * upstream).sum(), wants)
    torch.testing.assert_close(by_found, by_reference, atol=1e-6, rtol=0)


def test_tiles_with_sinks_are_exact_in_double() -> None:
    layouts = layouts_of(SHAPES)
    q, k, v, upstream = inputs(layouts, 4, torch.float64)
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    found, _ = packed_attention_forward(layer(), q, k, v, AttentionPlan(layouts, CPU), scaling=0.7, s_aux=sink)
    reference = explicit(layouts, q, k, v, sink, None, False)
    torch.testing.assert_close(found, reference, atol=1e-12, rtol=0)
    by_found = torch.autograd.grad((found * upstream).sum(), (q, k, v, sink))
    by_reference = torch.autograd.grad((reference * upstream).sum(), (q, k, v, sink))
    torch.testing.assert_close(by_found, by_reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [False, True])
def test_flex_attention_with_sinks_caps_and_windows(cap: float | None, window: bool) -> None:
    layouts = in_blocks_of([(150, (40, 33, 1)), (9, (70,))])
    q, k, v = (x.detach() for x in inputs(layouts, 16, torch.float32)[:3])
    sink = torch.tensor([0.3, -1.0, 2.0, 0.0])
    with torch.no_grad():
        mask = block_mask(layouts, CPU, within if window else None)
        found = flex_attend(q, k, v, mask, 0.7, cap, sink).transpose(1, 2)
        torch.testing.assert_close(found, explicit(layouts, q, k, v, sink, cap, window), atol=2e-5, rtol=0)


# Compiled. FlexAttention has no backward on CPUs but in a form that holds all scores, which `eager` backends run.

MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)
TREE = GroupLayout(0, (64, 70, 40, 33, 9, 20), (-1, 0, 1, 2, 3, 1))  # four deep


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Compiles the kernel for CPUs with a backend, in code that would run it on CUDA."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)

    def use(backend: str) -> None:
        kernel = torch.compile(flex.flex_attention, dynamic=True, fullgraph=True, backend=backend)
        monkeypatch.setattr(packed, "flex_attention", kernel)

    torch._dynamo.reset()
    counters.clear()
    yield use
    torch._dynamo.reset()


def graphs_of(rows: Iterable[tuple[GroupLayout, ...]], modes: Sequence[Any]) -> int:
    """How many were compiled for rows in each mode, with 4 heads of keys."""
    for layouts in rows:
        for mode in modes:
            with mode(), many_graphs():
                q, k, v = (x.detach() for x in inputs(layouts, 16, torch.float32, (8, 4))[:3])
                flex_attend(
                    *(x.requires_grad_(mode is torch.enable_grad) for x in (q, k, v)), block_mask(layouts, CPU), None
                )
    return int(counters["stats"]["unique_graphs"])


def test_rows_of_all_lengths_share_a_graph(compiled: Callable[[str], None]) -> None:
    """First one with as many blocks as key heads; then padded, a multiple of the blocks, one block, several groups."""
    compiled("eager")
    shapes = [[(500, ())], [(300, ())], [(256, ())], [(5, (3,))], [(300, (40, 33)), (90, (50,))]]
    assert graphs_of(map(in_blocks_of, shapes), MODES) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "modes"), [("aot_eager", MODES), ("inductor", MODES[1:])])
def test_fifty_random_rows_have_a_graph_a_mode(
    backend: str, modes: Sequence[Any], compiled: Callable[[str], None]
) -> None:
    compiled(backend)
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    rows = []
    for repeat in range(50):
        prompt = 128 * draw(1, 4) if repeat % 3 == 0 else draw(1, 260)
        rows.append(
            in_blocks_of([(prompt, tuple(draw(1, 60) for _ in range(draw(0, 5)))) for _ in range(1 + repeat % 5)])
        )
    assert graphs_of(rows, modes) == len(modes)


SHAPES_IN_BLOCKS: list[list[tuple[int, tuple[int, ...]]]] = [
    [(300, (90, 41, 1))],  # padded
    [(384, (65, 65))],  # a multiple of 128: 384 + 64 + 64
    [(40, (9, 1))],  # one block, and one of padding
    [(150, (40, 33, 1)), (9, (70,)), (64, (65, 65)), (1, (200,)), (90, (3, 3, 3))],
]


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [*SHAPES_IN_BLOCKS, [(14_000, (400,) * 6)]])
def test_the_compiled_kernel_is_attention(
    shapes: list[tuple[int, tuple[int, ...]]], compiled: Callable[[str], None]
) -> None:
    """In float32, against tiles in double; scores have 16 terms, see `test_long_rows_in_low_precision`."""
    compiled("inductor")
    for first in (None, TREE):
        layouts = in_blocks_of(shapes, first)
        q, k, v = (x.detach() for x in inputs(layouts, 16, torch.float32)[:3])
        with torch.no_grad(), many_graphs():
            found = flex_attend(q, k, v, block_mask(layouts, CPU), None).transpose(1, 2)
        exact, _ = packed_attention_forward(layer(), q.double(), k.double(), v.double(), AttentionPlan(layouts, CPU))
        assert (found.double() - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("shapes", SHAPES_IN_BLOCKS)
def test_gradients_of_the_compiled_kernel(
    shapes: list[tuple[int, tuple[int, ...]]], compiled: Callable[[str], None]
) -> None:
    compiled("aot_eager")
    for first in (None, TREE):
        layouts = in_blocks_of(shapes, first)
        q, k, v, upstream = inputs(layouts, 16, torch.float32)
        with many_graphs():
            found = flex_attend(q, k, v, block_mask(layouts, CPU), None).transpose(1, 2)
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        reference, _ = packed_attention_forward(layer(), *exact, AttentionPlan(layouts, CPU))
        by_found = torch.autograd.grad((found * upstream).sum(), (q, k, v))
        by_reference = torch.autograd.grad((reference * upstream.double()).sum(), exact)
        for ours, theirs in zip((found, *by_found), (reference, *by_reference), strict=True):
            assert (ours.double() - theirs).abs().max() < 2e-6 * theirs.abs().max()


def test_float32_is_taken_as_half_precision_is() -> None:
    def heads(dtype: torch.dtype, size: int) -> Any:
        return SimpleNamespace(shape=(1, 2, 256, size), dtype=dtype, is_cuda=True)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert [flex_supports(*[heads(dtype, size)] * 2) for size in (8, 16, 96, 128, 256)] == [
            False,
            True,
            False,
            True,
            False,
        ]
    assert not flex_supports(*[heads(torch.float64, 64)] * 2)


def test_a_window_that_no_sequence_outgrows_is_none() -> None:
    """Prompt 9 and 9 sampled tokens: 17 inputs. A window of 17 lets all of them through, one of 16 does not."""
    plan = AttentionPlan(layouts_of(SHAPES), CPU)
    assert plan.longest == 17
    with planned(plan):
        assert _row_mask(mask_function=within, local_size=17) is plan
        cut = _row_mask(mask_function=within, local_size=16)
    assert isinstance(cut, AttentionPlan) and cut.within is within


def test_what_rows_cannot_do_is_said() -> None:
    plan = AttentionPlan(layouts_of([(2, (3,))]), CPU)
    q = torch.randn(1, 2, 4, 8)
    with planned(plan):
        with pytest.raises(ConfigError, match="Module cannot run on packed rows: its layers have no mask in place of"):
            packed_attention_forward(layer(1), q, q, q, None)
        with pytest.raises(ConfigError, match=r"a mask of their own, of shape \[1, 1, 4, 4\]"):
            packed_attention_forward(layer(1), q, q, q, torch.ones(1, 1, 4, 4, dtype=torch.bool))
        with pytest.raises(ConfigError, match="change the scores by position_bias"):
            packed_attention_forward(layer(1), q, q, q, plan, position_bias=q)
        with pytest.raises(ConfigError, match="attend from 3 to 4 positions of a row of 4"):
            packed_attention_forward(layer(1), q[:, :, :3], q, q, plan)
        with pytest.raises(ConfigError, match="a mask that is more than causal"):
            _row_mask(mask_function=within)
    with pytest.raises(ConfigError, match="without a plan, has no sinks and caps"):
        packed_attention_forward(layer(1), q, q, q, None, softcap=2.0)
