"""How many tokens a training asks its engine for at once: an engine that takes more reserves memory for nothing."""

from __future__ import annotations

from omegaconf import DictConfig

from src.rollout.engine import shortest


def benchmarks_run(config: DictConfig) -> bool:
    """Whether benchmarks run during training."""
    chosen = (config.get("benchmark") or {}).values()
    return config.callbacks.get("benchmark") is not None and any(entry is not None for entry in chosen)


def benchmark_context(config: DictConfig, positions: int | None) -> int | None:
    """Most tokens of a benchmark's prompt and answer together, whatever length the engine is given; None: no limit."""
    return shortest(config.callbacks.benchmark.get("context"), positions)


def engine_length(config: DictConfig, positions: int | None) -> int | None:
    """Most tokens of prompt and completion together that a training needs; an engine may be given another length.

    Args:
        config: composed.
        positions: of the model; None: any number.

    Returns:
        The longest of training's prompts with their answers, its episodes, and its benchmarks; at most `positions`.
        None: there is no limit.
    """
    needed = [shortest(config.data.max_prompt_tokens + config.sampling.max_new_tokens, positions)]
    if config.data.train.get("environment") is not None:
        needed.append(shortest(config.episodes.max_tokens, positions))
    if benchmarks_run(config):
        needed.append(benchmark_context(config, positions))
    return None if None in needed else max(needed)  # type: ignore[type-var]
