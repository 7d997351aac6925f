"""What is checked before a policy is loaded: the config, the architecture, and the memory that a run will take."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from src.utils.config_checks import check_config
from src.utils.memory_table import show_plan
from src.utils.policy_checks import check_architecture
from src.utils.preflight import MemoryPlanError, check_memory, plan_memory

log = logging.getLogger(__name__)


def ready(config: DictConfig) -> bool:
    """Check that a training can start; False if `dry_run` asks for no more than the predicted memory, which is shown.

    Raises:
        ConfigError: the config cannot run.
        MemoryPlanError: it will not fit, and `preflight.action` is `error`.
    """
    check_config(config)
    check_architecture(config)
    if config.dry_run:
        show_plan(plan_memory(config))
        return False
    if config.preflight.action != "off":
        try:
            check_memory(plan_memory(config))
        except MemoryPlanError as error:
            if config.preflight.action == "error":
                raise
            log.warning("%s", error)
    return True
