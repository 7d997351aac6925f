"""Tiles of a packed row: together they cover what the dense mask allows, once."""

from __future__ import annotations

import pytest
import torch

from src.algorithm.packing import GroupLayout
from src.models import attention_plan
from src.models.attention_mask import dense_mask
from src.models.attention_plan import Tile, plan_attention
from tests.models.rows import CPU, layouts_of, random_layouts


def pairs(tile: Tile, size: int) -> torch.Tensor:
    """The (query, key) pairs [size, size] that a tile attends to."""
    seen = torch.zeros(size, size, dtype=torch.int64)
    for run in range(tile.runs):
        queries = torch.arange(tile.queries) + tile.query + run * tile.queries
        keys = torch.arange(tile.keys) + tile.key + run * tile.keys
        allowed = keys <= queries[:, None] if tile.causal else torch.ones(tile.queries, tile.keys, dtype=torch.bool)
        seen[queries[:, None], keys] += allowed
    return seen


def covered(layouts: tuple[GroupLayout, ...]) -> torch.Tensor:
    size = sum(layout.num_tokens for layout in layouts)
    return torch.stack([pairs(tile, size) for tile in plan_attention(layouts, CPU).tiles]).sum(0)


def test_tiles_cover_the_dense_mask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    for longest in (3, 8, 256):
        monkeypatch.setattr(attention_plan, "MAX_CAUSAL", longest)
        for _ in range(20):
            layouts = random_layouts(generator)
            assert torch.equal(covered(layouts), dense_mask(layouts, CPU)[0, 0].long())


def test_long_runs_are_cut_into_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "MAX_CAUSAL", 4)
    tiles = plan_attention(layouts_of([(9, (1, 1))]), CPU).tiles  # 9 = 3 + 3 + 3
    assert tiles == (
        Tile(0, 3, 3, 0, 3, causal=True),
        Tile(3, 3, 1, 0, 3, causal=False),
        Tile(6, 3, 1, 0, 6, causal=False),
    )


def test_each_position_is_in_one_causal_tile_and_those_come_first() -> None:
    layouts = layouts_of([(700, (3, 3, 900, 1)), (5, (6,)), (1, (2, 2))])
    tiles = plan_attention(layouts, CPU).tiles
    kinds = [tile.causal for tile in tiles]
    assert kinds == sorted(kinds, reverse=True)
    positions = [p for t in tiles if t.causal for p in range(t.query, t.query + t.runs * t.queries)]
    assert sorted(positions) == list(range(sum(layout.num_tokens for layout in layouts)))
