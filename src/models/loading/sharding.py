"""FSDP2: how a policy is loaded and sharded over ranks, and the Lightning strategy that does it.

The policy is built on the meta device; each decoder layer is filled from the checkpoint's files and sharded before the
next one is touched, so that a rank never holds more than its shards and one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from src.errors import ConfigError
from src.models.loading.weight_source import WeightSource, fill
from src.models.policy import Policy
from src.models.structure import decoder_of, layers_of


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks of all nodes: each holds its share of weights, gradients and optimizer states.

    Lightning's `ModelParallelStrategy` leaves the sharding to the module; `place_policy` is what our modules call.

    Args:
        cpu_offload: keep the shards, and the optimizer's work, in host memory.
        reshard_after_forward: give a layer's gathered weights back after its forward and gather them again for its
            backward; False saves that traffic and holds the whole model from forward to backward.
        save_distributed_checkpoint: checkpoints are folders, a file a rank; False: one file, gathered by rank 0.
        process_group_backend: null: NCCL on CUDA (with gloo beside it for `cpu_offload`), gloo on CPU.
        timeout_minutes: longest wait for the other ranks at any collective call.
    """

    def __init__(
        self,
        *,
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout_minutes: float = 60,
    ) -> None:
        super().__init__(
            data_parallel_size=1,  # of all ranks; how many these are is known in `setup_environment`
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.cpu_offload = cpu_offload
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        """One mesh dimension over all ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move what is not sharded; offloaded shards stay in host memory."""
        if not self.cpu_offload:
            super().model_to_device()

    def _get_process_group_backend(self) -> str:
        if self.cpu_offload and self._process_group_backend is None and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # the gradient norm is reduced where the shards are
        return str(super()._get_process_group_backend())


def place_policy(module: LightningModule, trainer: Trainer, policy: Policy, weights: WeightSource | None) -> None:
    """What a module's `configure_model` does: under a `ShardedStrategy` load and shard the policy, once.

    FSDP2 is applied in place, layer by layer and then to the rest (embeddings, last norm, head) with the root. Under
    bf16 precision the policy gathers and computes in bfloat16; shards, gradient reduction and optimizer stay as they
    are.

    Args:
        module: whose policy it is, for the error.
        trainer: with its strategy set up.
        policy: on this rank's device, or on the meta device.
        weights: to fill it from where it is on the meta device.

    Raises:
        ConfigError: the weights were left for such a strategy to load, and the trainer has another.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ShardedStrategy) or isinstance(policy, FSDPModule):
        if any(parameter.is_meta for parameter in policy.parameters()):
            raise ConfigError(
                f"{type(module).__name__}: the policy's weights were left for a sharded strategy to load, found "
                f"{type(strategy).__name__}. Use trainer=fsdp, or load the policy with its weights."
            )
        return
    device, offload = strategy.root_device, OffloadPolicy()
    if strategy.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    settings: dict[str, Any] = {"mesh": strategy.device_mesh["data_parallel"], "offload_policy": offload}
    if str(trainer.precision).startswith("bf16"):
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    names = {module: name for name, module in policy.model.named_modules()}
    for layer in layers_of(decoder_of(policy.model)):
        fill(layer, device, weights, names[layer], policy.model)
        fully_shard(layer, **settings, reshard_after_forward=strategy.reshard_after_forward)
    fill(policy.model, device, weights, "", policy.model)
    fully_shard(policy, **settings)


def reshard(policy: nn.Module) -> None:
    """Give back what a forward without backward leaves gathered: the root keeps its weights for a backward to come."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def is_sharded(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer config asks for a `ShardedStrategy`."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, Mapping) and str(strategy.get("_target_", "")).endswith(".ShardedStrategy")
