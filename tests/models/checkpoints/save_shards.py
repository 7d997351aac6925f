"""Saves what Lightning's sharded training saves: `python tests/models/checkpoints/save_shards.py RANKS FOLDER`.

Makes `FOLDER/last.ckpt` and, from the gathered weights, `FOLDER/full.pt`, and `FOLDER/half.pt` of those that were
gathered for an engine in bfloat16. Ranks start this script again, so it runs in a process of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from src.models.loading.loading import PolicyConfig, load_policy
from src.models.loading.lora import LoraSettings, merged_named_tensors


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        tiny = Path(__file__).parents[3] / "src/models/tiny"
        self.policy = load_policy(PolicyConfig(path=tiny, dtype="float32", lora=LoraSettings(rank=2))).policy
        self.automatic_optimization = False
        self.rollout_step = 0

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in self.policy.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.policy.model, mesh=mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        self.manual_backward(self.policy.model(torch.arange(8)[None]).logits.square().mean())
        self.optimizers().step()
        self.rollout_step += 1

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["rollout_step"] = self.rollout_step


if __name__ == "__main__":
    ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
    strategy = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=True)
    trainer = L.Trainer(accelerator="cpu", devices=ranks, strategy=strategy, max_steps=2, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(range(4), batch_size=1))
    trainer.save_checkpoint(folder / "last.ckpt")
    merged = {name: tensor.clone() for name, tensor in merged_named_tensors(module.policy.model)}
    half = {name: tensor.clone() for name, tensor in merged_named_tensors(module.policy.model, torch.bfloat16)}
    if trainer.is_global_zero:
        torch.save(merged, folder / "full.pt")
        torch.save(half, folder / "half.pt")
