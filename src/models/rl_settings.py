"""Settings of the RL module: the method, and how a rollout step becomes optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from src.algorithm.advantages import Estimator
from src.algorithm.policy_loss import PolicyLossConfig
from src.algorithm.region_weights import RegionWeighting
from src.utils.checks import check_fields


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """What makes a method: ResT, GRPO and kin differ here and in the reward only.

    Attributes:
        weighting: token weights by region.
        loss: the clipped loss.
        estimator: of the advantages.
        advantage_delta: δ of Eq. 15.
    """

    weighting: RegionWeighting
    loss: PolicyLossConfig
    estimator: Estimator = "grpo"
    advantage_delta: float = 1e-6


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How a rollout step's groups become optimizer steps.

    Attributes:
        rollout_steps: of the whole run.
        prompts_per_minibatch: prompts of one optimizer step, over all ranks.
        passes: times that each rollout step's groups are gone through.
        max_row_tokens: longest packed row; bounds the memory of a forward.
        gradient_clip: largest gradient norm.
    """

    rollout_steps: int
    prompts_per_minibatch: int
    passes: int = 1
    max_row_tokens: int = 16384
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        positive = ("rollout_steps", "prompts_per_minibatch", "passes", "max_row_tokens")
        rules = [(name, getattr(self, name) >= 1, "at least 1") for name in positive]
        check_fields("updates", self, [*rules, ("gradient_clip", self.gradient_clip > 0, "more than 0")])
