"""The forms of one mask against each other: tiles cover what the dense mask allows, once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from src.algorithm.packing import GroupLayout
from src.models.attention.plan import (
    BLOCK,
    AttentionPlan,
    Tile,
    backward_tiles,
    block_mask,
    dense_mask,
    packed_mask_mod,
    token_ends,
)
from tests.models.rows import CPU, layouts_of, random_layouts, random_trees


def pairs(tiles: tuple[Tile, ...], size: int) -> torch.Tensor:
    """How often tiles attend to each (query, key) pair [size, size]."""
    seen = torch.zeros(size, size, dtype=torch.int64)
    for tile in tiles:
        allowed = torch.ones(tile.queries, tile.keys, dtype=torch.int64)
        for run in range(tile.runs):
            queries = torch.arange(tile.queries) + tile.query + run * tile.query_step
            keys = torch.arange(tile.keys) + tile.key + run * tile.key_step
            seen[queries[:, None], keys] += allowed.tril() if tile.causal else allowed
    return seen


@pytest.mark.parametrize("piece", [2, 3, 256])
def test_tiles_cover_the_dense_mask_once(piece: int) -> None:
    generator = torch.Generator().manual_seed(piece)
    for _ in range(15):
        for layouts in (random_layouts(generator), random_trees(generator)):
            tiles, mask = AttentionPlan(layouts, CPU).tiles, dense_mask(layouts, CPU)[0, 0].long()
            assert torch.equal(pairs(tiles, len(mask)), mask)
            for key_heads, threads in ((1, 2), (3, 2), (4, 1), (2, 5)):
                assert torch.equal(pairs(backward_tiles(tiles, key_heads, threads, piece), len(mask)), mask)


def test_dense_mask_of_a_tree_is_the_ancestor_relation() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        layouts = random_trees(generator)
        tokens = sum(layout.num_tokens for layout in layouts)
        expected = torch.zeros(tokens, tokens, dtype=torch.bool)
        for layout in layouts:
            for path in layout.sequences:
                places = [layout.starts[run] + place for run in path for place in range(layout.sizes[run])]
                for index, query in enumerate(places):
                    expected[query, places[: index + 1]] = True
        assert torch.equal(dense_mask(layouts, CPU)[0, 0], expected)


def test_long_runs_are_cut_into_pieces() -> None:
    tiles = AttentionPlan(layouts_of([(600, (1, 1))]), CPU).tiles  # 600 = 2 * 256 + 88
    assert backward_tiles(tiles, key_heads=2, threads=2) == (
        Tile(0, 256, 0, 256, causal=True, runs=2, query_step=256, key_step=256),
        Tile(512, 88, 512, 88, causal=True),
        Tile(256, 256, 0, 256),
        Tile(512, 88, 0, 512),
    )


def test_threads_get_equally_many_runs_of_aligned_keys() -> None:
    tiles = AttentionPlan(layouts_of([(71, (3, 6))]), CPU).tiles
    *_, halves, rest = backward_tiles(tiles, key_heads=3, threads=2)
    assert (halves, rest) == (Tile(71, 7, 0, 32, runs=2, key_step=32), Tile(71, 7, 64, 7))
    assert torch.equal(pairs(backward_tiles(tiles, 3, 2), 78), pairs(tiles, 78))
    (whole,) = [t for t in backward_tiles(tiles, key_heads=4, threads=2) if not t.causal]
    assert whole == Tile(71, 7, 0, 71)


def test_each_position_is_in_one_causal_tile_and_those_come_first() -> None:
    layouts = layouts_of([(700, (3, 3, 900, 1)), (5, (6,)), (1, (2, 2))])
    forward = AttentionPlan(layouts, CPU).tiles
    for tiles in (forward, backward_tiles(forward, 3, 2)):
        kinds = [tile.causal for tile in tiles]
        assert kinds == sorted(kinds, reverse=True)
        firsts = [(t.query + run * t.query_step, t.queries) for t in tiles if t.causal for run in range(t.runs)]
        positions = [position for first, length in firsts for position in range(first, first + length)]
        assert sorted(positions) == list(range(sum(layout.num_tokens for layout in layouts)))


def test_dense_mask_of_the_worked_example() -> None:
    assert dense_mask(layouts_of([(2, (3, 2))]), CPU)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_dense_mask_of_the_worked_example_within_a_window_of_two() -> None:
    found = dense_mask(layouts_of([(2, (3, 2))]), CPU, lambda batch, head, query, key: key > query - 2)
    assert found[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]


def test_tiles_of_a_worked_tree() -> None:
    # A prompt of 2; a run of 2 with two runs of 3 behind it; a run of 1. A chain is one run: 3 behind the second of 3.
    layout = GroupLayout(0, (2, 2, 3, 3, 3, 1), (-1, 0, 1, 1, 3, 0))
    assert AttentionPlan((layout,), CPU).tiles == (
        Tile(0, 2, 0, 2, causal=True),
        Tile(2, 2, 2, 2, causal=True),
        Tile(4, 3, 4, 3, causal=True),
        Tile(7, 6, 7, 6, causal=True),
        Tile(13, 1, 13, 1, causal=True),
        Tile(2, 12, 0, 2),
        Tile(4, 9, 2, 2),
    )


def test_groups_do_not_see_each_other() -> None:
    mask = dense_mask(layouts_of([(2, (2,)), (1, (2, 2))]), CPU)[0, 0]
    assert not mask[3:, :3].any() and mask[5].int().tolist() == [0, 0, 0, 1, 0, 1]


def test_block_mask_is_pytorchs_own_for_the_same_mask_mod() -> None:
    layouts = layouts_of([(300, (200, 90, 1)), (130, (40,)), (64, (65, 65)), (75, ())])  # 949 positions and padding
    found = block_mask(layouts, CPU)
    assert found.seq_lengths == (8 * BLOCK, 8 * BLOCK)
    visible = packed_mask_mod(token_ends(layouts, CPU))
    expected = create_block_mask(visible, None, None, 8 * BLOCK, 8 * BLOCK, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert torch.equal(found.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert found.full_kv_num_blocks.sum() > 0  # prompt blocks that a completion sees whole
    assert found.sparsity() > 50
