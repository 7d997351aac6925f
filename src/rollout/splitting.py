"""An engine that samples in smaller batches when memory runs out, and remembers what went wrong.

Splitting by prompts needs nothing of the engine: a prompt with its seed gives the same completions whatever else is in
the batch. Other errors propagate: `training.sampler` gives the engine its weights again and tries once more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from src.errors import is_out_of_memory
from src.rollout.engine import Completion, RolloutEngine, SamplingParams

log = logging.getLogger(__name__)

_SMALLER = (
    "Out of memory while sampling: from here on at most %d completions are asked for at once, which gives the same "
    "ones. For speed rather lower rollout.max_sequences or rollout.max_batch_tokens, or their like of another engine."
)


class SplittingEngine:
    """A `RolloutEngine` around another one.

    Args:
        engine: does the work.

    Attributes:
        engine: the same.
        max_completions: most that are asked for at once; None: as many as the caller wants. Halved when memory runs
            out, and kept for the rest of the run.
        fault: the last error of `generate` that another try may not meet: what devices, processes and connections
            raise (`RuntimeError`, `OSError`). A request that is wrong (`ValueError`, `TypeError`) is wrong again.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine
        self.copies_weights, self.ranks_per_engine = engine.copies_weights, engine.ranks_per_engine
        self.max_completions: int | None = None
        self.fault: RuntimeError | OSError | None = None

    @property
    def weights_version(self) -> int:
        """The engine's."""
        return self.engine.weights_version

    @property
    def context(self) -> int | None:
        """The engine's."""
        return self.engine.context

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """See `RolloutEngine.generate`.

        Raises:
            RuntimeError: memory runs out (`is_out_of_memory`) on one prompt, or in an engine of several ranks, all of
                which must be called equally often.
        """
        try:
            return self._in_batches(prompts, params, seeds)
        except (RuntimeError, OSError) as error:
            self.fault = error
            raise

    def _in_batches(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """As many prompts at once as memory allows."""
        if self.max_completions is None or self.ranks_per_engine > 1:
            size = len(prompts)
        else:
            size = max(1, self.max_completions // params.n)
        done: list[list[Completion]] = []
        while True:
            part = slice(len(done), len(done) + size)
            try:
                done += self.engine.generate(prompts[part], params, seeds[part])
            except (RuntimeError, MemoryError) as error:
                size = len(prompts[part]) // 2
                if not is_out_of_memory(error) or size == 0 or self.ranks_per_engine > 1:
                    raise
                self.max_completions = size * params.n
                log.warning(_SMALLER, self.max_completions)
            else:
                if len(done) >= len(prompts):
                    return done
                continue
            torch.cuda.empty_cache()  # for cuBLAS and its like, now that the traceback no longer holds activations

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `RolloutEngine.update_weights`."""
        self.engine.update_weights(named_tensors, version)

    def release_memory(self) -> None:
        """See `RolloutEngine.release_memory`."""
        self.engine.release_memory()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self.engine.close()
