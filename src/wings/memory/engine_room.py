"""What vLLM beside the trainer needs of a device to start, and what it may have."""

from __future__ import annotations

from dataclasses import dataclass

from src.runs.folder import GIB


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What an engine needs on each of its devices to start, and what it may have; all in bytes.

    Attributes:
        share: `rollout.gpu_memory_utilization`.
        sequences: `rollout.max_num_seqs`.
        length: tokens of the longest request.
        weights: of the model.
        profile: peak of a forward and of sampling, and CUDA graphs.
        request: cache of the longest request.
        token: cache of one token.
        device: of the whole device; None: not known.
        cache: given for the cache alone, in place of the share; None: none is.
        planned: whether the share is what the plan found free, not the config's.
    """

    share: float
    sequences: int
    length: int
    weights: int
    profile: int
    request: int
    token: int
    device: int | None
    cache: int | None = None
    planned: bool = False

    @property
    def available(self) -> int | None:
        """For the cache; None: not known."""
        if self.cache is not None or self.device is None:
            return self.cache
        return int(self.share * self.device) - self.weights - self.profile

    @property
    def fits(self) -> bool:
        """Whether vLLM starts, as far as that is known."""
        return self.available is None or self.request <= self.available

    def __str__(self) -> str:
        """The settings, what is needed, and what there is."""
        needed = f"cache of one request of {self.length} tokens {self.request / GIB:.1f} GiB"
        if self.cache is not None:
            return f"{needed}, of rollout.kv_cache_gib={self.cache / GIB:g}"
        needed = f"weights {self.weights / GIB:.1f}, profile {self.profile / GIB:.1f}, {needed}"
        there = "" if self.device is None else f" of {self.device / GIB:.1f} GiB"
        return f"{needed}, within rollout.gpu_memory_utilization={self.share:g}{there}"

    def changes(self) -> str:
        """Keys that let it start."""
        if self.cache is not None:
            share = "raise rollout.kv_cache_gib"
        elif self.planned:  # there is no more
            share = "leave it more memory, with more trainer.devices and a larger rollout.tensor_parallel_size"
        else:
            share = "raise rollout.gpu_memory_utilization or rollout.tensor_parallel_size"
        return (
            f"{share}; lower rollout.max_model_len, or where it is null what it follows from: "
            "callbacks.benchmark.context, episodes.max_tokens, data.max_prompt_tokens + sampling.max_new_tokens"
        )
