"""What a training module's checkpoint holds, and what it needs of one to go on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule

from src.models.policy import Policy
from src.models.settings import UpdateSettings


class ResumableModule(LightningModule, ABC):
    """A module whose checkpoints hold what training changes, and the rollout step.

    Attributes:
        policy: what is trained.
        update: how many rollout steps there are.
        rollout_step: rollout steps done.
    """

    policy: Policy
    update: UpdateSettings
    rollout_step: int

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What training changes: with adapters, only these; the frozen base comes from where the policy came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in self._frozen():
            state.pop(name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take such a state; names that are frozen may be missing."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        frozen = set(self._frozen())
        missing = [name for name in result.missing_keys if name not in frozen]
        if strict and (missing or result.unexpected_keys):
            raise ValueError(
                f"ckpt_path: the checkpoint does not fit this policy: missing {missing[:3] or 'nothing'}, unexpected "
                f"{result.unexpected_keys[:3] or 'nothing'}. Resume with the policy and policy.lora of its run."
            )
        return result

    def _frozen(self) -> list[str]:
        names = self.policy.named_parameters(remove_duplicate=False)
        return [f"policy.{name}" for name, parameter in names if not parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rollout step."""
        checkpoint["rollout_step"] = self.rollout_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the next rollout step."""
        if "rollout_step" not in checkpoint:
            raise ValueError(
                "ckpt_path: expected a checkpoint of a training run with the key 'rollout_step', found none. To start "
                "from a model's weights use policy.path."
            )
        done = int(checkpoint["rollout_step"])
        if done >= self.update.rollout_steps:
            raise ValueError(
                "ckpt_path: this run is finished, expected fewer than updates.rollout_steps="
                f"{self.update.rollout_steps} rollout steps done, found {done}. To go on, raise updates.rollout_steps."
            )
        self.rollout_step = done
