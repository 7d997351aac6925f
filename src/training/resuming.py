"""What a training module's checkpoint holds, and what it needs of one to go on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lightning import LightningModule

from src.models.policy import Policy
from src.runs.random_states import random_states_of_ranks, restore_random_states
from src.training.settings import UpdateSettings


class ResumableModule(LightningModule, ABC):
    """A module whose checkpoints hold what training changes, the rollout step, the last scores and all random states.

    Attributes:
        policy: what is trained.
        update: how many rollout steps there are.
        rollout_step: rollout steps done.
        validated: (rollout step, metrics) of the last validation.
        started: metrics of the validation before the first rollout step.
        ends_when_finished: whether a checkpoint of a finished run is taken, to end at once, rather than refused.
    """

    policy: Policy
    update: UpdateSettings
    rollout_step: int
    validated: tuple[int, dict[str, float]]
    started: Mapping[str, float] = MappingProxyType({})
    ends_when_finished: bool = False
    _random_states: Sequence[dict[str, Any]] = ()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What training changes: with adapters, only these; the frozen base comes from where the policy came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in self._frozen():
            state.pop(name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take such a state; names that are frozen may be missing.

        Raises:
            ValueError: other names are missing, or unknown.
        """
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
        """Keep the rollout step, scores, and the random states of all ranks."""
        step, metrics = self.validated
        checkpoint["rollout_step"] = self.rollout_step
        checkpoint["scores"] = {"started": dict(self.started), "validated": [step, metrics]}
        checkpoint["random_states"] = random_states_of_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the next rollout step.

        Raises:
            ValueError: the checkpoint is of no training run, or of one that is finished.
        """
        if "rollout_step" not in checkpoint:
            raise ValueError(
                "ckpt_path: expected a checkpoint of a training run with the key 'rollout_step', found none. To start "
                "from a model's weights use policy.path."
            )
        done = int(checkpoint["rollout_step"])
        finished = done >= self.update.rollout_steps
        if finished and not self.ends_when_finished:
            raise ValueError(
                "ckpt_path: this run is finished, expected fewer than updates.rollout_steps="
                f"{self.update.rollout_steps} rollout steps done, found {done}. To go on, raise updates.rollout_steps."
            )
        self.trainer.should_stop = finished
        self.rollout_step = done
        if "scores" in checkpoint:  # a version before had neither
            step, metrics = checkpoint["scores"]["validated"]
            self.validated, self.started = (int(step), dict(metrics)), dict(checkpoint["scores"]["started"])
            self._random_states = checkpoint["random_states"]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """After everything is set up, which may draw numbers too, the generators are where they were.

        On more ranks than before, the others keep the states that they were seeded with.
        """
        if self.trainer.global_rank < len(self._random_states):
            restore_random_states(self._random_states[self.trainer.global_rank])
        self._random_states = ()
