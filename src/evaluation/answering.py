"""From a loaded model to a `Generate`: limits that follow from the model, and the engine's wiring."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from src.data.rendering import PromptRenderer
from src.evaluation.generation import EngineGenerate, context_of
from src.models.resolving import LoadedModel
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import RolloutEngine
from src.utils.checks import check_fields

_LONGEST = 2048
_SHARE = 8


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are generated; always greedily.

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


def build_generate(
    loaded: LoadedModel, engine: RolloutEngine, renderer: PromptRenderer, settings: GenerationSettings
) -> EngineGenerate:
    """Answers by an engine that has the model's weights."""
    max_new_tokens, context = settings.limits(loaded.model)
    return EngineGenerate(
        engine,
        renderer,
        TokenBytes.from_tokenizer(loaded.tokenizer),
        loaded.stop_token_ids,
        max_new_tokens=max_new_tokens,
        context=context,
        batch_size=settings.batch_size,
    )
