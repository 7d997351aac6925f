"""The forms of one mask against each other."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask

from src.models.attention.mask import BLOCK, block_mask, dense_mask, packed_mask_mod, token_index
from tests.models.rows import CPU, layouts_of


def test_dense_mask_of_the_worked_example() -> None:
    assert dense_mask(layouts_of([(2, (3, 2))]), CPU)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_groups_do_not_see_each_other() -> None:
    mask = dense_mask(layouts_of([(2, (2,)), (1, (2, 2))]), CPU)[0, 0]
    assert not mask[3:, :3].any() and mask[5].int().tolist() == [0, 0, 0, 1, 0, 1]


def test_block_mask_is_pytorchs_own_for_the_same_mask_mod() -> None:
    layouts = layouts_of([(300, (200, 90, 1)), (130, (40,)), (64, (65, 65))])  # 949 positions in 8 blocks
    found = block_mask(layouts, CPU)
    assert found.seq_lengths == (8 * BLOCK, 8 * BLOCK)
    group, part = token_index(layouts, CPU)
    padding = (0, 8 * BLOCK - len(group))
    visible = packed_mask_mod(torch.nn.functional.pad(group, padding, value=-1), torch.nn.functional.pad(part, padding))
    expected = create_block_mask(visible, None, None, 8 * BLOCK, 8 * BLOCK, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert torch.equal(found.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert found.full_kv_num_blocks.sum() > 0  # prompt blocks that a completion sees whole
    assert found.sparsity() > 50
