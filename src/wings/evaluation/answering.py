"""From a config and a loaded model to a `Generate`: device, prompt, limits that follow from the model, the engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import PreTrainedModel

from src.data.rendering import PromptRenderer
from src.errors import ConfigError, check_fields
from src.models.loading.lora import merged_named_tensors
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import EngineSource, RolloutEngine, SamplingParams
from src.wings.evaluation.generation import EngineGenerate, context_of
from src.wings.evaluation.resolving import LoadedModel, ModelSource

_LONGEST = 2048
_SHARE = 8


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How long answers may be, and how many are made at once.

    Attributes:
        max_new_tokens: longest answer in tokens; None: an eighth of the context, at most 2,048.
        context: most tokens of prompt and answer together; None: the model's positions.
        batch_size: prompts that go to the engine at once; answers in the making are lost if a run is interrupted.
    """

    max_new_tokens: int | None = None
    context: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens is None or self.max_new_tokens >= 1, "null or at least 1"),
            ("context", self.context is None or self.context >= 2, "null or at least 2"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        )
        check_fields("generation", self, rules)

    def limits(self, model: PreTrainedModel) -> tuple[int, int | None]:
        """(longest answer, context) for a model.

        Raises:
            ValueError: a context beyond the model's positions.
        """
        positions = context_of(model)
        if self.context is not None and positions is not None and self.context > positions:
            raise ValueError(f"generation.context: expected at most the model's {positions}, found {self.context}.")
        context = positions if self.context is None else self.context
        if self.max_new_tokens is not None:
            return self.max_new_tokens, context
        return (_LONGEST if context is None else max(1, min(_LONGEST, context // _SHARE))), context


def choose_device(wanted: str) -> torch.device:
    """The device that the key `device` means.

    Raises:
        ConfigError: there is no such device.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu or cuda, found '{wanted}'.")
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("device=cuda: PyTorch finds no CUDA device. Set device=cpu, or install a CUDA build.")
    return torch.device("cuda" if present and wanted != "cpu" else "cpu")


def complete_prompt(config: DictConfig, source: ModelSource) -> None:
    """Fill in what the config's `prompt` leaves to the model."""
    usual = {"layout": "published", "chat_template_kwargs": {}}
    with open_dict(config.prompt):
        for key, value in usual.items():
            if config.prompt[key] is None:
                config.prompt[key] = source.prompt.get(key) or value


def start_engine(
    config: DictConfig, source: ModelSource, loaded: LoadedModel, device: torch.device
) -> tuple[PromptRenderer, RolloutEngine]:
    """The renderer of the config's `prompt`, and the engine of its `rollout` with the model's weights.

    Args:
        config: with a complete prompt.
        source: that the model was loaded from.
        loaded: is moved to the device.
        device: of the model.
    """
    loaded.model.to(device)  # type: ignore[arg-type]
    renderer = PromptRenderer(loaded.tokenizer, **OmegaConf.to_container(config.prompt))  # type: ignore[arg-type]
    engine: RolloutEngine = instantiate(config.rollout)(EngineSource.of(loaded.model, source.policy))
    engine.update_weights(merged_named_tensors(loaded.model), 0)
    return renderer, engine


def build_generate(
    loaded: LoadedModel,
    engine: RolloutEngine,
    renderer: PromptRenderer,
    settings: GenerationSettings,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
) -> EngineGenerate:
    """Answers by an engine that has the model's weights; greedy without `sampling`."""
    max_new_tokens, context = settings.limits(loaded.model)
    return EngineGenerate(
        engine,
        renderer,
        TokenBytes.from_tokenizer(loaded.tokenizer),
        loaded.stop_token_ids,
        max_new_tokens=max_new_tokens,
        context=context,
        batch_size=settings.batch_size,
        sampling=sampling,
        seed=seed,
    )
