"""Groups and modules made by hand, for tests of callbacks."""

from types import SimpleNamespace
from typing import Any

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionWeighting
from src.training.ranks import Ranks


def group(regions: list[int], lengths: list[int], weights: list[float], advantages: list[float]) -> PromptGroup:
    n = len(regions)
    return PromptGroup(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.zeros(n, dtype=torch.int64),
        lengths=torch.tensor(lengths),
        rollout_logprobs=torch.zeros(n),
        regions=torch.tensor(regions),
        rewards=torch.zeros(len(lengths)),
        advantages=torch.tensor(advantages),
        weights=torch.tensor(weights),
    )


def module_with(weighting: RegionWeighting, progress: float = 0.0) -> Any:
    """What a callback sees of a module, on one rank."""
    objective = SimpleNamespace(weighting=weighting)
    return SimpleNamespace(objective=objective, ranks=Ranks(), progress=progress, device=torch.device("cpu"))
