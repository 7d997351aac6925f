"""A decode step in a few fixed shapes, on buffers that stay where they are: what a CUDA graph can replay.

Rows and columns are rounded up to powers of two; rows that are too many compute something that no one reads. Replaying
a graph launches a step's hundreds of kernels at once. Graphs are not measured here: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.rollout.native.admission import Room
from src.rollout.native.decoding import Forward, StepInputs
from src.rollout.native.lean_decoder import is_lean
from src.rollout.native.prefix_cache import PrefixCache
from src.rollout.native.step_layout import Grid, StepLayout, own_bias, prompt_bias


def uses_graphs(model: PreTrainedModel, wanted: bool | None) -> bool:
    """Whether to capture the decode steps of this model.

    Args:
        model: that samples.
        wanted: `rollout.cuda_graphs`; None: on CUDA, where the step is our own and never looks at a number.

    Raises:
        ValueError: wanted without a GPU.
    """
    on_gpu = model.device.type == "cuda"
    if wanted and not on_gpu:
        raise ValueError(
            f"rollout.cuda_graphs=true: expected a model on CUDA, found it on {model.device}. "
            "Set rollout.cuda_graphs=null."
        )
    if wanted is not None:
        return wanted
    return on_gpu and is_lean(model)


@dataclass(slots=True)
class _Buffers:
    """Inputs of all shapes, as long as the largest.

    Attributes:
        tokens: int64 [rows].
        positions: int64 [rows].
        steps: int64 [rows].
        places: int64 [rows], in a grid [slots, n].
        members: int64 [slots x n].
        lengths: int64 [slots], tokens of the prompts.
        column: int64 [1].
    """

    tokens: Tensor
    positions: Tensor
    steps: Tensor
    places: Tensor
    members: Tensor
    lengths: Tensor
    column: Tensor


class StaticStep:
    """See `decoding.Step`.

    Args:
        forward: the model's pass.
        n: completions a prompt.
        capture: replay CUDA graphs; False: compute the same shapes without.
    """

    def __init__(self, forward: Forward, n: int, *, capture: bool) -> None:
        self._forward, self._n, self._capture = forward, n, capture
        self._room: Room | None = None
        self._grid: Grid | None = None
        self._buffers: _Buffers | None = None
        self._shapes: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def __call__(self, inputs: StepInputs, cache: PrefixCache) -> Tensor:
        """Logits [R, V]; the cache was made with zeros."""
        buffers = self._filled(inputs, cache)
        shape = _rounded(len(inputs.tokens), cache.room.rows), _rounded(inputs.used, cache.columns)
        if shape not in self._shapes:

            def run() -> Tensor:
                return self._run(buffers, cache, *shape)

            self._shapes[shape] = captured(run) if self._capture else run
        return self._shapes[shape]()[: len(inputs.tokens)]

    def _run(self, buffers: _Buffers, cache: PrefixCache, rows: int, width: int) -> Tensor:
        bias = prompt_bias(buffers.lengths, cache.room.width)
        grid = Grid(cache.room.slots, self._n, cache.room.width, buffers.places[:rows], buffers.members, bias)
        own = own_bias(buffers.steps[:rows], buffers.column, width, cache.columns)
        cache.layout = StepLayout(grid, rows, buffers.column, width, own)
        return self._forward(buffers.tokens[:rows], buffers.positions[:rows], cache)

    def _filled(self, inputs: StepInputs, cache: PrefixCache) -> _Buffers:
        """The buffers with this step's inputs; new ones, and no graphs, after the cache has moved."""
        device, room = inputs.tokens.device, cache.room
        if self._buffers is None or self._room is not room:
            self._shapes.clear()
            self._room, self._grid = room, None
            sizes = {"members": room.slots * self._n, "lengths": room.slots, "column": 1}
            self._buffers = _Buffers(
                *(
                    torch.ones(sizes.get(name, room.rows), dtype=torch.long, device=device)
                    for name in _Buffers.__dataclass_fields__
                )
            )
        buffers, rows = self._buffers, len(inputs.tokens)
        for name in ("tokens", "positions", "steps"):
            getattr(buffers, name)[:rows] = getattr(inputs, name)
        buffers.column.fill_(inputs.column)
        if self._grid is not inputs.grid:
            self._grid = grid = inputs.grid
            order = torch.arange(rows, device=device)
            places = order if grid.places is None else grid.places
            places = places // grid.width * self._n + places % grid.width
            buffers.places.zero_()
            buffers.members.zero_()
            buffers.places[:rows], buffers.members[places] = places, order
            buffers.lengths.fill_(1)  # an unused slot's attention is read by no one, but must have a key
            buffers.lengths[: grid.slots] = torch.tensor(cache.lengths, device=device)
        return buffers


def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of `run`, whose inputs and outputs of any shape keep their places. Two runs must do no harm."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces at a first run, which no graph may contain
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _rounded(count: int, most: int) -> int:
    """The next power of two, at most `most`."""
    return min(1 << (count - 1).bit_length(), most)
