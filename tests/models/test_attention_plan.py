"""Blocks of a packed row against the dense mask that they stand for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from src.algorithm.packing import GroupLayout
from src.models.attention import packed_attention_forward
from src.models.attention_plan import dense_mask, plan_attention
from tests.models.reference import LargestTensor

CPU = torch.device("cpu")


def layouts_of(shapes: list[tuple[int, tuple[int, ...]]]) -> tuple[GroupLayout, ...]:
    layouts, offset = [], 0
    for prompt, lengths in shapes:
        layouts.append(GroupLayout(offset, prompt, lengths))
        offset += layouts[-1].num_tokens
    return tuple(layouts)


def random_layouts(generator: torch.Generator) -> tuple[GroupLayout, ...]:
    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    size, prompt = draw(1, 5), draw(1, 9)  # groups of like shapes share blocks, others do not
    shapes = []
    for _ in range(draw(1, 7)):
        completions = size if draw(0, 4) else draw(1, 5)
        length = prompt + draw(0, 3) if draw(0, 4) else draw(1, 20)
        shapes.append((length, tuple(draw(1, 8) for _ in range(completions))))
    return layouts_of(shapes)


def test_worked_example() -> None:
    plan = plan_attention(layouts_of([(2, (3, 2))]), CPU)
    assert [block.index.tolist() for block in plan.causal] == [[[0, 1]]]
    (block,) = plan.completions
    assert block.prompt_index.tolist() == [[0, 1]] and block.own_index.tolist() == [[2, 3], [4, 0]]
    assert block.mask.int().tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 1]]]]
    assert plan.order.tolist() == [0, 1, 2, 3, 4]


def test_dense_mask_of_the_worked_example() -> None:
    assert dense_mask(layouts_of([(2, (3, 2))]), CPU)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_like_groups_share_blocks_and_unlike_ones_do_not() -> None:
    plan = plan_attention(layouts_of([(8, (5, 5)), (7, (5, 4)), (8, (4, 5)), (40, (5, 5)), (9, (6,))]), CPU)
    assert [block.own_index.shape for block in plan.completions] == [(2, 4), (6, 4)]
    assert [len(block.mask) for block in plan.completions] == [1, 6]  # one mask where prompts are equally long


def test_blocks_give_the_attention_and_gradients_of_the_dense_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        layouts = random_layouts(generator)
        size = sum(layout.num_tokens for layout in layouts)
        q, k, v, upstream = (
            torch.randn(1, heads, size, 3, generator=generator, dtype=torch.float64, requires_grad=True)
            for heads in (4, 2, 2, 4)
        )
        expected = F.scaled_dot_product_attention(
            q, k, v, attn_mask=dense_mask(layouts, CPU), scale=0.7, enable_gqa=True
        )
        plan = plan_attention(layouts, CPU)
        found, _ = packed_attention_forward(nn.Module(), q, k, v, None, scaling=0.7, packed_plan=plan)
        torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-12, rtol=0)
        by_found = torch.autograd.grad((found.transpose(1, 2) * upstream).sum(), (q, k, v))
        by_expected = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
        torch.testing.assert_close(by_found, by_expected, atol=1e-12, rtol=0)


def test_nothing_of_row_by_row_size_is_made() -> None:
    layouts = layouts_of([(32, (33,) * 16)] * 4)
    size = sum(layout.num_tokens for layout in layouts)  # 4 * (32 + 16 * 32) = 2,176
    q, k, v = (torch.randn(1, 2, size, 8) for _ in range(3))
    with LargestTensor() as seen:
        packed_attention_forward(nn.Module(), q, k, v, None, packed_plan=plan_attention(layouts, CPU))
    # The joined keys are largest: 64 completions of 64 keys, 2 heads of 8. A mask of the row has 4.7 million elements.
    assert seen.numel == 64 * 64 * 16 < size * size / 50
