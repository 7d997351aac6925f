"""Decides which optimizer steps are taken: one that is not finite is counted and saved, and ends the run if it stays.

Nothing here touches a weight, a gradient or the optimizer's state.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from src.algorithm.experience import PromptGroup, Tree
from src.algorithm.policy_loss import LossCounts

log = logging.getLogger(__name__)

FOLDER = "bad_minibatches"


class NonFiniteError(FloatingPointError):
    """Loss or gradient stays NaN or infinite; no weight has been changed by it."""


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One rank's share of a minibatch, with all that its loss needs beside the policy, so it can be computed again.

    Attributes:
        groups: with token weights, and old log-probabilities unless `first`.
        counts: totals of the minibatch over all ranks, which the loss divides by.
        first: no update had come since the groups were sampled.
        temperature: of the policy's distribution.
        rollout_step: from 0; the weights are those after so many rollout steps and `minibatch` optimizer steps.
        minibatch: from 0, in its rollout step.
        loss: found, over all ranks; NaN until then.
        grad_norm: found, before clipping; NaN until then.
    """

    groups: list[PromptGroup]
    counts: LossCounts
    first: bool
    temperature: float
    rollout_step: int
    minibatch: int
    loss: float = math.nan
    grad_norm: float = math.nan

    def save(self, path: Path) -> None:
        """Write a safetensors file: tensors `<group>.<field>`, a tree's `<group>.tree.<field>`, the rest as JSON.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for index, group in enumerate(self.groups):
            tensors |= _named_tensors(str(index), group)
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "groups"}
        content = save(tensors, metadata={"minibatch": json.dumps({**rest, "groups": len(self.groups)})})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    @classmethod
    def load(cls, path: Path) -> Minibatch:
        """Read such a file; nothing in it is executed.

        Raises:
            ValueError: it is not one.
        """
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get("minibatch")
            if described is None:
                raise ValueError(f"{path}: expected a minibatch saved by a training run, found no 'minibatch' in it.")
            rest = json.loads(described)
            found: list[dict[str, Any]] = [{} for _ in range(rest.pop("groups"))]
            trees: list[dict[str, Tensor]] = [{} for _ in found]
            for key in file.keys():  # noqa: SIM118  # not a mapping
                index, *_, name = key.split(".")
                (trees if ".tree." in key else found)[int(index)][name] = file.get_tensor(key)
        rest["counts"] = LossCounts(*rest["counts"])
        pairs = zip(found, trees, strict=True)
        return cls(groups=[PromptGroup(**one, tree=Tree(**tree) if tree else None) for one, tree in pairs], **rest)


def _named_tensors(name: str, value: Tensor | Tree | PromptGroup) -> dict[str, Tensor]:
    """The tensors of a group or tree, on the CPU, each named by its path."""
    if isinstance(value, Tensor):
        return {name: value.detach().cpu().clone()}
    given = ((f.name, getattr(value, f.name)) for f in fields(value))
    return {
        key: x for part, one in given if one is not None for key, x in _named_tensors(f"{name}.{part}", one).items()
    }


class StepGuard:
    """Says of every minibatch whether its optimizer step is taken, and remembers those that were not.

    Args:
        max_bad_steps: so many in a row end the run.
        max_saved: files kept in all, on each rank.

    Attributes:
        skipped: steps not taken so far.
        in_a_row: of these, since the last one that was taken.
    """

    def __init__(self, max_bad_steps: int, max_saved: int) -> None:
        self._max_bad_steps, self._max_saved = max_bad_steps, max_saved
        self.skipped = 0
        self.in_a_row = 0
        self._saved = 0

    def allows(self, loss: float, grad_norm: float) -> bool:
        """Whether both are finite. The answer is counted; equal arguments on all ranks give it on all ranks."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    def keep(self, minibatch: Minibatch, folder: Path, rank: int) -> str | None:
        """Save a minibatch that was skipped; its file's name, or None where there are enough of them already.

        A file that cannot be written is no reason to stop: that is told, and training goes on.
        """
        if self._saved >= self._max_saved:
            return None
        name = f"step_{minibatch.rollout_step:06d}_minibatch_{minibatch.minibatch:03d}_rank_{rank}.safetensors"
        try:
            minibatch.save(folder / FOLDER / name)
        except OSError as error:
            log.warning("The minibatch that is not finite cannot be saved: %s.", error)
            return None
        self._saved += 1
        return name

    def check(self, rollout_step: int, loss: float, grad_norm: float) -> None:
        """Say that a step was skipped, and stop the run if it was one too many.

        Raises:
            NonFiniteError: `max_bad_steps` in a row.
        """
        found = f"rollout step {rollout_step}: loss {loss}, gradient norm {grad_norm}. "
        advice = "Lower optimizer.learning_rate or look at the last rollouts in rollouts.jsonl"
        if self.in_a_row >= self._max_bad_steps:
            raise NonFiniteError(
                f"{found}The weights are those before this minibatch. {advice} and at the minibatches in {FOLDER}/. "
                f"Optimizer steps skipped in a row: {self.in_a_row} (updates.max_bad_steps={self._max_bad_steps})."
            )
        log.warning(
            "%sThe optimizer step is skipped, weights and optimizer are as before it; %d more in a row stop the run. "
            "%s if it comes again.",
            found,
            self._max_bad_steps - self.in_a_row,
            advice,
        )

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "saved": self._saved}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue counting."""
        self.skipped, self.in_a_row, self._saved = state["skipped"], state["in_a_row"], state["saved"]
