"""How to search: `hydra.sweeper`, checked as the rest of the config is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler

from src.config.checks import check_nodes
from src.errors import ConfigError, check_fields

SECTION = "hydra.sweeper"
FREE = ("n_trials", "parallel", "max_failures")
"""Settings that may change when a sweep goes on."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How to search.

    Attributes:
        sampler: makes Optuna's sampler of a seed.
        pruner: says from the values on the way whether a trial ends early.
        n_trials: finished or pruned trials of the whole sweep, over all its starts.
        parallel: trials at once.
        watched: metric of rollout steps by which trials are compared on the way; the last validation decides.
        window: rollout steps of its trailing mean.
        seed: of the sampler; that of trainings is the config's own `seed`, the same for all trials.
        max_failures: runs that may end with an error before the sweep does.
        params: config keys to what they may be, in the syntax of a Hydra multirun; `src.wings.sweeping.space` reads it.
    """

    sampler: Callable[..., BaseSampler]
    pruner: BasePruner | None = None
    n_trials: int = 12
    parallel: int = 1
    watched: str = "reward/exact_match"
    window: int = 5
    seed: int = 1
    max_failures: int = 3
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = (
            ("n_trials", self.n_trials >= 1, "at least 1"),
            ("parallel", self.parallel >= 1, "at least 1"),
            ("window", self.window >= 1, "at least 1"),
            ("max_failures", self.max_failures >= 0, "at least 0"),
        )
        check_fields(SECTION, self, rules)

    def pruning(self) -> BasePruner:
        """The pruner; one that never prunes for null."""
        return NopPruner() if self.pruner is None else self.pruner


def read_settings(sweeper: DictConfig) -> SweepSettings:
    """The settings of a composed `hydra.sweeper`.

    Raises:
        ConfigError: an unknown key, or a value that cannot be.
    """
    target = f"{SweepSettings.__module__}.{SweepSettings.__name__}"
    check_nodes(OmegaConf.merge(sweeper, {"_target_": target}), SECTION)
    plain = OmegaConf.to_container(sweeper, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items() if key not in ("_target_", "_recursive_")}
    try:
        return SweepSettings(**instantiate(values, _convert_="all"))
    except (HydraException, ValueError) as error:
        raise ConfigError(str(error).strip()) from error
